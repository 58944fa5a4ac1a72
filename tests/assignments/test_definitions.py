"""What answers need of a notebook is run, and nothing else, whatever stands in its cells."""

import ast
import builtins
import sys
import time

import pytest

from assignments.grader.definitions import Notebook, define, explained, find, is_stub, statements


def defined(*cells, answers="f", seconds=2.0, given=()):
    """The functions and the errors; each answer's cell is the last with it, and comes once more."""
    own = {}
    for name in answers.split():
        own[name] = next((c for c in reversed(cells) if f"def {name}(" in c), "")
    notebook = Notebook([*cells, *own.values()], own, given)
    names, errors = define(notebook, seconds)
    return {name: find(name, notebook, names) for name in own}, errors


def result(*cells, argument=4.0):
    functions, errors = defined(*cells)
    assert not errors
    return functions["f"](argument)


def test_what_students_leave_behind_changes_nothing():
    functions, errors = defined(
        "%matplotlib inline\n!pip install x\nimport math",
        "def broken(:",
        "while True: pass",
        "def f(x):\n    return helper(x)",
        "x = 1 / 0",
        "def helper(x):\n    return math.sqrt(x)",
        "def f(x):\n    raise NotImplementedError()",
    )
    assert functions["f"](4.0) == 2.0
    assert errors == ["cell 2 (`def broken(:`): SyntaxError in line 1: invalid syntax"]


def test_slow_experiments_cost_nothing():
    begin = time.monotonic()
    slow = ["import time\ntime.sleep(60)\nx = [i for i in iter(int, 1)]"] * 7
    assert result(*slow, "def f(x):\n    return x") == 4.0
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "cells",
    [
        # The statements that used to be lost.
        ["if True:\n    import math", "def f(x):\n    return math.sqrt(x)"],
        ["try:\n    import nowhere\nexcept ImportError:\n    import math as nowhere",
         "def f(x):\n    return nowhere.sqrt(x)"],
        ["table = {}\nfor i in range(9):\n    table[i] = i - 2", "def f(x):\n    return table[x]"],
        ["n = 1\nn += 1", "def f(x):\n    return x - n"],
        ["v = [5.0]\nv[0] = 2.0", "def f(x):\n    return v[0]"],
        ["v = []\nv.append(2.0)", "def f(x):\n    return v[0]"],
        ["import contextlib", "with contextlib.suppress(OSError):\n    n = 2.0",
         "def f(x):\n    return n"],
        ["class A: pass", "a = A()\na.n = 2.0", "def f(x):\n    return a.n"],
        ["(n := 2.0)", "def f(x):\n    return n"],
        ["[n := k for k in (1.0, 2.0)]", "def f(x):\n    return n"],
        ["def set_up():\n    global n\n    n = 2.0", "set_up()", "def f(x):\n    return n"],
        ["def one():\n    global n\n    n = 2.0", "def two():\n    one()", "two()",
         "def f(x):\n    return n"],
        ["from math import *", "def f(x):\n    return sqrt(x)"],
        ["async def g(): return 2.0", "n = await g()", "def f(x):\n    return n"],
        ["n = 3.0\ndel n\nn = 2.0", "def f(x):\n    return n"],
        ["match 3:\n    case k: n = k - 1.0", "def f(x):\n    return n"],
        ["f = lambda x: x / 2"],
        ["class F:\n    def __call__(self, x):\n        return x / 2", "f = F()"],
        # Lines for IPython, and what only looks like them.
        ["n = (8.0\n% 6)", "def f(x):\n    return n"],
        ["n = 2.0 if (3\n!= 4) else 0", "def f(x):\n    return n"],
        ['t = """\n%a\n!b\n"""\nn = len(t) - 5.0', "def f(x):\n    return n"],
        ["%%time\nn = 2.0", "def f(x):\n    return n"],
        ["%time n = 2.0", "def f(x):\n    return n"],
        ["%%capture out\n%%time\nn = 2.0", "def f(x):\n    return n"],
        ["%%bash\nn = 3", "n = 2.0", "%%writefile a.py\nn = 7", "def f(x):\n    return n"],
        [">>> n = 2.0", "def f(x):\n    return n"],
        ["get_ipython().run_line_magic('load_ext', 'x')\nn = 2.0\nn?", "def f(x):\n    return n"],
        # What overwrites what an answer uses, in a cell for trying out.
        ["def f(x):\n    return sum([x, -2.0])", "sum = 0\nfor max in range(3):\n    sum += max"],
        ["list = [1]\nn = list[0] + 1.0", "def f(x):\n    return list([n])[0]"],
        ["def loss(x):\n    return x / 2", "def f(x):\n    return loss(x)", "loss = f(3)"],
        ["def f(x):\n    import math\n    return math.sqrt(x)", "math = 3"],
        ["from math import tau as t", "t = 2.0", "def f(x):\n    return t"],
        ["def t(): pass", "def f(x):\n    return t", "class t: pass", "t = 3", "def t(): pass",
         "t = 2.0\ndef f(x):\n    return t"],
        ["def f(x):\n    return x / 2", "f = f(3)"],
        ["def helper(x):\n    return x / 2", "def f(x):\n    return helper(x)", "del helper"],
        # Functions that are written twice, or not yet, or in another order.
        ["def f(x):\n    return x / 2", "def f(x):\n    raise NotImplementedError"],
        ["def f(x):\n    raise NotImplementedError()", "def f(x):\n    return x / 2"],
        ["def f(x):\n    raise NotImplementedError()", "f = lambda x: x / 2"],
        ["f = lambda x: x / 2", "def f(x):\n    raise NotImplementedError()"],
        ["def f(x):\n    return g(x)", "def g(x):\n    return 0", "def g(x):\n    return x / 2"],
        ["n = helper(4.0)", "def f(x):\n    return n", "def helper(x):\n    return x / 2"],
        ["@wrap\ndef f(x):\n    return x", "def wrap(g):\n    return lambda x: g(x) / 2"],
        ["def f(x):\n    return 0", "def f(x):\n    return x / 2"],
        ['if __name__ == "__main__":\n    def helper(x): return x / 2\n    while True: pass',
         "def f(x):\n    return helper(x)"],
        # Names in texts.
        ["def helper(x):\n    return x / 2", "def f(x):\n    return eval('helper(x)')"],
        ["def helper(x):\n    return x / 2", "def f(x):\n    return globals()['helper'](x)"],
        # Python as it is written today.
        ["from __future__ import annotations", "from dataclasses import dataclass",
         "@dataclass\nclass A:\n    n: Unknown = 2.0", "def f(x: Unknown):\n    return A().n"],
        ["import functools", "@functools.cache\ndef f(x):\n    return x / 2"],
        ["n: float = 2.0", "def f(x):\n    return n"],
        ["def f(x):\n    import math\n    return math.sqrt(x)"],
        ["import math\r\n\r\n\r\ndef f(x):\r\n    return math.sqrt(x)\r\n"],
        ["# half a smile \ud83d, a zero \x00\ndef f(x):\n    '\u00a0 \ufeff'\n    return x / 2"],
    ],
)  # fmt: skip
def test_answers_find_what_they_need(cells):
    assert result(*cells) == 2.0


@pytest.mark.parametrize(
    "cell",
    [
        "check.values(f)",
        "print(f(3))\nraise ValueError",
        "for seed in range(10**9):\n    torch.manual_seed(seed)\n    results[seed] = f(seed)",
        "torch.save(f(10**9), 'x')",
        "import nowhere",
        "x = 1 / 0",
        "assert f(1) == 2",
        "plt.plot(f(3))",
        "results = [f(i) for i in iter(int, 1)]",
    ],
)
def test_what_no_answer_needs_is_not_run(cell):
    importing = "import torch\nimport matplotlib.pyplot as plt\nfrom nowhere import check"
    functions, errors = defined(importing, "def f(x):\n    return torch.tensor(x)", cell)
    assert functions["f"](4.0) == 4.0
    assert errors == []


@pytest.mark.parametrize(
    "setting",
    [
        "torch.set_default_dtype(torch.float64)",
        "kind = torch.float64\ntorch.set_default_dtype(kind)",
        "if not torch.cuda.is_available():\n    torch.set_default_dtype(torch.float64)",
    ],
)
def test_settings_of_what_answers_use_count(setting):
    import torch

    before = torch.get_default_dtype()
    try:
        functions, _ = defined("import torch", setting, "def f(x):\n    return torch.tensor(x)")
        assert functions["f"](4.0).dtype == torch.float64
    finally:
        torch.set_default_dtype(before)


def test_a_built_in_may_be_replaced_by_a_definition_or_in_the_answers_own_cell():
    assert result("def sum(x):\n    return 2.0", "def f(x):\n    return sum([x])") == 2.0
    assert result("abs = lambda x: 2.0\ndef f(x):\n    return abs(x)") == 2.0
    assert builtins.sum([1]) == 1


def test_what_the_release_imports_and_defines_is_not_replaced_by_a_value():
    given = "import math\ndef loss(x):\n    return x\nSIZE = 1.0"
    scratch = "math = 3\nloss = 0.5\nSIZE = 2.0\nnp = math"
    answer = "def f(x):\n    return math.sqrt(loss(x)) * SIZE"
    functions, errors = defined(given, answer, scratch, given=[given])
    assert (functions["f"](4.0), errors) == (4.0, [])  # a value of the release may be replaced


def test_statements_have_a_time_each_and_in_all():
    loops = [f"x{i} = [0 for _ in iter(int, 1)]" for i in range(20)]
    uses = ", ".join(f"x{i}" for i in range(20))
    functions, errors = defined(*loops, f"def f(x):\n    return {uses}", seconds=0.1)
    assert 5 <= len(errors) <= 8
    assert "TooLongError: took longer" in errors[0]
    assert "no time was left" in errors[-1]
    assert functions["f"] is None


def test_time_is_up_even_where_everything_is_caught():
    waits = "def wait():\n    try:\n        while True: pass\n    except Exception:\n        wait()"
    cell = waits + "\nn = wait()"
    _, errors = defined(cell, "def f(x):\n    return n", seconds=0.2)
    assert "took longer" in errors[0]


@pytest.mark.parametrize(
    "cell",
    [
        "-" * 100_000 + "1",
        "(" * 5000 + ")" * 5000,
        "x = " + "lambda: " * 5000 + "1",
        "x = \x00",
        "\ud800 = 1",
        "if True:\nx = 1",
        "return 3",
        "x = '''",
        "%%time\n" * 3000 + "x = 1",
        "def f(x):\n    return x\n  y = 3",
        "break",
        "\f\r\v",
        "[" * 90 + "]" * 90,
    ],
    ids=str.__len__,
)
def test_a_cell_that_cannot_be_read_costs_itself_only(cell):
    functions, _ = defined(cell, "def f(x):\n    return x", seconds=5)
    assert functions["f"](1) == 1


def test_an_answer_that_cannot_be_read_is_said_with_its_line():
    cell = "\n\ndef f(x):\n    y = (x\n    return y"
    notebook = Notebook([cell], {"f": cell})
    assert notebook.unread[cell].startswith("SyntaxError in line 4: ")


def test_errors_of_what_is_needed_are_told_once():
    functions, errors = defined("n = 1 / 0", "@gone\ndef f(x):\n    return n")
    assert functions["f"] is None
    assert errors == [
        "cell 1 (`n = 1 / 0`): ZeroDivisionError: division by zero",
        "cell 2 (`@gone`): NameError: name 'gone' is not defined",
    ]


def test_an_answers_cell_that_comes_again_does_not_count_twice():
    assert result("calls = []\ncalls.append(2.0)\ndef f(x):\n    return sum(calls)") == 2.0


def test_a_function_under_another_name_is_found_in_its_cell():
    cell = "def my_power(a, b):\n    return a - b"
    notebook = Notebook([cell], {"power": cell})
    assert find("power", notebook, define(notebook, 5.0)[0])(3, 1) == 2
    two = cell + "\ndef other(): pass"
    notebook = Notebook([two], {"power": two})
    assert find("power", notebook, define(notebook, 5.0)[0]) is None


def test_what_a_stub_is():
    stub, written = statements(
        "def f(x):\n    'x'\n    raise NotImplementedError()\ndef g(): return"
    )
    assert is_stub(stub)
    assert not is_stub(written)
    assert [type(s) for s in statements("%%time\n%time x = 1\ny = 2")] == [ast.Assign] * 2


def test_lines_are_those_of_the_cell():
    nodes = statements("\n\n%%time\nx = 1\n%time y = 2\nz = 3")
    assert [node.lineno for node in nodes] == [4, 5, 6]


@pytest.mark.parametrize(
    "code",
    [
        "from dropreg.nothing import explicit_regularizer",
        "from dropreg import no_such",
        "import dropreg.nothing",
        "import dropreg; dropreg.no_such",
    ],
)
def test_what_is_kept_from_answers_is_said_so(code):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        exec(code, {})
    assert "is not there when answers are tested: write it yourself" in explained(caught.value)


def test_signals_are_given_back():
    import signal

    before = signal.getsignal(signal.SIGALRM)
    defined("def f(x):\n    return x")
    assert signal.getsignal(signal.SIGALRM) is before
    assert sys.modules["__main__"].__name__ == "__main__"
