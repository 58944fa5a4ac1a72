"""The commands: versions out of sources, marks out of a folder of notebooks.

`make assignments` runs `build`. An instructor grades with

    .venv/bin/python -m assignments.grader grade ~/course masks ~/Downloads/masks

which tests each notebook and leaves feedback pages and marks_masks.csv in the course folder; manual
marks are given in nbgrader's formgrader, and `marks` writes both again afterwards.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbgrader import utils

from assignments.grader import doctor, lms, marking
from assignments.grader.classroom import (
    OUT,
    STUDENT,
    assignments,
    emptied,
    execute,
    handed_in,
    outcomes,
    page_of,
    publish,
    release_of,
    set_up,
    solved,
    source_of,
)
from assignments.grader.roster import ClassroomError
from assignments.grader.submissions import parse_due
from assignments.grader.wall import NoIsolationError, best_wall, isolation_works
from tools import ROOT


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
        release = nbformat.read(student, as_version=4)
        sample = handed_in(nbformat.read(instructor, as_version=4), release)
        nbformat.write(sample, samples / name / "solution.ipynb")
        shutil.copy(student, samples / name / "untouched.ipynb")
        complete = marking.grade(course, name, samples / name, isolated=isolated)
        (OUT / "feedback" / name).mkdir()
        for who in ("solution", "untouched"):
            shutil.copy(page_of(course, name, who), OUT / "feedback" / name / f"{who}.html")
        table = marking.table_of(course, name)
        wrong = unfair(table, release)
        if wrong or not complete:
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


def one(name: str, file: Path, out: Path, *, isolated: bool) -> None:
    """Grade a single notebook, for a runner on another platform, and write what came of it.

    The course folder lasts as long as this: its hidden tests have numbers that nobody ever saw.
    """
    with tempfile.TemporaryDirectory() as folder:
        course, source = Path(folder) / "course", Path(folder) / "in"
        source.mkdir()
        shutil.copy(file, source / "submission.ipynb")
        set_up(course, [name])
        marking.grade(course, name, source, isolated=isolated)
        report = marking.report_of(course, name, "submission")
    half_written = out.with_name(f"{out.name}.part")
    half_written.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    half_written.replace(out)


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


def course_of(arguments: argparse.Namespace) -> Path:
    course: Path = arguments.course.resolve()
    if not (course / "release" / arguments.assignment).is_dir():
        set_up(course, assignments())
    return course


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m assignments.grader",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="make all versions of all assignments")
    checking = commands.add_parser("doctor", help="try whether this machine can grade a class")
    setting = commands.add_parser("course", help="make or renew a course folder")
    grading = commands.add_parser("grade", help="grade a folder or zip of notebooks")
    marking_ = commands.add_parser("marks", help="write marks and feedback again")
    single = commands.add_parser("one", help="grade one notebook, for a runner elsewhere")
    trying = commands.add_parser("try", help="test an assignment's solution in this process")
    building.add_argument(
        "--check",
        action="store_true",
        help="leave assignments/student/ as it is, for the tests to compare",
    )
    for command in (checking, setting, grading, marking_):
        command.add_argument("course", type=Path, help="the course folder")
    for command in (grading, marking_, single, trying):
        command.add_argument("assignment", choices=assignments())
    grading.add_argument("folder", type=Path, help="with the students' notebooks, or a zip")
    single.add_argument("file", type=Path, help="the student's notebook")
    single.add_argument("--json", type=Path, required=True, help="where to write what came of it")
    for command in (grading, single):
        command.add_argument(
            "--no-isolation",
            action="store_true",
            help="without bubblewrap, in a machine of its own",
        )
    for command in (grading, marking_):
        command.add_argument("--roster", type=Path, help="CSV of all who should hand in")
        command.add_argument("--lms", choices=lms.LMS, help="whose names the files have")
        command.add_argument(
            "--jobs", type=int, default=os.cpu_count() or 1, help="students at a time"
        )
    grading.add_argument("--only", nargs="+", default=(), metavar="STUDENT", help="these alone")
    grading.add_argument(
        "--due", metavar="TIME", help='"2026-12-01 23:59": counts days late from here'
    )
    grading.add_argument("--again", action="store_true", help="test what has not changed as well")
    return parser.parse_args()


def main() -> None:
    """Run a command; the exit status is 1 where something is left to look at."""
    try:
        run(parse())
    except (ClassroomError, NoIsolationError) as error:
        sys.exit(str(error))


def run(arguments: argparse.Namespace) -> None:
    isolated = not getattr(arguments, "no_isolation", False)
    if arguments.command in ("grade", "one") and isolated:
        best_wall()
    if arguments.command == "build":
        build(check=arguments.check)
    elif arguments.command == "doctor":
        sys.exit(not doctor.examine(arguments.course.resolve()))
    elif arguments.command == "course":
        set_up(arguments.course.resolve(), assignments())
    elif arguments.command == "grade":
        complete = marking.grade(
            course_of(arguments),
            arguments.assignment,
            arguments.folder,
            isolated=isolated,
            jobs=arguments.jobs,
            only=arguments.only,
            roster=arguments.roster,
            system=arguments.lms,
            due=parse_due(arguments.due) if arguments.due else None,
            again=arguments.again,
        )
        sys.exit(not complete)
    elif arguments.command == "marks":
        complete = marking.marks(
            course_of(arguments), arguments.assignment, jobs=arguments.jobs, system=arguments.lms,
            roster=arguments.roster,
        )  # fmt: skip
        sys.exit(not complete)
    elif arguments.command == "one":
        one(arguments.assignment, arguments.file, arguments.json, isolated=isolated)
    else:
        attempt(arguments.assignment)
