"""The build's cache: keyed on all that an output depends on, and on nothing else."""

import textwrap

import build_book
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import v4


@pytest.fixture
def tree(tmp_path):
    for name in ("dropreg/core.py", "results/table.csv", "requirements.txt", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one")
    return tmp_path


def notebook(code="1 + 1", text="Text."):
    return v4.new_notebook(cells=[v4.new_markdown_cell(text), v4.new_code_cell(code)])


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        ("dropreg/core.py", True),
        ("dropreg/new.py", True),
        ("results/table.csv", True),
        ("requirements.txt", True),
        ("README.md", False),
        ("dropreg/__pycache__/core.pyc", False),
    ],
)
def test_key_depends_on_what_notebooks_read(tree, changed, matters):
    before = build_book.surroundings_hash(tree)
    (tree / changed).parent.mkdir(exist_ok=True)
    (tree / changed).write_text("two")
    assert (build_book.surroundings_hash(tree) != before) == matters


def test_a_renamed_module_changes_the_key(tree):
    before = build_book.surroundings_hash(tree)
    (tree / "dropreg/core.py").rename(tree / "dropreg/heart.py")
    assert build_book.surroundings_hash(tree) != before


def test_key_depends_on_code_and_not_on_text():
    name = build_book.cache_name(notebook(), "surroundings")
    assert build_book.cache_name(notebook(text="Other."), "surroundings") == name
    assert build_book.cache_name(notebook(code="1 + 2"), "surroundings") != name
    assert build_book.cache_name(notebook(), "others") != name


def test_a_failed_execution_keeps_nothing(tmp_path):
    bad = notebook(code="raise ValueError('on purpose')")
    with pytest.raises(CellExecutionError, match="on purpose"):
        build_book.execute(bad, tmp_path, tmp_path / "kept.ipynb")
    assert not list(tmp_path.iterdir())


def test_outputs_are_not_stored_over_an_edit(tmp_path, monkeypatch):
    monkeypatch.setattr(build_book, "ROOT", tmp_path)
    path = tmp_path / "chapter.ipynb"
    nbformat.write(notebook(code="edited"), path)
    with pytest.raises(SystemExit, match=r"chapter\.ipynb was edited"):
        build_book.store({path: notebook(code="as it ran")})
    assert build_book.code_of(nbformat.read(path, as_version=4)) == ["edited"]


def test_a_kernel_that_dies_gets_a_second_chance(tmp_path):
    code = """
    import os, pathlib
    first = not pathlib.Path("seen").exists()
    pathlib.Path("seen").touch()
    if first:
        os._exit(1)
    """
    kept = tmp_path / "kept.ipynb"
    build_book.execute(notebook(code=textwrap.dedent(code)), tmp_path, kept)
    assert kept.exists()


def test_outputs_land_in_their_cells_and_noise_goes():
    source, executed = notebook(), notebook()
    source.cells[1].metadata = {"tags": ["remove-cell"], "execution": {"shell": "12:00"}}
    executed.cells[1].outputs = [v4.new_output("stream", text="2")]
    executed.cells[1].execution_count = 1
    build_book.fill(source, executed)
    assert source.cells[1].outputs == executed.cells[1].outputs
    assert source.cells[1].metadata == {"tags": ["remove-cell"]}
    assert source.metadata.executed_code == build_book.code_hash(source)
