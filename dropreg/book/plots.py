"""The look of the book's figures: one colour for each thing, intervals as bands."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dropreg.errors import InputError, needs

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from dropreg.book.experiments.ledger import Row

COLORS = {
    "none": "#6b6b6b",
    "dropout": "#0072b2",
    "explicit": "#d55e00",
    "implicit": "#009e73",
    "both": "#aa4499",
}
"""What a colour means in the whole book; told apart with any common colour blindness."""


INTERACTIVE_KINDS = ("masks", "masks-k", "noise-law", "simplex", "strengths")
"""What the book's pages can let the reader move: the kinds of figure in `interactive.js`."""


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


def interval(runs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean over runs and the half-width of its 95 % confidence interval (Student's t).

    Args:
        runs: One row for each seed, (seeds, ...), at least 3.

    Returns:
        Mean and half-width, each of shape (...).

    Raises:
        InputError: If there are fewer than 3 runs.
        MissingPackageError: If NumPy or SciPy is not installed.

    >>> mean, half = interval([[1.0], [2.0], [3.0]])
    >>> print(mean.round(2), half.round(2))
    [2.] [2.48]
    """
    with needs("book", "A confidence interval"):
        import numpy as np
        from scipy.stats import t

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
    axes: Axes, rows: Mapping[str, Row], colors: Mapping[str, str], *, top: float | None = None
) -> None:
    """Draw validation perplexity over the epochs, one band for each arm of an experiment.

    Labels stand at the right ends, moved apart where they would touch.

    Args:
        axes: Where to draw.
        rows: For each label an arm with at least 3 finished runs.
        colors: For each label a key of `COLORS`; arms of one colour get lighter in their order.
        top: Upper end of the perplexities shown; what lies above leaves the figure.
    """
    from matplotlib.colors import to_rgb

    from dropreg.book.experiments.ledger import curve

    ends = []
    for label, row in rows.items():
        same = [other for other in rows if colors[other] == colors[label]]
        share = 0.6 * same.index(label) / max(1, len(same) - 1)
        color = tuple(c + share * (1 - c) for c in to_rgb(COLORS[colors[label]]))
        epochs, perplexities = curve(row)
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


@dataclass(frozen=True)
class Interactive:
    """A figure to be moved on the book's page, and to be looked at everywhere else.

    A notebook shows it when it is the value of a cell.

    Args:
        kind: One of `INTERACTIVE_KINDS`.
        alt: What the figure shows, in words.
        html: The figure in HTML.
    """

    kind: str
    alt: str
    html: str

    def __repr__(self) -> str:
        return f"<interactive figure {self.kind!r}: {self.alt}>"

    def _repr_html_(self) -> str:
        return self.html


def interactive(
    kind: str,
    data: Mapping[str, object],
    fallback: Figure | Mapping[str, Sequence[object]],
    alt: str,
) -> Interactive:
    """Make a figure that the reader moves on the book's page.

    The page's script, `book/_static/interactive.js`, draws it from the data. Where that script is
    not, in Colab, on GitHub or in a browser without JavaScript, the fallback is shown.

    Args:
        kind: One of `INTERACTIVE_KINDS`.
        data: What the script draws; it says which names each kind reads. Arrays and tensors become
            lists.
        fallback: A matplotlib figure, which is closed, or a table: for each heading its column.
        alt: What the fallback shows, in words: the text alternative or the table's caption.

    Returns:
        The figure, for the last line of a cell.

    Raises:
        InputError: If the kind is unknown, or the data are no JSON (which has no infinity or NaN).

    >>> table = {"q": [0.5, 0.8], "variance": [1, 4]}
    >>> interactive("noise-law", {"q": 0.5, "strength": 1}, table, "Variance of the noise")
    <interactive figure 'noise-law': Variance of the noise>
    """
    if kind not in INTERACTIVE_KINDS:
        names = ", ".join(map(repr, INTERACTIVE_KINDS))
        raise InputError(f"{kind!r} is no interactive figure. Choose one of: {names}.")
    try:
        text = json.dumps(data, allow_nan=False, separators=(",", ":"), default=_listed)
    except (TypeError, ValueError) as error:
        raise InputError(f"The data of {kind!r} are no JSON: {error}.") from error
    # Nothing in the data can end the script element or begin a comment in it.
    text = text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
    static = _table(fallback, alt) if isinstance(fallback, Mapping) else _picture(fallback, alt)
    return Interactive(
        kind,
        alt,
        f'<figure class="dropreg-interactive" data-kind="{kind}">\n'
        f'<div class="fallback">\n{static}\n</div>\n'
        f'<script type="application/json">{text}</script>\n'
        "</figure>",
    )


def _listed(value: Any) -> object:
    """An array or a tensor as lists, whatever library it is from."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"{type(value).__name__} is neither JSON nor an array")
    return value.tolist()


def _table(columns: Mapping[str, Sequence[object]], caption: str) -> str:
    """Write a table in HTML, with text escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row) + "</tr>\n"
        for row in zip(*columns.values(), strict=True)
    )
    return (
        f"<table>\n<caption>{html.escape(caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>"
    )


def _picture(figure: Figure, alt: str) -> str:
    """Draw a figure into an image element that holds its own PNG, and close the figure."""
    import matplotlib.pyplot as plt

    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return f'<img src="{source}" alt="{html.escape(alt)}">'
