r"""Runs whose truth is known, to see what the rule of the ledger says of them.

A run's training loss :math:`f` falls by the same amount from look to look. Its test loss is

.. math:: y = \text{level} + \text{bend}\,(f - f^*)^2 + \text{piece} + \text{run} + \text{look} ,

where the piece of text is shared by all arms of a seed, the run's own part by all looks of a run,
and every look adds its own; validation is the same with looks of its own. So an arm's level is its
outcome at the best look, and two arms that go through the same :math:`f` at another pace differ in
the last look only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dropreg.book.experiments.declarations import Experiment
from dropreg.book.experiments.ledger import Row
from dropreg.book.experiments.records import Record
from dropreg.errors import needs

if TYPE_CHECKING:
    import numpy as np

LOOKS = 20
START = 5.0
"""Training loss at the first look, in nats."""


@dataclass(frozen=True)
class Truth:
    """What an arm's runs are like; losses in nats.

    Attributes:
        level: Test loss at the best fit.
        fall: How much the training loss falls from look to look.
        best_fit: The training loss at which the test loss is lowest.
        bend: How fast the test loss rises off there.
        spread: Standard deviation of a run's own part.
    """

    level: float = 3.8
    fall: float = 0.1
    best_fit: float = 3.8
    bend: float = 0.1
    spread: float = 0.006


PIECE, AVERAGED, RAW = 0.05, 0.0005, 0.015
"""Standard deviations of a piece's part, and of a look's at either network."""


def simulate(
    experiment: Experiment,
    truth: Mapping[str, Truth],
    generator: np.random.Generator,
    *,
    seeds: Sequence[int] | None = None,
) -> list[Row]:
    """Draw the runs of an experiment.

    Args:
        experiment: Its arms and seeds are taken.
        truth: For each arm what its runs are like; arms left out are like `Truth()`.
        generator: Source of chance.
        seeds: Seeds in place of the declared ones.

    Returns:
        The rows, as `dropreg.book.experiments.ledger.rows` gives them.
    """
    with needs("book", "A simulation"):
        import numpy as np

    pieces: dict[tuple[str, int], float] = {}
    found = []
    for name, arm in experiment.arms.items():
        true = truth.get(name, Truth())
        fit = START - true.fall * np.arange(LOOKS)
        curve = true.level + true.bend * np.square(fit - true.best_fit)
        records = {}
        for seed in arm.seeds if seeds is None else seeds:
            of_text = arm.task, seed
            if of_text not in pieces:
                pieces[of_text] = generator.normal(0, PIECE)
            mean = curve + pieces[of_text] + generator.normal(0, true.spread)
            columns: dict[str, list[float]] = {}
            for prefix, jitter in (("averaged_", AVERAGED), ("", RAW)):
                valid, test = mean + generator.normal(0, jitter, (2, LOOKS))
                columns[f"{prefix}train_loss"] = fit.tolist()
                columns[f"{prefix}valid_loss"] = valid.tolist()
                columns[f"{prefix}test_perplexity"] = np.exp(test).tolist()
            epochs = [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
            records[seed] = Record("simulated", {}, "finished", [], epochs, {})
        found.append(Row(name, None, records))
    return found


def moved(level: float, **others: float) -> Truth:
    """An arm whose perplexity is higher by a share than that of `Truth()`.

    Args:
        level: The share, for instance 0.01.
        **others: Further fields of `Truth`.

    Returns:
        What its runs are like.
    """
    return Truth(level=Truth().level + math.log1p(level), **others)
