"""Nobody who knows nothing gets points: each cheat is worth a tenth of what tests give, at most."""

import itertools
import random

import pytest
import torch
from test_wrong_solutions import FRESH, source
from wrong.case import one_in
from wrong.cheats import CHEATS, WRITTEN

from assignments.grader import classroom, grading
from dropreg.book.checks import Answer, Fixture

LUCK = 3  # streams over which the mean of a cheat with luck is taken


def built(args):
    return tuple(a.build() if isinstance(a, Fixture) else a for a in args)


def untrained(args):
    """The form of what `train` returns, without a training."""
    return [[10.0] * (args[2] + 1)] * 2


def cheating(name, answer, cheat, luck):
    """A function that cheats, as a check calls it."""

    def call(seed, args):
        def right():
            honest = cheat is not CHEATS["the truth half of the time"]
            return untrained(args) if name == "train" and honest else answer(*args)

        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return cheat(right, built(args), luck)

    return Answer(name, call)


def points(notebook, answers):
    """What the tests give, and the messages of those that give nothing."""
    names = grading.test_names(notebook, answers, FRESH[0])
    wrong = grading.run_tests(notebook, names)
    worth = {
        c.metadata.nbgrader.grade_id: c.metadata.nbgrader.points
        for c in notebook.cells
        if c.metadata.get("nbgrader", {}).get("grade_id") in wrong
    }
    got = sum(worth[i] for i, message in wrong.items() if message is None)
    passed = sorted(i for i, message in wrong.items() if message is None)
    return got, sum(worth.values()), passed


def expect_worthless(got, total, passed):
    assert got <= total / 10, f"{got:g} of {total:g} points, for {passed}"


@pytest.mark.parametrize(
    ("cheat", "name"), one_in(3, itertools.product(CHEATS, classroom.assignments()))
)
def test_a_notebook_of_one_cheat_is_worth_a_tenth_at_most(name, cheat):
    notebook = source(name)
    right = grading.local_answers(notebook)
    found = []
    for stream in range(LUCK if "half of the time" in cheat else 1):
        luck = random.Random(stream)
        answers = {n: cheating(n, a, CHEATS[cheat], luck) for n, a in right.items()}
        found.append(points(notebook, answers))
    got = sum(one for one, _, _ in found) / len(found)
    expect_worthless(got, found[0][1], [passed for _, _, passed in found])


def key_of(args):
    """What a table can be looked up by."""
    return repr([a.tolist() if isinstance(a, torch.Tensor) else a for a in args])


@pytest.mark.parametrize("name", classroom.assignments())
def test_a_table_of_the_visible_results_is_worth_a_tenth_at_most(name):
    """Whoever knows what was right for the visible numbers; for others he takes the nearest."""
    notebook = source(name)
    table = {}

    def remembered(answer):
        def call(seed, args):
            key = (answer.name, key_of(args))
            if writing:
                table.setdefault(key, answer(*args))
                return table[key]
            own = [value for (who, _), value in table.items() if who == answer.name]
            return table.get(key, own[seed % len(own)] if own else 0.0)

        return Answer(answer.name, call)

    answers = {n: remembered(a) for n, a in grading.local_answers(notebook).items()}
    visible = source(name)
    for cell in visible.cells:
        cell.source = cell.source.split("### BEGIN HIDDEN TESTS")[0]
    writing = True
    points(visible, answers)
    writing = False
    expect_worthless(*points(notebook, answers))


@pytest.mark.parametrize(
    ("name", "cheat"), one_in(2, [(name, cheat) for name in WRITTEN for cheat in WRITTEN[name]])
)
def test_a_notebook_written_for_the_checks_is_worth_a_tenth_at_most(name, cheat):
    notebook = source(name)
    for cell in notebook.cells:
        tags = cell.metadata.get("nbgrader", {})
        if tags.get("solution") and cell.cell_type == "code":
            function = tags["grade_id"]
            nothing = f"def {function}(*args):\n    return 0.0"
            cell.source = WRITTEN[name][cheat].get(function, nothing)
    expect_worthless(*points(notebook, grading.local_answers(notebook)))
