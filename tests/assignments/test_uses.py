"""Who imports the result, or has a library compute it, is named to the marker."""

import nbformat
import pytest

from assignments.grader import classroom, grading
from assignments.grader.definitions import Notebook
from assignments.grader.sandbox import may_import
from assignments.grader.uses import suspicious

GIVEN = """
import torch
import torch.nn.functional as F
from torch import nn
from dropreg.book.checks import masks as check
from dropreg.book.data import load_digits
"""
LISTED = {"dropout": ["torch*[dD]ropout*"]}


def said(*cells, given=(GIVEN,), listed=LISTED):
    notebook = Notebook([*given, *cells], {"dropout": cells[-1], "other": ""}, given)
    return suspicious(notebook, may_import(given, ["check.moments(moments)"]), listed)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("def dropout(h, q):\n    return F.dropout(h, q)", "torch.nn.functional.dropout"),
        ("def dropout(h, q):\n    return nn.Dropout(q)(h)", "torch.nn.Dropout"),
        ("def dropout(h, q):\n    return torch.dropout(h, q, True)", "torch.dropout"),
        ("from torch.nn.functional import dropout as d\ndef dropout(h, q):\n    return d(h, q)",
         "torch.nn.functional.dropout"),
        ("from torch.nn import *\ndef dropout(h, q):\n    return Dropout(q)(h)",
         "torch.nn.Dropout"),
        ("import torch.nn as n\nD = n.modules.Dropout\ndef dropout(h, q):\n    return D(q)(h)",
         "torch.nn.modules.Dropout"),
        ("def dropout(h, q):\n    from torch.nn import Dropout\n    return Dropout(q)(h)",
         "torch.nn.Dropout"),
        ("def dropout(h, q):\n    return getattr(nn, 'Dropout')(q)(h)", "torch.nn.Dropout"),
        ("m = nn\nk = m\ndef dropout(h, q):\n    return k.Dropout(q)(h)", "torch.nn.Dropout"),
        ("class A(nn.Dropout): pass\ndef dropout(h, q):\n    return A(q)(h)", "torch.nn.Dropout"),
        ("def g(h, q):\n    return F.dropout(h, q)\ndef dropout(h, q):\n    return g(h, q)",
         "torch.nn.functional.dropout"),
        ("import dropreg\ndef dropout(h, q):\n    return dropreg.noise(h, q)", "dropreg.noise"),
        ("def dropout(h, q):\n    from dropreg.layers import x\n    return x(h)",
         "dropreg.layers.x"),
        ("def dropout(h, q):\n    return check.truth(h)", "dropreg.book.checks.masks.truth"),
        ("def dropout(h, q):\n    import dropreg.book.checks.core as c\n    return c",
         "dropreg.book.checks.core"),
    ],
)  # fmt: skip
def test_what_it_should_write_itself_is_named(source, path):
    assert f"`dropout` uses `{path}`, and should do without." in said(source)


@pytest.mark.parametrize(
    ("source", "how"),
    [
        ("def dropout(h, q):\n    return getattr(nn, 'Drop' + 'out')(q)(h)", "getattr"),
        (
            "import importlib\ndef dropout(h, q):\n    return importlib.import_module('x')",
            "importlib",
        ),
        ("def dropout(h, q):\n    return __import__('torch').dropout(h, q, True)", "__import__"),
        ("def dropout(h, q):\n    return eval('F.drop' + 'out')(h, q)", "eval"),
        ("import sys\ndef dropout(h, q):\n    return sys.modules['torch']", "modules"),
        ("def dropout(h, q):\n    return nn.__dict__['Drop' + 'out'](q)(h)", "__dict__"),
        ("import builtins as b\ndef dropout(h, q):\n    return b.eval('F')", "eval"),
        ("def dropout(h, q):\n    return vars(nn)['Dropout'](q)(h)", "vars"),
    ],
)
def test_what_cannot_be_seen_is_said(source, how):
    (note,) = said(source)
    assert note.startswith("`dropout` looks names up while it runs (")
    assert f"`{how}`" in note


@pytest.mark.parametrize(
    "cells",
    [
        ("def dropout(h, q):\n    return h * (torch.rand_like(h) >= q) / (1 - q)",),
        ("x = nn.Dropout(0.5)\nprint(F.dropout(x))", "def dropout(h, q):\n    return h"),
        ("def other(h, q):\n    return F.dropout(h, q)", "def dropout(h, q):\n    return h"),
        ("def dropout(h, q):\n    return h + len(load_digits(10).train_x)",),
        ("def dropout(h, q):\n    dropout_mask = h\n    return dropout_mask",),
        ("def dropout(h, q):\n    nn.Tanh().eval()\n    return h",),
    ],
)
def test_what_it_may_use_is_not_named(cells):
    assert said(*cells) == []


@pytest.mark.parametrize("name", classroom.assignments())
def test_the_solutions_take_nothing_from_elsewhere(name):
    source = nbformat.read(classroom.source_of(name), as_version=4)
    given = grading.given_cells(source)
    notebook = Notebook(grading.definitions(source), grading.answers_of(source), given)
    tests = [c.source for c in source.cells if "check." in c.source and c.cell_type == "code"]
    assert suspicious(notebook, may_import(given, tests), {}) == []


def test_where_the_library_is_given_its_book_is_not():
    """As in the project, which measures with the library."""
    given = ["import dropreg\nfrom dropreg.book.checks.project import text"]
    source = (
        "def train():\n    dropreg.replace_dropout()\n    text()\n"
        "    dropreg.book.checks.project.truth()"
    )
    notebook = Notebook([*given, source], {"train": source}, given)
    assert suspicious(notebook, may_import(given, []), {}) == [
        "`train` uses `dropreg.book.checks.project.truth`, and should do without."
    ]
    listed = {"train": ["dropreg.replace_*"]}
    (named, _) = suspicious(notebook, may_import(given, []), listed)
    assert "`dropreg.replace_dropout`" in named


def test_answers_may_import_what_given_cells_do_and_tests_do_not_name():
    tests = ["check.values(f)\n### BEGIN HIDDEN TESTS\ncheck.values(f, seed=FRESH)"]
    assert may_import([GIVEN], tests) == {"dropreg.book.data.load_digits"}
    assert may_import(["import torch, dropreg.book.data as d"], []) == {"dropreg.book.data"}
    assert may_import([], tests) == set()
