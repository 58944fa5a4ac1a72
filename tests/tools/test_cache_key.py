"""An execution is kept until something changes that decides its outputs, and no longer."""

import nbformat
import pytest
from nbformat import v4

from tools import build_book, cache_key, lite, notebooks

TREE = {
    "requirements.txt": "torch",
    "dropreg/__init__.py": "from dropreg.noise import Law",
    "dropreg/noise.py": "import typing\nif typing.TYPE_CHECKING:\n    import dropreg.fused",
    "dropreg/fused.py": "",
    "dropreg/py.typed": "",
    "dropreg/book/__init__.py": "",
    "dropreg/book/plots.py": "def draw():\n    from . import colors\n    from .. import measure",
    "dropreg/book/colors.py": "",
    "dropreg/measure.py": "",
    "dropreg/book/checks/__init__.py": "from .core import expect",
    "dropreg/book/checks/core.py": "",
    "dropreg/book/checks/masks.py": "import dropreg.book.checks.core as core",
    "dropreg/book/experiments/__init__.py": "import torch",
    "dropreg/book/experiments/ledger.py": "import dropreg.book.plots",
    "results/small/run.json": "{}",
    "results/speed.csv": "",
    "results/README.md": "",
    "assignments/grader/grading.py": "",
    "book/chapter.md": "",
}
LIBRARY = {"requirements.txt", "dropreg/__init__.py", "dropreg/noise.py"}
PLOTS = {"dropreg/book/__init__.py", "dropreg/book/plots.py", "dropreg/book/colors.py"}
PLOTS |= {"dropreg/measure.py"}
CHECKS = {"dropreg/book/__init__.py", "dropreg/book/checks/__init__.py"}
CHECKS |= {"dropreg/book/checks/core.py"}
EXPERIMENTS = {"dropreg/book/__init__.py", "dropreg/book/experiments/__init__.py"}
EXPERIMENTS |= {"results/small/run.json", "results/speed.csv"}
MAGICS = """
import importlib.util
if importlib.util.find_spec("dropreg") is None:
    %pip install -q dropreg
!ls
files = !ls
from dropreg.book import plots
"""


@pytest.fixture
def tree(tmp_path):
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def notebook(*code, text="Text."):
    cells = [v4.new_markdown_cell(text), *map(v4.new_code_cell, code)]
    return v4.new_notebook(cells=cells)


@pytest.mark.parametrize(
    ("code", "decides"),
    [
        ("import torch\nprint('import dropreg')", {"requirements.txt"}),
        ("import dropreg", LIBRARY),
        ("from dropreg import Law as L", LIBRARY),
        ("from dropreg import fused", LIBRARY | {"dropreg/fused.py"}),
        ("def later():\n    import dropreg.fused as f", LIBRARY | {"dropreg/fused.py"}),
        ("import dropreg.book.plots", LIBRARY | PLOTS),
        (MAGICS, LIBRARY | PLOTS),
        ("%%bash\nimport dropreg", {"requirements.txt"}),
        ("import dropreg (no Python", {"requirements.txt"}),
        ("from dropreg.book.checks import expect", LIBRARY | CHECKS),
        (
            "from dropreg.book.checks.masks import dropout",
            LIBRARY | CHECKS | {"dropreg/book/checks/masks.py"},
        ),
        ("from dropreg.book.experiments import Store", LIBRARY | EXPERIMENTS),
        (
            "from dropreg.book.experiments.ledger import table",
            LIBRARY | EXPERIMENTS | PLOTS | {"dropreg/book/experiments/ledger.py"},
        ),
    ],
)
def test_what_is_imported_decides_and_nothing_else(tree, code, decides):
    """So a comma in a check, or in the grader, executes no chapter that does not use it."""
    page = notebook("x = 1", code)
    before = cache_key.cache_key(page, tree)
    changed = set()
    for name, text in TREE.items():
        (tree / name).write_text(f"{text}\n# a comma")
        if cache_key.cache_key(page, tree) != before:
            changed.add(name)
        (tree / name).write_text(text)
    assert cache_key.cache_key(page, tree) == before
    assert changed == decides


def test_new_results_execute_what_reads_results(tree):
    pages = [notebook("import dropreg.book.plots"), notebook("import dropreg.book.experiments")]
    before = [cache_key.cache_key(page, tree) for page in pages]
    (tree / "results/small/new.json").write_text("{}")
    after = [cache_key.cache_key(page, tree) for page in pages]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]


def test_a_module_that_takes_the_place_of_a_name_decides(tree):
    page = notebook("from dropreg.book import draw")
    before = cache_key.cache_key(page, tree)
    (tree / "dropreg/book/draw.py").write_text("")
    assert cache_key.cache_key(page, tree) != before


def test_a_renamed_file_decides(tree):
    page = notebook("import dropreg.book.experiments")
    before = cache_key.cache_key(page, tree)
    (tree / "results/small/run.json").rename(tree / "results/small/other.json")
    assert cache_key.cache_key(page, tree) != before


def test_code_decides_and_text_does_not(tree):
    before = cache_key.cache_key(notebook("1 + 1"), tree)
    assert cache_key.cache_key(notebook("1 + 1", text="Other."), tree) == before
    assert cache_key.cache_key(notebook("1 + 2"), tree) != before


def test_chapters_find_the_results_only_through_what_reads_them():
    """Else a new row would not execute them."""
    for path in (cache_key.ROOT / "book").rglob("*.ipynb"):
        assert "results/" not in "".join(notebooks.code_of(v4.reads(path.read_text("utf-8"))))
    for path in (cache_key.ROOT / "dropreg").rglob("*.py"):
        if "results_folder" in path.read_text("utf-8"):
            assert "dropreg/book/experiments/" in path.as_posix()


def test_where_the_library_is_installed_from_makes_no_output(tree):
    def key(address, code="1 + 1"):
        install = f"{notebooks.INSTALLS}  # on Colab\n    %pip install -q '{address}'"
        return cache_key.cache_key(notebook(install, code), tree)

    assert key("dropreg @ git+https://github.com/somebody/dropreg") == key("dropreg")
    assert key("dropreg") != key("dropreg", code="2 + 2")


def test_every_chapters_first_cell_is_known_as_the_one_that_installs():
    for path in set(build_book.chapters()) - {build_book.ROOT / lite.NOTEBOOK}:  # installs nothing
        first = notebooks.code_of(nbformat.read(path, as_version=4))[0]
        assert first.startswith(notebooks.INSTALLS), path
