"""What a release says of itself: `python -m tools.release v1.2.3` prints CHANGELOG.md's section.

It stops where the tag is not the version of pyproject.toml, or where the changelog has no dated
section for it. Standard library only: release.yml runs it before anything is installed.
"""

import re
import sys
import tomllib
from pathlib import Path

from tools import ROOT


def version(root: Path) -> str:
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return str(project["version"])


def notes(tag: str, root: Path = ROOT) -> str:
    """Return the changelog's section of the version that a tag names."""
    this = version(root)
    if tag != f"v{this}":
        sys.exit(
            f"The tag is {tag}, and pyproject.toml says version {this}. Delete the tag (git push "
            f"--delete origin {tag}), and tag the commit that has the version: v{this}."
        )
    section = re.search(
        rf"^## \[{re.escape(this)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)",
        (root / "CHANGELOG.md").read_text("utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    if section is None:
        sys.exit(f"CHANGELOG.md needs a heading with the day: ## [{this}] - YYYY-MM-DD")
    return section.group(1).strip()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Name the tag: python -m tools.release v1.2.3")
    print(notes(sys.argv[1]))
