"""Figures that the reader moves on the book's page, and looks at everywhere else."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dropreg.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTERACTIVE_KINDS = (
    "fit",
    "masks",
    "masks-k",
    "noise-law",
    "simplex",
    "strengths",
    "thinned",
    "two-weights",
)
"""What the book's pages can let the reader move: the kinds of figure in `interactive.js`."""


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
        InputError: If the kind is unknown, or the data cannot be written as JSON, which has no
            infinity and no NaN.

    >>> table = {"q": [0.5, 0.8], "variance": [1, 4]}
    >>> interactive("noise-law", {"q": 0.5, "strength": 1}, table, "Variance of the noise")
    <interactive figure 'noise-law': Variance of the noise>
    """
    if kind not in INTERACTIVE_KINDS:
        names = ", ".join(map(repr, INTERACTIVE_KINDS))
        raise InputError(f"{kind!r} is not an interactive figure. Choose one of: {names}.")
    try:
        text = json.dumps(data, allow_nan=False, separators=(",", ":"), default=_listed)
    except (TypeError, ValueError) as error:
        raise InputError(f"The data of {kind!r} cannot be written as JSON: {error}.") from error
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
    """Draw a figure into an SVG element with its words, and close the figure."""
    import matplotlib.pyplot as plt

    file = io.StringIO()
    unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dropreg"}):
        figure.savefig(file, format="svg", metadata=unsaid)
    plt.close(figure)
    svg = file.getvalue()
    # A style in a picture that is part of a page would hold for the whole page.
    svg = re.sub(r"<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    style = "max-width:100%;height:auto;stroke-linejoin:round;stroke-linecap:butt"
    words = f'role="img" aria-label="{html.escape(alt)}" style="{style}"'
    return svg.replace("<svg ", f"<svg {words} ", 1).strip()
