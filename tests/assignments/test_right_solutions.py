"""Solutions that are written differently from the reference, and right: nothing may be lost."""

import importlib

import pytest
from test_wrong_solutions import FRESH, source, with_function
from wrong.case import Wrong
from wrong.unusual import UNUSUAL

from assignments.grader import classroom, grading


def cases():
    for name in classroom.assignments():
        bases = getattr(importlib.import_module(f"wrong.{name}"), "RIGHT", {})
        for function, code in bases.items():
            other = Wrong("", function, code, set(), "")
            yield pytest.param(name, other, False, id=f"{name}: {function}: another way")
        for function, ways in UNUSUAL[name].items():
            for way, code in ways.items():
                other = Wrong("", function, code, set(), "")
                yield pytest.param(name, other, True, id=f"{name}: {function}: {way}")


@pytest.mark.parametrize(("name", "other", "alone"), list(cases()))
def test_another_right_solution_loses_nothing(name, other, alone):
    notebook = with_function(source(name), other)
    if alone:  # what calls it is the reference, and may want a tensor of its own type
        notebook.cells = [c for c in notebook.cells if is_of(c, other.function)]
    result = classroom.outcomes(notebook, FRESH[0])
    assert result
    assert {grade_id: message for grade_id, message in result.items() if message} == {}


def is_of(cell, function):
    """Whether a cell is no test, or a test of the function."""
    tags = cell.metadata.get("nbgrader", {})
    tests = tags.get("grade") and not tags["solution"]
    return not tests or tags["grade_id"].split("-")[0] == function


@pytest.mark.parametrize("name", classroom.assignments())
def test_each_function_is_written_in_three_unusual_ways(name):
    ways = {function: len(codes) for function, codes in UNUSUAL[name].items()}
    assert ways.keys() == grading.answers_of(source(name)).keys()
    assert min(ways.values()) >= 3
