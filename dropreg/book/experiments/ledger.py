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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dropreg.book.experiments.catalog import EXPERIMENTS, Experiment, at_size
from dropreg.book.experiments.records import Record
from dropreg.book.experiments.runner import Store
from dropreg.book.experiments.tasks import Size
from dropreg.book.plots import interval
from dropreg.errors import Choice, InputError, needs

if TYPE_CHECKING:
    import numpy as np

FEWEST = 3
"""Seeds below which no interval is given and nothing is judged."""


class Epoch(Choice):
    """Which epoch's validation perplexity is compared."""

    BEST = "best"
    """The lowest of any epoch, what the paper reports."""
    LAST = "last"
    """That after the last epoch, where overfitting shows."""


class Expected(Choice):
    """What the paper says of the first arm against the second."""

    BETTER = "better"
    """A lower perplexity."""
    WORSE = "worse"
    """A higher perplexity."""
    EQUAL = "equal"
    """The same perplexity, within the claim's margin."""


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


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper that a comparison can support or not.

    Attributes:
        text: The claim, in our words.
        source: Where the paper makes it.
        figure: The paper's own number, or "" where it gives a curve only.
        experiment: The experiment that tests it.
        first: Name of an arm.
        second: Name of the arm it is compared with.
        expected: What the paper says of the first.
        margin: How far apart two perplexities are that count as equal, as a share.
    """

    text: str
    source: str
    figure: str
    experiment: str
    first: str
    second: str
    expected: Expected
    margin: float = 0.02


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
            return _one_by_one([100 * math.expm1(x) for x in self.logs.values()], "{:+.1f} %")
        return "{:+.1f} % ({:+.1f} to {:+.1f}), n = {}".format(*self.percent, len(self.logs))


def percent(logs: Sequence[float]) -> tuple[float, float, float]:
    """Log ratios as a difference in percent.

    Args:
        logs: For each seed the log of one perplexity over another, at least 3.

    Returns:
        By how many percent the first is higher: of the mean, and of both ends of its 95 % interval.

    >>> print("{:.1f} ({:.1f} to {:.1f})".format(*percent([0.01, 0.02, 0.03])))
    2.0 (-0.5 to 4.6)
    """
    mean, half = interval(logs)
    center, low, high = (100 * math.expm1(x) for x in (mean, mean - half, mean + half))
    return center, low, high


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


def _perplexity(record: Record, epoch: Epoch) -> float:
    return record.best if Epoch(epoch) is Epoch.BEST else record.last


def _one_by_one(values: Sequence[float], form: str) -> str:
    return ", ".join(map(form.format, values))


def rows(experiment: Experiment, size: Size, store: Store) -> list[Row]:
    """The arms of an experiment with their runs.

    Args:
        experiment: The experiment.
        size: Size.
        store: Where the runs are.

    Returns:
        One row for each arm, in the order of the declaration; arms without runs too.
    """
    out = []
    for name, arm in experiment.arms.items():
        rule = arm.chosen(size, store.lookup)
        runs = arm.runs(size, store.lookup) if size in experiment.sizes else []
        found = ((run.seed, store.latest(run)) for run in runs)
        records = {seed: record for seed, record in found if record is not None}
        out.append(Row(name, rule.strength if rule and arm.strengths else None, records))
    return out


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


def curve(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Validation perplexity over the epochs.

    Args:
        row: An arm with at least one finished run.

    Returns:
        Epochs (points,), and perplexities (seeds, points).

    Raises:
        InputError: If no run of the arm has finished.
        MissingPackageError: If NumPy is not installed.
    """
    with needs("book", "A learning curve"):
        import numpy as np

    finished = [record for record in row.records.values() if record.finished]
    if not finished:
        raise InputError(f"no run of {row.arm!r} has finished.")
    epochs = [line["epoch"] for line in finished[0].epochs if "valid_perplexity" in line]
    return np.array(epochs), np.array([record.column("valid_perplexity") for record in finished])


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Dropout helps.",
        "Figure 1",
        "best about 120 without it",
        "dropout-k",
        "Dropout_1",
        "none",
        Expected.BETTER,
    ),
    Claim(
        "More masks a step make it worse: 4 against 1.",
        "Figure 1",
        "",
        "dropout-k",
        "Dropout_4",
        "Dropout_1",
        Expected.WORSE,
    ),
    Claim(
        "More masks a step make it worse: 16 against 1.",
        "Figure 1",
        "",
        "dropout-k",
        "Dropout_16",
        "Dropout_1",
        Expected.WORSE,
    ),
    Claim(
        "Still, what 16 masks leave is far better than no dropout.",
        "Figure 1 (k = 32)",
        "",
        "dropout-k",
        "Dropout_16",
        "none",
        Expected.BETTER,
    ),
    Claim(
        "The noise of a pair of masks, put back, recovers Dropout_1 from 4 masks.",
        "Figure 2",
        "",
        "noise-back",
        "Dropout_4 + pair",
        "Dropout_1",
        Expected.EQUAL,
    ),
    Claim(
        "… and from 16.",
        "Figure 2",
        "",
        "noise-back",
        "Dropout_16 + pair",
        "Dropout_1",
        Expected.EQUAL,
    ),
    Claim(
        "R_approx alone is better than dropout with much of its noise averaged away.",
        "Figure 3 (k = 32)",
        "",
        "explicit",
        "R_approx",
        "Dropout_16",
        Expected.BETTER,
    ),
    Claim(
        "R_approx alone is not as good as Dropout_1.",
        "Figure 3",
        "",
        "explicit",
        "R_approx",
        "Dropout_1",
        Expected.WORSE,
    ),
    *(
        Claim(
            f"The derived noise makes Dropout_{k} track Dropout_1.",
            "Figure 4",
            "",
            "noise-derived",
            f"Dropout_{k} + xi_approx",
            "Dropout_1",
            Expected.EQUAL,
        )
        for k in (2, 4, 16)
    ),
    Claim(
        "R_approx and xi_approx together match Dropout_1, with nothing tuned.",
        "Figure 5, Tables 3 and 4",
        "",
        "both",
        "R_approx + xi_approx",
        "Dropout_1",
        Expected.EQUAL,
    ),
    Claim(
        "The noise adds to what R_approx does alone.",
        "Figures 3 and 5",
        "",
        "both",
        "R_approx + xi_approx",
        "R_approx",
        Expected.BETTER,
    ),
    Claim(
        "The identity in place of H_out, tuned, is about as weak as l2, tuned.",
        "Section 5.2",
        "108.76",
        "ingredients",
        "identity",
        "l2",
        Expected.EQUAL,
    ),
    Claim(
        "The identity in place of H_out is weaker than R_approx.",
        "Section 5.2",
        "108.76",
        "ingredients",
        "identity",
        "R_approx",
        Expected.WORSE,
    ),
    Claim(
        "The loss Jacobian in place of H_out, tuned, is as good as R_approx.",
        "Table 1",
        "",
        "ingredients",
        "loss Jacobian",
        "R_approx",
        Expected.EQUAL,
    ),
    Claim(
        "The loss Jacobian with xi_approx is still not as good as dropout.",
        "Table 1",
        "",
        "ingredients",
        "loss Jacobian + xi_approx",
        "Dropout_1",
        Expected.WORSE,
    ),
    Claim(
        "Transformer-XL with more text feels no implicit effect: 4 masks against 1.",
        "Table 2",
        "",
        "transformer",
        "Dropout_4, more text",
        "Dropout_1, more text",
        Expected.EQUAL,
    ),
    Claim(
        "With less text it feels a weak one.",
        "Table 2 (a fifth of the text)",
        "",
        "transformer",
        "Dropout_4",
        "Dropout_1",
        Expected.WORSE,
    ),
    Claim(
        "R_approx comes within 0.7 of dropout on Transformer-XL.",
        "Table 2",
        "24.12",
        "transformer",
        "R_approx, more text",
        "Dropout_1, more text",
        Expected.EQUAL,
        margin=0.03,
    ),
    Claim(
        "A QRNN with more text feels no implicit effect: 4 masks against 1.",
        "QRNN experiment",
        "",
        "qrnn",
        "Dropout_4, more text",
        "Dropout_1, more text",
        Expected.EQUAL,
    ),
    Claim(
        "An antithetic pair's even and odd part together match Dropout_1.",
        "ours",
        "",
        "even-odd",
        "even + odd",
        "Dropout_1",
        Expected.EQUAL,
    ),
    Claim(
        "The even part alone, without the noise, is worse than both parts.",
        "ours",
        "",
        "even-odd",
        "even",
        "even + odd",
        Expected.WORSE,
    ),
)
"""Every claim of the ledger; the paper's in its order, then ours."""
