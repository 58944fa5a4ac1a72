"""Run the tests of the library in the trainers of other packages, and on a cluster of Ray's.

What these bring lies in an environment of its own: the book is built with nothing of theirs.
Words go to pytest, as in `.venv/bin/python -m tools.trainers tests/integrations/test_keras.py`.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tools import ROOT, pins

ENVIRONMENT = ROOT / ".venv-trainers"
TESTS = ROOT / "tests" / "integrations"
# The settings of pyproject.toml leave these files out, for the environment that lacks trainers.
COVERAGE = """\
[run]
branch = true
include =
    dropreg/integrations/*
    dropreg/book/experiments/cluster.py
[report]
fail_under = 95
show_missing = true
skip_covered = true
"""


def environment() -> Path:
    """The Python of the environment, which is made if it is not what it should be."""
    files = [ROOT / pins.PINS, ROOT / pins.PINS_ON_TOP]
    texts = [file.read_text("utf-8") for file in files]
    asked = (sys.version, ENVIRONMENT, *texts, *pins.wanted(ROOT, *pins.ON_TOP))
    wanted = hashlib.sha256(repr(asked).encode()).hexdigest()
    stamp, python = ENVIRONMENT / "installed-for.txt", ENVIRONMENT / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"==> Making {ENVIRONMENT.name} (once; two minutes)", flush=True)
        subprocess.run((sys.executable, "-m", "venv", "--clear", ENVIRONMENT), check=True)
        pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-qq")
        constraints = [word for file in files for word in ("--constraint", file)]
        subprocess.run(
            (*pip, *constraints, "--editable", f"{ROOT}[{','.join(pins.ON_TOP)}]"), check=True
        )
        stamp.write_text(wanted)
    return python


def main() -> None:
    python, words = environment(), sys.argv[1:] or [str(TESTS)]
    coverage = ENVIRONMENT / "coverage.ini"
    coverage.write_text(COVERAGE)
    measured = ["--cov", f"--cov-config={coverage}"]
    command = [str(python), "-m", "pytest", "-q", *words, *([] if sys.argv[1:] else measured)]
    settings = {"COVERAGE_FILE": str(ENVIRONMENT / "coverage")}
    sys.exit(subprocess.run(command, cwd=ROOT, env=os.environ | settings).returncode)


if __name__ == "__main__":
    main()
