"""Solutions that are written differently from the reference, and right: nothing may be lost."""

import importlib

import pytest
from test_wrong_solutions import FRESH, source, with_function
from wrong.case import Wrong

from assignments.grader import classroom


def cases():
    for name in classroom.assignments():
        others = getattr(importlib.import_module(f"wrong.{name}"), "RIGHT", {})
        for function, code in others.items():
            yield pytest.param(name, Wrong("", function, code, set(), ""), id=f"{name}: {function}")


@pytest.mark.parametrize(("name", "other"), list(cases()))
def test_another_right_solution_loses_nothing(name, other):
    result = classroom.outcomes(with_function(source(name), other), FRESH[0])
    assert {grade_id: message for grade_id, message in result.items() if message} == {}
