"""The page of execution times: what each chapter took when its outputs were made."""

from pathlib import Path
from typing import Any

from tools.notebooks import title

PAGE = "book/reference/times"
INTRODUCTION = """\
# Execution times

What each chapter took of one core when it was last executed for this book, from the start of Python
to its end: processor time, which what else the machine does hardly changes. The last cell of a
chapter prints its own, from after the imports. The build executes a chapter again when its code,
the library or a result that it reads has changed. What takes longer than a chapter should is loaded
from recorded runs; the chapters that show them say what those took.
"""


def index(notebooks: dict[Path, Any]) -> str:
    """The page, in Markdown.

    Args:
        notebooks: For each path, relative to the repository, the executed notebook. Its metadata's
            `run` says when, where and for how long.
    """
    rows, total = [], 0.0
    for path, notebook in notebooks.items():
        link = f"[{title(notebook)}]({(Path('../..') / path).as_posix()})"
        run = notebook.metadata.run
        total += run["processor_seconds"]
        took = f"{run['processor_seconds']:.0f}"
        rows.append(f"| {link} | {took} | {run['date']} | {run['machine']} |")
    table = [
        "| chapter | seconds of one core | executed on | machine |",
        "|---|---:|---|---|",
        *rows,
    ]
    return "\n".join([INTRODUCTION, *table, f"| all of them | {total:.0f} | | |"]) + "\n"
