"""``python -m assignments.runners.gradescope masks autograder.zip``."""

import argparse
from pathlib import Path

from assignments.grader.submissions import STUDENT
from assignments.runners.gradescope import build

parser = argparse.ArgumentParser(prog="python -m assignments.runners.gradescope")
parser.add_argument("assignment", choices=sorted(path.stem for path in STUDENT.glob("*.ipynb")))
parser.add_argument("zip", type=Path, help="where to write what is uploaded to Gradescope")
parser.add_argument(
    "--no-isolation",
    action="store_true",
    help="grade where the container forbids the sandbox; read the page first",
)
arguments = parser.parse_args()
build(arguments.assignment, arguments.zip, isolated=not arguments.no_isolation)
