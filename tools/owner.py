"""Put your name on GitHub where SET_OWNER stands: `make owner NAME=your-name`.

Nobody can register SET_OWNER there, so until then no address of the repository is anybody's, and
nothing may be published: the workflows that publish ask `--check` first. They do so under a Python
that has nothing of ours, so this file imports the standard library only.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import ROOT

PLACEHOLDER = "SET_OWNER"
# These speak of the placeholder itself.
EXPLAINED = ("CONTRIBUTING.md", "assignments/grader/doctor.py", "tests", "tools/owner.py")
LOGIN = re.compile(r"(?=.{1,39}$)[A-Za-z0-9]+(-[A-Za-z0-9]+)*")


def git(root: Path, *arguments: str) -> str:
    """Return what a git command prints; 1 is how `git grep` says that it found nothing."""
    done = subprocess.run(("git", *arguments), cwd=root, capture_output=True, text=True)
    if done.returncode > 1:
        sys.exit(f"This works in a git repository only: {done.stderr.strip()}")
    return done.stdout


def places(root: Path) -> list[Path]:
    """List the tracked files in which the placeholder waits for a name."""
    but = (f":!{path}" for path in EXPLAINED)
    found = git(root, "grep", "-lz", "--fixed-strings", PLACEHOLDER, "--", ".", *but)
    return [root / name for name in found.split("\0") if name]


def check(root: Path) -> None:
    """Stop while the placeholder stands anywhere."""
    if found := [str(path.relative_to(root)) for path in places(root)]:
        sys.exit(
            f"{PLACEHOLDER} stands in {len(found)} files, {found[0]} for one, and so nothing is "
            "published. Run `make owner NAME=your-name-on-GitHub`, then commit."
        )
    print("The repository's address is set.")


def put(name: str, root: Path) -> None:
    """Put a name in the placeholder's place, in files that git can bring back."""
    if not LOGIN.fullmatch(name):
        sys.exit(
            f"{name!r} is no name on GitHub: up to 39 letters and digits, with single hyphens "
            "between them. Give yours: make owner NAME=your-name"
        )
    if git(root, "status", "--porcelain"):
        sys.exit("Commit your changes first, so that `git checkout .` can undo what comes now.")
    found = places(root)
    if not found:
        sys.exit(
            f"{PLACEHOLDER} stands nowhere any more: an owner is set. To set another, revert the "
            "commit that did it (git revert), then run this again."
        )
    for path in found:
        path.write_text(path.read_text("utf-8").replace(PLACEHOLDER, name), "utf-8")
    print(
        f"{name} stands in {len(found)} files now. Look at `git diff`; `git checkout .` undoes it."
    )


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="", help="the repository's owner on GitHub")
    parser.add_argument("--check", action="store_true", help="fail while there is none")
    given = parser.parse_args(arguments)
    if given.check:
        check(root)
    else:
        put(given.name, root)


if __name__ == "__main__":
    main()
