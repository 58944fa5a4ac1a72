r"""The reproduction ledger: each claim of the paper, and what our recorded runs say about it.

A claim is a comparison of two arms of an experiment. Both are trained from the same initial weights
on the same windows at the same seed, so a difference is taken seed by seed: the log ratio of the
two validation perplexities, with the 95 % interval of Student's t over the seeds, shown in percent.

The rule of the verdict: a claim that one arm is better or worse is **reproduced** if the interval
lies on its side of zero and **contradicted** if it lies on the other. A claim that two arms agree
is reproduced if the interval lies within a margin and contradicted if it lies outside. What is left
is **undecided**; with fewer than three seeds nothing is judged. The intervals need SciPy, which the
extra `dropreg[book]` brings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dropreg.book.experiments.catalog import EXPERIMENTS, at_size
from dropreg.book.experiments.claims import CLAIMS, Claim, Expected
from dropreg.book.experiments.declarations import Experiment
from dropreg.book.experiments.records import Record
from dropreg.book.experiments.runner import Store
from dropreg.book.experiments.tasks import Size
from dropreg.book.statistics import FEWEST, in_percent, interval, percent
from dropreg.errors import Choice, InputError, needs

if TYPE_CHECKING:
    import numpy as np


class Epoch(Choice):
    """Which epoch's validation perplexity is compared."""

    BEST = "best"
    """The lowest of any epoch, what the paper reports."""
    LAST = "last"
    """That after the last epoch, where overfitting shows."""


@dataclass(frozen=True)
class Row:
    """One arm of an experiment in a table.

    Attributes:
        arm: Its name.
        strength: The strength that tuning has chosen, None where nothing is tuned.
        records: For each seed its run, ended or stopped.
    """

    arm: str
    strength: float | None
    records: Mapping[int, Record]

    def perplexities(self, epoch: Epoch) -> dict[int, float]:
        """Validation perplexity of each finished run; what was stopped is not compared."""
        return {
            seed: _perplexity(record, epoch)
            for seed, record in self.records.items()
            if record.finished
        }

    def summary(self, epoch: Epoch) -> str:
        """Mean and 95 % interval over the seeds, or the values where they are too few."""
        values = list(self.perplexities(epoch).values())
        unfinished = [record for record in self.records.values() if not record.finished]
        diverged = sum(record.ended for record in unfinished)
        note = f" ({diverged} diverged)" if diverged else ""
        for record in unfinished:
            if not record.ended and record.column("valid_perplexity"):
                so_far = (
                    f"{_perplexity(record, epoch):.1f} in the first {len(record.epochs)} epochs"
                )
                note += f" ({so_far})"
        if len(values) < FEWEST:
            return (_one_by_one(values, "{:.1f}") + note).strip()
        mean, half = interval(values)
        return f"{mean:.1f} ± {half:.1f}{note}"

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Validation perplexity over the epochs, of at least one finished run.

        Returns:
            Epochs (points,), and perplexities (seeds, points).

        Raises:
            InputError: If no run of the arm has finished.
            MissingPackageError: If NumPy is not installed.
        """
        with needs("book", "A learning curve"):
            import numpy as np

        finished = [record for record in self.records.values() if record.finished]
        if not finished:
            raise InputError(f"no run of {self.arm!r} has finished.")
        epochs = [line["epoch"] for line in finished[0].epochs if "valid_perplexity" in line]
        perplexities = [record.column("valid_perplexity") for record in finished]
        return np.array(epochs), np.array(perplexities)


def _perplexity(record: Record, epoch: Epoch) -> float:
    return record.best if Epoch(epoch) is Epoch.BEST else record.last


def _one_by_one(values: Iterable[float], form: str) -> str:
    return ", ".join(map(form.format, values))


def rows(experiment: Experiment, size: Size, store: Store) -> list[Row]:
    """The arms of an experiment with their runs.

    Args:
        experiment: The experiment.
        size: Size.
        store: Where the runs are.

    Returns:
        One row for each arm, in the order of the declaration, arms without runs too; where two
        strengths are tied, two.
    """
    out = []
    for name, arm in experiment.arms.items():
        runs = arm.runs(size, store.lookup) if size in experiment.sizes else []
        tuned: list[float | None] = []
        if arm.tuning:
            tuned += dict.fromkeys(run.rule.strength for run in runs)
        for strength in tuned or [None]:
            of_row = [run for run in runs if strength in (None, run.rule.strength)]
            found = ((run.seed, store.latest(run)) for run in of_row)
            records = {seed: record for seed, record in found if record is not None}
            out.append(Row(name, strength, records))
    return out


class Verdict(Choice):
    """What the runs say about a claim."""

    REPRODUCED = "reproduced"
    """The interval lies where the claim says."""
    CONTRADICTED = "contradicted"
    """The interval lies where the claim says it does not."""
    UNDECIDED = "undecided"
    """The interval reaches into both."""
    TOO_FEW = "too few seeds"
    """There are runs, but fewer than three pairs."""
    NOT_RUN = "not yet run"
    """There are no pairs of runs."""


def verdict(logs: Sequence[float], claim: Claim) -> Verdict:
    """The rule.

    Args:
        logs: For each seed the log of the first arm's perplexity over the second's.
        claim: What is expected.

    Returns:
        The verdict.
    """
    if not logs:
        return Verdict.NOT_RUN
    if len(logs) < FEWEST:
        return Verdict.TOO_FEW
    mean, half = interval(logs)
    low, high = mean - half, mean + half
    if claim.expected is Expected.EQUAL:
        # A ratio and its inverse are equally far from 1.
        margin = math.log1p(claim.margin)
        inside, outside = -margin < low and high < margin, high < -margin or margin < low
    else:
        below, above = high < 0, low > 0
        inside, outside = (below, above) if claim.expected is Expected.BETTER else (above, below)
    if inside:
        return Verdict.REPRODUCED
    return Verdict.CONTRADICTED if outside else Verdict.UNDECIDED


@dataclass(frozen=True)
class Finding:
    """What the runs say about a claim.

    Attributes:
        claim: The claim.
        size: Size of the runs.
        epoch: Which epoch's perplexity.
        logs: For each seed the log of the first arm's perplexity over the second's.
        verdict: By the rule of this module.
    """

    claim: Claim
    size: Size
    epoch: Epoch
    logs: Mapping[int, float]
    verdict: Verdict

    @property
    def percent(self) -> tuple[float, float, float]:
        """How much higher the first perplexity is: mean, and both ends of the interval."""
        return percent(list(self.logs.values()))

    @property
    def summary(self) -> str:
        """The difference in percent with its interval, and the number of seeds."""
        if len(self.logs) < FEWEST:
            return _one_by_one(map(in_percent, self.logs.values()), "{:+.1f} %")
        return "{:+.1f} % ({:+.1f} to {:+.1f}), n = {}".format(*self.percent, len(self.logs))


def judge(claim: Claim, size: Size, store: Store, epoch: Epoch = Epoch.BEST) -> Finding:
    """Compare a claim's two arms seed by seed.

    Args:
        claim: The claim.
        size: Size of the runs.
        store: Where the runs are.
        epoch: Which epoch's perplexity is compared.

    Returns:
        The differences and the verdict.
    """
    by_name = {row.arm: row for row in rows(EXPERIMENTS[claim.experiment], size, store)}
    first, second = (by_name[arm].perplexities(epoch) for arm in (claim.first, claim.second))
    logs = {seed: math.log(first[seed] / second[seed]) for seed in first if seed in second}
    return Finding(claim, size, epoch, logs, verdict(list(logs.values()), claim))


def report(size: Size, store: Store) -> str:
    """The ledger as plain text: a table for each experiment, then the claims.

    Args:
        size: Size of the runs.
        store: Where the runs are.

    Returns:
        Several lines.
    """
    lines = []
    for experiment in at_size(size):
        lines += [f"{experiment.name} ({experiment.source}): {experiment.title}"]
        lines += [f"  {'validation perplexity':40}  {'best epoch':18}  {'last epoch':18}  seeds"]
        for row in rows(experiment, size, store):
            name = row.arm if row.strength is None else f"{row.arm}, strength {row.strength:g}"
            best, last = (row.summary(epoch) for epoch in Epoch)
            lines.append(f"  {name:40}  {best:18}  {last:18}  {len(row.records)}")
        lines.append("")
    judged = [claim for claim in CLAIMS if size in EXPERIMENTS[claim.experiment].sizes]
    if not judged:
        return "\n".join(lines)
    lines.append("claims: first arm's perplexity against the second's, best and last epoch")
    for claim in judged:
        lines.append(f"  {claim.text} ({claim.source})")
        for epoch in Epoch:
            finding = judge(claim, size, store, epoch)
            lines.append(
                f"    {epoch}: {claim.first} is to be {claim.expected} against {claim.second}: "
                f"{finding.summary or '-'}: {finding.verdict}"
            )
    return "\n".join(lines)
