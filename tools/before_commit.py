"""Mend what is about to be committed: ruff corrects and formats, notebooks lose editors' traces.

Git calls this before each commit once `make hooks` has been called. What is staged is judged. If
anything in it is to be mended, by this or by hand, nothing is committed. A mended file lies in the
working tree then, to be looked at and staged, unless there was more in it than is staged.
"""

import json
import subprocess
import sys

from tools import ROOT
from tools.notebooks import clean


def git(*words: str) -> bytes:
    return subprocess.run(("git", *words), cwd=ROOT, check=True, capture_output=True).stdout


def ruff(path: str, content: bytes, *words: str) -> tuple[bytes, str]:
    """Have a file corrected that need not lie at its path; returns it, and what is left to say."""
    command = (sys.executable, "-m", "ruff", *words, "--quiet", "--stdin-filename", path, "-")
    done = subprocess.run(command, cwd=ROOT, input=content, capture_output=True)
    # A file that cannot be read comes back as nothing.
    return (done.stdout or content), (done.stderr.decode() if done.returncode else "")


def mended(path: str, content: bytes) -> tuple[bytes, str]:
    """Return a file as it should be, and what has to be done by hand."""
    if path.endswith(".ipynb"):
        notebook = json.loads(content)  # nbformat takes a second to import, and writes the same
        clean(notebook)
        text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True)
        content = f"{text}\n".encode()
    content, wrong = ruff(path, content, "check", "--fix", "--output-format=concise")
    content, unreadable = ruff(path, content, "format")
    return content, wrong or unreadable


def main() -> None:
    chosen = ("diff", "--cached", "--name-only", "-z", "--diff-filter=ACMR", "--")
    refused = False
    for path in filter(None, git(*chosen, "*.py", "*.ipynb").decode().split("\0")):
        staged = git("show", f":{path}")
        content, wrong = mended(path, staged)
        refused |= bool(wrong) or content != staged
        print(wrong, end="")
        if content == staged:
            continue
        if (ROOT / path).read_bytes() == staged:
            (ROOT / path).write_bytes(content)
            print(f"{path} is mended: look at it, and stage it again")
        else:
            print(f"{path} needs mending, and is not staged as it lies here: stage all of it")
    if refused:
        sys.exit("Not committed.")


if __name__ == "__main__":
    main()
