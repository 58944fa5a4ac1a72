"""What an experiment is: which tasks are trained by which rules.

What is compared with each other is an `Experiment`; its curves are arms; an arm's runs differ by
the seed. Runs are shared: one of Dropout_1 may stand in several experiments and is trained once a
seed. All arms of an experiment on one task start from the same weights and see the same windows at
the same seed, so their differences are paired.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dropreg.book.experiments.records import Record
from dropreg.book.experiments.tasks import TASKS, Setting, Size, Task
from dropreg.updates import GradientNoise, Rule

SEEDS = (0, 1, 2)
TUNING_SEEDS = (43, 44, 45)
"""Strengths are chosen on seeds of their own, so that the choice does not flatter the result: the
last three pieces of 20,000 tokens of Penn Treebank."""


@dataclass(frozen=True)
class Run:
    """One training run, and its name.

    Attributes:
        task: Model and text.
        rule: Update rule.
        size: Size.
        seed: Seed of the initial weights, the windows and the noise.
        q: Dropout probability at every site; the setting's own if None.
        changes: Entries of the setting that are changed.
    """

    task: Task
    rule: Rule
    size: Size
    seed: int
    q: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def setting(self) -> Setting:
        """The setting with its changes."""
        setting = dataclasses.replace(self.task.settings[self.size], **self.changes)
        if self.q is None:
            return setting
        model = {**setting.model, **dict.fromkeys(self.task.dropout, self.q)}
        return dataclasses.replace(setting, model=model)

    @property
    def name(self) -> str:
        """Size, task, rule, changes and seed: a path below the folder of the results."""
        changes = {**({} if self.q is None else {"q": self.q}), **self.changes}
        label = ",".join([self.rule.label, *(f"{k}={v}" for k, v in changes.items())])
        return f"{self.size}/{self.task.name}/{label}/seed{self.seed}"

    @property
    def config(self) -> dict[str, Any]:
        """All that decides the outcome, as JSON has it."""
        setting, rule = dataclasses.asdict(self.setting), dataclasses.asdict(self.rule)
        # These fields are younger than the first rows, which must stay valid.
        for fields, usual in (
            (rule, {"every": 1, "probes": 1, "share": 1.0}),
            (setting, {"pieces": False, "lr_falls": False}),
        ):
            for name, value in usual.items():
                if fields[name] == value:
                    del fields[name]
        return {
            "task": self.task.name,
            "size": str(self.size),
            "seed": self.seed,
            "rule": {k: _plain(v) for k, v in rule.items()},
            **{k: _plain(v) for k, v in setting.items()},
        }


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    if value == float("inf"):
        return "inf"
    if isinstance(value, str):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


Lookup = Callable[[Run], Record | None]
"""Finds what a run left, if it has ended."""


@dataclass(frozen=True)
class Tuning:
    """How an arm's strength is chosen: by the lowest loss of any look, on seeds of its own.

    Attributes:
        strengths: Those that are tried.
        seeds: Seeds that are averaged.
        quiet: Whether the gradient noise is left out in the tuning.
        column: The loss that is looked at.
    """

    strengths: Sequence[float]
    seeds: Sequence[int] = TUNING_SEEDS
    quiet: bool = False
    column: str = "averaged_valid_loss"


@dataclass(frozen=True)
class Arm:
    """Runs that differ by the seed, or by the seed and a strength that is tuned first.

    Attributes:
        task: Name of the task.
        rule: Update rule; where a strength is tuned, its own strength is not used.
        q: Dropout probability; the task's if None.
        changes: Changes of the task's setting.
        tuning: How its strength is chosen, if it is.
        seeds: Seeds.
    """

    task: str
    rule: Rule
    q: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    tuning: Tuning | None = None
    seeds: Sequence[int] = SEEDS

    def _run(self, size: Size, seed: int, rule: Rule) -> Run:
        return Run(TASKS[self.task], rule, size, seed, self.q, self.changes)

    def tuning_runs(self, size: Size) -> list[Run]:
        """The runs by which the strength is chosen, seed by seed."""
        if self.tuning is None:
            return []
        rule = self.rule
        if self.tuning.quiet:
            rule = dataclasses.replace(rule, noise=GradientNoise.NONE, noise_scale=None)
        rules = [dataclasses.replace(rule, strength=s) for s in self.tuning.strengths]
        return [self._run(size, seed, rule) for seed in self.tuning.seeds for rule in rules]

    def chosen(self, size: Size, lookup: Lookup) -> list[Rule]:
        """The rule with its strength; none as long as the tuning is not finished.

        Where the second best strength is the better one on any of several seeds, the two are tied,
        and both are run: what is concluded must hold for either.

        Args:
            size: Size.
            lookup: Finds the ended runs.

        Returns:
            No rule, one, or two, the better first.
        """
        if self.tuning is None:
            return [self.rule]
        losses: dict[float, list[float]] = {strength: [] for strength in self.tuning.strengths}
        for run in self.tuning_runs(size):
            record = lookup(run)
            if record is None:
                return []
            lowest = min(record.column(self.tuning.column)) if record.finished else math.inf
            losses[run.rule.strength].append(lowest)
        # Sorted by the mean; where two are equal, the smaller strength is first.
        ranked = sorted((sum(values), strength) for strength, values in losses.items())
        strengths = [strength for total, strength in ranked if total < math.inf][:2]
        if len(strengths) == 2:
            pairs = zip(*(losses[strength] for strength in strengths), strict=True)
            if all(best < second for best, second in pairs):
                del strengths[1]
        return [dataclasses.replace(self.rule, strength=strength) for strength in strengths]

    def runs(self, size: Size, lookup: Lookup, seeds: Sequence[int] | None = None) -> list[Run]:
        """The runs for each seed, declared or given; none as long as no strength is chosen."""
        chosen = self.seeds if seeds is None else seeds
        rules = self.chosen(size, lookup)
        return [self._run(size, seed, rule) for seed in chosen for rule in rules]


@dataclass(frozen=True)
class Experiment:
    """What is compared with each other, such as one figure or table of the paper.

    Attributes:
        name: Name for the command line.
        title: What it asks.
        source: Where in the paper; "ours" where it is not from there.
        arms: For each curve its name and its runs.
        sizes: The sizes at which it is run.
    """

    name: str
    title: str
    source: str
    arms: Mapping[str, Arm]
    sizes: Sequence[Size] = (Size.TINY, Size.SMALL, Size.FULL)

    def runs(self, size: Size, lookup: Lookup, seeds: Sequence[int] | None = None) -> Iterator[Run]:
        """All runs that are known so far: tuning first, then seed by seed.

        Args:
            size: Size.
            lookup: Finds the ended runs, which decide what is tuned.
            seeds: Seeds in place of those that are declared; tuning has its own.

        Yields:
            The runs, each once; none at a size that it does not have.
        """
        if size not in self.sizes:
            return
        seen: set[str] = set()
        by_arm = [arm.runs(size, lookup, seeds) for arm in self.arms.values()]
        in_order = [run for arm in self.arms.values() for run in arm.tuning_runs(size)]
        in_order += sorted((run for runs in by_arm for run in runs), key=lambda run: run.seed)
        for run in in_order:
            if run.name not in seen:
                seen.add(run.name)
                yield run

    def is_tuning(self, size: Size, lookup: Lookup) -> bool:
        """Whether an arm's strength is not yet chosen, so that its own runs are not yet known."""
        arms = self.arms.values() if size in self.sizes else ()
        return not all(arm.chosen(size, lookup) for arm in arms)
