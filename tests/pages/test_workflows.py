"""The workflows, read by programs that know GitHub's rules: here nothing can run them.

`jactionlint` finds what does not run, scripts included, which it hands to `shellcheck`; `zizmor`
finds what lets others in.
"""

import os
import subprocess
import sys

import pytest

from tools import ROOT, build_book

ENVIRONMENT = build_book.BUILD / "workflow-linters"
PINS = ROOT / "requirements-workflows.txt"
WORKFLOWS = [
    *sorted((ROOT / ".github" / "workflows").glob("*.y*ml")),
    *sorted((ROOT / "assignments" / "runners").glob("*.yml")),
]
CHECKS = (
    ("jactionlint", "--oneline", "--profile", "correctness"),
    ("zizmor", "--quiet", "--offline", "--format", "plain"),
)
CHECKOUT = "08c6903cd8c0fde910a37f88322edcfb5dd907a8"
CLEAN = f"""
name: Clean
on:
  schedule:
    - cron: "17 5 * * 1"
permissions:
  contents: read
jobs:
  first:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@{CHECKOUT} # v5.0.0
        with:
          persist-credentials: false
  second:
    needs: first
    runs-on: ubuntu-latest
    steps:
      - env:
          TITLE: ${{{{ github.event.issue.title }}}}
        run: if [ -n "$TITLE" ]; then echo "$TITLE"; fi
"""
# What each changes in the clean one, and the rule that it breaks.
FAULTS = {
    "a job that is not there": ("needs: first", "needs: frist", "undefined-job-needs"),
    "a key that is not there": ("runs-on:", "run-on:", "workflow-syntax"),
    "a name that is not there": ("github.event", "github.evnt", "undefined-property"),
    "no time": ("17 5 * * 1", "17 5 * * 8", "invalid-cron"),
    "no input of the action": ("with:", "with:\n          fetch-dept: 1", "unknown-action-input"),
    "no runner": ("ubuntu-latest", "ubuntu-lates", "unknown-runner-label"),
    "no shell script": ("]; then", "; then", "shellcheck"),
    "a stranger's words as code": ('echo "$TITLE"', "${{ env.TITLE }}", "template-injection"),
    "an action that can change": (CHECKOUT, "v5", "unpinned-uses"),
    "leave to do everything": ("contents: read", "write-all", "excessive-permissions"),
}


@pytest.fixture(scope="module")
def programs():
    """The folder of the checks, which are installed when their pins have changed."""
    stamp = ENVIRONMENT / "installed-for.txt"
    wanted = f"{sys.version}\n{PINS.read_text('utf-8')}"
    if not stamp.is_file() or stamp.read_text("utf-8") != wanted:
        make = (sys.executable, "-m", "venv", "--clear", "--without-pip", ENVIRONMENT)
        subprocess.run(make, check=True)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", ENVIRONMENT)
        subprocess.run((*pip, "install", "-qq", "--requirement", PINS), check=True)
        stamp.write_text(wanted, "utf-8")
    return ENVIRONMENT / "bin"


def found(programs, path):
    """What the checks find in a workflow; nothing if it is clean."""
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    lines = []
    for program, *words in CHECKS:
        command = (programs / program, *words, path)
        done = subprocess.run(command, **both, text=True, env=environment)
        if done.returncode:
            lines.append(f"{program} returns {done.returncode}:\n{done.stdout}")
    return "".join(lines)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_clean(programs, path):
    assert not found(programs, path)


@pytest.fixture
def workflow(tmp_path):
    return tmp_path / "workflow.yml"


def test_a_clean_one_is_clean(programs, workflow):
    workflow.write_text(CLEAN)
    assert not found(programs, workflow)


@pytest.mark.parametrize(("old", "new", "rule"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(programs, workflow, old, new, rule):
    assert old in CLEAN
    workflow.write_text(CLEAN.replace(old, new))
    assert f"[{rule}]" in found(programs, workflow)
