"""The errata: what an entry quotes stood there, and what it says stands there now."""

import os.path
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

from tools import ROOT

PAGE = ROOT / "book" / "reference" / "errata.md"


class Entry(NamedTuple):
    day: str
    title: str
    page: str
    then: str | None
    now: str | None
    commit: str


def read(day, text):
    title, why = text.partition("\n")[0], "\n- Why: "
    then = re.search(r"^- It said: “(.+)”$", text, re.MULTILINE)
    link, now = re.findall(
        r"^- \[(?:It says|Now)\]\((.+?)\)(?:: “(.+)”| the sentence is gone\.)$", text, re.MULTILINE
    )[0]
    commit = re.findall(r"^- Changed in \[`(\w+)`\]\(.+/commit/\1\)\.$", text, re.MULTILINE)[0]
    assert why in text, title
    place = link.partition("/blob/main/")[2] or os.path.relpath(PAGE.parent / link, ROOT)
    return Entry(day, title, Path(place).as_posix(), then and then.group(1), now or None, commit)


ENTRIES = [
    read(day, entry)
    for day, text in re.findall(
        r"^## (.+?)\n(.+?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.M | re.S
    )
    for entry in re.split(r"^### ", text, flags=re.MULTILINE)[1:]
]


def prose(text, page):
    """The words of a page, whatever the lines they stand in."""
    if page.endswith(".ipynb"):
        cells = nbformat.reads(text, as_version=4).cells
        text = " ".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return " ".join(text.split())


@cache
def git(*arguments):
    return subprocess.run(
        ("git", "-C", ROOT, *arguments), capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def history():
    if not (ROOT / ".git").exists() or git("rev-parse", "--is-shallow-repository") != "false\n":
        pytest.skip("the commits are not here: `git fetch --unshallow`")


def test_there_are_entries():
    assert len(ENTRIES) >= 15


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.title)
def test_what_it_says_stands_on_the_page_and_what_it_said_does_not(entry):
    words = prose((ROOT / entry.page).read_text("utf-8"), entry.page)
    assert entry.then or entry.now
    assert entry.now is None or entry.now in words
    assert entry.then is None or entry.then not in words


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.title)
@pytest.mark.usefixtures("history")
def test_what_it_said_stood_there_until_the_commit(entry):
    day = git("log", "-1", "--format=%ad", "--date=format:%B %d, %Y", entry.commit).strip()
    assert entry.day == day.replace(" 0", " ")
    if entry.then:
        assert entry.then in prose(git("show", f"{entry.commit}^:{entry.page}"), entry.page)
        assert entry.then not in prose(git("show", f"{entry.commit}:{entry.page}"), entry.page)


@pytest.mark.usefixtures("history")
def test_commits_are_of_this_history_the_newest_first():
    for commit in re.findall(r"/commit/(\w+)\)", PAGE.read_text("utf-8")):
        git("merge-base", "--is-ancestor", commit, "HEAD")
    times = [int(git("log", "-1", "--format=%at", entry.commit)) for entry in ENTRIES]
    assert times == sorted(times, reverse=True)
