"""What Gradescope and GitHub run, as far as it can be tried without them."""

import json
import os
import runpy
import shutil
import stat
import subprocess
import sys
import zipfile

import pytest
import yaml

from assignments.grader import classroom
from assignments.grader.sandbox import isolation_works
from assignments.runners import github, gradescope
from tools import ROOT

RUNNERS = ROOT / "assignments" / "runners"
RESULT = {
    "score": 8,
    "max_score": 12.5,
    "tests": [
        {"name": "dropout-mean", "title": "dropout: mean",
         "points": 8, "max_points": 8, "message": None},
        {"name": "moments", "title": "moments",
         "points": 0, "max_points": 2, "message": "no | <b>½</b>"},
    ],
    "waiting": [{"name": "scaling", "title": "Question 1", "max_points": 2.5}],
    "notes": ["`moments` took long."],
}  # fmt: skip
# In the place of the command: it says what it was called with.
STAND_IN = f"""
import json, sys
from pathlib import Path
assert sys.argv[1:3] == ["one", "masks"] and sys.argv[4] == "--json", sys.argv
result = {RESULT!r}
result["notes"] += [Path(sys.argv[3]).read_text()[:20], *sys.argv[6:]]
Path(sys.argv[5]).write_text(json.dumps(result))
"""


def autograder(folder, files, *, isolated=False, stand_in=True):
    """A folder laid out as Gradescope lays out /autograder."""
    for name in ("source", "submission", "results"):
        (folder / name).mkdir()
    for name, content in files.items():
        (folder / "submission" / name).write_bytes(content)
    gradescope.build("masks", folder / "autograder.zip", isolated=isolated)
    shutil.unpack_archive(folder / "autograder.zip", folder / "source")
    shutil.copy(folder / "source" / "run_autograder", folder)
    if stand_in:
        main = folder / "source" / "dropreg" / "assignments" / "grader" / "__main__.py"
        main.write_text(STAND_IN, "utf-8")
    return folder


def run(root):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(root / "source" / "dropreg")
    return subprocess.run(
        (sys.executable, "-P", root / "run_autograder"),
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )


def results(root):
    return json.loads((root / "results" / "results.json").read_text("utf-8"))


def test_the_zip_has_what_gradescope_asks_for(tmp_path, monkeypatch):
    target = str(tmp_path / "autograder.zip")
    monkeypatch.setattr(sys, "argv", ["gradescope", "masks", target])
    runpy.run_module("assignments.runners.gradescope", run_name="__main__")
    with zipfile.ZipFile(target) as archive:
        modes = {i.filename: i.external_attr >> 16 for i in archive.infolist()}
        settings = json.loads(archive.read("settings.json"))
    assert settings == {"assignment": "masks", "isolated": True}
    assert all(modes[name] & stat.S_IXUSR for name in ("setup.sh", "run_autograder"))
    assert {"dropreg/assignments/grader/classroom.py", "dropreg/requirements.txt"} <= set(modes)
    assert not [name for name in modes if "fresh_seed" in name or name.startswith("dropreg/tests")]
    assert subprocess.run(("bash", "-n", RUNNERS / "gradescope" / "setup.sh")).returncode == 0


@pytest.mark.slow
def test_gradescope_gets_every_test_and_what_waits(tmp_path):
    files = {"my work.ipynb": b"{}", "helper.py": b"", "effects.ipynb": b"{}"}
    root = autograder(tmp_path, files)
    assert run(root).stderr == ""
    shown = results(root)
    assert shown["score"] == 8
    assert shown["tests"] == [
        {"name": "dropout: mean", "score": 8, "max_score": 8, "status": "passed", "output": ""},
        {"name": "moments", "score": 0, "max_score": 2, "status": "failed",
         "output": "no | <b>½</b>"},
        {"name": "Question 1", "output": "Waiting to be marked (2.5 points)."},
    ]  # fmt: skip
    for said in ("`moments` took long.", "{}", "--no-isolation", "Not read: helper.py, a Python",
                 "effects.ipynb, named as one of the assignment “effects”"):  # fmt: skip
        assert said in shown["output"]


@pytest.mark.slow
def test_gradescope_without_a_notebook(tmp_path):
    root = autograder(tmp_path, {"masks.pdf": b"%PDF"})
    assert run(root).returncode == 0
    assert results(root)["score"] == 0
    assert "There is no notebook of the assignment “masks”." in results(root)["output"]
    assert "Not read: masks.pdf" in results(root)["output"]


@pytest.mark.slow
def test_an_error_of_the_grader_is_no_zero(tmp_path):
    root = autograder(tmp_path, {"masks.ipynb": b"{}"})
    main = root / "source" / "dropreg" / "assignments" / "grader" / "__main__.py"
    main.write_text("raise SystemExit(1)")
    assert run(root).returncode != 0
    assert not (root / "results" / "results.json").exists()


def test_without_the_sandbox_nothing_is_graded_unless_that_was_said(tmp_path, monkeypatch):
    root = autograder(tmp_path, {"masks.ipynb": b"{}"}, isolated=True)
    monkeypatch.setattr(gradescope, "isolation_works", lambda: False)
    with pytest.raises(SystemExit, match="The sandbox does not work in this container"):
        gradescope.grade(root)
    assert not (root / "results" / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("isolated", [True, False])
def test_gradescope_with_the_command_itself(tmp_path, isolated):
    if isolated and not isolation_works():
        pytest.skip("needs bubblewrap")
    untouched = (classroom.STUDENT / "masks.ipynb").read_bytes()
    root = autograder(tmp_path, {"masks.ipynb": untouched}, isolated=isolated, stand_in=False)
    ended = run(root)
    assert ended.returncode == 0, ended.stderr
    shown = results(root)
    assert shown["score"] == 0
    assert sum(test.get("max_score", 0) for test in shown["tests"]) == 30
    assert all(test["status"] == "failed" for test in shown["tests"] if "score" in test)


def test_githubs_page_is_a_table_of_words(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT), "utf-8")
    command = (sys.executable, "-m", "assignments.runners.github", tmp_path / "result.json")
    page = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    assert page == f"{github.summary(RESULT)}\n"
    assert page.startswith("## 8 of 12.5 points so far")
    rows = [line for line in page.splitlines() if line.startswith("| <code>")]
    assert [row.count("|") for row in rows] == [4, 4, 4]
    assert "<b>" not in page
    assert "0/2" in rows[1]
    assert rows[2].endswith("| –/2.5 | waiting to be marked |")


def test_the_workflow_calls_what_there_is():
    workflow = yaml.safe_load((RUNNERS / "classroom.yml").read_text("utf-8"))
    steps = workflow["jobs"]["grade"]["steps"]
    commands = "\n".join(step.get("run", "") for step in steps)
    assert 'assignments.grader one "$ASSIGNMENT"' in commands
    assert "assignments.runners.github ../result.json" in commands
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in (RUNNERS / "classroom.yml").read_text("utf-8")
    used = {step["uses"] for step in steps if "uses" in step}
    assert all(len(action.partition("@")[2]) == 40 for action in used)
