"""From a folder of notebooks to marks: each student's in a process of its own, then the table.

What a course folder holds: `gradebook.db` (nbgrader's), `submitted/` and `autograded/` (the
notebooks in order, and tested), `records/NAME.json` (whose file was graded when, and what was
noticed), `marks_NAME.csv` and `feedback/`.
"""

import contextlib
import csv
import datetime
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbgrader import utils
from nbgrader.api import Gradebook, MissingEntry

from assignments.grader import apart, classroom, feedback, lms, submissions
from assignments.grader.apart import CannotGradeError
from assignments.grader.grading import GradeInSandbox
from assignments.grader.reading import align, read_submission
from assignments.grader.roster import ClassroomError, Roster
from assignments.grader.sandbox import Limits
from assignments.grader.submissions import Handed, late_days
from dropreg.book import checks

GRADED, NOTHING, NOT_GRADED = "graded", "nothing handed in", "could not be graded"
# Of what a submission's result depends on beside the file: the tests and how they are run.
CODE = sorted((*Path(checks.__file__).parent.glob("*.py"), *Path(__file__).parent.glob("*.py")))
LIMITS = Limits()


def allowed() -> float:
    """How long reading and testing one submission may take, with what the tests themselves need."""
    return 2 * LIMITS.total_seconds + 60


@contextlib.contextmanager
def gradebook(course: Path) -> Iterator[Gradebook]:
    with classroom.quiet(), Gradebook(classroom.database(course), "dropreg") as book:
        yield book


# --- What is known of a class ---------------------------------------------------------------------


def records_of(course: Path, name: str) -> dict[str, dict[str, Any]]:
    """What is known of each student's file: which it was, when it came, what was noticed.

    Of who was graded by the formgrader, or before there were records, only that.
    """
    path = course / "records" / f"{name}.json"
    records = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    with gradebook(course) as book:
        for submission in book.assignment_submissions(name):
            records.setdefault(submission.student.id, {"status": GRADED, "notes": []})
    return dict(sorted(records.items()))


def keep_records(course: Path, name: str, records: Mapping[str, Any]) -> None:
    path = course / "records" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps(records, indent=1, ensure_ascii=False) + "\n")


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    half_written = path.with_name(f"{path.name}.part")
    half_written.write_text(text, "utf-8", newline="")
    half_written.replace(path)


def key_of(course: Path, name: str, handed: Handed) -> str:
    """What a result depends on; the same file and tests need not be graded again."""
    digest = hashlib.sha256((handed.problem or "").encode())
    for each in (
        *([] if handed.problem else [handed.path]),
        classroom.master_of(course, name),
        *CODE,
    ):
        digest.update(each.read_bytes())
    return digest.hexdigest()


# --- Grading --------------------------------------------------------------------------------------


def grade(
    course: Path,
    name: str,
    source: Path,
    *,
    isolated: bool = True,
    jobs: int = 1,
    only: Sequence[str] = (),
    roster: Path | None = None,
    system: str | None = None,
    due: datetime.datetime | None = None,
    again: bool = False,
) -> bool:
    """Grade a folder or zip of notebooks; write marks and feedback.

    Args:
        course: The course folder.
        name: The assignment.
        source: Where the notebooks lie.
        isolated: Whether to insist on bubblewrap.
        jobs: How many students at a time.
        only: These students only.
        roster: A CSV file of all who should have handed in.
        system: The learning-management system whose names the files have.
        due: When it was to be handed in.
        again: Whether to test what has not changed as well.

    Returns:
        Whether everybody's file was graded.
    """
    if source.resolve().is_relative_to(course):
        sys.exit(f"{source} is in the course folder, where what is graded is written. Move it out.")
    people = Roster.read(roster) if roster else None
    with submissions.find(source, name, roster=people, lms=system) as found:
        handed = {student: files for student, files in found.students.items() if files}
        if not handed:
            sys.exit("\n".join([f"No notebook of {name} in {source}.", *unread(found)]))
        if missing := sorted(set(only) - set(handed)):
            sys.exit(f"Nothing of {', '.join(missing)} in {source}; there is {', '.join(handed)}.")
        records = records_of(course, name)
        for student in set(found.students) - set(handed):
            records.setdefault(student, {"status": NOTHING, "notes": []})
        work = {}
        for student, (*older, newest) in handed.items():
            if only and student not in only:
                continue
            record = {
                "file": newest.shown_name,
                "container": newest.container,
                "key": key_of(course, name, newest),
                "handed_in": newest.time and newest.time.isoformat(sep=" ", timespec="minutes"),
                "days_late": late_days(newest.time, due) if newest.time and due else None,
            }
            notes = (
                [f"{system.capitalize()} says that it is late."] if system and newest.late else []
            )
            if older:
                names = ", ".join(each.shown_name for each in older)
                notes.append(f"Graded is {newest.shown_name}, the newest. Not read: {names}.")
            known = records.get(student, {})
            if (known.get("status"), known.get("key")) == (GRADED, record["key"]) and not again:
                known |= record
                print(f"    {student}: has not changed", flush=True)
            else:
                work[student] = (course, name, student, newest, notes, isolated, LIMITS)
                # If this is cut off, the next call does not take it for done.
                records[student] = {"status": f"{NOT_GRADED}: cut off", "notes": notes} | record
        keep_records(course, name, records)
        for done in apart.each(mark_one, work, jobs=jobs, seconds=allowed()):
            record = records[done.key]
            record["status"] = GRADED if done.reason is None else f"{NOT_GRADED}: {done.reason}"
            record["notes"] = done.value if done.reason is None else record["notes"]
            keep_records(course, name, records)
            print(f"    {done.key}: {record['status']}, {done.seconds:.0f} s", flush=True)
            print(done.details, end="", file=sys.stderr, flush=True)
        complete = marks(course, name, jobs=jobs, roster=roster, system=system)
        for line in unread(found):
            print(line)
        for shown, reason in found.unmatched:
            print(f"    graded, but not on the class list: {shown}: {reason}")
    return complete


def unread(found: submissions.Found) -> list[str]:
    return [f"    not read: {shown}: {reason}" for shown, reason in found.unread]


def mark_one(
    course: Path,
    name: str,
    student: str,
    handed: Handed,
    notes: list[str],
    isolated: bool,
    limits: Limits,
) -> list[str]:
    """Read one submission, put it in order, test it, and enter its marks; return what is odd."""
    if handed.problem:
        raise CannotGradeError(handed.problem)
    GradeInSandbox.limits = limits
    release = nbformat.read(classroom.release_of(course, name), as_version=4)
    notebook, found = read_submission(handed.path)
    if notebook is None:
        raise CannotGradeError(" ".join(found))
    aligned, odd = align(notebook, release)
    with gradebook(course) as book:
        by_hand = marked_by_hand(book, course, name, student, aligned)
    changed = [text for text in by_hand.values() if text]
    noted = {"notes": [*notes, *found, *odd, *changed]}
    aligned.metadata["dropreg"] = {**aligned.metadata.get("dropreg", {}), **noted}
    target = course / "submitted" / student / name
    target.mkdir(parents=True, exist_ok=True)
    nbformat.write(aligned, target / f"{name}.ipynb")
    with classroom.quiet():
        result = classroom.api_of(course, isolated=isolated).autograde(name, student)
    if not result["success"]:
        lines = (result.get("error") or result.get("log") or "no reason given").split("\n")
        raise CannotGradeError(next(line for line in reversed(lines) if line.strip())[:300])
    with gradebook(course) as book:
        settle(book, name, student, by_hand)
    graded = nbformat.read(classroom.tested_of(course, name, student), as_version=4)
    return list(graded.metadata["dropreg"]["notes"])


def answers_in(notebook: NotebookNode) -> dict[str, str]:
    """What stands in each answer's cell, pictures included."""
    return {
        cell.metadata.nbgrader.grade_id: f"{cell.source}\n{json.dumps(cell.get('attachments'))}"
        for cell in notebook.cells
        if utils.is_solution(cell)
    }


def marked_by_hand(
    book: Gradebook, course: Path, name: str, student: str, aligned: NotebookNode
) -> dict[str, str | None]:
    """The questions that were marked by hand, each with None if its answer is still the same.

    Else what to say: the mark was for another answer.
    """
    before = classroom.tested_of(course, name, student)
    try:
        (graded,) = book.find_submission(name, student).notebooks
    except MissingEntry:
        return {}
    old = answers_in(nbformat.read(before, as_version=4)) if before.is_file() else {}
    new = answers_in(aligned)
    comments = {comment.name: comment.manual_comment for comment in graded.comments}
    said: dict[str, str | None] = {}
    for mark in graded.grades:
        if mark.manual_score is None and not mark.extra_credit and not comments.get(mark.name):
            continue
        # A test belongs to the answer whose name it begins with.
        answer = mark.name if mark.name in new else mark.name.split("-")[0]
        if old.get(answer) == new.get(answer):
            said[mark.name] = None
            continue
        given = "" if mark.manual_score is None else f" ({mark.score:g} of {mark.max_score:g})"
        comment = f" The comment was: {comments[mark.name]}" if comments.get(mark.name) else ""
        said[mark.name] = f"{mark.name}: changed since it was marked by hand{given}.{comment}"
    return said


def settle(book: Gradebook, name: str, student: str, by_hand: Mapping[str, str | None]) -> None:
    """Keep the marks by hand of answers that are the same; take back those of others.

    nbgrader keeps all of them, and asks for all to be looked at again.
    """
    (graded,) = book.find_submission(name, student).notebooks
    for mark in graded.grades:
        if mark.name not in by_hand:
            continue
        if by_hand[mark.name] is None:
            mark.needs_manual_grade = mark.manual_score is None and mark.auto_score is None
        else:
            mark.manual_score = mark.extra_credit = None
            mark.needs_manual_grade = mark.auto_score is None
    for comment in graded.comments:
        if by_hand.get(comment.name):
            comment.manual_comment = None
    book.db.commit()


# --- Marks and feedback ---------------------------------------------------------------------------


def table_of(course: Path, name: str) -> list[dict[str, Any]]:
    """A row for each student of whom anything is known, and who has handed in nothing."""
    records = records_of(course, name)
    master = nbformat.read(classroom.release_of(course, name), as_version=4)
    names = [c.metadata.nbgrader.grade_id for c in master.cells if utils.is_grade(c)]
    table = []
    with gradebook(course) as book:
        for student in records:
            record = records[student]
            row: dict[str, Any] = {
                "student": student,
                "status": record["status"],
                "score": "",
                "max_score": "",
                "to_grade_by_hand": "",
                "handed_in": record.get("handed_in") or "",
                "days_late": "" if record.get("days_late") is None else record["days_late"],
                **dict.fromkeys(names, ""),
                "notes": " | ".join(" ".join(note.split()) for note in record["notes"]),
            }
            if record["status"] == GRADED:
                submission = book.find_submission(name, student)
                (notebook,) = submission.notebooks
                row |= {
                    "score": submission.score,
                    "max_score": submission.max_score,
                    "to_grade_by_hand": sum(g.needs_manual_grade for g in notebook.grades),
                    **{g.name: "" if g.needs_manual_grade else g.score for g in notebook.grades},
                }
            table.append(row)
    return table


def plain(value: Any) -> Any:
    """A value of the table; a spreadsheet must not take a student's words for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def write_table(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    half_written = path.with_suffix(".part")
    # With a byte-order mark, without which Excel reads accented names wrongly.
    with half_written.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows({key: plain(value) for key, value in row.items()} for row in table)
    half_written.replace(path)


def marks(
    course: Path,
    name: str,
    *,
    jobs: int = 1,
    roster: Path | None = None,
    system: str | None = None,
) -> bool:
    """Write marks.csv from the gradebook, with the manual marks there are; then feedback pages.

    Args:
        course: The course folder.
        name: The assignment.
        jobs: How many pages at a time.
        roster: What a learning-management system has exported, if it needs that.
        system: For which one to write marks and pages as well.

    Returns:
        Whether everybody's file was graded and has a page.
    """
    table = table_of(course, name)
    if not table:
        sys.exit(f"Nothing of {name} has been graded in {course}.")
    write_table(course / f"marks_{name}.csv", table)
    print(f"==> {len(table)} students: {course / f'marks_{name}.csv'}", flush=True)
    records = records_of(course, name)
    handed = {row["student"]: row for row in table if row["status"] != NOTHING}
    failed = {who: row["status"] for who, row in handed.items() if row["status"] != GRADED}
    work = {student: (course, name, student, records[student]) for student in handed}
    for done in apart.each(write_page, work, jobs=jobs, seconds=60):
        if done.reason:
            failed.setdefault(done.key, f"its feedback page could not be written: {done.reason}")
            print(done.details, end="", file=sys.stderr, flush=True)
    print(f"    Feedback pages: {course / 'feedback'}")
    if system:
        try:
            for_system(course, name, table, records, system, roster)
        except ClassroomError as error:
            failed[system] = str(error)
    for student, reason in sorted(failed.items()):
        print(f"    {student}: {reason}")
    return not failed


def for_system(
    course: Path,
    name: str,
    table: Sequence[Mapping[str, Any]],
    records: Mapping[str, Mapping[str, Any]],
    system: str,
    roster: Path | None,
) -> None:
    """Write marks and pages as a learning-management system takes them."""
    graded = [row for row in table if row["status"] == GRADED]
    containers = {row["student"]: records[row["student"]].get("container", "") for row in graded}
    pages = {student: classroom.page_of(course, name, student) for student in containers}
    zipped = lms.feedback_zip(
        system, containers, {who: page for who, page in pages.items() if page.is_file()}, name
    )
    (course / f"feedback_{name}_{system}.zip").write_bytes(zipped)
    print(f"    For {system.capitalize()}: {course / f'feedback_{name}_{system}.zip'}")
    maximum = max((row["max_score"] for row in graded), default=0)
    people = Roster.read(roster) if roster else None
    written = lms.marks_csv(system, graded, name, maximum, roster=people, handed=containers)
    (course / f"marks_{name}_{system}.csv").write_bytes(written)
    print(f"    For {system.capitalize()}: {course / f'marks_{name}_{system}.csv'}")
    if waiting := sum(bool(row["to_grade_by_hand"]) for row in graded):
        print(f"    {waiting} of these scores are without answers that wait to be marked.")


def write_page(course: Path, name: str, student: str, record: Mapping[str, Any]) -> None:
    """Write a student's feedback page."""
    if record["status"] == GRADED:
        with gradebook(course) as book:
            feedback.write(book, course, name, student)
    else:
        feedback.write_refusal(course, name, student, [record["status"], *record["notes"]])


def report_of(course: Path, name: str, student: str) -> dict[str, Any]:
    """What became of a submission, for a runner on another platform."""
    record = records_of(course, name)[student]
    report: dict[str, Any] = {"score": 0, "max_score": 0, "waiting": [], "tests": []}
    report["notes"] = record["notes"]
    if record["status"] != GRADED:
        return report | {"notes": [f"The file {record['status']}", *record["notes"]]}
    release = nbformat.read(classroom.release_of(course, name), as_version=4)
    tested = nbformat.read(classroom.tested_of(course, name, student), as_version=4)
    written = answers_in(release)
    messages = {
        cell.metadata.nbgrader.grade_id: output.evalue
        for cell in tested.cells
        if utils.is_grade(cell)
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    }
    with gradebook(course) as book:
        submission = book.find_submission(name, student)
        marks = feedback.marks_of(submission, feedback.names_of_tests(release, name))
    for mark in marks:
        entry = {"name": mark.grade_id, "title": mark.name, "max_points": mark.max_points}
        if mark.grade_id in written:  # also where nothing is: who marks by hand gives the points
            report["waiting"].append(entry)
        elif mark.max_points:
            message = messages.get(mark.grade_id)
            report["tests"].append({**entry, "points": mark.points, "message": message})
            report["score"] += mark.points
        report["max_score"] += mark.max_points
    return report
