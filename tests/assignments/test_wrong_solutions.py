"""The grading core on every assignment: solution, untouched version, and each declared mistake.

All in this process, without the sandbox; test_marking.py runs the whole way.
"""

import importlib
import re

import nbformat
import pytest
from wrong.case import Wrong

from assignments.grader import classroom, grading

FRESH = (11, 12)


def source(name):
    return nbformat.read(classroom.source_of(name), as_version=4)


def cases():
    for name in classroom.assignments():
        for wrong in importlib.import_module(f"wrong.{name}").WRONG:
            yield pytest.param(name, wrong, id=f"{name}: {wrong.name}")


def with_function(notebook, wrong: Wrong):
    """The notebook with the wrong function, and only those tests that can tell."""
    changed = {wrong.function}
    kept = []
    for cell in notebook.cells:
        tags = cell.metadata.get("nbgrader", {})
        if tags.get("solution") and tags["grade_id"] == wrong.function:
            cell.source = wrong.source
        elif tags.get("solution") and any(f"{name}(" in cell.source for name in changed):
            changed.add(tags["grade_id"])  # it calls what was changed
        if tags.get("grade") and tags["grade_id"].split("-")[0] not in changed:
            continue  # its test would run on the reference solution once more
        kept.append(cell)
    notebook.cells = kept
    return notebook


@pytest.mark.parametrize("name", classroom.assignments())
def test_the_solution_passes_everything(name):
    assert not any(classroom.outcomes(source(name), FRESH[0]).values())


@pytest.mark.parametrize("name", classroom.assignments())
def test_the_solution_passes_whatever_the_random_numbers(name):
    """As another version of PyTorch would draw them."""
    answers = grading.local_answers(source(name))
    for answer in answers.values():
        answer._calls = 1_000_000
    names = grading.test_names(source(name), answers, fresh=FRESH[1])
    assert not any(grading.run_tests(source(name), names).values())


@pytest.mark.parametrize("name", classroom.assignments())
def test_the_untouched_version_passes_nothing_and_says_what_to_do(name):
    for grade_id, message in classroom.outcomes(classroom.emptied(source(name)), 1).items():
        assert message, f"{grade_id} passes with nothing written"
        assert "is not written yet" in message, grade_id


@pytest.mark.parametrize(("name", "wrong"), list(cases()))
def test_a_mistake_loses_what_it_should_and_is_named(name, wrong):
    result = classroom.outcomes(with_function(source(name), wrong), FRESH[0])
    lost = {grade_id: message for grade_id, message in result.items() if message}
    assert set(lost) == set(wrong.fails), lost
    assert any(wrong.says in message for message in lost.values()), lost


@pytest.mark.parametrize("name", classroom.assignments())
def test_points(name):
    cells = [c.metadata["nbgrader"] for c in source(name).cells if "nbgrader" in c.metadata]
    points = {c["grade_id"]: c["points"] for c in cells if c["grade"]}
    assert sum(points.values()) == 40
    assert 10 <= sum(c["points"] for c in cells if c["grade"] and c["solution"]) <= 20
    functions = {c["grade_id"] for c in cells if c["solution"] and not c["grade"]}
    tested = {c["grade_id"].split("-")[0] for c in cells if c["grade"] and not c["solution"]}
    assert tested == functions
    for cell in source(name).cells:
        tests = cell.metadata.get("nbgrader", {})
        if tests.get("grade") and not tests["solution"]:
            hidden = re.search(r"BEGIN HIDDEN TESTS.*FRESH.*END HIDDEN TESTS", cell.source, re.S)
            assert hidden, f"{tests['grade_id']} has no hidden test with fresh numbers"
