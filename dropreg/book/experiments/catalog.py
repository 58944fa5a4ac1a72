"""The experiments, each declared once: which tasks are trained by which rules.

What a figure or table of the paper compares is an `Experiment`; its curves are arms; an arm's runs
differ by the seed. Runs are shared: Dropout_1 on Penn Treebank stands in four figures and is
trained once a seed. All arms of an experiment start from the same weights and see the same windows
at the same seed, so their differences are paired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dropreg.book.experiments.records import Record
from dropreg.book.experiments.tasks import TASKS, Setting, Size, Task
from dropreg.errors import InputError
from dropreg.updates import Rule

SEEDS = (0, 1, 2)
TUNING_SEED = 100
"""Strengths are chosen on a seed of their own, so that the choice does not flatter the result."""


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
        setting = dataclasses.asdict(self.setting)
        rule = dataclasses.asdict(self.rule)
        if self.rule.every == 1:
            del rule["every"]  # the field is younger than the first rows, which must stay valid
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
class Arm:
    """Runs that differ by the seed, or by the seed and a strength that is tuned first.

    Attributes:
        task: Name of the task.
        rule: Update rule; where a strength is tuned, its own strength is not used.
        q: Dropout probability; the task's if None.
        changes: Changes of the task's setting.
        strengths: If any, the one with the lowest validation perplexity of any epoch on
            `TUNING_SEED`, without noise, is taken.
        seeds: Seeds.
    """

    task: str
    rule: Rule
    q: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    strengths: Sequence[float] = ()
    seeds: Sequence[int] = SEEDS

    def _run(self, size: Size, seed: int, rule: Rule) -> Run:
        return Run(TASKS[self.task], rule, size, seed, self.q, self.changes)

    def tuning(self, size: Size) -> list[Run]:
        """The runs by which the strength is chosen."""
        quiet = Rule(self.rule.objective, method=self.rule.method)
        rules = [dataclasses.replace(quiet, strength=s) for s in self.strengths]
        return [self._run(size, TUNING_SEED, rule) for rule in rules]

    def chosen(self, size: Size, lookup: Lookup) -> Rule | None:
        """The rule with its strength; None as long as the tuning is not finished."""
        if not self.strengths:
            return self.rule
        tried = [(lookup(run), run.rule) for run in self.tuning(size)]
        ended = [(record, rule) for record, rule in tried if record is not None]
        finished = [(record.best, rule.strength) for record, rule in ended if record.finished]
        if not finished or len(ended) < len(tried):
            return None
        return dataclasses.replace(self.rule, strength=min(finished)[1])

    def runs(self, size: Size, lookup: Lookup, seeds: Sequence[int] | None = None) -> list[Run]:
        """The runs for each seed, declared or given; none as long as no strength is chosen."""
        rule = self.chosen(size, lookup)
        chosen = self.seeds if seeds is None else seeds
        return [] if rule is None else [self._run(size, seed, rule) for seed in chosen]


@dataclass(frozen=True)
class Experiment:
    """What one figure or table of the paper compares.

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
        in_order = [run for arm in self.arms.values() for run in arm.tuning(size)]
        in_order += sorted((run for runs in by_arm for run in runs), key=lambda run: run.seed)
        for run in in_order:
            if run.name not in seen:
                seen.add(run.name)
                yield run


LSTM = "lstm"
NONE = Rule("none")
DROPOUT = {k: Rule("dropout_k", k=k) for k in (1, 2, 4, 8, 16, 32)}
EXPLICIT, BOTH = Rule("explicit"), Rule("explicit", noise="analytic")
EVEN, EVEN_ODD = Rule("even"), Rule("even", noise="odd")
IDENTITY = Rule("explicit", method="identity")
LOSS_JACOBIAN = Rule("explicit", method="loss_jacobian")


def _arms(rules: Mapping[str, Rule], task: str = LSTM) -> dict[str, Arm]:
    return {name: Arm(task=task, rule=rule) for name, rule in rules.items()}


def _with_noise(rule: Rule) -> Rule:
    return dataclasses.replace(rule, noise="analytic")


def _on_two_texts(task: str) -> dict[str, Arm]:
    rules = {"none": NONE, **{f"Dropout_{k}": DROPOUT[k] for k in (1, 2, 4)}, "R_approx": EXPLICIT}
    more_text = {f"{name}, more text": rule for name, rule in rules.items()}
    return _arms(rules, task) | _arms(more_text, f"{task}-more-text")


_BASE = {"none": NONE, "Dropout_1": DROPOUT[1]}
# Wide enough that the best lies inside at "small"; only l2 hardly helps at any strength.
_L2 = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
_IDENTITY = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
_LOSS_JACOBIAN = (0.1, 0.3, 1.0, 3.0, 10.0)


EXPERIMENTS: Mapping[str, Experiment] = {
    each.name: each
    for each in (
        Experiment(
            name="dropout-k",
            title="If the expected objective is all there is, should more masks not help?",
            source="Figure 1",
            arms=_arms({"none": NONE, **{f"Dropout_{k}": DROPOUT[k] for k in (1, 2, 4, 8, 16)}})
            | {"Dropout_32": Arm(task=LSTM, rule=DROPOUT[32], seeds=SEEDS[:1])},
        ),
        Experiment(
            name="explicit",
            title="How far does the derived regularizer come alone?",
            source="Figure 3",
            arms=_arms(_BASE | {"Dropout_16": DROPOUT[16], "R_approx": EXPLICIT}),
        ),
        Experiment(
            name="both",
            title="Do the two derived effects together replace dropout?",
            source="Figure 5, Tables 3 and 4",
            arms=_arms(_BASE | {"R_approx": EXPLICIT, "R_approx + xi_approx": BOTH}),
        ),
        Experiment(
            name="even-odd",
            title="Do an antithetic pair's even and odd part do the same?",
            source="ours",
            arms=_arms(_BASE | {"even": EVEN, "even + odd": EVEN_ODD}),
        ),
        Experiment(
            name="noise-back",
            title="Does the noise, put back, bring Dropout_1 back?",
            source="Figure 2",
            arms=_arms(
                _BASE
                | {f"Dropout_{k}": DROPOUT[k] for k in (4, 16)}
                | {
                    f"Dropout_{k} + pair": Rule("dropout_k", noise="dropout_pair", k=k)
                    for k in (4, 16)
                }
            ),
        ),
        Experiment(
            name="noise-derived",
            title="Does the derived noise do what dropout's own does?",
            source="Figure 4",
            arms=_arms(
                _BASE
                | {f"Dropout_{k}": DROPOUT[k] for k in (2, 4, 16)}
                | {
                    f"Dropout_{k} + xi_approx": Rule("dropout_k", noise="analytic", k=k)
                    for k in (2, 4, 16)
                }
            ),
        ),
        Experiment(
            name="ingredients",
            title="Which ingredient of R_approx matters?",
            source="Section 5.2, Table 1",
            arms=_arms(_BASE | {"R_approx": EXPLICIT})
            | {
                "l2": Arm(task=LSTM, rule=Rule("l2"), strengths=_L2),
                "identity": Arm(task=LSTM, rule=IDENTITY, strengths=_IDENTITY),
                "loss Jacobian": Arm(task=LSTM, rule=LOSS_JACOBIAN, strengths=_LOSS_JACOBIAN),
                "identity + xi_approx": Arm(
                    task=LSTM, rule=_with_noise(IDENTITY), strengths=_IDENTITY
                ),
                "loss Jacobian + xi_approx": Arm(
                    task=LSTM, rule=_with_noise(LOSS_JACOBIAN), strengths=_LOSS_JACOBIAN
                ),
            },
        ),
        Experiment(
            name="transformer",
            title="Does Transformer-XL feel the noise, and does it depend on the amount of text?",
            source="Table 2",
            arms=_on_two_texts("transformer-xl"),
        ),
        Experiment(
            name="qrnn",
            title="Does a QRNN feel the noise, and does it depend on the amount of text?",
            source="QRNN experiment",
            arms=_on_two_texts("qrnn"),
        ),
        Experiment(
            name="dropout-rate",
            title="Does the replacement hold for weaker and stronger dropout?",
            source="ours",
            arms={
                f"{name}, q = {q}": Arm(task=LSTM, rule=rule, q=None if q == 0.4 else q)
                for q in (0.2, 0.4, 0.6)
                for name, rule in {"Dropout_1": DROPOUT[1], "R_approx + xi_approx": BOTH}.items()
            },
        ),
        Experiment(
            name="clip-and-lr",
            title="How much of the noise's effect is due to clipping and learning rate?",
            source="ours",
            arms={
                f"{name}, {how}": Arm(task=LSTM, rule=rule, changes=changes)
                for how, changes in {
                    "as it is": {},
                    "clip 1": {"clip": 1.0},
                    "0.3 lr": {"lr_scale": 0.3},
                }.items()
                for name, rule in {"even": EVEN, "even + odd": EVEN_ODD}.items()
            },
        ),
        Experiment(
            name="published-way",
            title="Does it matter how the regularizer and the noise are computed?",
            source="the authors' code",
            arms=_arms(
                {
                    "R_approx + xi_approx": BOTH,
                    "sampled labels, double backward": Rule(
                        "explicit", noise="analytic", method="sampled_labels"
                    ),
                }
            ),
        ),
        Experiment(
            name="seldom",
            title="Does it suffice to take the two derived effects at every n-th update?",
            source="ours",
            arms={
                f"{name}{how}": Arm(task=LSTM, rule=rule, changes=changes, seeds=seeds)
                # More seeds for the wider clip, where rules that may be equal are compared.
                for how, changes, seeds in (
                    ("", {}, SEEDS),
                    (", clip 1", {"clip": 1.0}, range(8)),
                )
                for name, rule in {
                    "Dropout_1": DROPOUT[1],
                    "R_approx + xi_approx": BOTH,
                    **{
                        f"R_approx + xi_approx, every {n}": dataclasses.replace(BOTH, every=n)
                        for n in (2, 4, 8)
                    },
                }.items()
            },
        ),
        Experiment(
            name="first-epochs",
            title="How do the effects set in on all of Penn Treebank?",
            source="ours",
            arms=_arms(
                _BASE | {"even + odd": EVEN_ODD, "R_approx": EXPLICIT, "R_approx + xi_approx": BOTH}
            ),
            sizes=(Size.TINY, Size.LARGE),
        ),
    )
}
"""Every experiment, in the order in which a queue runs them."""


def experiment(name: str) -> Experiment:
    """The experiment of a name.

    Args:
        name: A key of `EXPERIMENTS`.

    Returns:
        The experiment.

    Raises:
        InputError: If there is none.
    """
    if name not in EXPERIMENTS:
        raise InputError(
            f"there is no experiment {name!r}. Choose one of: {', '.join(EXPERIMENTS)}."
        )
    return EXPERIMENTS[name]


def at_size(size: Size) -> list[Experiment]:
    """The experiments that are run at a size.

    Args:
        size: The size.

    Returns:
        These experiments, in the order of `EXPERIMENTS`.
    """
    return [each for each in EXPERIMENTS.values() if size in each.sizes]
