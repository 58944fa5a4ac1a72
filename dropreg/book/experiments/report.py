"""What the runs of a size say, as plain text: the claims, then a table for each experiment."""

from __future__ import annotations

from dataclasses import replace

from dropreg.book.experiments import first_ledger
from dropreg.book.experiments.catalog import at_size
from dropreg.book.experiments.claims import CLAIMS
from dropreg.book.experiments.declarations import Experiment
from dropreg.book.experiments.first_edition import FIRST_EDITION
from dropreg.book.experiments.ledger import Epoch, rows
from dropreg.book.experiments.runner import Store
from dropreg.book.experiments.second_edition import SECOND_EDITION
from dropreg.book.experiments.tasks import Size
from dropreg.book.experiments.verdicts import View, corrected, judge, perplexities, verdict


def report(size: Size, store: Store) -> str:
    """The verdicts and tables of a size, the second edition's first.

    Args:
        size: Size.
        store: Where the runs are.

    Returns:
        Several lines.
    """
    parts = [_claims(size, store), _first_claims(size, store)]
    for each in at_size(size):
        table = _table if each.name in SECOND_EDITION else _first_table
        parts.append(table(each, size, store))
    return "\n\n".join(part for part in parts if part)


def _title(experiment: Experiment, *columns: str) -> list[str]:
    head, *others = columns
    heads = "  ".join(f"{column:18}" for column in others)
    return [
        f"{experiment.name} ({experiment.source}): {experiment.title}",
        f"  {head:40}  {heads}  seeds",
    ]


def _table(experiment: Experiment, size: Size, store: Store) -> str:
    lines = _title(experiment, "test perplexity, averaged weights", "best look", "last look")
    for row in rows(experiment, size, store):
        cells = []
        for view in (View.BEST, View.LAST):
            values = list(perplexities(row, view).values())
            cells.append(f"{sum(values) / len(values):.1f}" if values else "")
        seeds = f"{len(row.records)} of {len(experiment.arms[row.arm].seeds)}"
        lines.append(f"  {row.label:40}  {cells[0]:18}  {cells[1]:18}  {seeds}")
    return "\n".join(lines)


def _claims(size: Size, store: Store) -> str:
    claims = [replace(each, size=size) for each in CLAIMS if size in (each.size, Size.TINY)]
    if not claims:
        return ""
    lines = ["claims, by the second edition's rule; p for all claims of a look together"]
    judged = {view: [judge(claim, store, view) for claim in claims] for view in View}
    p_values = {view: corrected(findings) for view, findings in judged.items()}
    for index, claim in enumerate(claims):
        lines.append(f"  {claim.text} ({claim.source})")
        for view in View:
            findings, p = judged[view][index], p_values[view][index]
            numbers = "; ".join(each.summary for each in findings)
            together = "" if p is None else f" (p = {p:.2g})"
            lines.append(f"    {view}: {numbers}: {verdict(findings)}{together}")
    return "\n".join(lines)


def _first_table(experiment: Experiment, size: Size, store: Store) -> str:
    lines = _title(experiment, "validation perplexity", "best epoch", "last epoch")
    for row in rows(experiment, size, store):
        best, last = (row.summary(epoch) for epoch in Epoch)
        lines.append(f"  {row.label:40}  {best:18}  {last:18}  {len(row.records)}")
    return "\n".join(lines)


def _first_claims(size: Size, store: Store) -> str:
    claims = [c for c in first_ledger.CLAIMS if size in FIRST_EDITION[c.experiment].sizes]
    if not claims:
        return ""
    lines = ["claims, as the first edition judged them: best and last epoch"]
    for claim in claims:
        lines.append(f"  {claim.text} ({claim.source})")
        for epoch in Epoch:
            found = first_ledger.judge(claim, size, store, epoch)
            lines.append(
                f"    {epoch}: {claim.first} is to be {claim.expected} against {claim.second}: "
                f"{found.summary or '-'}: {found.verdict}"
            )
    return "\n".join(lines)
