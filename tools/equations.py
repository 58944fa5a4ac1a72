"""The index of equations: every numbered equation of the book, and the check that ran on it.

A code cell says in its metadata which equations it checks, `"checks": [2, 3]`, and is compared with
its committed output (`nbval-check-output`). The index shows equation and printed result.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.notebooks import title

PAGE = "book/reference/equations"
INTRODUCTION = """\
# Every equation and its check

Each numbered equation of the book is checked in code where it stands, against something
independent: automatic differentiation, a sum over all masks, a sample with its standard error. This
page is made by the build from the chapters. It shows each equation, and what its check printed when
this book was built.
"""


def equations(notebook: Any) -> dict[int, str]:
    """The numbered display equations of a notebook, by number."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found: dict[int, str] = {}
    for body in re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL):
        found |= {int(number): body.strip() for number in re.findall(r"\\tag\{(\d+)\}", body)}
    return found


def checks(notebook: Any) -> Iterator[tuple[list[int], str]]:
    """The equations that each checking cell names, and what it printed."""
    for cell in notebook.cells:
        if "checks" in cell.metadata:
            printed = "".join(o.text for o in cell.outputs if o.output_type == "stream")
            yield cell.metadata["checks"], printed


def unchecked(notebook: Any) -> set[int]:
    """The numbers of the equations that no cell checks."""
    return set(equations(notebook)) - {
        number for numbers, _ in checks(notebook) for number in numbers
    }


def index(notebooks: dict[Path, Any]) -> str:
    """The page, in Markdown.

    Args:
        notebooks: For each path, relative to the repository, the executed notebook.
    """
    parts, total = [], 0
    for path, notebook in notebooks.items():
        bodies = equations(notebook)
        if not bodies:
            continue
        total += len(bodies)
        link = Path("../..") / path
        parts.append(f"## [{title(notebook)}]({link.as_posix()})")
        shown: set[int] = set()
        for numbers, printed in checks(notebook):
            # An equation that two cells check stands with the first.
            new = [f"$$\n{bodies[n]}\n$$" for n in numbers if n not in shown]
            shown.update(numbers)
            again = [n for n in numbers if f"$$\n{bodies[n]}\n$$" not in new]
            more = [f"And once more ({', '.join(map(str, again))}):"] if again else []
            parts += [*dict.fromkeys(new), *more, f"```text\n{printed.rstrip()}\n```"]
    return "\n\n".join([INTRODUCTION + f"\nThere are {total} of them.", *parts]) + "\n"
