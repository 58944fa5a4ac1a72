"""Whether the doctor sees what is wrong with a machine."""

import collections
import os

import pytest

from assignments.grader import classroom, doctor
from assignments.grader.wall import NoIsolationError, isolation_works


def said(check, folder):
    with pytest.raises(doctor.Ill) as ill:
        check(folder)
    return str(ill.value)


def test_a_full_disk(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")(1 << 40, 1 << 40, 10**8)
    assert "free" in doctor.folder(tmp_path / "course")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert "0.1 GB are free" in said(doctor.folder, tmp_path)


def test_a_secret_that_others_can_read(tmp_path):
    classroom.secret_of(tmp_path)
    doctor.folder(tmp_path)
    (tmp_path / "fresh_seed").chmod(0o644)
    assert "chmod 600" in said(doctor.folder, tmp_path)


def test_an_address_that_is_not_set(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.classroom, "STUDENT", tmp_path)
    monkeypatch.setattr(doctor.classroom, "assignments", lambda: ["masks"])
    (tmp_path / "masks.ipynb").write_text("pip install git+https://github.com/SET_OWNER/dropreg")
    assert "masks.ipynb installs from an address" in said(doctor.students_notebooks, tmp_path)
    (tmp_path / "masks.ipynb").write_text("pip install git+https://github.com/me/dropreg")
    assert "is set" in doctor.students_notebooks(tmp_path)


def test_no_sandbox(tmp_path, monkeypatch):
    def refuses():
        raise NoIsolationError("apt-get install bubblewrap")

    monkeypatch.setattr(doctor, "best_wall", refuses)
    assert "apt-get install bubblewrap" in said(doctor.isolation, tmp_path)


@pytest.mark.skipif(
    not isolation_works() and os.environ.get("CI") != "true", reason="needs bubblewrap"
)
def test_all_is_tried_and_a_sample_graded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "SECONDS", 600)  # how busy this machine is, is another matter
    assert not doctor.examine(tmp_path / "course")  # the address is not set here
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines[:-1]] == ["✓", "✓", "✗", "✓", "✓"]
    assert "30 points by tests" in lines[4]
