r"""The rule of the ledger: what recorded runs say about a claim, and when they say nothing.

The outcome of a run is the log of its test perplexity at one look. Which look, is the view:

- **best**: the look with the lowest validation perplexity. It is chosen on one text and read off on
  another, so that the choice flatters no arm.
- **last**: the look after the last epoch, well into overfitting.
- **equal fit**: where the arms have the same clean training loss. For each seed it is that of the
  arm that fits least at its best look, which every other has gone through before its own; between
  two looks the outcome is interpolated.

A look measures two networks: the weights of the moment, which jump from look to look by as much as
arms differ, and their exponential average, by which claims are judged. Outcomes are compared as
contrasts of a block of arms on the same seeds, each seed with a piece of text of its own
(`dropreg.book.statistics.contrasts`). Arms without any of dropout's effects are not in the pool
that says how much chance there is: they overfit, and spread more than the others.

A claim of *higher* is **reproduced** if the 95 % interval of the first arm's log perplexity less
the second's lies above zero, and **contradicted** if it lies below. A claim of *most* (or *little*)
of a gap is judged only where the gap itself is told from zero, and is reproduced if the interval of
the part less its share of the whole lies above (below) zero: that is, if Fieller's interval of the
part's share of the whole lies above (below) the claimed one. What is left is **undecided**. Nothing
is judged before all declared seeds have ended, each on one kind of device for all arms, nor while
an arm still falls: where in most seeds its best look is the last one, unless its learning rate has
fallen to nothing by then.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from dropreg.book.experiments.catalog import EXPERIMENTS
from dropreg.book.experiments.claims import Claim, Expected
from dropreg.book.experiments.declarations import Arm, Experiment
from dropreg.book.experiments.ledger import Row, rows
from dropreg.book.experiments.records import Record
from dropreg.book.experiments.runner import Store
from dropreg.book.experiments.tasks import Size
from dropreg.book.statistics import (
    Uncertain,
    at_fit,
    contrasts,
    holm,
    in_percent,
    ratio_interval,
)
from dropreg.errors import Choice, InputError
from dropreg.updates import Objective


class View(Choice):
    """Which look's outcome is compared."""

    BEST = "best"
    """The one with the lowest validation perplexity."""
    LAST = "last"
    """The one after the last epoch."""
    EQUAL_FIT = "equal fit"
    """Where the arms have the same clean training loss."""


class Network(Choice):
    """Which of a look's two networks."""

    AVERAGED = "averaged"
    """Of the averaged weights."""
    RAW = "raw"
    """Of the weights of the moment."""


class Verdict(Choice):
    """What the runs say about a claim."""

    REPRODUCED = "reproduced"
    """The interval lies where the claim says."""
    CONTRADICTED = "contradicted"
    """The interval lies where the claim says it does not."""
    UNDECIDED = "undecided"
    """The interval reaches into both; or two tied strengths say different things."""
    NO_GAP = "no gap"
    """The gap of which a share is claimed is not told from zero."""
    STILL_FALLING = "still falling"
    """An arm had not come to its best when its training ended."""
    DIVERGED = "diverged"
    """A run of an arm did not come to its end."""
    UNDER_WAY = "under way"
    """Not all declared seeds have ended."""
    NOT_RUN = "not yet run"
    """Of some arm no seed has ended."""

    @property
    def is_judged(self) -> bool:
        """Whether an interval has decided, or has failed to."""
        return self in (self.REPRODUCED, self.CONTRADICTED, self.UNDECIDED)


@dataclass(frozen=True)
class Looks:
    """What the looks at one network of a run have seen, in nats per token.

    Attributes:
        train: Clean training loss at each look.
        valid: Validation loss.
        test: Test loss.
    """

    train: Sequence[float]
    valid: Sequence[float]
    test: Sequence[float]

    @classmethod
    def of(cls, record: Record, network: Network) -> Looks:
        """The looks at a network of a run."""
        prefix = "averaged_" if Network(network) is Network.AVERAGED else ""
        return cls(
            record.column(f"{prefix}train_loss"),
            record.column(f"{prefix}valid_loss"),
            [math.log(value) for value in record.column(f"{prefix}test_perplexity")],
        )

    @property
    def best(self) -> int:
        """The look with the lowest validation loss."""
        return min(range(len(self.valid)), key=self.valid.__getitem__)

    @property
    def ends_at_its_best(self) -> bool:
        """Whether that look is the last."""
        return self.best == len(self.valid) - 1

    def outcome(self, view: View, fit: float) -> float:
        """Test loss in a view; in "equal fit" at a training loss, and NaN where it has none."""
        view = View(view)
        if view is View.EQUAL_FIT:
            return at_fit(self.train, self.test, fit)
        return self.test[self.best if view is View.BEST else -1]


@dataclass(frozen=True)
class Finding:
    """What the runs say about a claim.

    Attributes:
        claim: The claim.
        view: Which look.
        network: Which of its networks.
        verdict: By the rule of this module.
        strengths: Of the arms whose strength is tuned, those that are compared.
        seeds: The seeds that are compared.
        declared: How many there are to be.
        part: The claim's part, in log perplexity; None where there is none yet.
        whole: The gap that it is a part of.
        share: The part's share of the whole, with its interval; only where the whole is told from
            zero.
        decisive: The contrast that decides, positive if the claim is true.
        by_seed: The part, seed by seed.
    """

    claim: Claim
    view: View
    network: Network
    verdict: Verdict
    strengths: Mapping[str, float]
    seeds: Sequence[int]
    declared: int
    part: Uncertain | None = None
    whole: Uncertain | None = None
    share: tuple[float, float, float] | None = None
    decisive: Uncertain | None = None
    by_seed: Sequence[float] = ()

    @property
    def p_value(self) -> float:
        """How often chance alone would decide so; of a share also, whether there is a gap."""
        assert self.decisive is not None
        values = [self.decisive.p_value]
        return max(values + ([self.whole.p_value] if self.whole else []))

    @property
    def summary(self) -> str:
        """The numbers in a line: a difference in percent, or a share, with its interval."""
        if self.part is None:
            return f"{len(self.seeds)} of {self.declared} seeds"
        gap = self.whole or self.part
        percents = tuple(map(in_percent, (gap.value, *gap.interval)))
        text = "{:+.1f} % ({:+.1f} to {:+.1f})".format(*percents)
        if self.whole is not None:
            share = "{:.2f} ({:.2f} to {:.2f})".format(*self.share) if self.share else "no share"
            text = f"{share} of {text}"
        return f"{text}, n = {len(self.seeds)}"

    @property
    def power(self) -> str:
        """What the claim could have seen, four times in five."""
        if self.decisive is None:
            return ""
        if self.whole is None:
            return f"{in_percent(self.decisive.detectable):.1f} %"
        if self.share is None:
            return f"a gap of {in_percent(self.whole.detectable):.1f} %"
        less = self.claim.expected is Expected.LITTLE
        distance = self.decisive.detectable / self.whole.value
        return f"a share of {self.claim.share + (-distance if less else distance):.2f}"

    @property
    def seeds_needed(self) -> int | None:
        """How many seeds would decide four times in five, were the truth what these runs found.

        An error shrinks as one over the root of the number of seeds. None where nothing decides.
        """
        if self.decisive is None:
            return None
        ratio = self.decisive.detectable / abs(self.decisive.value)
        return math.ceil(len(self.seeds) * ratio**2)


def judge(
    claim: Claim, store: Store, view: View = View.BEST, network: Network = Network.AVERAGED
) -> list[Finding]:
    """Compare a claim's arms.

    Args:
        claim: The claim.
        store: Where the runs are.
        view: Which look is compared.
        network: Which of its networks.

    Returns:
        One finding; where two strengths of an arm are tied, one for each.
    """
    experiment = EXPERIMENTS[claim.experiment]
    return judge_rows(claim, experiment, rows(experiment, claim.size, store), view, network)


def compare(
    first: str,
    second: str,
    experiment: str,
    store: Store,
    view: View = View.BEST,
    network: Network = Network.AVERAGED,
    size: Size = Size.SMALL,
) -> Finding:
    """By how much one arm's log perplexity is higher than another's, by the rule of the claims.

    Args:
        first: An arm without a tuned strength.
        second: Another one.
        experiment: The name of the experiment that has both.
        store: Where the runs are.
        view: Which look is compared.
        network: Which of its networks.
        size: The experiment's size.

    Returns:
        What the runs say of "the first is higher".
    """
    claim = Claim(text="", source="", experiment=experiment, size=size, part=(first, second))
    (finding,) = judge(claim, store, view, network)
    return finding


def judge_rows(
    claim: Claim, experiment: Experiment, found: Sequence[Row], view: View, network: Network
) -> list[Finding]:
    """The same from the runs of all arms, as `dropreg.book.experiments.ledger.rows` gives them."""
    candidates = [[row for row in found if row.arm == arm] for arm in claim.arms]
    choices = (dict(zip(claim.arms, chosen, strict=True)) for chosen in product(*candidates))
    return [_finding(claim, experiment, arms, found, view, network) for arms in choices]


def perplexities(row: Row, view: View, network: Network = Network.AVERAGED) -> dict[int, float]:
    """Test perplexity of an arm's finished runs, for each seed, at its best or its last look."""
    return {
        seed: math.exp(Looks.of(record, network).outcome(view, math.nan))
        for seed, record in row.records.items()
        if record.finished
    }


def fit_curve(
    row: Row, network: Network = Network.AVERAGED
) -> tuple[list[Sequence[float]], list[Sequence[float]]]:
    """An arm's way through training: at each look the training and the test loss, in nats.

    Args:
        row: The arm.
        network: Which of a look's networks.

    Returns:
        Training losses and test losses of the finished runs, (seeds, looks) each.

    Raises:
        InputError: If no run has finished.
    """
    looks = [Looks.of(record, network) for record in _all_finished(row)]
    return [each.train for each in looks], [each.test for each in looks]


def perplexity_curve(
    row: Row, network: Network = Network.AVERAGED
) -> tuple[list[int], list[list[float]]]:
    """Test perplexity of an arm at each look.

    Args:
        row: The arm.
        network: Which of a look's networks.

    Returns:
        The looks' epochs, (looks,), and the perplexities of the finished runs, (seeds, looks).

    Raises:
        InputError: If no run has finished.
    """
    finished = _all_finished(row)
    epochs = [line["epoch"] for line in finished[0].epochs if "test_perplexity" in line]
    looks = (Looks.of(record, network).test for record in finished)
    return epochs, [[math.exp(loss) for loss in test] for test in looks]


def _all_finished(row: Row) -> list[Record]:
    """The finished runs of an arm, by seed."""
    finished = [record for _, record in sorted(row.records.items()) if record.finished]
    if not finished:
        raise InputError(f"no run of {row.label} has finished, so that there is nothing to draw.")
    return finished


def verdict(findings: Sequence[Finding]) -> Verdict:
    """What is concluded from a claim's findings: what holds for each of two tied strengths."""
    verdicts = {finding.verdict for finding in findings}
    return verdicts.pop() if len(verdicts) == 1 else Verdict.UNDECIDED


def corrected(claims: Sequence[Sequence[Finding]]) -> list[float | None]:
    """P-values of some claims, corrected for being judged together; None where not judged.

    Args:
        claims: For each claim its findings at one view.

    Returns:
        One for each claim: of its tied strengths the larger one.
    """
    judged = [all(each.verdict.is_judged for each in findings) for findings in claims]
    chosen = [findings for findings, is_judged in zip(claims, judged, strict=True) if is_judged]
    values = iter(holm([max(each.p_value for each in findings) for findings in chosen]))
    return [next(values) if is_judged else None for is_judged in judged]


def _finding(
    claim: Claim,
    experiment: Experiment,
    arms: Mapping[str, Row],
    found: Sequence[Row],
    view: View,
    network: Network,
) -> Finding:
    """The finding of one choice of tied strengths, which `arms` gives for each arm of the claim."""
    strengths = {name: row.strength for name, row in arms.items() if row.strength is not None}
    declared = set.intersection(*(set(experiment.arms[name].seeds) for name in arms))
    ended = set.intersection(
        *({seed for seed, record in row.records.items() if record.ended} for row in arms.values())
    )
    # A seed whose arms were trained on different kinds of device is no pair.
    seeds = [
        seed
        for seed in sorted(declared & ended)
        if len(set.union(*(_devices(row.records[seed]) for row in arms.values()))) <= 1
    ]

    def finding(verdict: Verdict, **numbers: Any) -> Finding:
        count = len(declared)
        return Finding(claim, view, network, verdict, strengths, seeds, count, **numbers)

    if not seeds:
        return finding(Verdict.NOT_RUN)
    if not all(_finished(row, seeds) for row in arms.values()):
        return finding(Verdict.DIVERGED)
    if len(seeds) < len(declared):
        return finding(Verdict.UNDER_WAY)
    looks = {
        row.label: [Looks.of(row.records[seed], network) for seed in seeds]
        for row in found
        if _finished(row, seeds)
    }
    falling = [
        name
        for name, row in arms.items()
        if not row.records[seeds[0]].config.get("lr_falls")
        and 2 * sum(each.ends_at_its_best for each in looks[row.label]) > len(seeds)
    ]
    if falling and view is not View.EQUAL_FIT:
        return finding(Verdict.STILL_FALLING)
    blocks, by_seed = [], [0.0] * len(seeds)
    for task in dict.fromkeys(experiment.arms[name].task for name in arms):
        here = {name: row.label for name, row in arms.items() if experiment.arms[name].task == task}
        fit = [
            max(looks[label][i].train[looks[label][i].best] for label in here.values())
            for i in range(len(seeds))
        ]
        outcomes = {
            label: [each.outcome(view, loss) for each, loss in zip(of_arm, fit, strict=True)]
            for label, of_arm in looks.items()
        }
        pool = [
            row.label
            for row in found
            if row.label in outcomes
            and _is_pooled(experiment.arms[row.arm], task)
            and not any(map(math.isnan, outcomes[row.label]))
        ]
        weights = [
            {here[arm]: sign for arm, sign in zip(gap, (1.0, -1.0), strict=True) if arm in here}
            for gap in (claim.part, claim.whole)
            if gap
        ]
        blocks.append(contrasts(outcomes, weights, pool))
        for arm, sign in weights[0].items():
            by_seed = [sum_ + sign * y for sum_, y in zip(by_seed, outcomes[arm], strict=True)]

    def total(*factors: float) -> Uncertain:
        return functools.reduce(operator.add, (block.sum(*factors) for block in blocks))

    decisive = total(*claim.contrast)
    low, high = decisive.interval
    reached = Verdict.REPRODUCED if low > 0 else Verdict.UNDECIDED
    numbers: dict[str, Any] = {"decisive": decisive, "by_seed": by_seed}
    if claim.whole is None:
        numbers["part"] = decisive
    else:
        part, whole = total(1.0, 0.0), total(0.0, 1.0)
        numbers |= {"part": part, "whole": whole}
        if whole.interval[0] <= 0:
            return finding(Verdict.NO_GAP, **numbers)
        ratio = part.value / whole.value
        ends = ratio_interval(lambda share: total(1.0, -share), ratio)
        numbers["share"] = (ratio, *ends)
    return finding(Verdict.CONTRADICTED if high < 0 else reached, **numbers)


def _devices(record: Record) -> set[str]:
    """The kinds of device that a run was trained on, such as "cpu"."""
    return {session["device"].split(":")[0] for session in record.sessions}


def _finished(row: Row, seeds: Sequence[int]) -> bool:
    """Whether a row's runs of some seeds have all come to their end."""
    return all(seed in row.records and row.records[seed].finished for seed in seeds)


def _is_pooled(arm: Arm, task: str) -> bool:
    """Whether an arm's spread counts: one on the same task, with any of dropout's effects."""
    return arm.task == task and arm.rule.objective not in (Objective.NONE, Objective.L2)
