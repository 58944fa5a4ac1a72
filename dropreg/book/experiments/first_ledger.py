"""The first edition's ledger: 23 comparisons at three seeds, as they were judged then.

A claim is a comparison of two arms of an experiment. Both are trained from the same initial weights
on the same windows at the same seed, so a difference is taken seed by seed: the log ratio of the
two validation perplexities, with the 95 % interval of Student's t over the seeds, shown in percent.

A claim that one arm is better or worse is **reproduced** if the interval lies on its side of zero
and **contradicted** if it lies on the other. A claim that two arms agree is reproduced if the
interval lies within a margin and contradicted if it lies outside. What is left is **undecided**.
What was wrong with that is said in `dropreg.book.experiments.verdicts`, which has the present rule.
The intervals need SciPy, which the extra `dropreg[book]` brings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dropreg.book.experiments.first_edition import FIRST_EDITION
from dropreg.book.experiments.ledger import Epoch, rows
from dropreg.book.experiments.runner import Store
from dropreg.book.experiments.tasks import Size
from dropreg.book.statistics import FEWEST, in_percent, interval, percent
from dropreg.errors import Choice


class Expected(Choice):
    """What the paper says of the first arm against the second."""

    BETTER = "better"
    """A lower perplexity."""
    WORSE = "worse"
    """A higher perplexity."""
    EQUAL = "equal"
    """The same perplexity, within the claim's margin."""


@dataclass(frozen=True, kw_only=True)
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
    figure: str = ""
    experiment: str
    first: str
    second: str
    expected: Expected
    margin: float = 0.02


CLAIMS: tuple[Claim, ...] = (
    Claim(
        text="Dropout helps.",
        source="Figure 1",
        figure="best about 120 without it",
        experiment="dropout-k",
        first="Dropout_1",
        second="none",
        expected=Expected.BETTER,
    ),
    Claim(
        text="More masks a step make it worse: 4 against 1.",
        source="Figure 1",
        experiment="dropout-k",
        first="Dropout_4",
        second="Dropout_1",
        expected=Expected.WORSE,
    ),
    Claim(
        text="More masks a step make it worse: 16 against 1.",
        source="Figure 1",
        experiment="dropout-k",
        first="Dropout_16",
        second="Dropout_1",
        expected=Expected.WORSE,
    ),
    Claim(
        text="Still, what 16 masks leave is far better than no dropout.",
        source="Figure 1 (k = 32)",
        experiment="dropout-k",
        first="Dropout_16",
        second="none",
        expected=Expected.BETTER,
    ),
    Claim(
        text="The noise of a pair of masks, put back, recovers Dropout_1 from 4 masks.",
        source="Figure 2",
        experiment="noise-back",
        first="Dropout_4 + pair",
        second="Dropout_1",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="… and from 16.",
        source="Figure 2",
        experiment="noise-back",
        first="Dropout_16 + pair",
        second="Dropout_1",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="R_approx alone is better than dropout with much of its noise averaged away.",
        source="Figure 3 (k = 32)",
        experiment="explicit",
        first="R_approx",
        second="Dropout_16",
        expected=Expected.BETTER,
    ),
    Claim(
        text="R_approx alone is not as good as Dropout_1.",
        source="Figure 3",
        experiment="explicit",
        first="R_approx",
        second="Dropout_1",
        expected=Expected.WORSE,
    ),
    *(
        Claim(
            text=f"The derived noise makes Dropout_{k} track Dropout_1.",
            source="Figure 4",
            experiment="noise-derived",
            first=f"Dropout_{k} + xi_approx",
            second="Dropout_1",
            expected=Expected.EQUAL,
        )
        for k in (2, 4, 16)
    ),
    Claim(
        text="R_approx and xi_approx together match Dropout_1, with nothing tuned.",
        source="Figure 5, Tables 3 and 4",
        experiment="both",
        first="R_approx + xi_approx",
        second="Dropout_1",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="The noise adds to what R_approx does alone.",
        source="Figures 3 and 5",
        experiment="both",
        first="R_approx + xi_approx",
        second="R_approx",
        expected=Expected.BETTER,
    ),
    Claim(
        text="The identity in place of H_out, tuned, is about as weak as l2, tuned.",
        source="Section 5.2",
        figure="108.76",
        experiment="ingredients",
        first="identity",
        second="l2",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="The identity in place of H_out is weaker than R_approx.",
        source="Section 5.2",
        figure="108.76",
        experiment="ingredients",
        first="identity",
        second="R_approx",
        expected=Expected.WORSE,
    ),
    Claim(
        text="The loss Jacobian in place of H_out, tuned, is as good as R_approx.",
        source="Table 1",
        experiment="ingredients",
        first="loss Jacobian",
        second="R_approx",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="The loss Jacobian with xi_approx is still not as good as dropout.",
        source="Table 1",
        experiment="ingredients",
        first="loss Jacobian + xi_approx",
        second="Dropout_1",
        expected=Expected.WORSE,
    ),
    Claim(
        text="Transformer-XL with more text feels no implicit effect: 4 masks against 1.",
        source="Table 2",
        experiment="transformer",
        first="Dropout_4, more text",
        second="Dropout_1, more text",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="With less text it feels a weak one.",
        source="Table 2 (a fifth of the text)",
        experiment="transformer",
        first="Dropout_4",
        second="Dropout_1",
        expected=Expected.WORSE,
    ),
    Claim(
        text="R_approx comes within 0.7 of dropout on Transformer-XL.",
        source="Table 2",
        figure="24.12",
        experiment="transformer",
        first="R_approx, more text",
        second="Dropout_1, more text",
        expected=Expected.EQUAL,
        margin=0.03,
    ),
    Claim(
        text="A QRNN with more text feels no implicit effect: 4 masks against 1.",
        source="QRNN experiment",
        experiment="qrnn",
        first="Dropout_4, more text",
        second="Dropout_1, more text",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="An antithetic pair's even and odd part together match Dropout_1.",
        source="ours",
        experiment="even-odd",
        first="even + odd",
        second="Dropout_1",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="The even part alone, without the noise, is worse than both parts.",
        source="ours",
        experiment="even-odd",
        first="even",
        second="even + odd",
        expected=Expected.WORSE,
    ),
)
"""Every claim of the ledger; the paper's in its order, then ours."""


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
            return ", ".join(f"{in_percent(log):+.1f} %" for log in self.logs.values())
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
    by_name = {row.arm: row for row in rows(FIRST_EDITION[claim.experiment], size, store)}
    first, second = (by_name[arm].perplexities(epoch) for arm in (claim.first, claim.second))
    logs = {seed: math.log(first[seed] / second[seed]) for seed in first if seed in second}
    return Finding(claim, size, epoch, logs, verdict(list(logs.values()), claim))
