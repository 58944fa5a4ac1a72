"""The page of the labs: what each paper claims, what its lab measured, and the verdict.

The table is made from the labs. In each a cell with the tag `lab-finding` shows a table of two
columns, whose rows are those of `ROWS`, with the numbers that its runs gave.
"""

import re
from pathlib import Path
from typing import Any

from tools.notebooks import title

PAGE = "book/labs/overview"
FOLDER = Path(PAGE).parent
TAG = "lab-finding"
CLAIM, MEASURED, VERDICT, BEARING = ROWS = (
    "The paper claims",
    "Measured here",
    "Verdict",
    "For the two effects",
)
VERDICTS = ("holds here", "holds in part", "does not hold here", "not decided")
INTRODUCTION = """\
# Labs

Other papers stand around that of Wei, Kakade and Ma. Some explain dropout otherwise, some use its
pieces for something else. Each lab takes one of them, asks one question, and answers it before
your eyes: small data, a minute or less of one core, at least five seeds with 95 % intervals, a vote
before the result, and beside it the control that would refute it. *Here*, in a verdict, means at
this size and on these data. Where a lab does not find what a paper found, that says something of
this size first, and of the paper second.

Each lab names the chapter that it leans on, and ends with an open question. The instructor's
[projects](../teach/projects.md) are made of them: what to hand out, a rubric, and what a good
answer finds.
"""


def finding(notebook: Any) -> dict[str, str]:
    """What a lab found: the rows of the table that its tagged cell shows.

    Raises:
        ValueError: If there is not one such table, or its rows are not `ROWS`.
    """
    lab = title(notebook)
    tables = [
        output.data["text/markdown"]
        for cell in notebook.cells
        if TAG in cell.metadata.get("tags", [])
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    ]
    if len(tables) != 1:
        raise ValueError(f"{lab}: {len(tables)} tables in cells tagged {TAG}; a lab has one.")
    rows = dict(re.findall(r"^\| \*\*(.+?)\*\* \| (.+?) \|$", tables[0], re.MULTILINE))
    if tuple(rows) != ROWS:
        raise ValueError(f"{lab}: the finding has the rows {list(rows)}, not {list(ROWS)}.")
    if rows[VERDICT] not in VERDICTS:
        raise ValueError(f"{lab}: the verdict is {rows[VERDICT]!r}, none of {VERDICTS}.")
    return rows


def index(notebooks: dict[Path, Any]) -> str:
    """The page, in Markdown.

    Args:
        notebooks: For each path, relative to the repository, the executed notebook.
    """
    table, bearings, seconds = [], [], []
    for path, notebook in notebooks.items():
        if path.parent != FOLDER:
            continue
        link, found = f"[{title(notebook)}]({path.name})", finding(notebook)
        measured = found[MEASURED]
        for held in (" ± ", " = ", " %"):  # no line breaks there
            measured = measured.replace(held, held.replace(" ", "\N{NO-BREAK SPACE}"))
        table.append(f"| {link} | {found[CLAIM]} | {found[VERDICT]} | {measured} |")
        bearings.append(f"- {link}: {found[BEARING]}")
        seconds.append(notebook.metadata.run["processor_seconds"])
    lines = [
        INTRODUCTION,
        # A phone shows the verdict, too, before one scrolls.
        "| lab | the paper claims | verdict | measured here |",
        "|---|---|---|---|",
        *table,
        "\n## What they say of the two effects\n",
        *bearings,
        "\n## What they cost\n",
        f"Together the {len(table)} labs take {sum(seconds):.0f} seconds of one core, the longest "
        f"{max(seconds):.0f}; [execution times](../reference/times.md) has each.",
    ]
    return "\n".join(lines) + "\n"
