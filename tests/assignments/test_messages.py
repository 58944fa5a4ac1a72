"""What a student may read of a failure that only the hidden numbers show holds none of them."""

import importlib
import itertools
import re

import pytest
from test_wrong_solutions import FRESH, source, with_function
from wrong.case import one_in

from assignments.grader import classroom, grading
from dropreg.book.checks import Mistake

HIDDEN = "### BEGIN HIDDEN TESTS"


def mistakes(notebook, fresh):
    """The mistake that each test cell shows with hidden numbers alone, by its id."""
    names = grading.test_names(notebook, grading.local_answers(notebook), fresh)
    for cell in notebook.cells:
        tags = cell.metadata.get("nbgrader", {})
        if tags.get("grade") and not tags["solution"]:
            try:
                exec(cell.source.partition(HIDDEN)[2], dict(names))
            except Mistake as mistake:
                yield tags["grade_id"], mistake


def without_digits(text):
    return re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", text)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.thorough), 6])
@pytest.mark.parametrize("name", classroom.assignments())
def test_no_mistake_tells_a_hidden_number(name, every):
    """A sentence that holds a number holds the same one whatever the seed."""
    sentences: dict[tuple[str, str, str], set[str]] = {}
    tried = importlib.import_module(f"wrong.{name}").WRONG[::every]
    for wrong in tried:
        for seed in FRESH:
            for grade_id, mistake in mistakes(with_function(source(name), wrong), seed):
                assert mistake.seed == seed
                key = wrong.name, grade_id, without_digits(mistake.public)
                sentences.setdefault(key, set()).add(mistake.public)
    assert len(sentences) >= len(tried) / 2
    assert not {key: texts for key, texts in sentences.items() if len(texts) > 1}


BODIES = (
    "raise ValueError(str(args))",
    "raise KeyError(*args)",
    "raise type(f'E{hash(str(args)) % 10**9}', (Exception,), {})()",
    "return type(f'E{hash(str(args)) % 10**9}', (), {})()",
    "return torch.zeros(hash(str(args)) % 1000 + 30)",
    "return [[0.0] * (hash(str(args)) % 1000 + 30)] * 2",
    "return 1e6 + hash(str(args)) % 10**9",
    "return str(args)",
)


@pytest.mark.parametrize(
    ("body", "name"), one_in(3, itertools.product(BODIES, classroom.assignments()))
)
def test_no_mistake_tells_what_a_function_says_or_gives_back(body, name):
    notebook = source(name)
    for cell in notebook.cells:
        tags = cell.metadata.get("nbgrader", {})
        if tags.get("solution") and cell.cell_type == "code":
            cell.source = f"def {tags['grade_id']}(*args):\n    {body}"
    first, second = (
        {grade_id: mistake.public for grade_id, mistake in mistakes(notebook, seed)}
        for seed in FRESH
    )
    assert first
    assert first == second
