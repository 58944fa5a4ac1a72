"""Gradescope: what its container runs, and the zip that it is made from.

After https://gradescope-autograders.readthedocs.io/en/latest/specs/: the zip's files lie in
/autograder/source, a submission in /autograder/submission, and results/results.json is read.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from assignments.grader.sandbox import isolation_works
from assignments.grader.submissions import find_one
from tools import ROOT

HERE = Path(__file__).resolve().parent
PACKED = ("dropreg", "assignments", "tools", "pyproject.toml", "requirements.txt")


def grade(root: Path) -> None:
    """Grade the one submission there, and write what Gradescope shows.

    If the grader itself stops, there are no results, and Gradescope says that the autograder
    failed: nobody gets 0 points for an error of ours.
    """
    settings = json.loads((root / "source" / "settings.json").read_text("utf-8"))
    assignment, isolated = settings["assignment"], settings["isolated"]
    if isolated and not isolation_works():
        sys.exit("The sandbox does not work in this container: see book/teach/gradescope.md.")
    with (
        find_one(root / "submission", assignment) as found,
        tempfile.TemporaryDirectory() as folder,
    ):
        notes = [f"Not read: {name}, {reason}." for name, reason in found.unread]
        handed = [handed for files in found.students.values() for handed in files]
        if handed:
            out = Path(folder, "result.json")
            command = [sys.executable, "-m", "assignments.grader", "one", assignment]
            command += [str(handed[-1].path), "--json", str(out)]
            command += [] if isolated else ["--no-isolation"]
            subprocess.run(command, cwd=root / "source" / "dropreg", check=True)
            result = json.loads(out.read_text("utf-8"))
            notes[:0] = [f"Graded is {handed[-1].shown_name}."] if len(handed) > 1 else []
        else:
            result = {"score": 0, "tests": [], "waiting": [], "notes": []}
            notes.insert(0, f"There is no notebook of the assignment “{assignment}”.")
    written = root / "results" / "results.json"
    written.write_text(json.dumps(results(result, notes), ensure_ascii=False), "utf-8")


def results(result: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """A result of the command, in Gradescope's form."""
    tests = [
        {
            "name": test["title"],
            "score": test["points"],
            "max_score": test["max_points"],
            "status": "passed" if test["message"] is None else "failed",
            "output": test["message"] or "",
        }
        for test in result["tests"]
    ]
    tests += [
        # Without points: those are given in Gradescope, by hand.
        {"name": w["title"], "output": f"Waiting to be marked ({w['max_points']:g} points)."}
        for w in result["waiting"]
    ]
    return {
        "score": result["score"],
        "output": "\n".join([*result["notes"], *notes]),
        "output_format": "text",
        "test_output_format": "text",
        "tests": tests,
    }


def build(assignment: str, target: Path, *, isolated: bool) -> None:
    """Write the zip to upload: the two scripts at its top, and the files of this working copy."""
    listed = subprocess.run(
        ("git", "ls-files", "-z", "--", *PACKED), cwd=ROOT, capture_output=True, check=True
    )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("setup.sh", "run_autograder"):
            archive.write(HERE / name, name)
        settings = {"assignment": assignment, "isolated": isolated}
        archive.writestr("settings.json", json.dumps(settings))
        for name in filter(None, listed.stdout.decode().split("\0")):
            archive.write(ROOT / name, f"dropreg/{name}")
