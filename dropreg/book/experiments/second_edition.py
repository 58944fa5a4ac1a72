"""The second edition's experiments, by the rules of the book's page of evidence.

Each seed sees a piece of text of its own, every look measures the averaged weights beside those of
the moment, and the number of seeds is fixed here, before the runs. An experiment is a block: the
arms whose spread is pooled. `dropreg run --queue evidence` works them off in the order below,
each seed by seed: what the book rests on comes first.

On November 28, 2026, before any of these runs was read by the rule, seeds and arms were made fewer
and the order was changed, as one core would have taken another 28 hours.

- Seeds before: `lstm` 12; `share`, `falling-rate`, `ablations`, `clip`, `rates`, `share-clip` and
  `share-unclipped` 8; `transformer-text`, `qrnn-text` and `lstm-kjv` 6; `lstm-medium` 4.
- Arms before: Dropout_4 in `falling-rate`, `lstm-kjv` and `clip`; the even part with and without
  the odd one in `lstm-medium`.
- The three claims on `rates` are of that day.

Both effects on a share of the batch take the place of the first edition's "every n-th update".
There the state that an LSTM carries on is the mean of the pair's two for a sequence with noise;
where all sequences have noise it is that of a further pass without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dropreg.book.experiments.declarations import Arm, Experiment, Tuning
from dropreg.book.experiments.first_edition import (
    BOTH,
    DROPOUT,
    EVEN,
    EVEN_ODD,
    EXPLICIT,
    NONE,
)
from dropreg.book.experiments.tasks import Size
from dropreg.updates import Rule

EIGHT, SIX, FIVE, FOUR, THREE = range(8), range(6), range(5), range(4), range(3)
_LSTM = "lstm-ptb"
_FIVE_RULES = {
    "none": NONE,
    "Dropout_1": DROPOUT[1],
    "Dropout_4": DROPOUT[4],
    "R_approx": EXPLICIT,
    "R_approx + xi_approx": BOTH,
}
_FOUR_RULES = {name: rule for name, rule in _FIVE_RULES.items() if name != "Dropout_4"}
_EVEN_AND_ODD = {"even": EVEN, "even + odd": EVEN_ODD}


def _masks(k: int, noise: str = "none") -> Rule:
    return Rule("dropout_k", noise=noise, k=k)


def _arms(
    rules: Mapping[str, Rule],
    seeds: Sequence[int],
    *,
    task: str = _LSTM,
    ending: str = "",
    **changes: Any,
) -> dict[str, Arm]:
    return {
        f"{name}{ending}": Arm(task=task, rule=rule, changes=changes, seeds=seeds)
        for name, rule in rules.items()
    }


_SHARES = {f"R_approx + xi_approx, {n} in 8": replace(BOTH, share=n / 8) for n in (4, 2, 1)}
_OF_SHARES = {"none": NONE, "Dropout_1": DROPOUT[1], "R_approx + xi_approx": BOTH, **_SHARES}


def _on_two_texts(task: str, seeds: Sequence[int]) -> dict[str, Arm]:
    rules = {name: rule for name, rule in _FIVE_RULES.items() if rule is not BOTH}
    return _arms(rules, seeds, task=task) | _arms(
        rules, seeds, task=f"{task}-more-text", ending=", more text"
    )


def _tuned(rule: Rule, *strengths: float) -> Arm:
    """Tuned as it is run, noise included."""
    return Arm(task=_LSTM, rule=rule, tuning=Tuning(strengths), seeds=SIX)


# Half a decade apart, around what was best in the first edition.
_IDENTITY = Rule("explicit", method="central_identity"), 1e-3, 3e-3, 1e-2, 3e-2
_LOSS_JACOBIAN = Rule("explicit", method="central_loss_jacobian"), 1.0, 3.0, 10.0


def _with_noise(rule: Rule, *strengths: float) -> tuple[Any, ...]:
    return replace(rule, noise="analytic"), *strengths


SECOND_EDITION: Mapping[str, Experiment] = {
    each.name: each
    for each in (
        Experiment(
            name="share",
            title="How small may the share of the batch be on which both effects are taken?",
            source="ours",
            arms=_arms(_OF_SHARES, EIGHT)
            | _arms(_OF_SHARES, FOUR, task="transformer-xl-kjv", ending=", Transformer-XL"),
            sizes=(Size.TINY, Size.SMALL),
        ),
        Experiment(
            name="lstm",
            title="What do dropout's two effects do to an LSTM, each alone and together?",
            source="Figures 1 to 5, Tables 3 and 4",
            arms=_arms(
                _FIVE_RULES
                | {
                    "Dropout_2": DROPOUT[2],
                    "Dropout_4 + pair": _masks(4, "dropout_pair"),
                    "Dropout_2 + xi_approx": _masks(2, "analytic"),
                    "Dropout_4 + xi_approx": _masks(4, "analytic"),
                }
                | _EVEN_AND_ODD,
                EIGHT,
            ),
            sizes=(Size.TINY, Size.SMALL),
        ),
        Experiment(
            name="falling-rate",
            title="What is left of the noise's effect where the learning rate falls?",
            source="ours",
            arms=_arms(_FOUR_RULES, EIGHT, lr_falls=True),
            sizes=(Size.TINY, Size.SMALL),
        ),
        Experiment(
            name="rates",
            title="Does the replacement hold for weaker and stronger dropout?",
            source="ours",
            # The stronger, the longer it takes to come to its best.
            arms={
                f"{name}, q = {q}": Arm(task=_LSTM, rule=rule, q=p, changes=changes, seeds=SIX)
                for q, p, changes in (
                    (0.2, 0.2, {}),
                    (0.4, None, {}),
                    (0.6, 0.6, {"epochs": 72}),
                )
                for name, rule in {"Dropout_1": DROPOUT[1], "R_approx + xi_approx": BOTH}.items()
            },
            sizes=(Size.TINY, Size.SMALL),
        ),
        Experiment(
            name="transformer-text",
            title="Does Transformer-XL feel the noise, and does it depend on the amount of text?",
            source="Table 2",
            arms=_on_two_texts("transformer-xl-kjv", FIVE),
            sizes=(Size.TINY, Size.SMALL),
        ),
        Experiment(
            name="lstm-medium",
            title="And with five times the text and twice the units?",
            source="Figures 3 and 5, Tables 3 and 4",
            arms=_arms(_FOUR_RULES, THREE),
            sizes=(Size.TINY, Size.MEDIUM),
        ),
        Experiment(
            name="many-masks",
            title="What is left when sixteen masks a step, or sixteen probes, are averaged?",
            source="Figures 1, 2 and 4",
            arms=_arms(
                {
                    "none": NONE,
                    "Dropout_1": DROPOUT[1],
                    "Dropout_16": DROPOUT[16],
                    "Dropout_16 + pair": _masks(16, "dropout_pair"),
                    "Dropout_16 + xi_approx": _masks(16, "analytic"),
                    "R_approx": EXPLICIT,
                    "R_approx, 16 probes": replace(EXPLICIT, probes=16),
                },
                THREE,
            ),
            sizes=(Size.TINY, Size.SMALL),
        ),
        Experiment(
            name="lstm-kjv",
            title="And on a text on which nothing was tuned?",
            source="ours",
            arms=_arms(_FOUR_RULES, FIVE, task="lstm-kjv"),
            sizes=(Size.TINY, Size.SMALL),
        ),
        Experiment(
            name="ablations",
            title="Which ingredient of R_approx matters?",
            source="Section 5.2, Table 1",
            arms=_arms(_FIVE_RULES, SIX)
            | {
                "l2": _tuned(Rule("l2"), 1e-5, 1e-4, 1e-3),
                "identity": _tuned(*_IDENTITY),
                "identity + xi_approx": _tuned(*_with_noise(*_IDENTITY)),
                "loss Jacobian": _tuned(*_LOSS_JACOBIAN),
                "loss Jacobian + xi_approx": _tuned(*_with_noise(*_LOSS_JACOBIAN)),
            },
            sizes=(Size.TINY, Size.SMALL),
        ),
        Experiment(
            name="clip",
            title="How much of the noise's effect is due to clipping?",
            source="ours",
            arms=_arms(
                {name: rule for name, rule in _FOUR_RULES.items() if rule is not NONE}
                | _EVEN_AND_ODD,
                SIX,
                clip=1.0,
            ),
            sizes=(Size.TINY, Size.SMALL),
        ),
        Experiment(
            name="qrnn-text",
            title="Does a QRNN feel the noise, and does it depend on the amount of text?",
            source="QRNN experiment",
            arms=_on_two_texts("qrnn-kjv", FOUR),
            sizes=(Size.TINY, Size.SMALL),
        ),
        Experiment(
            name="share-clip",
            title="Does the share of the batch bear gradients that are hardly clipped?",
            source="ours",
            arms=_arms(_OF_SHARES, FOUR, clip=1.0),
            sizes=(Size.TINY, Size.SMALL),
        ),
        Experiment(
            name="share-unclipped",
            title="And gradients that are not?",
            source="ours",
            arms=_arms(_OF_SHARES, FOUR, clip=math.inf),
            sizes=(Size.TINY, Size.SMALL),
        ),
        Experiment(
            name="medium-masks",
            title="And with eight masks a step, on five times the text?",
            source="Figures 1 and 2",
            arms=_arms(
                {
                    "Dropout_1": DROPOUT[1],
                    "Dropout_8": DROPOUT[8],
                    "Dropout_8 + pair": _masks(8, "dropout_pair"),
                },
                THREE,
            ),
            sizes=(Size.TINY, Size.MEDIUM),
        ),
    )
}
"""The experiments of the second edition, in the order of the queue."""
