"""GitHub: the page that a run shows, from the grader's result.

`python -m assignments.runners.github RESULT` prints it, as Markdown.
"""

import html
import json
import re
import sys
from pathlib import Path
from typing import Any

# What GitHub's Markdown would read as more than itself, also within the tag.
MARKUP = re.compile(r"[|\\`*_~!:@\[\]]")


def summary(result: dict[str, Any]) -> str:
    """A table of the tests; what is the student's own is shown as text."""
    lines = [f"## {result['score']:g} of {result['max_score']:g} points so far", ""]
    lines += ["| | points | |", "|---|---|---|"]
    for test in result["tests"]:
        message = "✓" if test["message"] is None else text(test["message"])
        lines.append(
            f"| {text(test['title'])} | {test['points']:g}/{test['max_points']:g} | {message} |"
        )
    for answer in result["waiting"]:
        title, points = text(answer["title"]), answer["max_points"]
        lines.append(f"| {title} | –/{points:g} | waiting to be marked |")
    lines += [""] + [f"- {text(note)}" for note in result["notes"]]
    return "\n".join(lines)


def text(words: str) -> str:
    """Words in a cell of a table that stay words: no markup, no end of the cell."""
    escaped = html.escape(" ".join(words.split()))
    return f"<code>{re.sub(MARKUP, lambda sign: f'&#{ord(sign[0])};', escaped)}</code>"


if __name__ == "__main__":
    print(summary(json.loads(Path(sys.argv[1]).read_text("utf-8"))))
