"""The one command on a folder of notebooks: marks, messages, pages, and nobody harms anybody."""

import csv
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
import simulated
from bs4 import BeautifulSoup
from nbgrader.api import Gradebook
from wrong import masks

from assignments.grader import classroom, grading
from assignments.grader.sandbox import Limits, isolation_works

pytestmark = pytest.mark.skipif(
    not isolation_works() and os.environ.get("CI") != "true",
    reason="needs bubblewrap (Debian and Ubuntu: apt-get install bubblewrap)",
)
POINTS = 30
# Of the class of 30, which is graded in minutes, one of each kind.
GRADED = (
    "good_0", "partial_0", "mistaken_00", "mistaken_11", "untouched", "colab", "stripped", "untidy",
    "tampered", "hostile_0", "hostile_1", "broken", "empty",
)  # fmt: skip


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A course after the one command, run twice for a student who handed in again."""
    folder, course = (tmp_path_factory.mktemp(name) for name in ("downloads", "course"))
    classroom.set_up(course, ["masks"])
    release = nbformat.read(classroom.release_of(course, "masks"), as_version=4)
    expected = simulated.write_class(release, folder, str(course))
    assert len(expected) == 30
    shown = {wrong.name for student in simulated.mistaken() for wrong in student}
    assert shown == {wrong.name for wrong in masks.WRONG}
    for path in folder.iterdir():
        if path.stem.removeprefix("masks_") not in GRADED:
            path.unlink()
    # As learning-management systems and browsers leave them.
    (folder / "Ada Lovelace_42_file").mkdir()
    (folder / "masks_good_0.ipynb").rename(folder / "Ada Lovelace_42_file" / "masks.ipynb")
    (folder / "masks_colab.ipynb").rename(folder / "Copy of masks_colab (1).ipynb")
    shutil.copy(folder / "masks_untouched.ipynb", folder / "colab.ipynb")
    os.utime(folder / "colab.ipynb", (1, 1))
    expected["Ada_Lovelace_42_file"] = expected.pop("good_0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            grading.GradeInSandbox, "limits", Limits(call_seconds=8, definition_seconds=3)
        )
        patch.setattr(sys, "argv", ["classroom.py", "grade", str(course), "masks", str(folder)])
        classroom.main()
    with (course / "marks_masks.csv").open(newline="", encoding="utf-8") as file:
        table = {row["student"]: row for row in csv.DictReader(file)}
    return course, table, {who: expected[who] for who in table}


def page_of(course, student):
    return (course / "feedback" / student / "masks" / "masks.html").read_text("utf-8")


def text_of(course, student):
    return " ".join(BeautifulSoup(page_of(course, student), "html.parser").get_text().split())


def test_everybody_has_a_row(graded):
    _, table, _ = graded
    assert set(table) == set(GRADED) - {"good_0"} | {"Ada_Lovelace_42_file"}


def test_everybody_loses_exactly_what_was_wrong(graded):
    _, table, expected = graded
    tests = {
        c.metadata.nbgrader.grade_id: c.metadata.nbgrader.points
        for c in nbformat.read(classroom.source_of("masks"), as_version=4).cells
        if c.cell_type == "code" and c.metadata.get("nbgrader", {}).get("grade")
    }
    assert sum(tests.values()) == POINTS
    for student, row in table.items():
        lost = {name for name in tests if float(row[name]) == 0}
        assert lost == expected[student], student
        assert float(row["score"]) == sum(p for n, p in tests.items() if n not in lost), student
        assert float(row["max_score"]) == 40


def test_the_page_names_each_misconception(graded):
    course, table, _ = graded
    students = simulated.mistaken()
    for student in table:
        if student.startswith("mistaken"):
            text = text_of(course, student)
            for wrong in students[int(student.removeprefix("mistaken_"))]:
                assert wrong.says in text, wrong.name


def test_written_answers_wait_for_a_person(graded):
    _, table, _ = graded
    for student in ("colab", "stripped", "untidy", "Ada_Lovelace_42_file"):
        assert table[student]["to_grade_by_hand"] == "2", student
    for student in ("untouched", "partial_0", "empty", "broken"):
        assert table[student]["to_grade_by_hand"] == "0", student


def test_marks_by_hand_are_added_and_kept(graded, tmp_path):
    course, _, _ = graded
    copied = tmp_path / "course"
    shutil.copytree(course, copied)
    with Gradebook(f"sqlite:///{copied / 'gradebook.db'}", "dropreg") as book:
        grade = book.find_grade("scaling", "masks", "masks", "colab")
        grade.manual_score, grade.needs_manual_grade = 4, False
        book.db.commit()
    row = next(r for r in classroom.marks(copied, "masks") if r["student"] == "colab")
    assert (row["score"], row["scaling"], row["to_grade_by_hand"]) == (POINTS + 4, 4, 1)
    folder = tmp_path / "again"
    folder.mkdir()
    shutil.copy(copied / "submitted" / "colab" / "masks" / "masks.ipynb", folder / "colab.ipynb")
    (row,) = (r for r in classroom.grade(copied, "masks", folder, isolated=True)
              if r["student"] == "colab")  # fmt: skip
    assert (row["score"], row["scaling"]) == (POINTS + 4, 4)


def test_hostile_code_saw_and_changed_nothing(graded):
    course, table, _ = graded
    text = text_of(course, "hostile_0")
    assert text.count("ValueError: SAW NOTHING") == 3  # which no source holds in one piece
    assert "Does a loop never end?" in text
    assert "ended the process" in table["hostile_0"]["notes"]
    assert not (course / "marks.csv").exists()
    assert (course / "gradebook.db").stat().st_size > 10_000
    assert (course / "fresh_seed").stat().st_mode & 0o077 == 0


def test_pages_hold_no_hidden_test_no_seed_and_nothing_that_runs(graded):
    course, table, _ = graded
    seed = (course / "fresh_seed").read_text().strip()
    for student in table:
        page = page_of(course, student)
        assert "FRESH" not in page
        assert seed not in page
        assert len(page) < 2_000_000
        soup = BeautifulSoup(page, "html.parser")
        for script in soup.find_all("script"):
            assert "alert" not in script.get_text()
        assert not [a for a in soup.find_all("a") if "script:" in a.get("href", "")]
        assert not [e for e in soup.find_all(True) if any(a.startswith("on") for a in e.attrs)]


def test_what_is_odd_is_noted(graded):
    _, table, _ = graded
    assert "not a notebook" in table["broken"]["notes"]
    assert "Not read: colab.ipynb" in table["colab"]["notes"]
    assert table["Ada_Lovelace_42_file"]["notes"] == ""


def test_no_cell_of_the_table_is_a_formula(graded):
    course, _, _ = graded
    with (course / "marks_masks.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row if cell]
    assert not [c for c in cells if c[0] in "=+-@\t\r"]


@pytest.mark.parametrize(
    ("path", "student"),
    [
        ("masks_alice.ipynb", "alice"),
        ("alice.ipynb", "alice"),
        ("alice_masks.ipynb", "alice"),
        ("Copy of masks_alice (2).ipynb", "alice"),
        ("alice@uni.edu.ipynb", "alice@uni.edu"),
        ("Ada Lovelace_12_file_/masks.ipynb", "Ada_Lovelace_12_file"),
        ("lovelaceada_12_34_masks.ipynb", "lovelaceada_12_34"),
        ("=1+1.ipynb", "1_1"),
        ("masks_.ipynb", "unnamed"),
    ],
)  # fmt: skip
def test_students_are_named_by_file_or_folder(tmp_path, path, student):
    target = tmp_path / "in" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("{}")
    assert list(classroom.submissions(tmp_path / "in", "masks")) == [student]


def test_links_and_checkpoints_are_not_read(tmp_path):
    (tmp_path / "real.ipynb").write_text("{}")
    (tmp_path / "link.ipynb").symlink_to("/etc/passwd")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "real-checkpoint.ipynb").write_text("{}")
    assert list(classroom.submissions(tmp_path, "masks")) == ["real"]


def test_a_folder_as_nbgrader_collects_it_may_hold_other_assignments(tmp_path):
    for name in ("masks", "effects"):
        (tmp_path / "alice" / name).mkdir(parents=True)
        (tmp_path / "alice" / name / f"{name}.ipynb").write_text("{}")
    found = classroom.submissions(tmp_path, "masks")
    assert found == {"alice": [tmp_path / "alice" / "masks" / "masks.ipynb"]}


def test_what_was_handed_in_is_never_written_over(tmp_path):
    with pytest.raises(SystemExit, match="Move it out"):
        classroom.grade(tmp_path, "masks", tmp_path / "submitted", isolated=True)


def test_nbgrader_finds_the_grader_from_a_course_folder(tmp_path):
    """As JupyterLab does for the formgrader: started there, by a Python that knows no path here."""
    classroom.set_up(tmp_path, [])
    code = (
        "from traitlets.config import PyFileConfigLoader\n"
        "c = PyFileConfigLoader('nbgrader_config.py').load_config()\n"
        "print(c.CourseDirectory.root, c.Autograde.autograde_preprocessors[0].__module__)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    printed = subprocess.run(
        (sys.executable, "-c", code), cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert printed.stdout.split() == [str(tmp_path), "assignments.grader.grading"], printed.stderr


def test_an_empty_folder_is_said(tmp_path):
    with pytest.raises(SystemExit, match="No notebook in"):
        classroom.grade(tmp_path / "course", "masks", tmp_path, isolated=True)


def test_the_seed_is_each_courses_own_and_stays(tmp_path):
    seeds = [classroom.fresh_seed(tmp_path / name) for name in ("a", "b", "a")]
    assert seeds[0] == seeds[2] != seeds[1]
