"""How long a page is: its words, equations and lines of code that are seen, and the minutes.

`python -m tools.reading [PAGE …]` prints a line for each page and the sum over the main line: what
a reader reads one after the other, without what lies beside it.
"""

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from tools import ROOT

# The parts of the table of contents that are read one after the other.
MAIN_LINE = (
    "Start here",
    "What dropout does",
    "Pulling them apart",
    "When it is exact",
    "Deriving the regularizers",
    "Replacing dropout",
)
LINES = 12
"""Of code that is seen, in one cell."""
WORDS_A_MINUTE, EQUATIONS_A_MINUTE, LINES_A_MINUTE = 200, 2, 15

TITLE = re.compile(r"\A# @title (.+)")
FOLDED = re.compile(r"<details>.*?</details>", re.DOTALL)
FENCED = re.compile(r"(?P<fence>`{3,}|~{3,}).*?(?P=fence)", re.DOTALL)
DISPLAYED = re.compile(r"\$\$.+?\$\$", re.DOTALL)
INLINE = re.compile(r"(?<!\\)\$[^$\n]+(?:\n[^$\n]+)*\$")
MARKUP = re.compile(r"<[^>]+>|\]\([^)]*\)|[#*|>\[\]`_-]")


def folded_under(cell: Any) -> str | None:
    """The line under which a code cell is folded; None if its code is seen."""
    found = TITLE.match(cell.source)
    return found.group(1) if found else None


def seen_code(notebook: Any) -> list[Any]:
    """The code cells that a reader sees unfolded."""
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code"
        and "remove-cell" not in cell.metadata.get("tags", [])
        and folded_under(cell) is None
    ]


@dataclass(frozen=True)
class Length:
    """Words of text that is not folded; displayed equations; those with a number; lines of code."""

    words: int
    equations: int
    numbered: int
    lines: int

    @property
    def minutes(self) -> int:
        return math.ceil(
            self.words / WORDS_A_MINUTE
            + self.equations / EQUATIONS_A_MINUTE
            + self.lines / LINES_A_MINUTE
        )


def length(path: Path) -> Length:
    """Measure a page, Markdown or notebook."""
    lines = 0
    if path.suffix == ".ipynb":
        notebook = nbformat.read(path, as_version=4)
        text = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
        lines = sum(len(cell.source.splitlines()) for cell in seen_code(notebook))
    else:
        text = path.read_text("utf-8")
    text = FENCED.sub("", FOLDED.sub("", text))
    equations = DISPLAYED.findall(text)
    text = INLINE.sub(" ", DISPLAYED.sub(" ", text))
    return Length(
        words=len(re.findall(r"\w[\w.,'’-]*", MARKUP.sub(" ", text))),
        equations=len(equations),
        numbered=sum("\\tag{" in equation for equation in equations),
        lines=lines,
    )


def file_of(page: str) -> Path:
    """The source of a page of the table of contents; the build makes some that have none."""
    (path,) = (p for s in (".ipynb", ".md") if (p := ROOT / f"{page}{s}").exists())
    return path


def main_line() -> list[Path]:
    """The pages that are read one after the other."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    parts = [part for part in toc["parts"] if part["caption"] in MAIN_LINE]
    return [file_of(chapter["file"]) for part in parts for chapter in part["chapters"]]


def main() -> None:
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or main_line()
    total = 0
    for path in chosen:
        size = length(path)
        total += size.words
        print(
            f"{path.relative_to(ROOT)!s:36} {size.words:6} words {size.equations:3} equations, "
            f"{size.numbered:2} numbered {size.lines:4} lines of code {size.minutes:3} min"
        )
    print(f"{total} words")


if __name__ == "__main__":
    main()
