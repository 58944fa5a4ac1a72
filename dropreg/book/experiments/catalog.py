"""Every experiment by its name, and what a queue works off."""

from __future__ import annotations

from collections.abc import Mapping

from dropreg.book.experiments.declarations import Experiment
from dropreg.book.experiments.first_edition import FIRST_EDITION
from dropreg.book.experiments.second_edition import SECOND_EDITION
from dropreg.book.experiments.tasks import Size
from dropreg.errors import InputError

EXPERIMENTS: Mapping[str, Experiment] = {**SECOND_EDITION, **FIRST_EDITION}
"""Every experiment, in the order in which a queue runs them."""

EVIDENCE: tuple[tuple[str, Size], ...] = tuple(
    (each.name, size)
    for each in SECOND_EDITION.values()
    for size in (Size.SMALL, Size.MEDIUM)
    if size in each.sizes
)
"""The second edition's experiments at the sizes that its ledger reads, in the queue's order."""


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
