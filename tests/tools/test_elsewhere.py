"""`make elsewhere`: the conditions take effect, and what moves under them is seen."""

import contextlib
import io
import re
import sys

import nbformat
import pytest
import torch
from nbformat import v4

from tools import build_book, elsewhere

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
MOVES = {
    "plain": set() if PLAIN_HERE else {"instructions"},
    "threads": {"threads", "failing"},
    "seeds-1": SEEDED,
    "seeds-2": SEEDED,
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What is said of a notebook whose compared cells were committed by an undisturbed kernel."""
    path = tmp_path_factory.mktemp("elsewhere") / "notebook.ipynb"
    fails = "1 / ('ELSEWHERE_THREADS' not in os.environ)"
    imports = "import os\nimport random\nimport numpy as np\nimport torch"
    cells = [v4.new_code_cell(imports, id="imports"), v4.new_code_cell(fails, id="failing")]
    for name, source in PRINTS.items():
        cells.append(v4.new_code_cell(source, id=name, metadata={"tags": ["nbval-check-output"]}))
    notebook = v4.new_notebook(cells=cells)
    build_book.execute(notebook, path.parent, path)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(sys, "argv", ["elsewhere.py", str(path), "--conditions", *MOVES])
        with pytest.raises(SystemExit, match="True"):
            elsewhere.main()
    return said.getvalue()


@pytest.mark.parametrize("condition", MOVES)
def test_a_condition_moves_what_it_is_to_move_and_nothing_else(shown, condition):
    moved = re.findall(rf"^==> MOVED: \S+notebook\.ipynb, (.*), under {condition}$", shown, re.M)
    assert {cell.removeprefix("cell ") for cell in moved} == MOVES[condition]
    again = f"notebook.ipynb --conditions {condition}\n"
    assert (again in shown) == bool(MOVES[condition])


def test_what_moved_is_shown_with_both_values_and_with_its_error(shown):
    assert "'1\\n' == '2\\n'" in shown  # committed, printed
    assert "ZeroDivisionError" in shown
    assert f"4 executions, {sum(map(len, MOVES.values()))} cells moved" in shown


def test_a_notebook_that_is_not_run_counts_as_moved(tmp_path):
    path = tmp_path / "notebook.ipynb"
    nbformat.write(v4.new_notebook(), path)
    (found,) = elsewhere.moved(path, "threads")
    assert found.cell == "no cell was run"


def test_an_unknown_condition_is_refused():
    with pytest.raises(SystemExit, match="'sse9' is none of"):
        elsewhere.environment("sse9")
