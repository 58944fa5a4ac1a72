"""The classroom: assignments out of their sources, and marks out of a folder of notebooks.

`make assignments` runs `build`. An instructor grades with

    .venv/bin/python -m assignments.grader grade ~/course masks ~/Downloads/masks

which collects, tests, and leaves feedback pages and marks.csv in the course folder; manual marks
are given in nbgrader's formgrader, and `marks` writes both again afterwards.
"""

import argparse
import contextlib
import csv
import json
import os
import re
import secrets
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from nbgrader import utils
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.apps import NbGraderAPI
from sqlalchemy.exc import SAWarning
from traitlets.config import Config

from assignments.grader import feedback
from assignments.grader.grading import (
    GradeInSandbox,
    local_answers,
    run_tests,
    test_names,
)
from assignments.grader.reading import align, read_submission
from assignments.grader.sandbox import isolation_works
from tools import ROOT
from tools.cache_key import cache_key

SOURCES = ROOT / "assignments" / "source"
STUDENT = ROOT / "assignments" / "student"  # committed: what Colab opens
OUT = ROOT / "_build" / "assignments"
# nbgrader calls a program that is installed beside the interpreter.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
HIDDEN = re.compile(r"^[ \t]*### (BEGIN|END) (HIDDEN TESTS|SOLUTION)[ \t]*\n?", re.MULTILINE)


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
        "nbgrader.preprocessors.AssignLatePenalties",
        "nbgrader.preprocessors.CheckCellMetadata",
    ]
    c.GenerateFeedback.preprocessors = [
        "nbgrader.preprocessors.GetGrades",
        "nbgrader.preprocessors.ClearHiddenTests",
        "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor",
    ]
    c.HTMLExporter.sanitize_html = True
    feedback.show_safely(c)
    c.GradeInSandbox.isolated = isolated
    c.GradeInSandbox.fresh = fresh_seed(course)
    return c


def fresh_seed(course: Path) -> int:
    """The seed of this course's hidden tests: drawn once, kept by its gradebook, told nobody."""
    path = course / "fresh_seed"
    if not path.exists():
        course.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(f"{secrets.randbelow(2**31)}\n")
    return int(path.read_text())


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


def solved(name: str) -> Any:
    """The instructor's version: solutions and hidden tests in place, markers gone, runnable."""
    notebook = nbformat.read(source_of(name), as_version=4)
    for cell in notebook.cells:
        cell.source = HIDDEN.sub("", cell.source)
    first = nbformat.v4.new_code_cell("FRESH = 20200712  # any other numbers than the visible ones")
    first["id"] = "fresh"
    notebook.cells.insert(0, first)
    return notebook


def execute(notebook: Any, kept: Path) -> None:
    """Run the instructor's version and keep it with its outputs."""
    key = cache_key(notebook)
    if kept.exists() and nbformat.read(kept, as_version=4).metadata.get("key") == key:
        return
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


def build(*, check: bool) -> None:
    """Make every version of every assignment, and grade the solution and the empty notebook."""
    course, samples = OUT / "course", OUT / "samples"
    for folder in (course, samples, OUT / "student", OUT / "feedback"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    (OUT / "instructor").mkdir(exist_ok=True)
    set_up(course, assignments())
    # The samples are our own code, which needs no wall; but it is to be tried where there is one.
    isolated = isolation_works()
    print(f"==> Samples are graded with{'' if isolated else 'out'} isolation", flush=True)
    for name in assignments():
        print(f"==> {name}", flush=True)
        student, instructor = (OUT / who / f"{name}.ipynb" for who in ("student", "instructor"))
        shutil.copy(release_of(course, name), student)
        if not check:
            publish(name)
        execute(solved(name), instructor)
        (samples / name).mkdir()
        sample = nbformat.read(instructor, as_version=4)
        sample.cells = [cell for cell in sample.cells if cell.id != "fresh"]
        nbformat.write(sample, samples / name / "solution.ipynb")
        shutil.copy(student, samples / name / "untouched.ipynb")
        table = grade(course, name, samples / name, isolated=isolated)
        (OUT / "feedback" / name).mkdir()
        for who in ("solution", "untouched"):
            page = course / "feedback" / who / name / f"{name}.html"
            shutil.copy(page, OUT / "feedback" / name / f"{who}.html")
        if wrong := unfair(table, nbformat.read(student, as_version=4)):
            sys.exit(f"FAILED: {name}: {wrong}. See {OUT / 'feedback' / name}.")
    shutil.make_archive(str(OUT / "student"), "zip", OUT / "student")
    print(f"==> For students: {STUDENT.relative_to(ROOT)}/, {OUT.relative_to(ROOT)}/student.zip")
    print(f"    For you: {OUT.relative_to(ROOT)}/instructor/; sample feedback: …/feedback/")


def unfair(table: list[dict[str, Any]], release: Any) -> str | None:
    """What is wrong with the marks of the solution and of the empty notebook, if anything."""
    graded = [c.metadata.nbgrader for c in release.cells if utils.is_grade(c)]
    tests = sum(cell["points"] for cell in graded if not cell["solution"])
    written = sum(cell["solution"] for cell in graded)
    got = {row["student"]: (row["score"], row["to_grade_by_hand"]) for row in table}
    wanted = {"solution": (tests, written), "untouched": (0, 0)}
    return None if got == wanted else f"points and answers to read are {got}, not {wanted}"


# --- Grading --------------------------------------------------------------------------------------


def submissions(folder: Path, name: str) -> dict[str, list[Path]]:
    """Each student's notebooks in a folder, the newest last.

    They are called `masks_alice.ipynb` or `alice.ipynb`, or lie in a folder of the student's name,
    as learning-management systems pack them. Other assignments are passed over.
    """
    found: dict[str, list[Path]] = {}
    others = set(assignments()) - {name}
    for path in sorted(folder.rglob("*.ipynb"), key=lambda p: (p.stat().st_mtime, str(p))):
        inside = path.relative_to(folder)
        if ".ipynb_checkpoints" in inside.parts or path.is_symlink():
            continue
        if {inside.stem, *inside.parts} & others:
            continue
        text = inside.parts[0] if len(inside.parts) > 1 else inside.stem
        text = re.sub(rf"^Copy of |( ?\(\d+\)$)|(\b{name}[ _-]+)|([ _-]+{name}\b)", "", text)
        student = re.sub(r"[^\w.@-]+", "_", text).strip("._-@") or "unnamed"
        found.setdefault(student, []).append(path)
    return dict(sorted(found.items()))


def collect(course: Path, name: str, student: str, path: Path, notes: list[str]) -> None:
    """Put one submission, in order, where nbgrader looks for it."""
    release = nbformat.read(release_of(course, name), as_version=4)
    notebook, found = read_submission(path)
    aligned, odd = (release, []) if notebook is None else align(notebook, release)
    aligned.metadata["dropreg"] = {"notes": [*notes, *found, *odd]}
    target = course / "submitted" / student / name
    target.mkdir(parents=True, exist_ok=True)
    nbformat.write(aligned, target / f"{name}.ipynb")


@quiet()
def grade(course: Path, name: str, folder: Path, *, isolated: bool) -> list[dict[str, Any]]:
    """Grade a folder of notebooks; return the table that is also written as marks.csv."""
    if folder.resolve().is_relative_to(course):
        sys.exit(f"{folder} is in the course folder, where what is graded is written. Move it out.")
    found = submissions(folder, name)
    if not found:
        sys.exit(f"No notebook in {folder}.")
    api = api_of(course, isolated=isolated)
    begin = time.monotonic()
    for student, (*older, path) in found.items():
        names = ", ".join(str(p.relative_to(folder)) for p in older)
        notes = [f"Graded is {path.relative_to(folder)}, the newest. Not read: {names}."]
        collect(course, name, student, path, notes if older else [])
        checked(api.autograde(name, student), f"grading {student}")
        print(f"    {student}: {time.monotonic() - begin:.0f} s", flush=True)
    return marks(course, name, api)


@quiet()
def marks(course: Path, name: str, api: NbGraderAPI | None = None) -> list[dict[str, Any]]:
    """Write feedback pages and marks.csv from the gradebook, with the manual marks there are."""
    checked((api or api_of(course)).generate_feedback(name), "the feedback pages")
    table = []
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "dropreg") as book:
        for student in sorted(book.students, key=lambda s: s.id):
            try:
                submission = book.find_submission(name, student.id)
            except MissingEntry:
                continue
            (notebook,) = submission.notebooks
            graded = course / "autograded" / student.id / name / f"{name}.ipynb"
            notes = json.loads(graded.read_text("utf-8"))["metadata"]["dropreg"]["notes"]
            table.append(
                {
                    "student": student.id,
                    "score": submission.score,
                    "max_score": submission.max_score,
                    "to_grade_by_hand": sum(g.needs_manual_grade for g in notebook.grades),
                    **{g.cell.name: g.score for g in notebook.grades},
                    "notes": " | ".join(" ".join(note.split()) for note in notes),
                }
            )
    half_written = course / f"marks_{name}.part"
    with half_written.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        # A spreadsheet must not take a student's words for a formula.
        writer.writerows({**row, "notes": row["notes"].lstrip("=+-@")} for row in table)
    half_written.rename(course / f"marks_{name}.csv")
    return table


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


def attempt(name: str, seeds: int = 5) -> None:
    """Show what the solution and the untouched version get with several numbers."""
    notebook = nbformat.read(source_of(name), as_version=4)
    for seed in range(1, seeds + 1):
        begin = time.perf_counter()
        wrong = {i: m for i, m in outcomes(notebook, seed).items() if m is not None}
        print(
            f"solution, FRESH = {seed}: {wrong or 'all right'} {time.perf_counter() - begin:.1f} s"
        )
    for grade_id, message in outcomes(emptied(notebook), 1).items():
        print(f"untouched, {grade_id}: {message or 'PASSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m assignments.grader",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="make all versions of all assignments")
    setting = commands.add_parser("course", help="make or renew a course folder")
    grading = commands.add_parser("grade", help="grade a folder of notebooks")
    marking = commands.add_parser("marks", help="write marks and feedback again")
    trying = commands.add_parser("try", help="test an assignment's solution in this process")
    building.add_argument(
        "--check",
        action="store_true",
        help="leave assignments/student/ as it is, for the tests to compare",
    )
    grading.add_argument(
        "--no-isolation",
        action="store_true",
        help="without bubblewrap, in a machine of its own",
    )
    for command in (setting, grading, marking):
        command.add_argument("course", type=Path, help="the course folder")
    for command in (grading, marking, trying):
        command.add_argument("assignment", choices=assignments())
    grading.add_argument("folder", type=Path, help="with the students' notebooks")
    arguments = parser.parse_args()
    if arguments.command == "build":
        build(check=arguments.check)
    elif arguments.command == "course":
        set_up(arguments.course.resolve(), assignments())
    elif arguments.command == "grade":
        course = arguments.course.resolve()
        if not (course / "release" / arguments.assignment).is_dir():
            set_up(course, assignments())
        table = grade(
            course, arguments.assignment, arguments.folder, isolated=not arguments.no_isolation
        )
        print(f"==> {len(table)} students: {course / f'marks_{arguments.assignment}.csv'}")
        print(f"    Feedback pages: {course / 'feedback'}")
    elif arguments.command == "marks":
        marks(arguments.course.resolve(), arguments.assignment)
    else:
        attempt(arguments.assignment)


if __name__ == "__main__":
    main()
