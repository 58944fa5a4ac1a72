"""What the runs of an experiment have given: a row for each arm, as tables and figures show it.

The intervals need SciPy, which the extra `dropreg[book]` brings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dropreg.book.experiments.declarations import Experiment
from dropreg.book.experiments.records import Record
from dropreg.book.experiments.runner import Store
from dropreg.book.experiments.tasks import Size
from dropreg.book.statistics import FEWEST, interval
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

    @property
    def label(self) -> str:
        """Its name, with the strength where one was tuned."""
        return self.arm if self.strength is None else f"{self.arm}, strength {self.strength:g}"

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
