"""Whether this machine can grade a class, tried before the class hands in."""

import contextlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nbformat

from assignments.grader import classroom, marking
from assignments.grader.wall import NoIsolationError, best_wall

FREE = 2 << 30  # a class of 200 with pictures, and a sandbox's folders
SECONDS = 60


class Ill(Exception):
    """What is wrong, and what to do."""


def isolation(course: Path) -> str:
    try:
        best_wall()
    except NoIsolationError as error:
        raise Ill(str(error)) from None
    version = subprocess.run(("bwrap", "--version"), capture_output=True, text=True).stdout.strip()
    who = "as root, who is dropped for students' code" if os.geteuid() == 0 else "not as root"
    return f"{version} works, {who}"


def folder(course: Path) -> str:
    course.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=course) as file:
        file.write(b"x")
    free = shutil.disk_usage(course).free
    if free < FREE:
        raise Ill(f"{free / 1e9:.1f} GB are free in {course}; have {FREE / 1e9:.0f}.")
    secret = course / "fresh_seed"
    if secret.exists() and secret.stat().st_mode & 0o077:
        raise Ill(f"Others can read {secret}: chmod 600 {secret}")
    return f"{course} can be written, {free / 1e9:.0f} GB are free"


def students_notebooks(course: Path) -> str:
    for name in classroom.assignments():
        text = (classroom.STUDENT / f"{name}.ipynb").read_text("utf-8")
        if "SET_OWNER" in text:
            raise Ill(
                f"{name}.ipynb installs from an address that says SET_OWNER: put the owner of the "
                "repository there, or hand the notebooks out where dropreg is installed."
            )
    return "the notebooks install from an address that is set"


def formgrader(course: Path) -> str:
    missing = [m for m in ("jupyterlab", "nbgrader") if importlib.util.find_spec(m) is None]
    if missing:
        raise Ill(f"{', '.join(missing)} is not installed: run `make env`.")
    return "JupyterLab and nbgrader are there, for marking by hand"


def a_sample(course: Path) -> str:
    """The solution of the first assignment, from the file to the feedback page."""
    name, begin = "masks", time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(io.StringIO()):
        trial, source = Path(temporary) / "course", Path(temporary) / "in"
        source.mkdir()
        classroom.set_up(trial, [name])
        release = nbformat.read(classroom.release_of(trial, name), as_version=4)
        sample = classroom.handed_in(classroom.solved(name), release)
        nbformat.write(sample, source / "sample.ipynb")
        complete = marking.grade(trial, name, source)
        (row,) = marking.table_of(trial, name)
    if not complete:
        raise Ill(f"A perfect submission of {name} {row['status']}.")
    seconds = time.monotonic() - begin
    if seconds > SECONDS:
        raise Ill(f"One submission took {seconds:.0f} s: is the machine busy?")
    return f"a perfect submission of {name} has {row['score']:g} points by tests, {seconds:.0f} s"


CHECKS: tuple[Callable[[Path], str], ...] = (
    isolation,
    folder,
    students_notebooks,
    formgrader,
    a_sample,
)


def examine(course: Path) -> bool:
    """Print what is well and what is not; return whether all is."""
    well = True
    for check in CHECKS:
        try:
            print(f"✓ {check(course)}", flush=True)
        except (Ill, OSError) as error:
            well = False
            print(f"✗ {error}", flush=True)
    print(f"Python {sys.version.split()[0]}", flush=True)
    return well
