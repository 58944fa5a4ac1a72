"""What learning-management systems call the files that they give out, and want to get back.

Read off the systems' own sources and help pages, and not tried on a running system:

- Canvas: `lib/content_zipper.rb`, `lib/gradebook_importer.rb` and `generate_comments_from_files` in
  https://github.com/instructure/canvas-lms;
- Moodle: `mod/assign/feedback/file/importziplib.php` and `…/offline/importgradeslib.php` in
  https://github.com/moodle/moodle;
- ILIAS: `ilExAssignment::sendMultiFeedbackStructureFile` and `getMultiFeedbackFiles` in
  https://github.com/ILIAS-eLearning/ILIAS; it takes no marks from a file, but
  https://github.com/ilifau/ExerciseStatusFile adds that;
- Brightspace: https://community.d2l.com/brightspace/kb/articles/3538-importing-grades; the names of
  its folders, and that they must stay as they are, from what its users publish.
"""

import csv
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from assignments.grader.roster import ClassroomError, Roster, plain

LMS = ("canvas", "moodle", "brightspace", "ilias")
PATTERNS = {
    # lovelaceada_LATE_12_34_masks-1.ipynb; marked without names: anon_x7Kq2_34_masks.ipynb
    "canvas": r"(?:(?P<name>.+?)_)??(?P<late>LATE_)?(?P<lms_id>\d+|anon_[^_]+)_(?P<upload>\d+)_.+",
    # Ada Lovelace_1234567_assignsubmission_file_ (a folder, or with the file's name behind it)
    "moodle": r"(?P<name>[^_]+)_(?P<lms_id>\d+)_assignsubmission_(?P<plugin>[a-z]+)(?:_.*)?",
    # 12345-67890 - Ada Lovelace - Nov 27, 2026 522 PM (the numbers are the assignment's)
    "brightspace": r"\d+-\d+ - (?P<name>.+?) - (?P<time>\w+\.? \d+, \d{4} \d{1,2}:?\d\d [AP]M)"
    r"(?: - .+)?",
    # Lovelace_Ada_alovelace_123
    "ilias": r"(?P<name>[^_]+_[^_]+)_(?P<login>.+)_(?P<lms_id>\d+)",
}
GRADE = "grade|bewertung|note|calificación|nota|cijfer|beoordeling|karakter|betyg|ocena"
MAXIMUM = "maximum grade|bestwertung|maximale bewertung|note maximale|calificación máxima"


class LmsError(ClassroomError):
    """What a system gave out is missing or is not what it gives out."""


@dataclass(frozen=True)
class Origin:
    """What a system says about a file by the name that it gave it."""

    student: str  # a name that no two students share, as far as the system tells
    name: str
    lms_id: str
    login: str
    time: datetime | None
    late: bool


def origin(lms: str, part: str) -> Origin | None:
    """Read who handed a file in off the name of its folder, or its own; None if it is none."""
    found = re.fullmatch(PATTERNS[lms], part)
    if found is None:
        return None
    group = found.groupdict()
    name, lms_id, login = (group.get(key) or "" for key in ("name", "lms_id", "login"))
    student = f"{name}_{lms_id}".strip("_")
    if lms == "ilias":
        student, name = part, " ".join(reversed(name.split("_")))
    time = brightspace_time(group.get("time") or "")
    return Origin(student, name, lms_id, login, time, bool(group.get("late")))


def names_a_student(folder: str) -> bool:
    """Whether a folder is named as Moodle or Brightspace names a student's, and nobody else."""
    return any(re.fullmatch(PATTERNS[lms], folder) for lms in ("moodle", "brightspace"))


def brightspace_time(text: str) -> datetime | None:
    """“Nov 27, 2026 522 PM” in this machine's zone."""
    date, _, clock = text.partition(", ")
    spelled = re.sub(r"(\d{1,2}):?(\d\d) ", r"\1:\2 ", clock.partition(" ")[2])
    for form in ("%b %d %Y %I:%M %p", "%B %d %Y %I:%M %p"):
        try:
            year = clock.partition(" ")[0]
            return datetime.strptime(f"{date.replace('.', '')} {year} {spelled}", form).astimezone()
        except ValueError:
            continue
    return None


# --- Marks ----------------------------------------------------------------------------------------


def marks_csv(
    lms: str,
    table: Sequence[Mapping[str, Any]],
    assignment: str,
    maximum: float,
    *,
    roster: Roster | None = None,
    handed: Mapping[str, str] | None = None,
) -> bytes:
    """The marks as a system imports them.

    Args:
        lms: One of `LMS`.
        table: Rows with `student` and `score`; a score of None or "" is left out.
        assignment: As the system calls it, or words of that.
        maximum: Points that can be had.
        roster: The system's own export, by which it knows its students again. ILIAS does without.
        handed: For ILIAS without one: what names each student there, `Handed.container`.

    Raises:
        LmsError: If that export is missing, or has no place for these marks.
    """
    scores = {str(row["student"]): number(row["score"]) for row in table}
    if lms == "ilias":
        return ilias(scores, roster, handed or {})
    write = {"canvas": canvas, "moodle": moodle, "brightspace": brightspace}[lms]
    if roster is None:
        raise LmsError(EXPORT[lms])
    return write(scores, roster, assignment, maximum)


EXPORT = {
    "canvas": "Canvas knows students by its own numbers. Give its gradebook with --roster: "
    "Grades → Export → Export Entire Gradebook.",
    "moodle": "Moodle knows students by numbers that it gives for each assignment. Give its "
    "grading worksheet with --roster: in the assignment's settings, Feedback types → Offline "
    "grading worksheet; then Submissions → Actions → Download grading worksheet.",
    "brightspace": "Brightspace knows students by user name. Give its grades with --roster: Grades "
    "→ Enter Grades → Export, key field Both, grade value Points grade.",
}


def number(score: Any) -> str:
    """A score without needless digits; nothing for none."""
    return "" if score is None or score == "" else f"{round(float(score), 4):.9g}"


def column(roster: Roster, lms: str, wanted: str) -> int:
    """The one column whose heading fits."""
    found = [i for i, h in enumerate(roster.headings) if re.fullmatch(wanted, plain(h))]
    if len(found) != 1:
        raise LmsError(
            f"The class list has {len(found) or 'no'} columns for that where {lms.capitalize()}'s "
            f"own export has one. Found: {', '.join(roster.headings)}. {EXPORT[lms]}"
        )
    return found[0]


def item(roster: Roster, assignment: str, form: str) -> str | None:
    """The heading of this assignment's marks, if the export has one."""
    wanted = plain(assignment)
    titles = {h: plain(m[1]) for h in roster.headings if (m := re.fullmatch(form, h))}
    found = [h for h, title in titles.items() if title == wanted]
    found = found or [h for h, title in titles.items() if f" {wanted} " in f" {title} "]
    if len(found) > 1:
        raise LmsError(
            f"Several columns could hold the marks of “{assignment}”: {', '.join(found)}. Give the "
            "assignment's full name there."
        )
    return found[0] if found else None


def same_maximum(said: str, maximum: float, where: str) -> None:
    """Refuse to write points out of 40 where the system counts out of 100."""
    if re.fullmatch(r"\d+([.,]\d+)?", said) and float(said.replace(",", ".")) != maximum:
        raise LmsError(
            f"{where} counts out of {said} points, and the assignment has {maximum:g}. Set "
            f"{maximum:g} there, and export again."
        )


def written(rows: Sequence[Sequence[str]], delimiter: str = ",", *, bom: bool = False) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue().encode("utf-8-sig" if bom else "utf-8")


def no_formula(cell: str) -> str:
    """The cell, or nothing if a spreadsheet would run it: for cells that no import needs.

    An apostrophe before it, as is usual, would change a name that the system compares.
    """
    return "" if len(cell) > 1 and cell[0] in "=+-@\t\r" else cell


def canvas(scores: Mapping[str, str], roster: Roster, assignment: str, maximum: float) -> bytes:
    """The columns of Canvas's export up to the section, and one with the marks."""
    number_at, section = column(roster, "canvas", "id"), column(roster, "canvas", "section")
    heading = item(roster, assignment, r"(.*?) *\(\d+\)")
    possible = next((r for r in roster.rows if r and plain(r[0]) == "points possible"), None)
    if heading is not None and possible is not None:
        same_maximum(possible[roster.headings.index(heading)].strip(), maximum, f"“{heading}”")
    blank = [""] * section
    rows = [
        [*roster.headings[: section + 1], heading or assignment],
        ["    Points Possible", *blank, f"{maximum:g}"],
    ]
    for person in roster.people:
        own = roster.rows[person.row][: section + 1]
        cells = [c if i == number_at else no_formula(c) for i, c in enumerate(own)]
        rows.append([*cells, scores.get(person.id, "")])
    return written(rows)


def moodle(scores: Mapping[str, str], roster: Roster, assignment: str, maximum: float) -> bytes:
    """Moodle's grading worksheet with its grades filled in, and all else as it was."""
    del assignment  # a worksheet is of one
    grade = column(roster, "moodle", GRADE)
    known = next((i for i, h in enumerate(roster.headings) if plain(h) in MAXIMUM.split("|")), None)
    students = {person.row: person for person in roster.people}
    # Comments are kept: Moodle would take an empty cell for a new, empty comment.
    kept = {i for i, h in enumerate(roster.headings) if "omm" in h} | {grade}
    rows = [roster.headings]
    for index, row in enumerate(roster.rows):
        cells = [c if i in kept else no_formula(c) for i, c in enumerate(row)]
        if index in students:
            if known is not None:
                same_maximum(cells[known].strip(), maximum, "The worksheet")
            cells[grade] = scores.get(students[index].id) or cells[grade]
        rows.append(cells)
    return written(rows, roster.delimiter, bom=roster.bom)


def brightspace(
    scores: Mapping[str, str], roster: Roster, assignment: str, maximum: float
) -> bytes:
    """User name or number, the points, and the sign that ends a line there."""
    heading = item(roster, assignment, r"(.*?) Points Grade(?: <.*)?")
    if heading is not None and (most := re.search(r"MaxPoints: *([\d.]+)", heading)):
        same_maximum(most[1], maximum, f"“{heading}”")
    key = column(roster, "brightspace", "username")
    title = heading.partition(" <")[0] if heading else f"{assignment} Points Grade"
    rows = [["Username", title, "End-of-Line Indicator"]]
    for person in roster.people:
        # Without a mark there is no line: an empty cell could take a mark away.
        if score := scores.get(person.id):
            rows.append([roster.rows[person.row][key], score, "#"])
    return written(rows)


def ilias(scores: Mapping[str, str], roster: Roster | None, handed: Mapping[str, str]) -> bytes:
    """The plug-in's status file: with the marks filled in, or made from the folders' names."""
    titles = "update usr_id login lastname firstname status mark notice comment plagiarism"
    headings = [*titles.split(), "plag_comment"]
    rows = [headings]
    if roster and roster.headings == headings:
        for person in roster.people:
            row = list(roster.rows[person.row])
            row[3:5] = map(no_formula, row[3:5])
            if score := scores.get(person.id):
                row[0], row[6] = "1", score
            rows.append(row)
        return written(rows, roster.delimiter, bom=roster.bom)
    for student, score in scores.items():
        found = origin("ilias", handed.get(student, ""))
        if score and found is None:
            raise LmsError(
                f"Nothing says who “{student}” is in ILIAS. Grade the zip that it gives out, with "
                "--lms ilias, or give the plug-in's status.csv with --roster."
            )
        if score and found:
            first, _, last = found.name.rpartition(" ")
            who = [found.lms_id, found.login, no_formula(last), no_formula(first)]
            rows.append(["1", *who, "notgraded", score, "", "", "", ""])
    return written(rows)


# --- Feedback -------------------------------------------------------------------------------------


def feedback_zip(
    lms: str, handed: Mapping[str, str], pages: Mapping[str, Path], assignment: str
) -> bytes:
    """Feedback pages in a zip that a system takes in one go.

    Args:
        lms: One of `LMS`.
        handed: What names each student there, `Handed.container`: a folder, or a file.
        pages: The students' pages.
        assignment: What the pages are called.

    Raises:
        LmsError: If a student's file is not named as the system names it.
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for student, page in sorted(pages.items()):
            container = handed.get(student, "")
            found = re.fullmatch(PATTERNS[lms], container)
            if found is None:
                raise LmsError(
                    f"The feedback of “{student}” has no place in {lms.capitalize()}: "
                    f"“{container}” is not named as it names what was handed in."
                )
            name = f"{assignment}_feedback.html"
            if lms == "canvas":
                # The numbers in the name say whose it is, and beside which file it is put.
                target = f"{container[: found.end('upload')]}_{name}"
            elif lms == "moodle":
                target = f"{container[: found.end('plugin')]}_/{name}"
            elif lms == "brightspace":
                target = f"{container[: found.end('time')]}/{name}"
            else:
                target = f"multi_feedback_{assignment}/{container}/{name}"
            archive.write(page, target)
    return file.getvalue()
