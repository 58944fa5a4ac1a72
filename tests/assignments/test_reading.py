"""From any file to an aligned notebook: nothing raises, nothing is lost, nothing runs."""

import copy
import json
import time

import nbformat
import pytest
import simulated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output, new_raw_cell
from nbgrader import utils

from assignments.grader import classroom, reading

NAMES = ("masks", "effects", "explicit", "implicit", "project")
SAID = "Zebras average, as the mean stays and the variance does not, whatever we multiply."


def release_of(name="masks"):
    return nbformat.read(classroom.STUDENT / f"{name}.ipynb", as_version=4)


def answers_in(notebook):
    return [c for c in notebook.cells if utils.is_solution(c) and c.cell_type == "markdown"]


def flagged(notebook):
    """The written answers that nbgrader gives a person to mark."""
    return {question_of(c) for c in answers_in(notebook) if utils.determine_grade(c)[0] is None}


def question_of(cell):
    return cell.metadata.nbgrader.grade_id


def aligned(theirs, name="masks"):
    """Through a file, as it comes from a student."""
    notebook, notes = reading.align(
        nbformat.from_dict(json.loads(json.dumps(theirs))), release_of(name)
    )
    nbformat.validate(notebook)
    return notebook, notes


def text_of(notebook):
    return "\n".join(c.source for c in notebook.cells)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"cells": 3}',
        b'{"cells": [{}], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
        b'{"cells": [{"cell_type": "code", "source": 5}], "nbformat": 4, "metadata": {}}',
        b'{"worksheets": [{"cells": []}], "nbformat": 3, "nbformat_minor": 0, "metadata": {}}',
        b'{"nbformat": 99}',
        b"[" * 100_000,
    ],
)
def test_any_file_is_aligned_or_refused(tmp_path, content):
    path = tmp_path / "x.ipynb"
    path.write_bytes(content)
    notebook, notes = reading.read_submission(path)
    if notebook is None:
        assert "not a notebook" in notes[0]
    else:
        nbformat.validate(reading.align(notebook, release_of())[0])


def test_a_photo_of_a_derivation_is_kept():
    release = release_of()
    theirs = simulated.colab(release)
    answer = next(c for c in theirs.cells if c.source.startswith("*Your answer to question 1"))
    answer["attachments"] = {
        "p.png": {"image/png": "iVBO"},
        "q.png": {"image/png": '"><script>alert(1)</script>'},
        "p.svg": {"image/svg+xml": "<svg>"},
        '" onload="alert(1)': {"image/png": "iVBO"},
    }
    answer.source += "\n\n![photo](attachment:p.png)"
    aligned = reading.align(theirs, release)[0]
    kept = next(c for c in aligned.cells if c.get("id") == "scaling")
    assert kept.attachments == {"p.png": {"image/png": "iVBO"}}
    assert "attachment:p.png" in kept.source


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("$a<b$ and a < b", "$a< b$ and a < b"),
        ("<b onclick=x>", "< b onclick=x>"),
        ("</p><!-- x -->", "< /p>< !-- x -->"),
        ("[x](https://a.b) ![y](attachment:p.png)", "[x](https://a.b) ![y](attachment:p.png)"),
        ("![z](data:image/png;base64,iVBO)", "![z](data:image/png;base64,iVBO)"),
        ("![z](data:image/svg+xml;base64,iVBO)", "! [z] (data:image/svg+xml;base64,iVBO)"),
        ("![z](data:image/png;base64,iVBO')", "![z] (data:image/png;base64,iVBO')"),
        ("[x](\n JaVa&#115;cript:f())", "[x] (\n JaVa&#115;cript:f())"),
        ("[x]: javascript:f()", "[x] : javascript:f()"),
        (r"$\href{javascript:f()}{x}$", r"$\ href{javascript:f()}{x}$"),
    ],
)
def test_what_a_browser_would_run_is_shown_instead(text, shown):
    assert reading.harmless(text, {"p.png": {}}) == shown


def test_pictures_in_outputs_are_pictures():
    release = release_of()
    theirs = simulated.answered(release)
    cell = next(c for c in theirs.cells if c.id == "masks-16")
    cell.outputs = [
        nbformat.v4.new_output("display_data", {"image/png": data, "text/plain": "<Figure>"})
        for data in ("iVBO\n", '"><script>')
    ]
    kept = next(c for c in reading.align(theirs, release)[0].cells if c.id == "masks-16").outputs
    assert kept[0].data == {"image/png": "iVBO\n"}
    assert kept[1].text == "<Figure>"


def test_a_page_of_ten_megabytes_is_cut():
    release = release_of()
    theirs = simulated.hostile_to_the_grader(release)
    assert len(json.dumps(theirs)) > 7_000_000
    assert len(json.dumps(reading.align(theirs, release)[0])) < 500_000
