"""The one command on a folder of notebooks: marks, messages, pages, and nobody harms anybody."""

import csv
import datetime
import json
import os
import shutil
import sys
import zipfile

import nbformat
import pytest
import simulated
from bs4 import BeautifulSoup

from assignments.grader import classroom, commands, grading, marking
from assignments.grader.sandbox import Limits, isolation_works

NEEDS_BWRAP = pytest.mark.skipif(
    not isolation_works() and os.environ.get("CI") != "true",
    reason="needs bubblewrap (Debian and Ubuntu: apt-get install bubblewrap)",
)
POINTS = 30
# Of the whole class, which is graded in minutes, one of each kind.
GRADED = (
    "good_0", "partial_0", "mistaken_00", "mistaken_11", "untouched", "colab", "stripped", "untidy",
    "tampered", "hostile_0", "hostile_1", "empty", "unusual_0", "cheat_zeros",
    "damaged_half_an_emoji", "damaged_deep_signs", "damaged_outputs_of_text", "damaged_cut_off",
    "damaged_markers_everywhere", "damaged_pdf",
)  # fmt: skip
ADA, FOLDER = "Ada_Lovelace_42_file", "Ada Lovelace_42_file"


def run(monkeypatch_context, *arguments):
    """The command, in this process; its exit status."""
    monkeypatch_context.setattr(sys, "argv", ["grader", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    return ended.value.code


def rows_of(course):
    with (course / "marks_masks.csv").open(newline="", encoding="utf-8-sig") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A course after the one command."""
    folder, course = (tmp_path_factory.mktemp(name) for name in ("downloads", "course"))
    classroom.set_up(course, ["masks"])
    release = nbformat.read(classroom.release_of(course, "masks"), as_version=4)
    students = simulated.the_class(release, str(course))
    simulated.write_class({name: students[name] for name in GRADED}, folder)
    # As learning-management systems and browsers leave them, and one who handed in twice.
    (folder / FOLDER).mkdir()
    (folder / "masks_good_0.ipynb").rename(folder / FOLDER / "masks.ipynb")
    (folder / "masks_colab.ipynb").rename(folder / "Copy of masks_colab (1).ipynb")
    shutil.copy(folder / "masks_untouched.ipynb", folder / "colab.ipynb")
    os.utime(folder / "colab.ipynb", (10**9, 10**9))
    (folder / "essay.docx").write_bytes(b"PK")
    students = {name: students[name] for name in GRADED}
    students[ADA] = students.pop("good_0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marking, "LIMITS", Limits(call_seconds=8, definition_seconds=3))
        status = run(patch, "grade", course, "masks", folder, "--jobs", 2)
    return course, rows_of(course), students, status


def page_of(course, student):
    return (course / "feedback" / student / "masks" / "masks.html").read_text("utf-8")


def text_of(course, student):
    return " ".join(BeautifulSoup(page_of(course, student), "html.parser").get_text().split())


@NEEDS_BWRAP
class TestAClass:
    def test_everybody_has_the_row_that_is_right(self, graded):
        _, table, students, status = graded
        assert set(table) == set(students)
        assert {n: w for n, s in students.items() if (w := simulated.wrong_in(table[n], s))} == {}
        assert status == 1  # somebody's file could not be graded

    def test_points_add_up(self, graded):
        _, table, students, _ = graded
        tests = {
            c.metadata.nbgrader.grade_id: c.metadata.nbgrader.points
            for c in nbformat.read(classroom.source_of("masks"), as_version=4).cells
            if c.cell_type == "code" and c.metadata.get("nbgrader", {}).get("grade")
        }
        assert sum(tests.values()) == POINTS
        for name, student in students.items():
            if student.lost is not None:
                wanted = sum(p for test, p in tests.items() if test not in student.lost)
                assert float(table[name]["score"]) == wanted, name
                assert float(table[name]["max_score"]) == 40

    def test_what_waits_for_a_person_is_no_zero(self, graded):
        _, table, _, _ = graded
        assert (table["colab"]["scaling"], table["untouched"]["scaling"]) == ("", "0.0")

    def test_the_page_names_each_misconception(self, graded):
        course, table, _, _ = graded
        students = simulated.mistaken()
        for student in table:
            if student.startswith("mistaken"):
                text = text_of(course, student)
                for wrong in students[int(student.removeprefix("mistaken_"))]:
                    assert wrong.says in text, wrong.name

    def test_hostile_code_saw_and_changed_nothing(self, graded):
        course, table, _, _ = graded
        text = text_of(course, "hostile_0")
        assert text.count("ValueError: SAW NOTHING") == 3  # which no source holds in one piece
        assert "Does a loop never end?" in text
        assert "ended the process" in table["hostile_0"]["notes"]
        assert not (course / "marks.csv").exists()
        assert (course / "gradebook.db").stat().st_size > 10_000
        assert (course / "fresh_seed").stat().st_mode & 0o077 == 0

    def test_pages_hold_no_hidden_test_no_seed_and_nothing_that_runs(self, graded):
        course, table, _, _ = graded
        secret = (course / "fresh_seed").read_text().strip()
        for student in table:
            page = page_of(course, student)
            assert "FRESH" not in page
            assert secret not in page
            assert len(page) < 2_000_000
            soup = BeautifulSoup(page, "html.parser")
            assert not soup.find_all(["script", "iframe", "object", "embed", "link"])
            assert not [a for a in soup.find_all("a") if "script:" in a.get("href", "")]
            assert not [e for e in soup.find_all(True) if any(a[:2] == "on" for a in e.attrs)]

    def test_what_is_odd_is_noted(self, graded):
        _, table, _, _ = graded
        assert table["damaged_pdf"]["status"].startswith("could not be graded: ")
        assert "Not read: colab.ipynb" in table["colab"]["notes"]
        assert table[ADA]["notes"] == ""

    def test_no_cell_of_the_table_is_a_formula(self, graded):
        course, _, _, _ = graded
        with (course / "marks_masks.csv").open(newline="", encoding="utf-8-sig") as file:
            cells = [cell for row in csv.reader(file) for cell in row if cell]
        assert not [c for c in cells if c[0] in "=+-@\t\r"]


@pytest.fixture(scope="module")
def new_course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("new") / "course"
    classroom.set_up(folder, ["masks"])
    return folder


@pytest.fixture
def course(new_course, tmp_path):
    """A course of one assignment and a folder to hand in to; what is tested is not isolated."""
    (tmp_path / "in").mkdir()
    return shutil.copytree(new_course, tmp_path / "course")


def hand_in(course, student="ada", **replaced):
    """The solution, but for some functions; with the two answers in words."""
    release = nbformat.read(classroom.release_of(course, "masks"), as_version=4)
    notebook = simulated.answered(release, **replaced)
    nbformat.write(notebook, course.parent / "in" / f"{student}.ipynb")
    return notebook


def marked(course, **options):
    complete = marking.grade(course, "masks", course.parent / "in", isolated=False, **options)
    return complete, {row["student"]: row for row in marking.table_of(course, "masks")}


def by_hand(course, grade_id, points, comment=None):
    with marking.gradebook(course) as book:
        grade = book.find_grade(grade_id, "masks", "masks", "ada")
        grade.manual_score, grade.needs_manual_grade = points, False
        if comment:
            book.find_comment(grade_id, "masks", "masks", "ada").manual_comment = comment
        book.db.commit()


def test_marks_by_hand_stay_with_the_answers_they_were_given_for(course, capsys):
    notebook = hand_in(course)
    marked(course)
    by_hand(course, "scaling", 4, "Well argued.")
    by_hand(course, "moments-third", 1)
    second = next(c.metadata.nbgrader.grade_id for c in notebook.cells
                  if c.cell_type == "markdown" and simulated.tags(c).get("solution")
                  and c.metadata.nbgrader.grade_id != "scaling")  # fmt: skip
    by_hand(course, second, 3)
    _, table = marked(course)
    assert "has not changed" in capsys.readouterr().out
    before = table["ada"]
    assert (before["scaling"], before[second], before["to_grade_by_hand"]) == (4, 3, 0)

    _, table = marked(course, again=True)  # all of it once more: nothing is asked for again
    assert table["ada"] == before

    for cell in notebook.cells:
        if simulated.tags(cell).get("grade_id") == "scaling":
            cell.source += " I have thought again."
    nbformat.write(notebook, course.parent / "in" / "ada.ipynb")
    _, table = marked(course)
    row = table["ada"]
    assert (row["scaling"], row[second], row["moments-third"]) == ("", 3, 1)
    assert row["to_grade_by_hand"] == 1
    assert "scaling: changed since it was marked by hand (4 of " in row["notes"]
    assert "Well argued." in row["notes"]
    with marking.gradebook(course) as book:
        assert book.find_comment("scaling", "masks", "masks", "ada").manual_comment is None

    hand_in(course, moments=simulated.solutions()["moments"] + "\n# another")
    _, table = marked(course)
    assert "moments-third: changed since it was marked by hand (1 of " in table["ada"]["notes"]
    assert table["ada"]["moments-third"] > 1  # the test's own points


def test_a_file_that_its_zip_does_not_give_out_stops_nobody(course, tmp_path):
    for student in ("ada", "grace"):
        hand_in(course, student)
    with zipfile.ZipFile(tmp_path / "class.zip", "w") as archive:
        for file in sorted((tmp_path / "in").iterdir()):
            archive.write(file, file.name)
    data = bytearray((tmp_path / "class.zip").read_bytes())
    data[1000] ^= 1  # of the first, whose checksum is then wrong
    (tmp_path / "class.zip").write_bytes(data)
    complete = marking.grade(course, "masks", tmp_path / "class.zip", isolated=False)
    ada, grace = marking.table_of(course, "masks")
    assert not complete
    assert ada["status"].startswith("could not be graded: ")
    assert grace["score"] == POINTS


def test_who_cannot_be_graded_any_more_has_no_mark(course):
    hand_in(course)
    assert marked(course)[0]
    (course.parent / "in" / "ada.ipynb").write_text("{")
    complete, table = marked(course)
    assert not complete
    assert table["ada"]["status"].startswith("could not be graded: ")
    assert table["ada"]["score"] == ""
    hand_in(course)
    complete, table = marked(course)
    assert complete
    assert table["ada"]["score"] == POINTS


def test_a_grader_that_fails_on_one_names_it_and_goes_on(course, monkeypatch, capsys):
    """Whatever it is that nobody foresaw."""
    for student in ("ada", "grace"):
        hand_in(course, student)
    monkeypatch.setattr(marking, "allowed", lambda: 4.0)
    hand_in(course, "loops", dropout="import time\ndef dropout(*_):\n    time.sleep(100)")
    monkeypatch.setattr(marking, "LIMITS", Limits(call_seconds=200))
    marking.grade(course, "masks", course.parent / "in", isolated=False, only=["loops"])
    monkeypatch.undo()
    complete, table = marked(course, only=["ada", "grace"])
    assert not complete
    assert {name: row["status"] for name, row in table.items()} == {
        "ada": "graded",
        "grace": "graded",
        "loops": "could not be graded: it takes too long to read and test it",
    }


def test_the_marks_are_there_even_if_a_page_is_not(course, monkeypatch, capsys):
    hand_in(course)
    hand_in(course, "grace")
    (course / "feedback").mkdir()
    (course / "feedback" / "ada").write_text("in the way")
    complete, table = marked(course)
    assert not complete
    assert {row["score"] for row in table.values()} == {POINTS}
    assert "ada: its feedback page could not be written: " in capsys.readouterr().out
    assert (course / "feedback" / "grace" / "masks" / "masks.html").is_file()


def test_a_roster_names_who_is_missing_and_days_late_are_counted(course, tmp_path):
    hand_in(course)
    roster = tmp_path / "class.csv"
    roster.write_text("username,name\nada,Ada Lovelace\ngrace,Grace Hopper\n")
    os.utime(tmp_path / "in" / "ada.ipynb", (10**9, 10**9))
    due = datetime.datetime.fromtimestamp(10**9 - 3600).astimezone()
    _, table = marked(course, roster=roster, due=due)
    assert (table["ada"]["days_late"], table["grace"]["status"]) == (1, "nothing handed in")
    assert table["grace"]["score"] == ""


def test_marks_and_pages_as_a_system_takes_them(course, tmp_path, capsys):
    hand_in(course)
    folder = tmp_path / "in" / "Ada Lovelace_42_assignsubmission_file_"
    folder.mkdir()
    (tmp_path / "in" / "ada.ipynb").rename(folder / "solution.ipynb")
    worksheet = tmp_path / "worksheet.csv"
    worksheet.write_text(
        "Identifier,Full name,Email address,Status,Grade,Maximum Grade,Grade can be changed\n"
        "Participant 42,Ada Lovelace,ada@example.org,Submitted,,40.00,Yes\n"
        "Participant 43,Grace Hopper,grace@example.org,No submission,,40.00,Yes\n"
    )
    complete, _ = marked(course, system="moodle", roster=worksheet)
    assert complete
    with (course / "marks_masks_moodle.csv").open(encoding="utf-8-sig", newline="") as file:
        ada, _ = csv.DictReader(file)
    assert (ada["Identifier"], float(ada["Grade"])) == ("Participant 42", POINTS)
    with zipfile.ZipFile(course / "feedback_masks_moodle.zip") as archive:
        assert archive.namelist() == [f"{folder.name}/masks_feedback.html"]
    assert "1 of these scores are without answers that wait" in capsys.readouterr().out

    worksheet.write_text(worksheet.read_text().replace("40.00", "100.00"))
    assert not marking.marks(course, "masks", system="moodle", roster=worksheet)
    assert "moodle: " in capsys.readouterr().out  # and its own table is there
    assert (course / "marks_masks.csv").is_file()


def test_one_notebook_for_a_runner_elsewhere(course, tmp_path):
    hand_in(course, moments="def moments(q):\n    return 0.0")
    file, out = tmp_path / "in" / "ada.ipynb", tmp_path / "out.json"
    commands.one("masks", file, out, isolated=False)
    report = json.loads(out.read_text())
    lost = {test["name"]: test["message"] for test in report["tests"] if test["message"]}
    assert set(lost) == {"moments-variance", "moments-third"}
    assert report["score"] == sum(test["points"] for test in report["tests"])
    assert report["max_score"] == 40
    assert sum(answer["max_points"] for answer in report["waiting"]) == 40 - POINTS


def test_what_was_handed_in_is_never_written_over(course):
    with pytest.raises(SystemExit, match="Move it out"):
        marking.grade(course, "masks", course / "submitted")


def test_an_empty_folder_is_said(course):
    with pytest.raises(SystemExit, match="No notebook of masks in"):
        marking.grade(course, "masks", course.parent / "in")


def test_an_unknown_student_is_said(course):
    hand_in(course)
    with pytest.raises(SystemExit, match="Nothing of bob in"):
        marking.grade(course, "masks", course.parent / "in", only=["bob"])


def test_a_course_made_before_still_works(course):
    """Its secret was a number, and there were no records."""
    (course / "fresh_seed").write_text("1234567\n")
    hand_in(course)
    before = marked(course)[1]["ada"]
    shutil.rmtree(course / "records")
    assert marking.marks(course, "masks")
    (row,) = marking.table_of(course, "masks")
    assert row == before | {"handed_in": "", "days_late": ""}


def test_the_hidden_numbers_are_each_submissions_own(course):
    release = nbformat.read(classroom.release_of(course, "masks"), as_version=4)

    def seed(secret="s", student="ada", notebook=release):
        who = {"nbgrader": {"assignment": "masks", "student": student}}
        return grading.fresh_seed(secret, notebook, who)

    other = simulated.answered(release)
    seeds = [seed(), seed(secret="t"), seed(student="grace"), seed(notebook=other)]
    assert len(set(seeds)) == 4
    assert seed() == seeds[0]
    assert all(0 <= each < 2**31 for each in seeds)
