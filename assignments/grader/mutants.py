"""The mutation score: what the checks say to solutions with one mistake each.

    .venv/bin/python -m assignments.grader.mutants

changes the reference solutions by the operators of `operators.py`, runs the tests that can tell on
each mutant, records what they said in assignments/mutants.json, and writes two pages of it: one for
the book, and one that shows lines of solutions, assignments/mutants.md. In the record `judged` and
`why` of a mutant that no test noticed are people's: write them by hand; they are kept as long as
the mutant survives. With names of assignments only these are run again; `--pages` runs nothing.
"""

import argparse
import ast
import collections
import contextlib
import hashlib
import importlib
import inspect
import io
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

import nbformat
import psutil
import torch
from nbformat import NotebookNode
from nbgrader import utils

from assignments.grader.classroom import assignments, source_of
from assignments.grader.definitions import Notebook, define, find
from assignments.grader.grading import answers_of, code_cells, given_cells, test_names
from assignments.grader.operators import OPERATORS, Mutant, Operator, mutants_of, name_of
from dropreg.book.checks import Answer, Mistake, core
from dropreg.book.experiments import records
from tools import ROOT, cache_key

RECORD = ROOT / "assignments" / "mutants.json"
PAGE = "book/teach/mutants"
CHECKS = ROOT / "dropreg" / "book" / "checks"
FRESH = 20261127  # the seed of the hidden tests, in every run
MOST = 60  # mutants of one function, drawn where there are more
CPU_SECONDS, WALL_SECONDS, MEMORY = 60, 300, 3 << 30
SIX_DIGITS = 1e-6

KINDS = {
    "named": "the message is that of a mistake which the check knows",
    "said": "the check says in a sentence of its own what it saw",
    "form": "the message is about the shape, the type, NaN or a missing `return`",
    "error": "Python's error in the function is shown",
    "stopped": "the function used up time or memory",
    "plain": 'the message gives both numbers and no reason ("that is not what theory says")',
    "stumbled": "the check itself stopped with an error",
}
"""What a student is told, the most helpful first."""
TO_CLOSE = "to close"
JUDGEMENTS = ("equivalent", "accepted", TO_CLOSE)


# --- In the process of a mutant -------------------------------------------------------------------


Call = tuple[str, int, tuple[Any, ...]]


def answers(notebook: NotebookNode, changed: Mutant | None) -> dict[str, Callable[[int, Any], Any]]:
    """The functions of the reference solution, one of them perhaps changed, to call with a seed."""
    cells = answers_of(notebook)
    if changed:
        cells[changed.function] = changed.source
    given = given_cells(notebook)
    defined = Notebook([*given, *cells.values()], cells, given)
    names, errors = define(defined, seconds=5.0)
    if errors:
        raise ValueError(f"the cells do not run: {errors}")

    def caller(name: str) -> Callable[[int, Any], Any]:
        function = find(name, defined, names)
        assert function is not None

        def call(seed: int, args: tuple[Any, ...]) -> Any:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(seed)
                return function(*core.handed_over(args))

        return call

    return {name: caller(name) for name in cells}


def kind_of(error: Exception) -> str:
    """Which of KINDS a failed test is, by where the error comes from, not by its words."""
    if not isinstance(error, Mistake):
        return "stumbled"
    if error.__cause__ is not None:
        return "error"
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if frames[-1].f_code in (core.as_numbers.__code__, Answer.numbers.__code__):
        return "form"
    comparisons = [frame.f_locals for frame in frames if frame.f_code is core.expect.__code__]
    if not comparisons:
        return "said"
    given = {name: comparisons[-1][name] for name in inspect.signature(core.expect).parameters}
    try:
        # The same comparison, if it knew no mistake.
        core.expect(**given | {"mistakes": None})
    except Mistake as unnamed:
        return "plain" if str(unnamed) == str(error) else "named"
    raise AssertionError("a comparison that failed passes")


def run_tests(
    name: str, mutant: Mutant | None, tests: Iterable[str], send: Callable[..., None]
) -> None:
    """Send what each test says, None if it passes, as soon as it is known."""
    notebook = nbformat.read(source_of(name), as_version=4)
    called = {n: Answer(n, call) for n, call in answers(notebook, mutant).items()}
    names = test_names(notebook, called, FRESH)
    sources = {
        c.metadata.nbgrader.grade_id: c.source for c in code_cells(notebook) if utils.is_grade(c)
    }
    for test in tests:
        kind = None
        try:
            exec(compile(sources[test], "<test>", "exec"), dict(names))
        except Exception as error:
            kind = kind_of(error)
        send((test, kind))


def same_results(
    name: str, mutant: Mutant, tests: Iterable[str], send: Callable[..., None]
) -> None:
    """Send whether a mutant gives what the solution gives in every call of the tests.

    With the visible numbers and three times fresh ones, to six digits.
    """
    notebook = nbformat.read(source_of(name), as_version=4)
    calls: list[Call] = []
    right = answers(notebook, None)

    def recording(name: str, call: Callable[[int, Any], Any]) -> Answer:
        def record(seed: int, args: tuple[Any, ...]) -> Any:
            calls.append((name, seed, args))
            return call(seed, args)

        return Answer(name, record)

    called = {n: recording(n, call) for n, call in right.items()}
    sources = [
        c.source
        for c in code_cells(notebook)
        if utils.is_grade(c) and c.metadata.nbgrader.grade_id in tests
    ]
    for more in range(3):
        names = test_names(notebook, called, FRESH + more)
        for source in sources:
            exec(compile(source, "<test>", "exec"), dict(names))
    wrong = answers(notebook, mutant)
    send(all(equal(right[n](seed, args), wrong[n](seed, args)) for n, seed, args in calls))


def equal(first: Any, second: Any) -> bool:
    try:
        one, other = (core.as_numbers("", value) for value in (first, second))
    except Mistake:
        return bool(first == second)
    return one.shape == other.shape and bool(
        ((one - other).abs() <= SIX_DIGITS * one.abs().max()).all()
    )


# --- Many processes -------------------------------------------------------------------------------

Task = tuple[Callable[..., None], tuple[Any, ...]]


def in_child(task: Task, pipe: Any) -> None:
    """Run a task with limits of its own, without a word."""
    memory = psutil.Process().memory_info().vms + MEMORY
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + CPU_SECONDS,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    function, arguments = task
    with contextlib.redirect_stdout(io.StringIO()):
        function(*arguments, pipe.send)
    pipe.send("done")


def apart(tasks: Sequence[Task], jobs: int) -> list[tuple[list[Any], str | None]]:
    """Run each task in a fork of this process, which has never used autograd.

    Args:
        tasks: A function and its arguments, to which a function is added that sends what is found.
        jobs: How many at a time.

    Returns:
        What each task sent, and how it ended if not as it should: "stopped" or "error".
    """
    forks = multiprocessing.get_context("fork")
    results: list[tuple[list[Any], str | None]] = [([], None) for _ in tasks]
    running: dict[Any, tuple[int, Any, float]] = {}
    waiting = list(range(len(tasks)))[::-1]
    while waiting or running:
        while waiting and len(running) < jobs:
            ours, theirs = forks.Pipe(duplex=False)
            process = forks.Process(target=in_child, args=(tasks[waiting[-1]], theirs), daemon=True)
            process.start()
            theirs.close()
            running[ours] = (waiting.pop(), process, time.monotonic() + WALL_SECONDS)
        for pipe in connection.wait(list(running), timeout=1.0):
            assert isinstance(pipe, connection.Connection)
            index, process, _ = running[pipe]
            try:
                results[index][0].append(pipe.recv())
            except EOFError:
                process.join()
                sent = results[index][0]
                if "done" in sent:
                    sent.remove("done")
                else:
                    late = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
                    results[index] = (sent, "stopped" if late else "error")
                del running[pipe]
        for _, process, deadline in running.values():
            if time.monotonic() > deadline:
                process.kill()
    return results


# --- One assignment -------------------------------------------------------------------------------


def concerned(notebook: NotebookNode, function: str) -> tuple[list[str], list[str]]:
    """The tests of a function, and those of the functions that use it."""
    users = {function}
    for name, cell in answers_of(notebook).items():
        if any(f"{other}(" in cell for other in users):
            users.add(name)
    tests = [c.metadata.nbgrader.grade_id for c in code_cells(notebook) if utils.is_grade(c)]
    own = [test for test in tests if test.split("-")[0] == function]
    return own, [t for t in tests if t not in own and t.split("-")[0] in users]


def modules_of(notebook: NotebookNode) -> set[str]:
    """The names of modules in given cells."""
    return {name for name, value in test_names(notebook, {}, 0).items() if inspect.ismodule(value)}


def drawn(notebook: NotebookNode, function: str) -> tuple[list[Mutant], int]:
    """The mutants of a function that are tried, and how many there are."""
    found = mutants_of(answers_of(notebook)[function], function, modules_of(notebook))
    numbers = sorted(random.Random(function).sample(range(len(found)), min(MOST, len(found))))
    return [found[i] for i in numbers], len(found)


def completed(sent: list[Any], end: str | None, tests: list[str]) -> dict[str, str | None]:
    """What each test said; those that were not reached said what ended the process."""
    return {**dict.fromkeys(tests, end), **dict(sent)}


def try_function(name: str, notebook: NotebookNode, function: str, jobs: int) -> dict[str, Any]:
    """Try the mutants of one function."""
    mutants, there_are = drawn(notebook, function)
    own, others = concerned(notebook, function)
    ends = apart([(run_tests, (name, mutant, own)) for mutant in mutants], jobs)
    said = [completed(*end, own) for end in ends]
    left = [i for i, tests in enumerate(said) if not any(tests.values())]
    ends = apart([(run_tests, (name, mutants[i], others)) for i in left], jobs)
    for i, end in zip(left, ends, strict=True):
        said[i] |= completed(*end, others)
    left = [i for i in left if not any(said[i].values())]
    ends = apart([(same_results, (name, mutants[i], own + others)) for i in left], jobs)
    same = {i: bool(sent and sent[0]) for i, (sent, _) in zip(left, ends, strict=True)}
    rows = []
    for i, mutant in enumerate(mutants):
        row: dict[str, Any] = {"operator": mutant.operator, "line": mutant.line}
        row |= {"old": mutant.old, "new": mutant.new}
        row["tests"] = {test: kind for test, kind in said[i].items() if kind}
        if i in same:
            row |= {"same": same[i], "judged": TO_CLOSE, "why": ""}
        rows.append(row)
    return {"there_are": there_are, "own": own, "mutants": rows}


def state_of(name: str) -> str:
    """A hash of the checks of an assignment: their code, without comments and layout."""
    found = cache_key.modules([f"dropreg.book.checks.{name}"], ROOT)
    texts = [
        ast.dump(ast.parse(path.read_text("utf-8")))
        for _, path in sorted(found.items())
        if path.is_relative_to(CHECKS)
    ]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def imported(name: str, tests: list[str], send: Callable[..., None]) -> None:
    """Send what the solution's tests say, then which modules they have imported."""
    before = set(sys.modules)
    run_tests(name, None, tests, send)
    send(sorted(set(sys.modules) - before))


def try_assignment(name: str, jobs: int) -> dict[str, Any]:
    """Try all mutants of an assignment."""
    notebook = nbformat.read(source_of(name), as_version=4)
    functions = list(answers_of(notebook))
    tests = [test for function in functions for test in concerned(notebook, function)[0]]
    (((*sent, modules), end),) = apart([(imported, (name, tests))], 1)
    if end or any(kind for _, kind in sent):
        sys.exit(f"{name}: the solution itself does not pass: {sent}")
    for module in modules:  # once, here, and not in each process
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    made = {
        **records.session(torch.device("cpu")),
        "command": f"python -m assignments.grader.mutants {name}",
        "fresh": FRESH,
        "most": MOST,
        "jobs": jobs,
    }
    record: dict[str, Any] = {"made": made, "checks": state_of(name), "functions": {}}
    start = time.monotonic()
    for function in functions:
        begin = time.monotonic()
        found = try_function(name, notebook, function, jobs)
        record["functions"][function] = found
        alive = sum(not row["tests"] for row in found["mutants"])
        print(
            f"    {function}: {len(found['mutants'])} mutants, {alive} survive, "
            f"{time.monotonic() - begin:.0f} s",
            flush=True,
        )
    made["seconds"] = round(time.monotonic() - start)
    return record


# --- The record -----------------------------------------------------------------------------------

Record = dict[str, Any]


def key(row: dict[str, Any]) -> tuple[int, str, str]:
    return row["line"], row["old"], row["new"]


def keep_judgements(old: Record, new: Record) -> None:
    """Take over what people said of the mutants of an assignment that survive still."""
    for function, found in new["functions"].items():
        rows = old["functions"].get(function, {"mutants": []})["mutants"]
        known = {key(row): row for row in rows if "judged" in row}
        for row in found["mutants"]:
            if "judged" in row and key(row) in known:
                row |= {field: known[key(row)][field] for field in ("judged", "why")}


def written(record: Record) -> str:
    """The record as JSON, one mutant a line."""
    rows: list[str] = []

    def placed(value: Any) -> Any:
        if not isinstance(value, dict):
            return [placed(v) for v in value] if isinstance(value, list) else value
        if "operator" in value:
            rows.append(json.dumps(value, ensure_ascii=False))
            return f"row {len(rows) - 1}"
        return {name: placed(v) for name, v in value.items()}

    text = json.dumps(placed(record), indent=1, ensure_ascii=False)
    return re.sub(r'"row (\d+)"', lambda found: rows[int(found[1])], text) + "\n"


# --- The page -------------------------------------------------------------------------------------

INTRODUCTION = """\
# Mutants: what the checks notice

Would the tests of the assignments notice a mistake that their author did not think of? Here
mistakes are made by a machine: each reference solution is changed in one place (a sign, a factor,
an axis, a range, the order of two arguments, ...), and the tests that a student's notebook is
graded by run on what comes out. Such a changed solution is a *mutant*; a test that fails has
*killed* it.

**%(killed)s of %(tried)s mutants are killed, %(share)s.** %(same)s of the %(alive)s that survive
return, to six digits, what the solution returns in every call that the tests make, with the visible
numbers and with three times fresh ones: %(apart)s of the others are killed. %(told)s of those
killed meet a message that says what is wrong.

*What the score is not.* It is no probability that a student's mistake is found: students do not
draw their mistakes from this list, and whole misunderstandings are tried by the wrong solutions in
`tests/assignments/wrong/`. Many a mutant survives because it is right, or as good; these count as
survivors all the same, and the table at the end says what we make of them. A mutant that stops
with an error is killed without any merit of the check, so errors have a column of their own. And
that a message names a mistake does not say that it names the right one.
"""
HOW = """\
Tried are all mutants of a function, or %(most)s of them drawn by a fixed seed where there are more.
A test cell runs as in grading, with the visible numbers and with those of the seed %(fresh)s, on
copies of the arguments, in a process of its own with %(seconds)s s of processor time and %(memory)s
GB. First run the function's own tests; those of functions that use it only if its own notice
nothing. Two changes that give the same text are one mutant; none is left out by hand.
"""
JUDGED = """\
People have looked at each survivor: it is *equivalent* (no input could show a difference),
*accepted* (another right answer, or no mistake that we mark), or *to close*, a hole in a check.
Their lines would give solutions away; they stand beside these, in `assignments/mutants.md`.
"""
SURVIVORS = """\
# Mutants that no test notices

Made from `mutants.json` by `python -m assignments.grader.mutants`, and not for students. Each line
of a solution (the `def` is line 1, and ¶ stands between two lines), what it may become unnoticed,
and what people make of that: *equivalent* (no input could show a difference), *accepted* (another
right answer, or no mistake that we mark), or *to close*. `=` marks those that gave the solution's
results in every call.
"""


def rows_of(assignment: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for found in assignment["functions"].values() for row in found["mutants"]]


def best(row: dict[str, Any]) -> str | None:
    """The most helpful of what the tests said; None if none failed."""
    return next((kind for kind in KINDS if kind in row["tests"].values()), None)


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table: words left, numbers right, no zeros, and no column without a number."""
    rows = [list(row) for row in rows]
    shown = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    heads, rows = [heads[i] for i in shown], [[row[i] for i in shown] for row in rows]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [f"| {' | '.join(str(v) if v else '' for v in line)} |" for line in lines] + [""]


def kinds(told: Iterable[str | None]) -> list[int]:
    counts = collections.Counter(told)
    return [counts[kind] for kind in KINDS]


def page(record: Record) -> str:
    """The page, in Markdown, of a record."""
    everything = record["assignments"]
    rows = [row for assignment in everything.values() for row in rows_of(assignment)]
    alive = [row for row in rows if not row["tests"]]
    killed, same = len(rows) - len(alive), sum(row["same"] for row in alive)
    told = sum(best(row) in ("named", "said", "form") for row in rows)
    lines = [
        INTRODUCTION
        % {
            "killed": f"{killed:,}",
            "tried": f"{len(rows):,}",
            "share": percent(killed, len(rows)),
            "alive": len(alive),
            "same": same,
            "apart": percent(killed, len(rows) - same),
            "told": percent(told, killed),
        },
        HOW % {"most": MOST, "fresh": FRESH, "seconds": CPU_SECONDS, "memory": MEMORY >> 30},
        "## Assignments",
        "",
        "The last columns are what the student is told, the most helpful message of each mutant:",
        "",
        *(f"- *{kind}*: {meaning}" for kind, meaning in KINDS.items()),
        "",
        "A check that compares in a way of its own (those of `train` and `verdict`) has *said* it",
        "also where it only says that the result is not the right one.",
        "",
        *table(
            (
                "assignment",
                "there are",
                "tried",
                "killed",
                "share",
                "survive",
                "of these =",
                *KINDS,
            ),
            (assignment_line(name, assignment) for name, assignment in everything.items()),
        ),
        "## Checks",
        "",
        "Of the mutants of its own function: how many a test notices, how many no other test of",
        "that function notices, and what it says. The tests of a function share the work, so none",
        "is meant to notice all.",
        "",
        *table(
            ("test", "mutants", "noticed", "by it alone", *KINDS),
            (
                test_line(test, found["mutants"])
                for assignment in everything.values()
                for found in assignment["functions"].values()
                for test in found["own"]
            ),
        ),
        "## Changes",
        "",
        *table(
            ("change", "tried", "killed", "share", "told what is wrong"),
            (operator_line(operator, rows) for operator in OPERATORS),
        ),
        "## Survivors",
        "",
        JUDGED,
    ]
    lines += table(
        ("function", "survive", "of these =", *JUDGEMENTS),
        (
            function_line(f"{name}: `{function}`", found["mutants"])
            for name, assignment in everything.items()
            for function, found in assignment["functions"].items()
        ),
    )
    lines += ["## How this page was made", "", *map(made_line, everything.values())]
    return "\n".join(lines) + "\n"


def survivors(record: Record) -> str:
    """The survivors, in Markdown, with lines of the solutions."""
    lines = [SURVIVORS]
    for name, assignment in record["assignments"].items():
        lines += [f"## {name}", ""]
        for function, found in assignment["functions"].items():
            left = list(survivor_lines(found["mutants"]))
            lines += [f"### {function}", "", *left] if left else []
    return "\n".join(lines).rstrip() + "\n"


def assignment_line(name: str, assignment: dict[str, Any]) -> list[Any]:
    rows = rows_of(assignment)
    alive = [row for row in rows if not row["tests"]]
    there_are = sum(found["there_are"] for found in assignment["functions"].values())
    killed = len(rows) - len(alive)
    counts = [there_are, len(rows), killed, percent(killed, len(rows)), len(alive)]
    # A table that scrolls is reached by the keyboard through a link in it.
    return [
        f"[{name}](#checks)",
        *counts,
        sum(row["same"] for row in alive),
        *kinds(map(best, rows)),
    ]


def function_line(which: str, rows: list[dict[str, Any]]) -> list[Any]:
    alive = [row for row in rows if not row["tests"]]
    judged = collections.Counter(row["judged"] for row in alive)
    counts = [judged[verdict] for verdict in JUDGEMENTS]
    return [which, len(alive), sum(row["same"] for row in alive), *counts]


def made_line(assignment: dict[str, Any]) -> str:
    made = assignment["made"]
    changed = ", changed since" if made["changed"] else ""
    return (
        f"- `{made['command']}` on {made['started']}, from `{made['commit']}`{changed}, with "
        f"Python {made['python']} and torch {made['torch']}: {made['seconds']} s with "
        f"{made['jobs']} processes at a time."
    )


def test_line(test: str, rows: list[dict[str, Any]]) -> list[Any]:
    noticed = [row["tests"][test] for row in rows if test in row["tests"]]
    alone = sum(list(row["tests"]) == [test] for row in rows)
    return [f"[`{test}`](#survivors)", len(rows), len(noticed), alone, *kinds(noticed)]


def operator_line(operator: Operator, rows: list[dict[str, Any]]) -> list[Any]:
    its = [row for row in rows if row["operator"] == name_of(operator)]
    killed = [row for row in its if row["tests"]]
    told = [row for row in killed if best(row) in ("named", "said", "form")]
    what = " ".join((operator.__doc__ or "").split()).rstrip(".")
    return [what, len(its), len(killed), percent(len(killed), len(its)), len(told)]


def survivor_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line of the function, and what it may become unnoticed."""
    alive = sorted((row for row in rows if not row["tests"]), key=lambda row: row["line"])
    for (line, old), group in itertools.groupby(alive, lambda row: (row["line"], row["old"])):
        yield from (f"Line {line}, `{old or ' '}`:", "")
        for row in group:
            why = f"{row['judged']}: {row['why']}" if row["why"] else row["judged"]
            yield f"- `{row['new'] or ' '}`{' `=`' if row['same'] else ''} *{why}*"
        yield ""


def write(record: Record) -> None:
    """Write the record and both pages of it."""
    RECORD.write_text(written(record), "utf-8")
    RECORD.with_suffix(".md").write_text(survivors(record), "utf-8")
    (ROOT / f"{PAGE}.md").write_text(page(record), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the mutation score.")
    parser.add_argument("names", nargs="*", help="assignments, all if none is named")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--pages", action="store_true", help="write the pages of the record only")
    options = parser.parse_args()
    if unknown := set(options.names) - set(assignments()):
        parser.error(f"there is no assignment {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    record: Record = {"assignments": {}}
    if RECORD.exists():
        record = json.loads(RECORD.read_text("utf-8"))
    for name in [] if options.pages else options.names or assignments():
        print(f"==> {name}", flush=True)
        found = try_assignment(name, options.jobs)
        if name in record["assignments"]:
            keep_judgements(record["assignments"][name], found)
        record["assignments"] = dict(sorted({**record["assignments"], name: found}.items()))
        write(record)  # after each, as they take their time
    write(record)


if __name__ == "__main__":
    main()
