"""What learning-management systems give out is read, and what they take back is as they want it."""

import csv
import io
import zipfile
from datetime import datetime

import pytest

from assignments.grader.lms import LMS, LmsError, feedback_zip, marks_csv
from assignments.grader.roster import Roster
from assignments.grader.submissions import ClashError, find

# A class as each system gives it out: Ada handed in twice where it shows that, Bob late.
DOWNLOADS = {
    "canvas": [
        "lovelaceada_12_34_masks-1.ipynb", "lovelaceada_12_99_masks-2.ipynb",
        "okayamabob_LATE_13_35_masks.ipynb", "okayamabob_14_36_my_1_2_work.ipynb",
    ],
    "moodle": [
        "Ada Lovelace_1234567_assignsubmission_file_/masks.ipynb",
        "Ada Lovelace_1234567_assignsubmission_file_/old/masks.ipynb",
        "Bob Okayama_1234568_assignsubmission_file/hw/masks.ipynb",
        "Bob Okayama_1234569_assignsubmission_file_masks.ipynb",
    ],
    "brightspace": [
        "397063-2557369 - Ada Lovelace - Nov 26, 2026 1204 AM/masks.ipynb",
        "397063-2557369 - Ada Lovelace - Nov 27, 2026 522 PM/masks.ipynb",
        "397063-2557369 - Bob - Jo Okayama - Dec 3, 2026 122 PM/masks.ipynb",
        "397063-2557369 - Éva Å - Dec 3, 2026 11:22 AM - masks.ipynb",
    ],
    "ilias": [
        "Uebung_1_Masks_77/Lovelace_Ada_ada_12/masks.ipynb",
        "Uebung_1_Masks_77/Okayama_Bob_bob_x_13/Late - masks.ipynb",
        "Uebung_1_Masks_77/Okayama_Bob_bob_14/masks.ipynb",
    ],
}  # fmt: skip
STUDENTS = {
    "canvas": ["lovelaceada_12", "okayamabob_13", "okayamabob_14"],
    "moodle": ["Ada_Lovelace_1234567", "Bob_Okayama_1234568", "Bob_Okayama_1234569"],
    "brightspace": ["Ada_Lovelace", "Bob_-_Jo_Okayama", "Éva_Å"],
    "ilias": ["Lovelace_Ada_ada_12", "Okayama_Bob_bob_14", "Okayama_Bob_bob_x_13"],
}
CANVAS = """\
Student,ID,SIS User ID,SIS Login ID,Section,Masks and moments (901),Effects (902),Final Score
,,,,,Manual Posting,,
    Points Possible,,,,,40,40,(read only)
"Lovelace, Ada",12,s12,ada,Lab 1,,,
"Okayama, Bob",13,s13,bob,Lab 1,3,,
"=cmd|' /C calc'!A0",14,s14,bob2,"Lab 1, Lab 2",,,
"Student, Test",99,,,Lab 1,,,
"""
MOODLE = """\
Identifier,Full name,ID number,Email address,Status,Grade,Maximum Grade,Grade can be changed,\
Last modified (submission),Online text,Last modified (grade),Feedback comments
Participant 1234567,Ada Lovelace,s12,ada@uni.edu,Submitted for grading,,40.00,Yes,\
"Friday, 27 November 2026, 5:22 PM",=1+1,-,
Participant 1234568,Bob Okayama,s13,bob@uni.edu,Submitted for grading,7.00,40.00,Yes,-,,-,=good
Participant 1234569,Bob Okayama,s14,bob2@uni.edu,No submission,,40.00,Yes,-,,-,
"""
BRIGHTSPACE = """\
OrgDefinedId,Username,Last Name,First Name,Masks Points Grade <Numeric MaxPoints:40>,\
End-of-Line Indicator
#s12,#ada,Lovelace,Ada,,#
#s13,#bob,Okayama,Bob - Jo,,#
#s14,#eva,Å,Éva,,#
"""
ILIAS = """\
update,usr_id,login,lastname,firstname,status,mark,notice,comment,plagiarism,plag_comment
0,12,ada,Lovelace,Ada,notgraded,,,,,
0,13,bob_x,Okayama,Bob,notgraded,,,,,
0,14,bob,Okayama,Bob,notgraded,,,,,
"""
EXPORTS = {"canvas": CANVAS, "moodle": MOODLE, "brightspace": BRIGHTSPACE, "ilias": ILIAS}
IDS = {
    "canvas": ["ada", "bob", "bob2"],
    "moodle": ["ada@uni.edu", "bob@uni.edu", "bob2@uni.edu"],
    "brightspace": ["ada", "bob", "eva"],
    "ilias": ["ada", "bob", "bob_x"],
}


def download(folder, names):
    source = folder / "download.zip"
    with zipfile.ZipFile(source, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
        archive.writestr("index.html", "<html>")
    return source


def export(folder, lms, text=None):
    path = folder / f"{lms}.csv"
    path.write_text(text or EXPORTS[lms], "utf-8")
    return Roster.read(path)


def table(data, delimiter=","):
    return list(csv.reader(io.StringIO(data.decode(), newline=""), delimiter=delimiter))


def marks(lms, scores, **more):
    rows = [{"student": student, "score": score} for student, score in scores.items()]
    return marks_csv(lms, rows, "masks", 40, **more)


@pytest.mark.parametrize("lms", LMS)
def test_their_names_in(tmp_path, lms):
    found = find(download(tmp_path, DOWNLOADS[lms]), "masks", lms=lms)
    assert list(found.students) == STUDENTS[lms]
    assert found.unread == [("index.html", "a page, not the notebook (File → Download → .ipynb)")]
    if lms != "ilias":
        assert len(found.students[STUDENTS[lms][0]]) == 2


@pytest.mark.parametrize("lms", LMS)
def test_their_own_export_is_a_class_list(tmp_path, lms):
    roster = export(tmp_path, lms)
    assert {person.id for person in roster.people} == set(IDS[lms])
    found = find(download(tmp_path, DOWNLOADS[lms]), "masks", lms=lms, roster=roster)
    assert set(found.students) == set(IDS[lms])
    assert all(found.students.values())
    assert found.unmatched == []


def test_the_newest_and_what_is_late(tmp_path):
    canvas = find(download(tmp_path, DOWNLOADS["canvas"]), "masks", lms="canvas").students
    ada = canvas["lovelaceada_12"]
    assert [handed.shown_name[-7:-6] for handed in ada] == ["1", "2"]
    assert ada[-1].time is None  # its zip has the time of the download
    assert [canvas[f"okayamabob_{i}"][0].late for i in (13, 14)] == [True, False]
    brightspace = find(
        download(tmp_path, DOWNLOADS["brightspace"]), "masks", lms="brightspace"
    ).students
    times = [handed.time for files in brightspace.values() for handed in files]
    assert times == [
        datetime(2026, month, day, hour, minute).astimezone()
        for month, day, hour, minute in (
            (11, 26, 0, 4),
            (11, 27, 17, 22),
            (12, 3, 13, 22),
            (12, 3, 11, 22),
        )
    ]
    roster = export(tmp_path, "moodle")
    moodle = find(
        download(tmp_path, DOWNLOADS["moodle"]), "masks", lms="moodle", roster=roster
    ).students
    assert moodle["ada@uni.edu"][-1].time == datetime(2026, 11, 27, 17, 22).astimezone()


def test_marking_without_names(tmp_path):
    blind = [
        "Participant_1234567_assignsubmission_file_/masks.ipynb",
        "Teilnehmerin_1234568_assignsubmission_file_/masks.ipynb",
    ]
    for name in blind:
        (tmp_path / "moodle" / name).parent.mkdir(parents=True)
        (tmp_path / "moodle" / name).write_text("{}")
    text = "Identifier,Status,Grade\nParticipant 1234567,,\nTeilnehmer/in1234568,,\n"
    roster = export(tmp_path, "moodle", text)
    found = find(tmp_path / "moodle", "masks", lms="moodle", roster=roster)
    assert list(found.students) == ["Participant_1234567", "Teilnehmer_in1234568"]
    assert all(found.students.values())
    anonymous = tmp_path / "canvas"
    anonymous.mkdir()
    for name in ("anon_x7Kq2_34_masks.ipynb", "LATE_anon_y7Kq2_35_masks.ipynb"):
        (anonymous / name).write_text("{}")
    found = find(anonymous, "masks", lms="canvas")
    assert [(s, f[0].late) for s, f in found.students.items()] == [
        ("anon_x7Kq2", False), ("anon_y7Kq2", True),
    ]  # fmt: skip


@pytest.mark.parametrize("lms", LMS)
def test_who_handed_in_something_else_has_a_row(tmp_path, lms):
    names = [DOWNLOADS[lms][0], *(n.replace(".ipynb", ".pdf") for n in DOWNLOADS[lms][1:])]
    found = find(download(tmp_path, names), "masks", lms=lms)
    assert list(found.students) == STUDENTS[lms]
    assert sum(map(len, found.students.values())) == 1


def test_a_student_who_is_off_the_list_is_not_taken_for_a_namesake(tmp_path):
    """The system's number says that this is another Ada Lovelace."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "lovelaceada_77_34_masks.ipynb").write_text("{}")
    found = find(tmp_path / "in", "masks", lms="canvas", roster=export(tmp_path, "canvas"))
    assert found.students["ada"] == []
    assert [name for name, _ in found.unmatched] == ["lovelaceada_77_34_masks.ipynb"]


def test_nobody_hands_in_for_others(tmp_path):
    """By names of the system's form within what a student has packed."""
    forged = "Ada Lovelace_1234567_assignsubmission_file_/masks.ipynb"
    names = [*DOWNLOADS["moodle"], f"Bob Okayama_1234568_assignsubmission_file/{forged}"]
    found = find(download(tmp_path, names), "masks", lms="moodle")
    assert list(found.students) == STUDENTS["moodle"]
    assert len(found.students["Ada_Lovelace_1234567"]) == 2
    names = [name.replace("_77/", f"_{i}/") for name in DOWNLOADS["ilias"] for i in (77, 78)]
    with pytest.raises(ClashError, match=r"“Uebung_1_Masks_77” holds Lovelace_Ada_ada_12"):
        find(download(tmp_path, names), "masks", lms="ilias")


def test_what_is_not_that_systems_is_said(tmp_path):
    with pytest.raises(LmsError, match=r"No file in download\.zip is named as Canvas names"):
        find(download(tmp_path, DOWNLOADS["ilias"]), "masks", lms="canvas")
    with pytest.raises(LmsError, match="one of canvas, moodle"):
        find(tmp_path, "masks", lms="blackboard")


# --- Their columns out ----------------------------------------------------------------------------


def test_canvas(tmp_path):
    data = marks(
        "canvas", {"ada": 27.5, "bob": 40.0, "bob2": None}, roster=export(tmp_path, "canvas")
    )
    assert table(data) == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "Masks and moments (901)"],
        ["    Points Possible", "", "", "", "", "40"],
        ["Lovelace, Ada", "12", "s12", "ada", "Lab 1", "27.5"],
        ["Okayama, Bob", "13", "s13", "bob", "Lab 1", "40"],
        ["", "14", "s14", "bob2", "Lab 1, Lab 2", ""],  # known by the number, no formula
    ]
    assert not data.startswith(b"\xef\xbb\xbf")


def test_canvas_makes_a_column_that_it_lacks(tmp_path):
    roster = export(tmp_path, "canvas", CANVAS.replace("Masks and moments (901)", "Other (901)"))
    assert table(marks("canvas", {"ada": 1}, roster=roster))[0][-1] == "masks"


def test_moodle_gets_its_worksheet_back(tmp_path):
    roster = export(tmp_path, "moodle")
    rows = table(marks("moodle", {"ada@uni.edu": 27.25, "bob2@uni.edu": ""}, roster=roster))
    before = table(MOODLE.encode())
    before[1][5] = "27.25"
    before[1][9] = ""  # a student's text that Excel would run; no import reads it
    assert rows == before


def test_moodle_in_another_language_and_with_its_mark_of_order(tmp_path):
    text = MOODLE.replace(",Grade,", ",Bewertung,").replace("Maximum Grade", "Bestwertung")
    path = tmp_path / "moodle.csv"
    path.write_text(text, "utf-8-sig")
    data = marks("moodle", {"ada@uni.edu": 3}, roster=Roster.read(path))
    assert data.startswith(b"\xef\xbb\xbfIdentifier")
    assert table(data)[1][5] == "3"


def test_brightspace(tmp_path):
    data = marks("brightspace", {"ada": 27.5, "bob": None}, roster=export(tmp_path, "brightspace"))
    assert table(data) == [
        ["Username", "Masks Points Grade", "End-of-Line Indicator"],
        ["#ada", "27.5", "#"],
    ]


def test_ilias_by_the_names_of_its_folders(tmp_path):
    found = find(download(tmp_path, DOWNLOADS["ilias"]), "masks", lms="ilias")
    handed = {student: files[-1].container for student, files in found.students.items()}
    scores = {"Lovelace_Ada_ada_12": 27.5, "Okayama_Bob_bob_14": None}
    assert table(marks("ilias", scores, handed=handed)) == [
        ILIAS.splitlines()[0].split(","),
        ["1", "12", "ada", "Lovelace", "Ada", "notgraded", "27.5", "", "", "", ""],
    ]


def test_ilias_gets_its_status_file_back(tmp_path):
    text = ILIAS.replace("0,13,bob_x,Okayama,Bob,notgraded,", "0,13,bob_x,=1+1,Bob,passed,12")
    rows = table(marks("ilias", {"ada": 27.5}, roster=export(tmp_path, "ilias", text)))
    assert rows[1:3] == [
        ["1", "12", "ada", "Lovelace", "Ada", "notgraded", "27.5", "", "", "", ""],
        ["0", "13", "bob_x", "", "Bob", "passed", "12", "", "", "", ""],
    ]


@pytest.mark.parametrize("lms", LMS)
def test_what_is_needed_for_that_is_said(tmp_path, lms):
    with pytest.raises(LmsError, match="--roster"):
        marks(lms, {"ada": 1})
    if lms != "ilias":
        other = export(tmp_path, "other", "name\nAda\n")
        with pytest.raises(LmsError, match=r"no columns for that.*Found: name"):
            marks(lms, {"Ada": 1}, roster=other)


@pytest.mark.parametrize(
    ("lms", "old", "new"),
    [
        ("canvas", ",40,40,", ",100,40,"),
        ("moodle", "40.00", '"100,00"'),
        ("brightspace", "MaxPoints:40", "MaxPoints:100"),
    ],
)
def test_points_out_of_another_number_are_not_written(tmp_path, lms, old, new):
    roster = export(tmp_path, lms, EXPORTS[lms].replace(old, new))
    with pytest.raises(LmsError, match=r"counts out of 100.* and the assignment has 40"):
        marks(lms, {IDS[lms][0]: 1}, roster=roster)


def test_two_columns_that_fit_are_said(tmp_path):
    roster = export(tmp_path, "canvas", CANVAS.replace("Effects (902)", "Masks again (902)"))
    with pytest.raises(LmsError, match=r"Masks and moments \(901\), Masks again \(902\)"):
        marks("canvas", {"ada": 1}, roster=roster)


# --- Feedback -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lms", "names"),
    [
        ("canvas", ["lovelaceada_12_99_masks_feedback.html",
                    "okayamabob_LATE_13_35_masks_feedback.html",
                    "okayamabob_14_36_masks_feedback.html"]),
        ("moodle", ["Ada Lovelace_1234567_assignsubmission_file_/masks_feedback.html",
                    "Bob Okayama_1234568_assignsubmission_file_/masks_feedback.html",
                    "Bob Okayama_1234569_assignsubmission_file_/masks_feedback.html"]),
        ("brightspace", [
            "397063-2557369 - Ada Lovelace - Nov 27, 2026 522 PM/masks_feedback.html",
            "397063-2557369 - Bob - Jo Okayama - Dec 3, 2026 122 PM/masks_feedback.html",
            "397063-2557369 - Éva Å - Dec 3, 2026 11:22 AM/masks_feedback.html"]),
        ("ilias", ["multi_feedback_masks/Lovelace_Ada_ada_12/masks_feedback.html",
                   "multi_feedback_masks/Okayama_Bob_bob_14/masks_feedback.html",
                   "multi_feedback_masks/Okayama_Bob_bob_x_13/masks_feedback.html"]),
    ],
)  # fmt: skip
def test_feedback_lies_where_each_system_looks_for_it(tmp_path, lms, names):
    found = find(download(tmp_path, DOWNLOADS[lms]), "masks", lms=lms)
    handed = {student: files[-1].container for student, files in found.students.items()}
    pages = {student: tmp_path / f"{i}.html" for i, student in enumerate(found.students)}
    for student, page in pages.items():
        page.write_text(student)
    with zipfile.ZipFile(io.BytesIO(feedback_zip(lms, handed, pages, "masks"))) as archive:
        assert sorted(archive.namelist()) == sorted(names)
        read = {archive.read(name).decode() for name in names}
    assert read == set(STUDENTS[lms])


def test_feedback_without_a_place_is_said(tmp_path):
    with pytest.raises(LmsError, match="“zed” has no place in Moodle"):
        feedback_zip("moodle", {"zed": "masks_zed.ipynb"}, {"zed": tmp_path / "x.html"}, "masks")
