"""The look of the book's figures: one colour for each thing, intervals as bands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    "none": "#6b6b6b",
    "dropout": "#0072b2",
    "explicit": "#d55e00",
    "implicit": "#009e73",
    "both": "#aa4499",
}
"""What a colour means in the whole book; told apart with any common colour blindness."""


def use_style() -> None:
    """Set matplotlib and seaborn up for the book: sizes that can be read on a phone.

    >>> use_style()
    """
    import seaborn as sns

    sns.set_theme(
        context="notebook",
        style="whitegrid",
        font_scale=1.05,
        rc={
            "figure.figsize": (6.4, 4.0),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 2.0,
        },
    )


def interval(runs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean over runs and the half-width of its 95 % confidence interval (Student's t).

    Args:
        runs: One row for each seed, (seeds, ...), at least 3.

    Returns:
        Mean and half-width, each of shape (...).

    Raises:
        InputError: If there are fewer than 3 runs.

    >>> mean, half = interval([[1.0], [2.0], [3.0]])
    >>> print(mean.round(2), half.round(2))
    [2.] [2.48]
    """
    from scipy.stats import t

    from dropreg.errors import InputError

    values = np.asarray(runs, dtype=float)
    seeds = values.shape[0]
    if seeds < 3:
        raise InputError(f"{seeds} runs; an interval needs at least 3 seeds.")
    error = values.std(axis=0, ddof=1) / seeds**0.5
    return values.mean(axis=0), t.ppf(0.975, seeds - 1) * error


def band(
    axes: Axes,
    x: ArrayLike,
    runs: ArrayLike,
    name: str,
    label: str | None = None,
    *,
    shift: float = 0.0,
) -> None:
    """Draw the mean of some runs as a line, with its 95 % confidence interval as a band.

    Args:
        axes: Where to draw.
        x: Horizontal positions, (points,).
        runs: One row for each seed, (seeds, points).
        name: A key of `COLORS`.
        label: Written at the right end of the line, in its colour; the name if None.
        shift: How far up the label is moved, in points, to keep clear of another.

    >>> import matplotlib.pyplot as plt
    >>> figure, axes = plt.subplots()
    >>> band(axes, [1, 2], [[1, 2], [2, 3], [3, 5]], "dropout")
    """
    mean, half = interval(runs)
    positions = np.asarray(x, dtype=float)
    axes.plot(positions, mean, color=COLORS[name])
    axes.fill_between(positions, mean - half, mean + half, color=COLORS[name], alpha=0.2, lw=0)
    axes.annotate(
        label or name,
        (positions[-1], mean[-1]),
        xytext=(4, shift),
        textcoords="offset points",
        va="center",
        color=COLORS[name],
    )
