"""The code of the book's page "In your trainer", as a reader copies it."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "book" / "use" / "trainers.md"


def blocks(section):
    """The blocks of Python under a heading of the page."""
    parts = re.split(r"^## (.*)\n", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    text = dict(zip(parts[1::2], parts[2::2], strict=True))[section]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)
