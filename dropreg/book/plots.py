"""The look of the book's figures: one colour for each thing, intervals as bands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dropreg.book.statistics import interval
from dropreg.errors import needs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

COLORS = {
    "none": "#6b6b6b",
    "dropout": "#0072b2",
    "explicit": "#d55e00",
    "implicit": "#009e73",
    "both": "#aa4499",
}
"""What a colour means in the whole book; distinct with any common colour blindness."""


def use_style() -> None:
    """Set matplotlib and seaborn up for the book: sizes that can be read on a phone.

    Raises:
        MissingPackageError: If seaborn is not installed.

    >>> use_style()
    """
    with needs("book", "use_style"):
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
    import numpy as np  # which matplotlib has brought

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


def learning_curves(
    axes: Axes,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    colors: Mapping[str, str],
    *,
    top: float | None = None,
) -> None:
    """Draw validation perplexity over the epochs, one band for each arm of an experiment.

    Labels stand at the right ends, moved apart where they would touch.

    Args:
        axes: Where to draw.
        curves: For each label an arm's epochs, (points,), and perplexities, (seeds, points), of at
            least 3 seeds.
        colors: For each label a key of `COLORS`; arms of one colour get lighter in their order.
        top: Upper end of the perplexities shown; what lies above leaves the figure.
    """
    import numpy as np  # which matplotlib has brought
    from matplotlib.colors import to_rgb

    ends = []
    for label, (at, perplexities) in curves.items():
        same = [other for other in curves if colors[other] == colors[label]]
        share = 0.6 * same.index(label) / max(1, len(same) - 1)
        color = tuple(c + share * (1 - c) for c in to_rgb(COLORS[colors[label]]))
        epochs = np.asarray(at)
        mean, half = interval(perplexities)
        axes.plot(epochs, mean, color=color)
        axes.fill_between(epochs, mean - half, mean + half, color=color, alpha=0.12, lw=0)
        ends.append((float(mean[-1]), float(mean.min()), label, color, COLORS[colors[label]]))
    low = 0.97 * min(lowest for _, lowest, *_ in ends)
    axes.set(xlabel="epoch", ylabel="validation perplexity", ylim=(low, top))
    high = axes.get_ylim()[1]
    last, pad = float(epochs[-1]), 0.05 * float(epochs[-1])
    place = -math.inf
    for value, _, label, color, text_color in sorted(ends):
        place = max(min(value, high - 0.04 * (high - low)), place + 0.065 * (high - low))
        # A short line leads from the curve's end to its label; text keeps the full, darker colour.
        axes.annotate(
            label if value <= high else f"{label} (to {value:.0f})",
            (last, min(value, high)),
            xytext=(last + pad, place),
            va="center",
            color=text_color,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 1.5},
            annotation_clip=False,
        )


def fit_curves(
    axes: Axes,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    colors: Mapping[str, str],
    *,
    room: float = 0.15,
) -> None:
    """Draw test loss over training loss, one line for each arm, with a dot where it is lowest.

    Args:
        axes: Where to draw.
        curves: For each label an arm's training and test losses, (looks,) each, in nats.
        colors: For each label a key of `COLORS`; arms of one colour differ in their line.
        room: How far above the lowest test loss the figure reaches, in nats.
    """
    import numpy as np  # which matplotlib has brought

    lowest = min(float(np.min(test)) for _, test in curves.values())
    for label, (train, test) in curves.items():
        same = [other for other in curves if colors[other] == colors[label]]
        style = ("-", "--", ":", "-.")[same.index(label) % 4]
        fit, loss = np.asarray(train), np.asarray(test)
        color, best = COLORS[colors[label]], int(loss.argmin())
        axes.plot(fit, loss, style, color=color, lw=1.5, label=label)
        axes.plot(fit[best], loss[best], "o", color=color, ms=5)
    axes.set(xlabel="training loss (nats)", ylabel="test loss (nats)")
    axes.set(ylim=(lowest - 0.1 * room, lowest + room))
    axes.invert_xaxis()  # training goes on to the right
    axes.legend(fontsize=8, loc="upper left", ncols=2)
