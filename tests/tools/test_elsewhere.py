"""`make elsewhere`: the conditions take effect, and what moves under them is seen."""

import sys

import nbformat
import pytest
import torch
from nbformat import v4

from tools import elsewhere

PRINTS = {
    "global": "torch.manual_seed(0); print(torch.rand(3))",
    "own": "print(torch.rand(3, generator=torch.Generator().manual_seed(0)))",
    "numpy": "print(np.random.default_rng(0).random(3))",
    "python": "random.seed(0); print(random.random(), random.Random(0).random())",
    "again": "draw = [torch.Generator().manual_seed(3).initial_seed() for _ in range(2)]\n"
    "print(draw[0] == draw[1])",
    "threads": "torch.set_num_threads(1); print(torch.get_num_threads())",
    "instructions": "print(torch.backends.cpu.get_cpu_capability())",
    "names": "print([name for name in dir() if 'elsewhere' in name.lower()])",
}
SEEDED = {"global", "own", "numpy", "python"}
PLAIN_HERE = torch.backends.cpu.get_cpu_capability() == "DEFAULT"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A notebook whose compared cells were committed as an undisturbed kernel prints them."""
    path = tmp_path_factory.mktemp("elsewhere") / "notebook.ipynb"
    cells = [v4.new_code_cell("import random\nimport numpy as np\nimport torch", id="imports")]
    for name, source in PRINTS.items():
        cells.append(v4.new_code_cell(source, id=name, metadata={"tags": ["nbval-check-output"]}))
    notebook = v4.new_notebook(cells=cells)
    elsewhere.build_book.execute(notebook, path.parent, path)
    return path


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("plain", set() if PLAIN_HERE else {"instructions"}),
        ("threads", {"threads"}),
        ("seeds-1", SEEDED),
        ("seeds-2", SEEDED),
    ],
)
def test_a_condition_moves_what_it_is_to_move_and_nothing_else(path, condition, expected):
    assert {
        each.cell.removeprefix("cell ") for each in elsewhere.moved(path, condition)
    } == expected


def test_what_moved_is_shown_and_fails(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["elsewhere.py", str(path), "--conditions", "threads"])
    with pytest.raises(SystemExit, match="True"):
        elsewhere.main()
    shown = capsys.readouterr().out
    assert "cell threads, under threads" in shown
    assert "'1\\n' == '2\\n'" in shown  # committed, printed
    assert f"{path.name} --conditions threads" in shown


def test_a_cell_that_fails_counts_as_moved_and_so_does_a_notebook_that_is_not_run(tmp_path):
    path = tmp_path / "notebook.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("1 / 0", id="failing")]), path)
    (found,) = elsewhere.moved(path, "threads")
    assert found.cell == "cell failing"
    assert "ZeroDivisionError" in found.report
    nbformat.write(v4.new_notebook(), path)
    (found,) = elsewhere.moved(path, "threads")
    assert found.cell == "no cell was run"


def test_an_unknown_condition_is_refused():
    with pytest.raises(SystemExit, match="'sse9' is none of"):
        elsewhere.environment("sse9")
