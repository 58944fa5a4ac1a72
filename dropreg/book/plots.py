"""The look of the book's figures: a colour for each thing, thin lines for seeds, bands.

A figure is an SVG, drawn in the colours of a light page; the built book puts those of the reader's
theme in their place (tools/staging.py). So a figure uses no colour but those named here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dropreg.book.statistics import interval
from dropreg.errors import needs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from numpy.typing import ArrayLike

COLORS = {
    "none": "#6b6b6b",
    "dropout": "#0072b2",
    "explicit": "#d55e00",
    "implicit": "#009e73",
    "both": "#aa4499",
}
"""What a colour means in the whole book; distinct with any common colour blindness."""

NEUTRAL = {"ink": "#262626", "mid": "#8c8c8c", "light": "#c8c8c8", "grid": "#dedede"}
"""Tones for what is none of the five: text, a truth or reference, what is merely there, grid."""

STYLES = ("-", "--", ":", "-.")
"""Lines of things that share a colour, in their order."""


def use_style(*formats: str) -> None:
    """Set matplotlib and seaborn up for the book: figures whose text can be read on a phone.

    Args:
        formats: In which formats a notebook keeps its figures, "svg" if none is named.

    Raises:
        MissingPackageError: If seaborn is not installed.

    >>> use_style()
    """
    with needs("book", "use_style"):
        import seaborn as sns

    ink, text = NEUTRAL["ink"], 12
    sns.set_theme(
        style="whitegrid",
        rc={
            # 360 points: a phone has about as many pixels for it, so its letters have 11 there.
            "figure.figsize": (5.0, 3.5),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
            "font.size": text,
            **{
                f"{part}size": text
                for part in ("axes.label", "xtick.label", "ytick.label", "legend.font")
            },
            "legend.title_fontsize": text,
            "legend.frameon": False,
            "axes.titlesize": 12.5,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": NEUTRAL["light"],
            "grid.color": NEUTRAL["grid"],
            **{
                f"{part}color": ink
                for part in ("text.", "axes.label", "axes.title", "xtick.", "ytick.")
            },
            "lines.linewidth": 2.0,
            "svg.fonttype": "none",  # text stays text
            "svg.hashsalt": "dropreg",  # the same figure is the same file
        },
    )
    if "IPython" in sys.modules:
        from IPython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        if get_ipython() is not None:
            set_matplotlib_formats(*formats or ("svg",))


def band(
    axes: Axes, x: ArrayLike, runs: ArrayLike, name: str, label: str | None = None, line: str = "-"
) -> None:
    """Draw some runs thin, their mean thick, and its 95 % confidence interval as a band.

    Args:
        axes: Where to draw. `label_ends` writes the labels when all is drawn.
        x: Horizontal positions, (points,).
        runs: One row for each seed, (seeds, points).
        name: A key of `COLORS`.
        label: What the line is called; the name if None.
        line: Its style, in matplotlib's words, where two lines mean the same thing.

    >>> import matplotlib.pyplot as plt
    >>> figure, axes = plt.subplots()
    >>> band(axes, [1, 2], [[1, 2], [2, 3], [3, 5]], "dropout")
    >>> label_ends(axes)
    """
    import numpy as np  # which matplotlib has brought

    values, color = np.asarray(runs, dtype=float), COLORS[name]
    mean, half = interval(values)
    positions = np.asarray(x, dtype=float)
    axes.plot(positions, values.T, color=color, lw=0.6, alpha=0.35, label="_seed")
    axes.fill_between(positions, mean - half, mean + half, color=color, alpha=0.2, lw=0)
    axes.plot(positions, mean, line, color=color, label=label or name)


def label_ends(axes: Axes) -> None:
    """Write its label at the right end of each labelled line, in its colour.

    Labels stand in the order of the ends, moved apart where they would touch; a thin line leads to
    a label that was moved. What leaves the figure is labelled at its edge, with its value.

    Args:
        axes: What has been drawn. Its limits are fixed by this.
    """
    import numpy as np  # which matplotlib has brought

    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    size, figure = float(axes.xaxis.label.get_fontsize()), axes.get_figure(root=True)
    assert figure is not None
    points = 72 * axes.get_position().height * figure.get_figheight()
    last = max(float(np.max(line.get_xdata())) for line in _labelled(axes))
    ends = []
    for line in _labelled(axes):
        # Where the axis is scaled or turned round, only the place on the paper counts.
        value = float(np.asarray(line.get_ydata())[-1])
        place = axes.transAxes.inverted().transform(axes.transData.transform((last, value)))[1]
        words = str(line.get_label())
        if not 0 <= place <= 1:
            words += f" (to {value:.3g})"
        ends.append((min(max(place, 0), 1) * points, words, line))
    ends.sort(key=lambda end: end[0])
    places = [end[0] for end in ends]
    gap = 1.2 * size
    for _ in range(200):  # push neighbours apart until none touch
        for i in range(1, len(places)):
            if (overlap := gap - (places[i] - places[i - 1])) > 1e-3:
                places[i - 1] -= overlap / 2
                places[i] += overlap / 2
    for (end, words, line), place in zip(ends, places, strict=True):
        axes.annotate(
            words,
            (last, end / points),
            xycoords=("data", "axes fraction"),
            xytext=(14, place - end),
            textcoords="offset points",
            va="center",
            color=line.get_color(),
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "lw": 0.8,
                "relpos": (0, 0.5),  # to its beginning: to its middle a line would cross others
                "shrinkA": 1,
                "shrinkB": 1,
            },
            annotation_clip=False,
        )


def _labelled(axes: Axes) -> list[Line2D]:
    """The lines that have a label of their own; matplotlib begins the others' with "_"."""
    return [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]


def differences(
    axes: Axes,
    pairs: Mapping[str, ArrayLike],
    unit: str,
    colors: Mapping[str, str] | None = None,
    *,
    halves: Mapping[str, float] | None = None,
) -> None:
    """Draw paired differences: a dot for each seed, the mean with its 95 % interval, and zero.

    Args:
        axes: Where to draw.
        pairs: For each comparison, from top to bottom, the differences of its runs, (seeds,), of
            one arm minus another on the same seed.
        unit: Label of the axis, which says what minus means.
        colors: For each comparison a key of `COLORS`; the neutral ink where there is none.
        halves: For each comparison half the width of its interval, where it is not Student's of
            these differences alone.

    >>> import matplotlib.pyplot as plt
    >>> figure, axes = plt.subplots()
    >>> differences(axes, {"explicit − dropout": [0.1, 0.2, 0.0]}, "test loss (nats)")
    """
    import numpy as np  # which matplotlib has brought

    axes.axvline(0, color=NEUTRAL["mid"], lw=1, zorder=1)
    for row, (name, values) in enumerate(pairs.items()):
        runs = np.asarray(values, dtype=float)
        mean, half = (runs.mean(), halves[name]) if halves else interval(runs)
        color = COLORS[colors[name]] if colors and name in colors else NEUTRAL["ink"]
        axes.plot(runs, np.full(len(runs), row + 0.22), "o", color=color, ms=3, alpha=0.5)
        axes.plot([mean - half, mean + half], [row, row], color=color, lw=3)
        axes.plot([mean], [row], "o", color=color, ms=7)
    axes.set_yticks(range(len(pairs)), list(pairs))
    axes.set(ylim=(len(pairs) - 0.5, -0.5), xlabel=unit)
    axes.grid(visible=False, axis="y")


def learning_curves(
    axes: Axes,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    colors: Mapping[str, str],
    *,
    top: float | None = None,
) -> None:
    """Draw validation perplexity over the epochs, one band for each arm of an experiment.

    Args:
        axes: Where to draw.
        curves: For each label an arm's epochs, (points,), and perplexities, (seeds, points), of at
            least 3 seeds.
        colors: For each label a key of `COLORS`; arms of one colour differ in their line.
        top: Upper end of the perplexities shown; what lies above leaves the figure.
    """
    for label, (at, perplexities) in curves.items():
        same = [other for other in curves if colors[other] == colors[label]]
        style = STYLES[same.index(label) % len(STYLES)]
        band(axes, at, perplexities, colors[label], label, style)
    lowest = min(float(interval(runs)[0].min()) for _, runs in curves.values())
    axes.set(xlabel="epoch", ylabel="validation perplexity", ylim=(0.97 * lowest, top))
    label_ends(axes)


def fit_curves(
    axes: Axes,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    colors: Mapping[str, str],
    *,
    room: float = 0.15,
) -> None:
    """Draw test loss over training loss: a way for each arm, with a dot where it is lowest.

    Seeds are thin, the mean over them at each look is thick. The lines have their labels; where a
    legend of so many finds room, the caller knows.

    Args:
        axes: Where to draw.
        curves: For each label an arm's training and test losses, (seeds, looks) each, in nats.
        colors: For each label a key of `COLORS`; arms of one colour differ in their line.
        room: How far above the lowest mean test loss the figure reaches, in nats.
    """
    import numpy as np  # which matplotlib has brought

    lowest = np.inf
    for label, (train, test) in curves.items():
        same = [other for other in curves if colors[other] == colors[label]]
        style = STYLES[same.index(label) % len(STYLES)]
        fits, losses, color = np.asarray(train), np.asarray(test), COLORS[colors[label]]
        axes.plot(fits.T, losses.T, color=color, lw=0.5, alpha=0.3, label="_seed")
        fit, loss = fits.mean(0), losses.mean(0)
        lowest = min(lowest, loss.min())
        axes.plot(fit, loss, style, color=color, label=label)
        axes.plot(fit[loss.argmin()], loss.min(), "o", color=color, ms=5)
    axes.set(xlabel="training loss (nats)", ylabel="test loss (nats)")
    axes.set(ylim=(lowest - 0.4 * room, lowest + room))
    axes.invert_xaxis()  # training goes on to the right
