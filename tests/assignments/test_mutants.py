"""The mutation score: the changes, what becomes of a mutant, the record and its page."""

import copy
import json
import os
import subprocess
import sys
import textwrap

import nbformat
import pytest
import torch

from assignments.grader import classroom, mutants, operators
from assignments.grader.grading import answers_of
from dropreg.book.checks import Answer, Mistake, check, expect
from tools import ROOT

RECORD = json.loads(mutants.RECORD.read_text("utf-8"))
FUNCTIONS = [
    pytest.param(name, function, found, id=f"{name}: {function}")
    for name, assignment in RECORD["assignments"].items()
    for function, found in assignment["functions"].items()
]


def source(name):
    return nbformat.read(classroom.source_of(name), as_version=4)


# --- The changes ----------------------------------------------------------------------------------

# For each operator a body of `def f(a, b, q)`, and every line that it makes of one of its lines.
CHANGES = {
    "operation": ("return a + b / 2", ["return a - b / 2", "return a + b * 2"]),
    "operand dropped": ("return a * b", ["return a", "return b"]),
    "operands exchanged": ("return a + (a - b)", ["return a + (b - a)"]),
    "complement": ("return q / (1 - q)", ["return (1 - q) / (1 - q)", "return q / (1 - (1 - q))"]),
    "factor": (
        "return [g(a)]",
        [f"return [{f} * g(a)]" for f in ("-1", "2", "0.5", "2 ** 0.5", "0")],
    ),
    "sign": ("return -a", ["return a"]),
    "constant": (
        "return g(3, 0.5, True)",
        [
            *(f"return g({n}, 0.5, True)" for n in (4, 2, 6)),
            *(f"return g(3, {x}, True)" for x in (0.25, 1.0)),
            "return g(3, 0.5, False)",
        ],
    ),
    "axis": (
        "return a.mean(0) + torch.einsum('ab,a->b', a, b)",
        [
            *(
                f"return a.mean({axis}) + torch.einsum('ab,a->b', a, b)"
                for axis in ("1", "-1", "", "0, keepdim=True")
            ),
            "return a.mean(0) + torch.einsum('ba,a->b', a, b)",
        ],
    ),
    "other function": ("return a.mean()", ["return a.sum()"]),
    "divided by n": ("return a.var(0)", ["return a.var(0, correction=0)"]),
    "call dropped": (
        "return torch.exp(a.square())",
        ["return a.square()", "return torch.exp(a)"],
    ),
    "argument": (
        "return g(a, b, c=1, d=2)",
        [
            "return g(b, a, c=1, d=2)",
            "return g(a, b, c=2, d=1)",
            "return g(a, b, d=2)",
            "return g(a, b, c=1)",
            "return g(a, c=1, d=2)",
        ],
    ),
    "other variable": ("return b", ["return a", "return q"]),
    "comparison": ("return a < b", ["return a <= b", "return a > b"]),
    "condition": (
        "return a if b and q else 0",
        [
            "return a if not (b and q) else 0",
            "return a if True else 0",
            "return a if False else 0",
            "return a if b or q else 0",
            "return a if b else 0",
            "return a if q else 0",
        ],
    ),
    "off by one": (
        "return a[b] + a[:q] + range(b)",
        [
            "return a[b + 1] + a[:q] + range(b)",
            "return a[b - 1] + a[:q] + range(b)",
            "return a[b] + a[:q + 1] + range(b)",
            "return a[b] + a[:q - 1] + range(b)",
            "return a[b] + a[:q] + range(b + 1)",
            "return a[b] + a[:q] + range(b - 1)",
            "return a[b] + a[:q] + range(1, b)",
        ],
    ),
    "statement deleted": ("a.eval()\nc = g(a)\na = c\nreturn a", ["pass", "pass"]),
    "with removed": (
        "with torch.no_grad():\n    return a",
        ["if True:"],
    ),
    "moved out": (
        "for i in a:\n    c = g(b)\n    b += c * i\nreturn [g(q) for _ in range(9)]",
        ["if True: ¶ c = g(b) ¶ for i in a: ¶ b += c * i", "return [g(q)] * len(range(9))"],
    ),
    "moved in": (
        "c = 0\nfor i in a:\n    c += i\nreturn c",
        ["for i in a: ¶ c = 0"],
    ),
    "exchanged": ("a.eval()\nc = g(b)\nd = c\nreturn a(d)", ["c = g(b) ¶ a.eval()"]),
    "intermediate": ("c = g(a)\nreturn c + b", ["return c"]),
    "part returned": ("return [a, b]", ["return [b, a]"]),
    "detached": ("c = g(a)\nreturn torch.grad(c, a)", ["return torch.grad(c.detach(), a)"]),
    "in place": ("return a - b", ["return a.sub_(b)"]),
}


def all_of(body, modules=("torch",)):
    cell = f"def f(a, b, q):\n{textwrap.indent(body, '    ')}\n"
    return operators.mutants_of(cell, "f", modules)


def test_each_change_has_a_case():
    assert list(CHANGES) == [operators.name_of(operator) for operator in operators.OPERATORS]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_the_one_that_it_says(name, monkeypatch):
    (operator,) = (o for o in operators.OPERATORS if operators.name_of(o) == name)
    monkeypatch.setattr(operators, "OPERATORS", (operator,))
    body, lines = CHANGES[name]
    assert sorted(mutant.new for mutant in all_of(body)) == sorted(lines)


def test_texts_are_exchanged_and_docstrings_left_alone():
    body = "'''What it does.'''\nif a:\n    return 'up'\nreturn 'down'"
    texts = [m for m in all_of(body) if m.operator == "constant"]
    assert [(m.line, m.old, m.new) for m in texts] == [
        (4, "return 'up'", "return 'down'"),
        (5, "return 'down'", "return 'up'"),
    ]


def test_what_reads_alike_is_one_mutant():
    assert [m.new for m in all_of("return -a") if m.new == "return a"] == ["return a"]


@pytest.mark.parametrize("name", classroom.assignments())
def test_every_mutant_is_a_function_of_its_own(name):
    notebook = source(name)
    for function, cell in answers_of(notebook).items():
        found = operators.mutants_of(cell, function, mutants.modules_of(notebook))
        assert len(found) > 10
        places = {(m.line, m.old, m.new) for m in found}
        assert len(places) == len({m.source for m in found}) == len(found)
        for mutant in found:
            assert mutant.old != mutant.new
            names = {}
            exec(compile(mutant.source, "<mutant>", "exec"), names)
            assert callable(names[function])


# --- What becomes of a mutant ---------------------------------------------------------------------


@check
def doubled(answer, n):
    """It doubles."""
    value = answer(torch.ones(2))
    if isinstance(value, str):
        raise Mistake("a text is no number.")
    if isinstance(value, dict):
        raise KeyError("a check that stumbles")
    expect("twice", value, torch.full((2,), 2.0), mistakes={"that is half.": 0.5})


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda a: a / 2, "named"),
        (lambda a: "two", "said"),
        (lambda a: None, "form"),
        (lambda a: a / 0 * 0, "form"),
        (lambda a: a / "2", "error"),
        (lambda a: 3 * a, "plain"),
        (lambda a: {}, "stumbled"),
    ],
)
def test_what_a_student_is_told_is_known_by_where_it_comes_from(function, kind):
    with pytest.raises((Mistake, KeyError)) as caught:
        doubled(function)
    assert mutants.kind_of(caught.value) == kind


def test_a_shape_is_asked_for_in_two_ways():
    with pytest.raises(Mistake) as caught:
        Answer.local(lambda: torch.ones(2)).numbers(shape=())
    assert mutants.kind_of(caught.value) == "form"


def loops(send):
    send("begun")
    while True:
        pass


def allocates(send):
    send(len(bytearray(mutants.MEMORY + (1 << 28))))


def ends(send):
    os._exit(3)


def adds(first, second, send):
    send(first)
    send(first + second)


def test_tasks_run_apart_within_limits(monkeypatch):
    monkeypatch.setattr(mutants, "CPU_SECONDS", 1)
    tasks = [(loops, ()), (allocates, ()), (ends, ()), (adds, (1, 2))]
    assert mutants.apart(tasks, jobs=2) == [
        (["begun"], "stopped"),
        ([], "error"),
        ([], "error"),
        ([1, 3], None),
    ]


def test_what_sleeps_is_stopped_too(monkeypatch):
    monkeypatch.setattr(mutants, "WALL_SECONDS", 0.5)
    ((sent, end),) = mutants.apart([(lambda send: mutants.time.sleep(60), ())], jobs=1)
    assert (sent, end) == ([], "stopped")


def test_tests_that_were_not_reached_say_what_ended_the_process():
    tests = ["a", "b", "c"]
    assert mutants.completed([("a", None)], "stopped", tests) == {
        "a": None,
        "b": "stopped",
        "c": "stopped",
    }


def test_tests_of_a_function_come_before_those_of_its_users():
    own, others = mutants.concerned(source("masks"), "dropout")
    assert own == ["dropout-mean", "dropout-values", "dropout-evaluation"]
    assert others == ["dropout_k_loss-mean", "dropout_k_loss-variance"]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ([1.0, 2.0], torch.tensor([1.0, 2.0 + 1e-7]), True),
        ([1.0, 2.0], [1.0, 2.0 + 1e-5], False),
        ([1.0, 1.0], [1.0], False),
        ("equal", "equal", True),
        ("equal", "lower", False),
    ],
)
def test_results_are_compared_to_six_digits(first, second, same):
    assert mutants.equal(first, second) is same


# --- The record and the page ----------------------------------------------------------------------

AGAIN = """
import json, sys
import nbformat
from assignments.grader import classroom, mutants
wanted = json.loads(sys.argv[1])
for name, function, numbers in wanted:
    notebook = nbformat.read(classroom.source_of(name), as_version=4)
    tried, _ = mutants.drawn(notebook, function)
    own, _ = mutants.concerned(notebook, function)
    tasks = [(mutants.run_tests, (name, tried[i], own)) for i in numbers]
    print(json.dumps([mutants.completed(*end, own) for end in mutants.apart(tasks, 1)]))
"""


def test_a_handful_of_mutants_end_as_recorded():
    """In a process of its own: one that has used autograd cannot fork and differentiate."""
    wanted = [
        ("masks", "output_variance"),
        ("effects", "noise_back"),
        ("explicit", "h_out"),
        ("implicit", "xi"),
        ("project", "verdict"),
    ]
    rows = {
        (name, function): RECORD["assignments"][name]["functions"][function]["mutants"]
        for name, function in wanted
    }
    numbers = {each: range(0, len(rows[each]), 6) for each in wanted}
    asked = json.dumps([[*each, list(numbers[each])] for each in wanted])
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", AGAIN, asked]
    said = subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout
    for each, line in zip(wanted, said.splitlines(), strict=True):
        tests = json.loads(line)
        for i, told in zip(numbers[each], tests, strict=True):
            recorded = {t: k for t, k in rows[each][i]["tests"].items() if t in told}
            assert {t: k for t, k in told.items() if k} == recorded, rows[each][i]


def test_every_assignment_was_tried_on_its_checks_of_today():
    assert list(RECORD["assignments"]) == classroom.assignments()
    for name, assignment in RECORD["assignments"].items():
        assert assignment["checks"] == mutants.state_of(name), (
            f"the checks of {name} have changed: python -m assignments.grader.mutants {name}"
        )
        assert list(assignment["functions"]) == list(answers_of(source(name)))


@pytest.mark.parametrize(("name", "function", "found"), FUNCTIONS)
def test_the_record_holds_the_mutants_of_todays_solution(name, function, found):
    tried, there_are = mutants.drawn(source(name), function)
    assert there_are == found["there_are"]
    recorded = [(row["operator"], *mutants.key(row)) for row in found["mutants"]]
    assert recorded == [(m.operator, m.line, m.old, m.new) for m in tried], (
        f"python -m assignments.grader.mutants {name}"
    )


@pytest.mark.parametrize(("name", "function", "found"), FUNCTIONS)
def test_every_survivor_is_judged_and_nothing_else(name, function, found):
    for row in found["mutants"]:
        assert ("judged" in row) == (not row["tests"])
        if "judged" in row:
            assert row["judged"] in mutants.JUDGEMENTS
            assert bool(row["why"]) == (row["judged"] != mutants.TO_CLOSE)
        assert set(row["tests"].values()) <= set(mutants.KINDS)


def test_the_pages_say_what_the_record_says():
    page = (ROOT / f"{mutants.PAGE}.md").read_text("utf-8")
    assert page == mutants.page(RECORD)
    beside = mutants.RECORD.with_suffix(".md").read_text("utf-8")
    assert beside == mutants.survivors(RECORD)
    assert mutants.written(RECORD) == mutants.RECORD.read_text("utf-8")


def row(line, tests, **more):
    return {"operator": "sign", "line": line, "old": "-a", "new": "a", "tests": tests} | more


def small(*rows):
    made = dict.fromkeys(("command", "started", "commit", "python", "torch"), "x")
    made |= {"changed": True, "seconds": 1, "jobs": 2}
    found = {"there_are": 9, "own": ["f-one", "f-two"], "mutants": list(rows)}
    return {"assignments": {"masks": {"made": made, "checks": "x", "functions": {"f": found}}}}


def test_the_pages_count_and_only_one_shows_lines():
    record = small(
        row(1, {"f-one": "plain", "f-two": "named"}),
        row(2, {"f-two": "error"}),
        row(3, {}, same=True, judged="accepted", why="it is right."),
        row(4, {}, same=False, judged="to close", why=""),
    )
    text, beside = mutants.page(record), mutants.survivors(record)
    assert "**2 of 4 mutants are killed, 50 %.** 1 of the 2 that survive" in " ".join(text.split())
    assert "| [masks](#checks) | 9 | 4 | 2 | 50 % | 2 | 1 | 1 | 1 |" in text
    assert "| [`f-one`](#survivors) | 4 | 1 |  |  |  | 1 |" in text
    assert "| [`f-two`](#survivors) | 4 | 2 | 1 | 1 | 1 |  |" in text
    assert "| A minus sign left out | 4 | 2 | 50 % | 1 |" in text
    assert "| masks: `f` | 2 | 1 | 1 | 1 |" in text
    assert "`-a`" not in text
    assert "Line 3, `-a`:\n\n- `a` `=` *accepted: it is right.*\n\nLine 4" in beside
    assert "- `a` *to close*\n" in beside


def test_a_judgement_stays_as_long_as_its_mutant_survives():
    old = small(
        row(1, {}, same=True, judged="accepted", why="it is right."),
        row(2, {}, same=True, judged="accepted", why="so is this."),
    )
    new = small(
        row(1, {}, same=True, judged="to close", why=""),
        row(2, {"f-one": "plain"}),
        row(3, {}, same=True, judged="to close", why=""),
    )
    wanted = copy.deepcopy(new)
    wanted["assignments"]["masks"]["functions"]["f"]["mutants"][0] |= {
        "judged": "accepted",
        "why": "it is right.",
    }
    mutants.keep_judgements(*(record["assignments"]["masks"] for record in (old, new)))
    assert new == wanted


def test_the_record_has_a_line_for_each_mutant():
    record = small(row(1, {"f-one": "plain"}), row(2, {"f-two": "error"}))
    text = mutants.written(record)
    assert json.loads(text) == record
    assert sum('"operator"' in line for line in text.splitlines()) == 2
