"""The classroom: where everything lies, and the versions of an assignment made from its source."""

import contextlib
import json
import os
import re
import secrets
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from nbgrader import utils
from nbgrader.apps import NbGraderAPI
from sqlalchemy.exc import SAWarning
from traitlets.config import Config

from assignments.grader import feedback
from assignments.grader.grading import GradeInSandbox, local_answers, run_tests, test_names
from tools import ROOT
from tools.cache_key import cache_key

SOURCES = ROOT / "assignments" / "source"
STUDENT = ROOT / "assignments" / "student"  # committed: what Colab opens
OUT = ROOT / "_build" / "assignments"
# nbgrader calls a program that is installed beside the interpreter.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
HIDDEN = re.compile(
    r"^[ \t]*(<!-- )?### (BEGIN|END) (HIDDEN TESTS|SOLUTION)( -->)?[ \t]*\n?", re.MULTILINE
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what nbgrader 0.9 makes SQLAlchemy 2.1 warn of, which is harmless."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=SAWarning)
        yield


def assignments() -> list[str]:
    return sorted(path.stem for path in SOURCES.glob("*/*.ipynb"))


def source_of(name: str) -> Path:
    return SOURCES / name / f"{name}.ipynb"


def configure(c: Config, course: Path, *, isolated: bool = True) -> Config:
    """Set nbgrader up for a course: our sandbox in the place of its kernel."""
    c.CourseDirectory.root = str(course)
    c.CourseDirectory.course_id = "dropreg"
    c.CourseDirectory.db_url = database(course)
    c.ClearSolutions.code_stub = {"python": "raise NotImplementedError()"}
    c.ClearSolutions.text_stub = "*(write here)*"
    c.Autograde.sanitize_preprocessors = [
        "nbgrader.preprocessors.OverwriteKernelspec",
        "nbgrader.preprocessors.OverwriteCells",
        "nbgrader.preprocessors.CheckCellMetadata",
    ]
    c.Autograde.autograde_preprocessors = [
        GradeInSandbox,
        "nbgrader.preprocessors.SaveAutoGrades",
        "nbgrader.preprocessors.CheckCellMetadata",
    ]
    c.HTMLExporter.sanitize_html = True
    feedback.show_safely(c)
    c.GradeInSandbox.isolated = isolated
    c.GradeInSandbox.secret = secret_of(course)
    return c


def secret_of(course: Path) -> str:
    """What the hidden tests' numbers come from: drawn once, kept by the gradebook, told nobody."""
    path = course / "fresh_seed"
    if not path.exists():
        course.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secrets.token_hex(16)}\n")
    return path.read_text().strip()


def database(course: Path) -> str:
    """The address of the gradebook; several processes write, and wait for each other."""
    return f"sqlite:///{course / 'gradebook.db'}?timeout=60"


def api_of(course: Path, *, isolated: bool = True) -> NbGraderAPI:
    api = NbGraderAPI(config=configure(Config(), course, isolated=isolated))
    api.log_level = "ERROR"
    return api


def checked(result: dict[str, Any], what: str) -> None:
    if not result["success"]:
        sys.exit(f"FAILED: {what}\n{result.get('error') or ''}\n{result.get('log') or ''}")


# --- Making the versions --------------------------------------------------------------------------


@quiet()
def set_up(course: Path, names: list[str], sources: Path = SOURCES) -> None:
    """Make a course folder: sources, student versions, gradebook; what was graded stays."""
    course.mkdir(parents=True, exist_ok=True)
    lines = (
        "import sys\nfrom pathlib import Path",
        f"sys.path.insert(0, {str(ROOT)!r})",
        "from assignments.grader import classroom",
        "classroom.configure(get_config(), Path(__file__).resolve().parent)\n",
    )
    (course / "nbgrader_config.py").write_text("\n".join(lines), "utf-8")
    api = api_of(course)
    for name in names:
        target = course / "source" / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(sources / name, target)
        checked(api.generate_assignment(name), f"the student version of {name}")


def release_of(course: Path, name: str) -> Path:
    return course / "release" / name / f"{name}.ipynb"


def master_of(course: Path, name: str) -> Path:
    return course / "source" / name / f"{name}.ipynb"


def tested_of(course: Path, name: str, student: str) -> Path:
    return course / "autograded" / student / name / f"{name}.ipynb"


def page_of(course: Path, name: str, student: str) -> Path:
    return course / "feedback" / student / name / f"{name}.html"


def solved(name: str) -> Any:
    """The instructor's version: solutions and hidden tests in place, markers gone, runnable."""
    notebook = nbformat.read(source_of(name), as_version=4)
    for cell in notebook.cells:
        cell.source = HIDDEN.sub("", cell.source)
    first = nbformat.v4.new_code_cell("FRESH = 20200712  # any other numbers than the visible ones")
    first["id"] = "fresh"
    notebook.cells.insert(0, first)
    return notebook


def handed_in(instructor: Any, release: Any) -> Any:
    """A perfect submission: the instructor's version with the tests that a student has."""
    tests = {c.metadata.nbgrader.grade_id: c.source for c in release.cells if utils.is_grade(c)}
    instructor.cells = [cell for cell in instructor.cells if cell.id != "fresh"]
    for cell in instructor.cells:
        if utils.is_grade(cell) and not utils.is_solution(cell):
            cell.source = tests[cell.metadata.nbgrader.grade_id]
    return instructor


def execute(notebook: Any, kept: Path) -> None:
    """Run the instructor's version and keep it with its outputs."""
    key = cache_key(notebook)
    old = nbformat.read(kept, as_version=4) if kept.exists() else None
    if old is not None and old.metadata.get("key") == key:
        # The same code; its text may have changed.
        ran = [[c for c in each.cells if c.cell_type == "code"] for each in (notebook, old)]
        for cell, before in zip(*ran, strict=True):
            cell.outputs, cell.execution_count = before.outputs, before.execution_count
    else:
        client = nbclient.NotebookClient(
            notebook, timeout=600, kernel_name="python3", extra_arguments=["--log-level=ERROR"]
        )
        client.execute()
    notebook.metadata["key"] = key
    half_written = kept.with_suffix(".part")
    nbformat.write(notebook, half_written)
    half_written.rename(kept)


def publish(name: str) -> None:
    """Store the student version where it is committed."""
    STUDENT.mkdir(parents=True, exist_ok=True)
    half_written = STUDENT / f"{name}.part"
    shutil.copy(OUT / "student" / f"{name}.ipynb", half_written)
    half_written.rename(STUDENT / f"{name}.ipynb")


# --- For authors ----------------------------------------------------------------------------------


def outcomes(notebook: Any, fresh: int) -> dict[str, str | None]:
    """What is wrong in each test cell, with the notebook's functions in this process."""
    answers = local_answers(notebook)
    return run_tests(notebook, test_names(notebook, answers, fresh))


def emptied(notebook: Any) -> Any:
    """A source with its solutions taken out and its hidden tests left in."""
    copy = nbformat.from_dict(json.loads(json.dumps(notebook)))
    region = r"( *)(<!-- )?### BEGIN SOLUTION.*?### END SOLUTION( -->)?"
    for cell in copy.cells:
        cell.source = re.sub(region, r"\1raise NotImplementedError()", cell.source, flags=re.S)
    return copy
