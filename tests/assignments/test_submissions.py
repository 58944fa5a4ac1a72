"""Whose a file is: names, folders, zips, class lists, and what is not read and why."""

import io
import json
import os
import stat
import unicodedata
import zipfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from assignments.grader import submissions
from assignments.grader.roster import MAX_ID, ClassroomError, Roster, RosterError, student_id
from assignments.grader.submissions import STUDENT, ClashError, find, late_days, parse_due

NFC, NFD = "José Ángel", unicodedata.normalize("NFD", "José Ángel")
MASKS, EFFECTS = ((STUDENT / f"{name}.ipynb").read_bytes() for name in ("masks", "effects"))


def lay(folder, files):
    """Files in a folder: a list of paths, each an unreadable notebook, or a dict with contents."""
    for path, content in (
        dict.fromkeys(files, b"{}").items() if isinstance(files, list) else files.items()
    ):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


def packed(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def class_list(folder, text, encoding="utf-8"):
    path = folder / "class.csv"
    path.write_text(text, encoding)
    return Roster.read(path)


def who(found):
    return {student: [h.shown_name for h in files] for student, files in found.students.items()}


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "student"),
    [
        ("masks_alice.ipynb", "alice"),
        ("alice.ipynb", "alice"),
        ("alice_masks.ipynb", "alice"),
        ("Masks-alice.IPYNB", "alice"),
        ("ada_masks_final.ipynb", "ada_final"),
        ("Copy of masks_alice (2).ipynb", "alice"),
        ("masks_alice-Copy1.ipynb", "alice"),
        ("alice@uni.edu.ipynb", "alice@uni.edu"),
        ("Ada Lovelace_12_file_/masks.ipynb", "Ada_Lovelace_12_file"),
        ("lovelaceada_12_34_masks.ipynb", "lovelaceada_12_34"),
        ("=1+1.ipynb", "1_1"),
        ("masks_.ipynb", "unnamed"),
        ("masks.ipynb", "unnamed"),
        ("a..\\..b.ipynb", "a._.b"),
        ("NUL.ipynb", "_NUL"),
        ("हिन्दी.ipynb", "हिन्दी"),
        ("O'Brien.ipynb", "O_Brien"),
        (f"{NFD}.ipynb", "José_Ángel"),
    ],
)  # fmt: skip
def test_students_are_named_by_file_or_folder(tmp_path, path, student):
    assert list(find(lay(tmp_path, [path]), "masks").students) == [student]


NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=60)


@given(NAMES)
@example("a" * 250)
@example("é" * 125)
@example("con.txt")
@example("\udce9")
@example("e\u0301\u0323")
@example("\u202egpj")
def test_any_name_gives_a_safe_id(name):
    found = student_id(name)
    assert found == student_id(unicodedata.normalize("NFD", name)) == student_id(found)
    assert found == unicodedata.normalize("NFC", found)
    assert 0 < len(found.encode()) <= MAX_ID
    assert not set(found) & set('/\\:*?"<>|[]{}%,; \t\r\n\0')
    assert found[0] not in ".-=+@"
    assert found[-1] != "."
    assert ".." not in found
    assert found.split(".")[0].casefold() not in {"con", "prn", "aux", "nul", "com1", "lpt1"}
    assert all(unicodedata.category(c)[0] in "LMN" or c in "_.@-" for c in found)


@given(NAMES, NAMES)
@example("ñandú", "nandu")
@example("हिन्दी", "हन्द")
@example("a" * 200, "a" * 201)
@example("😀", "😁")
def test_two_names_are_two_students_or_an_error(tmp_path_factory, first, second):
    names = [first, second]
    assume(len({submissions.person_in(submissions.stem_of(n)) for n in names}) == 2)
    entries = [
        submissions.Entry((name,), Path(str(i)), datetime.now(UTC)) for i, name in enumerate(names)
    ]
    found = submissions.Found()
    people = submissions.by_name(entries, "masks", None)
    ids, said = {}, ""
    try:
        ids = submissions.resolve(people, {}, None, found)
    except ClashError as error:
        said = str(error)
    if said:
        assert all(submissions.shown(name) in said for name in names)
    else:
        assert len({i.casefold() for i in ids.values()}) == 2


@given(
    st.lists(st.text(st.characters(categories=["Lu", "Ll", "Lo", "Nd"]), min_size=1), min_size=2)
)
def test_names_of_letters_never_clash(names):
    names = {unicodedata.normalize("NFC", name) for name in names}
    assert len({student_id(name) for name in names}) == len(names)


def test_both_spellings_of_an_accent_are_one_student(tmp_path):
    found = find(lay(tmp_path, [f"{NFC}.ipynb", f"{NFD}/masks.ipynb"]), "masks")
    assert [len(files) for files in found.students.values()] == [2]


@pytest.mark.parametrize(
    "files",
    [
        ["ada lovelace.ipynb", "ada_lovelace.ipynb"],
        ["alice.ipynb", "Alice.ipynb"],
        ["alice!.ipynb", "alice.ipynb"],
        ["masks.ipynb", "masks (1).ipynb"],
        ["_alice.ipynb", "alice.ipynb"],
    ],
)
def test_two_who_would_be_one_stop_it_by_name(tmp_path, files):
    with pytest.raises(ClashError) as error:
        find(lay(tmp_path, files), "masks")
    assert all(name in str(error.value) for name in files)
    assert "rename them" in str(error.value)


def test_the_newest_is_last(tmp_path):
    lay(tmp_path, ["masks_alice.ipynb", "alice.ipynb", "Copy of alice (1).ipynb"])
    for age, name in enumerate(("alice", "masks_alice", "Copy of alice (1)")):
        os.utime(tmp_path / f"{name}.ipynb", (100 - age, 100 - age))
    found = find(tmp_path, "masks")
    assert who(found) == {"alice": ["Copy of alice (1).ipynb", "masks_alice.ipynb", "alice.ipynb"]}
    assert found.students["alice"][-1].time == datetime.fromtimestamp(100, UTC)


# --- What is read ---------------------------------------------------------------------------------


def test_every_file_that_is_not_read_is_named(tmp_path):
    outside = tmp_path / "outside"
    folder = tmp_path / "in"
    lay(outside, ["secret.ipynb"])
    names = {
        "a.py": b"print()", "b.html": b"<html>", "c.pdf": b"%PDF", "d.json": b'{"a": 1}',
        "masks (1)": b"text", "e": b"", "f.7z": b"7z", "g.zip": b"PK no", ".DS_Store": b"x",
        ".ipynb_checkpoints/a-checkpoint.ipynb": b"{}", "alice.ipynb": b"{}",
    }  # fmt: skip
    lay(folder, names)
    (folder / "link.ipynb").symlink_to(outside / "secret.ipynb")
    (folder / "folder").symlink_to(outside)
    os.mkfifo(folder / "pipe.ipynb")
    found = find(folder, "masks")
    assert who(found) == {"alice": ["alice.ipynb"]}
    reasons = dict(found.unread)
    assert set(reasons) == {
        "a.py", "b.html", "c.pdf", "d.json", "masks (1)", "e", "f.7z", "g.zip", ".DS_Store",
        ".ipynb_checkpoints", "link.ipynb", "folder", "pipe.ipynb",
    }  # fmt: skip
    assert "Python script" in reasons["a.py"]
    assert "1 files" in reasons[".ipynb_checkpoints"]
    assert reasons["link.ipynb"] == reasons["folder"] == "a link"
    assert reasons["pipe.ipynb"] == "not a file"


@pytest.mark.parametrize(
    "name",
    [
        "masks_alice.ipynb.txt",
        "alice.json",
        "alice",
        "alice.ipynb.json",
        "alice.IPYNB",
        "alice (1)",
    ],
)
def test_a_notebook_is_one_whatever_its_ending(tmp_path, name):
    assert who(find(lay(tmp_path, {name: MASKS}), "masks")) == {"alice": [name]}


def test_other_assignments_are_known_by_their_cells_or_else_by_their_name(tmp_path):
    colab = json.loads(EFFECTS)
    for cell in colab["cells"]:
        cell["metadata"] = {"id": cell.pop("id")}
    bare = json.loads(EFFECTS)
    bare["cells"] = [{"cell_type": c["cell_type"], "source": c["source"]} for c in bare["cells"]]
    files = {
        "alice.ipynb": MASKS, "effects_bob.ipynb": MASKS,
        "masks_cem.ipynb": EFFECTS, "dora.ipynb": json.dumps(colab).encode(),
        "emil.ipynb": json.dumps(bare).encode(), "effects_fay.ipynb": b"{}",
        "effects/gil.ipynb": b"{}", "hal.ipynb": b"%PDF", "ida.ipynb": b'{"cells": [5, {}]}',
    }  # fmt: skip
    found = find(lay(tmp_path, files), "masks")
    assert set(found.students) == {"alice", "bob", "hal", "ida"}
    reasons = dict(found.unread)
    for name in ("masks_cem.ipynb", "dora.ipynb", "emil.ipynb"):
        assert reasons[name] == "holds the notebook of the assignment “effects”"
    for name in ("effects_fay.ipynb", "effects/gil.ipynb"):
        assert reasons[name] == "named as one of the assignment “effects”"


def test_every_assignment_is_told_from_the_others():
    for path in STUDENT.glob("*.ipynb"):
        assert submissions.assignment_in(path) == path.stem


# --- Folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "students"),
    [
        (["Abgaben/alice.ipynb", "Abgaben/bob.ipynb"], ["alice", "bob"]),
        (["out/in/alice.ipynb", "out/in/bob.ipynb"], ["alice", "bob"]),
        (["out/alice/masks.ipynb", "out/bob/masks.ipynb"], ["alice", "bob"]),
        (["Uebung_1_masks_77/Lovelace_Ada_ada_1/x.ipynb"], ["Lovelace_Ada_ada_1"]),
        (["submitted/alice/masks/masks.ipynb"], ["alice"]),
        (["masks-alice/masks.ipynb", "masks-bob/masks.ipynb"], ["alice", "bob"]),
        (["alice/masks/masks.ipynb", "alice/effects/effects.ipynb"], ["alice"]),
        (["masks/alice.ipynb", "masks/bob.ipynb", "effects/alice.ipynb"], ["alice", "bob"]),
        (["ada/draft.ipynb", "ada/final.ipynb", "bob/masks.ipynb"], ["ada", "bob"]),
        (["ada/masks.ipynb", "ada/old/masks.ipynb", "ada/older/masks.ipynb", "bob.ipynb"],
         ["ada", "bob"]),
        (["Ada_1_assignsubmission_file_/a/m.ipynb", "Ada_1_assignsubmission_file_/b/m.ipynb"],
         ["Ada_1_assignsubmission_file"]),
        (["all/masks.ipynb", "all/masks_ada.ipynb", "all/masks_bob.ipynb"],
         ["ada", "bob", "unnamed"]),
    ],
)  # fmt: skip
def test_a_folder_is_a_students_or_holds_students(tmp_path, files, students):
    assert list(find(lay(tmp_path, files), "masks").students) == students


@pytest.mark.parametrize(
    "files",
    [
        ["Group A/ada/masks.ipynb", "Group A/bob/masks.ipynb", "Group B/cem/masks.ipynb"],
        ["Group A/masks_ada.ipynb", "Group A/masks_bob.ipynb", "cem.ipynb"],
    ],
)
def test_a_folder_that_could_be_either_is_asked_about(tmp_path, files):
    with pytest.raises(ClashError, match=r"Group A.*ada.*bob.*several"):
        find(lay(tmp_path, files), "masks")
    roster = class_list(tmp_path, "login,name\nada,\nbob,\ncem,\n")
    (tmp_path / "class.csv").unlink()
    assert list(find(tmp_path, "masks", roster=roster).students) == ["ada", "bob", "cem"]


# --- Zips -----------------------------------------------------------------------------------------


def test_a_zip_is_read_as_its_folder_would_be(tmp_path):
    (tmp_path / "class.zip").write_bytes(
        packed({
            "Abgaben/Ada_1/masks.ipynb": b"{}",
            "Abgaben/Bob_2/hand in.zip": packed({"hw/masks.ipynb": MASKS, "hw/data.csv": b"1"}),
            "Abgaben/cem.zip": packed({"masks.ipynb": MASKS}),
            "__MACOSX/Abgaben/._x.ipynb": b"{}",
            "Abgaben/readme.txt": b"{}",
        })
    )  # fmt: skip
    with find(tmp_path / "class.zip", "masks") as found:
        assert who(found) == {
            "Ada_1": ["Abgaben/Ada_1/masks.ipynb"],
            "Bob_2": ["Abgaben/Bob_2/hand in.zip/hw/masks.ipynb"],
            "cem": ["Abgaben/cem.zip/masks.ipynb"],
        }
        assert dict(found.unread).keys() == {
            "Abgaben/Bob_2/hand in.zip/hw/data.csv", "__MACOSX", "Abgaben/readme.txt",
        }  # fmt: skip
        paths = [files[-1].path for files in found.students.values()]
        assert paths[1].read_bytes() == MASKS
    assert not any(path.exists() for path in paths)
    assert [path.name for path in tmp_path.iterdir()] == ["class.zip"]


def test_what_a_zip_may_try(tmp_path):
    source = tmp_path / "class.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../up.ipynb", "{}")
        archive.writestr("/etc/up.ipynb", "{}")
        archive.writestr("C:\\up.ipynb", "{}")
        archive.writestr("/".join(["a"] * 60) + ".ipynb", "{}")
        link = zipfile.ZipInfo("link.ipynb")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("(1)" * 20_000 + ".ipynb", "{}")
        archive.writestr("windows\\", "")
        archive.writestr("windows\\ada.ipynb", "{}")
        archive.writestr("./eve.ipynb", "{}")
        archive.writestr("bob.ipynb", b"0" * (submissions.MAX_FILE + 1000))
        archive.writestr("cem.zip", packed({"a.zip": packed({"b.ipynb": b"{}"})}))
        archive.writestr("dora.zip", packed({"a": b"1", "b": b"2"})[:-30])
    with find(source, "masks") as found:
        assert set(found.students) == {"windows", "bob", "eve"}
        # Larger than is read, and no larger than that: `reading` says so in the student's row.
        assert found.students["bob"][0].path.stat().st_size == submissions.MAX_FILE + 1
    reasons = {name[-12:]: reason for name, reason in found.unread}
    assert sum(reason == "its name leads out of the zip" for reason in reasons.values()) == 3
    assert sum("in more than 50 folders" in reason for reason in reasons.values()) == 1
    assert "its name is too long" in reasons.values()
    assert reasons["link.ipynb"] == "a link"
    assert reasons["em.zip/a.zip"] == "a zip in a zip in a zip"
    assert reasons["dora.zip"] == "a zip that cannot be opened"


def test_locked_and_damaged_files_keep_their_students_row(tmp_path):
    data = bytearray(packed({"ada.ipynb": b"{}", "bob.ipynb": MASKS, "notes.txt": b"x"}))
    for at in (data.find(b"PK\1\2"), data.find(b"PK\3\4")):
        data[at + (8 if data[at + 2] == 1 else 6)] |= 1  # “encrypted”
    at = data.find(b"masks-00")
    data[at] ^= 1
    (tmp_path / "class.zip").write_bytes(data)
    found = find(tmp_path / "class.zip", "masks")
    (ada,), (bob,) = found.students["ada"], found.students["bob"]
    assert ada.problem == "is locked by a password in its zip"
    assert bob.problem == "is damaged in its zip"
    assert [name for name, _ in found.unread] == ["notes.txt"]


def test_names_in_a_zip_are_as_they_were_meant(tmp_path):
    """As macOS and `zip` write them: UTF-8, and no flag that says so."""
    data = packed({"xxxx.ipynb": b"{}"}).replace(b"xxxx", "éü".encode())
    (tmp_path / "class.zip").write_bytes(data)
    assert list(find(tmp_path / "class.zip", "masks").students) == ["éü"]
    data = packed({"xx.ipynb": b"{}"}).replace(b"xx", "éü".encode("cp437"))
    (tmp_path / "class.zip").write_bytes(data)
    assert list(find(tmp_path / "class.zip", "masks").students) == ["éü"]


def test_the_time_in_a_zip(tmp_path):
    info = zipfile.ZipInfo("ada.ipynb", (2026, 11, 27, 17, 22, 30))
    exact = zipfile.ZipInfo("bob.ipynb", (2026, 11, 27, 17, 22, 30))
    exact.extra = b"UT\5\0\3" + (1_795_800_000).to_bytes(4, "little")
    broken = zipfile.ZipInfo("cem.ipynb")
    with zipfile.ZipFile(tmp_path / "class.zip", "w") as archive:
        for entry in (info, exact, broken):
            archive.writestr(entry, "{}")
    times = {s: f[0].time for s, f in find(tmp_path / "class.zip", "masks").students.items()}
    assert times["ada"] == datetime(2026, 11, 27, 17, 22, 30).astimezone()
    assert times["bob"] == datetime.fromtimestamp(1_795_800_000, UTC)
    assert all(time.tzinfo for time in times.values())


def test_no_more_than_so_many_files_are_taken_out_of_zips(tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "MAX_ENTRIES", 3)
    lay(tmp_path, {"ada.zip": packed({f"{i}.txt": b"" for i in range(10)}), "bob.ipynb": b"{}"})
    found = find(tmp_path, "masks")
    assert set(found.students) == {"bob"}
    assert "a zip that may hold" in dict(found.unread)["ada.zip"]


@pytest.mark.parametrize("content", [b"", b"PK\5\6", b"PK\3\4" + b"x" * 100, b"text"])
def test_what_is_neither_folder_nor_zip_is_said(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(ClassroomError, match=r"neither a folder nor a zip|cannot be opened"):
        find(tmp_path / "x.zip", "masks")


# --- The class list -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("username,name\nada,Ada Lovelace\n", "utf-8"),
        ("username,name\nada,Ada Lovelace\n", "utf-8-sig"),
        ("Vorname;Name;Benutzername\nAda;Lovelace;ada\n", "utf-8"),
        ("First name\tLast name\tUser name\nAda\tLovelace\tada\n\n", "utf-8"),
        ('sep=;\r\n"Username";"Name"\r\n"#ada";"Lovelace, Ada"\r\n', "utf-8-sig"),
        ("ID;Full name\nada;Ada Lovelace", "utf-8"),
    ],
)
def test_a_class_list_in_any_form(tmp_path, text, encoding):
    roster = class_list(tmp_path, text, encoding)
    assert [p.id for p in roster.people] == ["ada"]
    for name in ("Lovelace, Ada", "ada lovelace", "ADA_LOVELACE", "LovelaceAda", "ada",
                 "Ada Lovelace_42_file_", "ada_lovelace_final"):  # fmt: skip
        assert [p.id for p in roster.match(name)] == ["ada"], name


def test_everybody_on_the_list_has_a_row_and_strangers_are_named(tmp_path):
    roster = class_list(tmp_path, "login,name\nada,Ada Lovelace\nbob,Bob B\ncem,José Öz\n")
    folder = lay(tmp_path / "in", ["masks_Lovelace_Ada.ipynb", "zed.ipynb", "jose_oz.ipynb"])
    found = find(folder, "masks", roster=roster)
    assert who(found) == {
        "ada": ["masks_Lovelace_Ada.ipynb"], "bob": [], "cem": ["jose_oz.ipynb"],
        "zed": ["zed.ipynb"],
    }  # fmt: skip
    assert found.unmatched == [("zed.ipynb", "fits nobody on the class list")]


def test_a_name_that_fits_two_is_not_graded_as_one_of_them(tmp_path):
    roster = class_list(tmp_path, "login,name\nada,Ada King\nada2,Ada King\nbo,Bo Ek\nxi,Xi Ek\n")
    folder = lay(tmp_path / "in", ["ada_king.ipynb", "bo.ipynb", "bo_ek_xi_ek.ipynb"])
    found = find(folder, "masks", roster=roster)
    assert {s for s, files in found.students.items() if files} == {"bo"}
    assert [name for name, _ in found.unread] == ["ada_king.ipynb", "bo_ek_xi_ek.ipynb"]
    assert "Ada King (ada), Ada King (ada2)" in found.unread[0][1]


def test_a_user_name_within_a_name_may_be_a_first_name(tmp_path):
    text = "login,name\nmax,Erika Frei\nmm,Max Müller\ns1234567,Lee\n"
    roster = class_list(tmp_path, text)
    assert [p.id for p in roster.match("max")] == ["max"]
    assert [p.id for p in roster.match("max_mueller_final")] == ["mm"]
    assert roster.match("max_final") == []
    assert [p.id for p in roster.match("s1234567 homework")] == ["s1234567"]
    assert class_list(tmp_path, "number,name\n123,Lee\n").match("bob_123_35") == []


def test_a_file_that_is_called_as_another_student_is_not_theirs(tmp_path):
    roster = class_list(tmp_path, "login,name\nada,Ada Lovelace\nbob,Bob Okayama\n")
    names = ["okayamabob_13_35_ada_lovelace.ipynb", "Bob Okayama_1_assignsubmission_file_ada.ipynb"]
    found = find(lay(tmp_path / "in", names), "masks", roster=roster)
    assert found.students["ada"] == []


def test_accents_are_let_go_only_where_one_is_meant(tmp_path):
    roster = class_list(tmp_path, "login,name\na,José Roy\nb,Jose Roy\nc,Änne Müller\n")
    assert [p.id for p in roster.match("José Roy")] == ["a"]
    assert [p.id for p in roster.match("jose roy")] == ["b"]
    for name in ("anne muller", "Aenne Mueller", "ÄNNE_MÜLLER"):
        assert [p.id for p in roster.match(name)] == ["c"], name
    assert class_list(tmp_path, "name\nहिन्दी\n").match("हन्द") == []


def test_a_stranger_does_not_take_an_id_of_the_list(tmp_path):
    roster = class_list(tmp_path, "login,name\nada!,Ada Lovelace\n")
    folder = lay(tmp_path / "in", ["ada.ipynb"])
    assert roster.match("ada")  # the same, but for punctuation
    assert who(find(folder, "masks", roster=roster)) == {"ada": ["ada.ipynb"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("when,what\n1,2\n", "Found: when, what.*Wanted is"),
        ("", "Found: none"),
        ("name\n", "no student"),
        ("name,group\nAda,1\nAda,2\n", "lines 2 and 3 are both “Ada”"),
    ],
)
def test_a_list_that_cannot_be_used_is_said(tmp_path, text, message):
    with pytest.raises(RosterError, match=message):
        class_list(tmp_path, text)


def test_a_list_in_an_old_encoding_is_said(tmp_path):
    with pytest.raises(RosterError, match="CSV UTF-8"):
        class_list(tmp_path, "name\nJosé\n", "cp1252")


def test_a_student_in_two_lines_that_are_the_same_is_one(tmp_path):
    assert len(class_list(tmp_path, "name\nAda\nAda\n").people) == 1


# --- Times ----------------------------------------------------------------------------------------

DUE = datetime(2026, 12, 1, 23, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("after", "days"),
    [
        (timedelta(0), 0), (timedelta(days=-3), 0), (timedelta(seconds=1), 1),
        (timedelta(days=1), 1), (timedelta(days=1, seconds=1), 2), (timedelta(days=6.5), 7),
    ],
)  # fmt: skip
def test_each_begun_day_is_a_day_late(after, days):
    assert late_days(DUE + after, DUE) == days
    assert late_days((DUE + after).astimezone(timezone(timedelta(hours=-9))), DUE) == days


@pytest.mark.parametrize("text", ["2026-12-01 23:59", "2026-12-01", "2026-12-01T23:59"])
def test_the_minute_and_the_day_that_are_named_are_in_time(text):
    assert late_days(datetime(2026, 12, 1, 23, 59, 59), parse_due(text)) == 0
    assert late_days(datetime(2026, 12, 2), parse_due(text)) == 1


def test_a_due_time_may_name_its_zone():
    assert parse_due("2026-12-01 23:59:00+01:00") == datetime(2026, 12, 1, 22, 59, tzinfo=UTC)
    assert parse_due("2026-12-01 22:59Z").astimezone(UTC).minute == 59
    with pytest.raises(ClassroomError, match="2026-12-01 23:59"):
        parse_due("next Friday")


# --- Anything -------------------------------------------------------------------------------------

PARTS = st.sampled_from(
    ["ada", "bob", "Ada Lovelace", "masks", "masks_ada", "effects", ".git", "__MACOSX", "é",
     "e\u0301", "Ada Lovelace_12_assignsubmission_file_", "Lovelace_Ada_ada_12", "ada_12_34_masks",
     "..", "."]
)  # fmt: skip
PATHS = st.builds(
    lambda folders, name, end: "/".join([*folders, name + end]),
    st.lists(PARTS, max_size=3),
    PARTS,
    st.sampled_from([".ipynb", ".IPYNB", ".zip", ".pdf", "", ".txt", " (1).ipynb"]),
)
CONTENTS = st.sampled_from([b"{}", MASKS, EFFECTS, b"%PDF", b"", packed({"masks.ipynb": MASKS})])
PEOPLE = "login,name\nada,Ada Lovelace\nbob,Bob Ek\n"


@given(
    st.dictionaries(PATHS, CONTENTS, max_size=6),
    st.sampled_from([None, "canvas", "moodle", "brightspace", "ilias"]),
    st.booleans(),
)
def test_of_any_zip_every_file_is_a_students_or_named(tmp_path_factory, files, lms, listed):
    folder = tmp_path_factory.mktemp("any")
    (folder / "class.zip").write_bytes(packed(files))
    roster = class_list(folder, PEOPLE) if listed else None
    try:
        found = find(folder / "class.zip", "masks", roster=roster, lms=lms)
    except ClassroomError:
        return
    handed = [h.shown_name for files in found.students.values() for h in files]
    told = handed + [name for name, _ in found.unread]
    names = [submissions.shown("/".join(p for p in f.split("/") if p != ".") or f) for f in files]
    for name in names:
        assert any(name == t or name.startswith(f"{t}/") or t.startswith(f"{name}/") for t in told)
    if len(set(names)) == len(names):  # not one name in both spellings
        assert len(set(handed)) == len(handed)
        assert not set(handed) & {name for name, _ in found.unread}
    assert all(student_id(student) == student for student in found.students)
    if roster:
        assert {"ada", "bob"} <= set(found.students)


def test_a_notebook_that_may_not_be_opened_keeps_its_students_row(tmp_path, monkeypatch):
    def closed(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(submissions, "why_not", closed)
    found = find(lay(tmp_path, ["ada.ipynb", "bob.pdf"]), "masks")
    assert found.students["ada"][0].problem == "cannot be opened (Permission denied)"
    assert found.unread == [("bob.pdf", "cannot be opened (Permission denied)")]
