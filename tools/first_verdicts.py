"""The page of what became of each verdict of the ledger's first edition, read off both ledgers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = "book/reference/verdicts"
FIRST = Path("book/reference/ledger.ipynb"), "# @title Judge the claims"
SECOND = Path("book/reference/evidence.ipynb"), "# @title All claims with their numbers"
FIRST_VIEWS = ("best epoch", "last epoch")
SECOND_VIEWS = ("best", "last", "equal fit")
INTRODUCTION = """\
# The first ledger's verdicts, today

You have read the [first ledger](ledger.ipynb), or something that quotes it. Its claims are asked
again, of new runs and by a [stricter rule](evidence.ipynb); [how to read our
evidence](how_to_read.ipynb) says what was wrong with the first one, and the [errata](errata.md)
which conclusions fell with it. So take the right column where it has a verdict. Where it has none
yet, take neither: what the left one says was judged by a rule that we no longer trust.

✔ is reproduced, ✘ contradicted, ? undecided. "No gap" says that a recovery is claimed where these
runs see nothing to recover. *Then* are best and last epoch of the first edition, *now* best look,
last look and equal training loss of the second.
"""


def judged(notebook: Any, title: str) -> dict[int, tuple[str, dict[str, str]]]:
    """Each claim of a ledger by its number: its text, and the verdict in each view.

    Raises:
        ValueError: If the ledger has not one cell of that title that shows claims.
    """
    texts = [
        output.data["text/markdown"]
        for cell in notebook.cells
        if cell.source.startswith(title)
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    ]
    found = {}
    for text in texts:
        for section in re.split(r"^(?=\*\*\d+\. )", text, flags=re.MULTILINE)[1:]:
            number, claim = re.findall(r"\*\*(\d+)\. (.+?)\*\* \(", section)[0]
            views = re.findall(r"^- ([^:.]+)[:.] .*?\*\*(.+?)\*\*", section, re.MULTILINE)
            found[int(number)] = claim, dict(views)
    if len(texts) != 1 or not found:
        raise ValueError(f"{len(texts)} outputs with {len(found)} claims of {title!r}, not one.")
    return found


def short(verdicts: dict[str, str], views: Sequence[str]) -> str:
    """The verdicts in some views as signs; where nothing is judged yet, what is said instead."""
    if not set(views) <= set(verdicts):
        return " · ".join(verdict.removeprefix("– ") for verdict in verdicts.values())
    signs = (verdicts[view].partition(" ") for view in views)
    return " · ".join(words if sign == "–" else sign for sign, _, words in signs)


def index(notebooks: dict[Path, Any]) -> str:
    """The page, in Markdown.

    Args:
        notebooks: For each path, relative to the repository, the executed notebook.
    """
    first, second = (judged(notebooks[path], title) for path, title in (FIRST, SECOND))
    lines = [INTRODUCTION, "| | claim | then | now |", "|---|---|---|---|"]
    for number, (claim, verdicts) in first.items():
        asked, now = second[number]
        text = claim if asked == claim else f"{claim} *Asked now:* {asked}"
        then = short(verdicts, FIRST_VIEWS)
        lines.append(f"| {number} | {text} | {then} | {short(now, SECOND_VIEWS)} |")
    return "\n".join(lines) + "\n"
