"""The hook that `make hooks` turns on: what is staged is judged, mended and not committed."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat import v4

from tools import ROOT, before_commit, build_book, notebooks

RIGHT, UGLY = b'import torch\n\nprint(torch.pi, "a")\n', b"import os, torch\nprint(torch.pi,'a')\n"


@pytest.fixture
def clone(tmp_path):
    """A repository with this one's hook and settings, in which it is called by every commit."""
    for name in (".githooks", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "PYTHONPATH"))}
    environment |= {f"GIT_{who}_{what}": "me@localhost" for who in ("AUTHOR", "COMMITTER")
                    for what in ("NAME", "EMAIL")}  # fmt: skip

    def git(*words):
        command = ("git", *words)
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    (tmp_path / "tests").mkdir()
    git("init", "--quiet")
    git("config", "core.hooksPath", ".githooks")
    return tmp_path, git


def test_make_hooks_turns_it_on():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert "\nhooks: env ##" in makefile
    assert "\n\t@git config core.hooksPath .githooks\n" in makefile


def test_a_badly_formatted_file_is_refused_and_mended(clone):
    folder, git = clone
    path = folder / "tests" / "page.py"
    path.write_bytes(UGLY)
    git("add", "tests")
    failed, said = git("commit", "--message", "ugly")
    assert failed
    assert "tests/page.py is mended" in said
    assert path.read_bytes() == RIGHT
    git("add", "tests")
    assert not git("commit", "--message", "right")[0]
    assert git("log", "--format=%s") == (0, "right\n")


def test_what_is_staged_is_judged_and_not_what_lies_beside_it(clone):
    folder, git = clone
    path = folder / "tests" / "page.py"
    path.write_bytes(UGLY)
    git("add", "tests")
    path.write_bytes(RIGHT)
    failed, said = git("commit", "--message", "ugly")
    assert failed
    assert "is not staged as it lies here" in said
    assert path.read_bytes() == RIGHT
    git("add", "tests")
    path.write_bytes(UGLY)
    assert not git("commit", "--message", "right")[0]
    assert path.read_bytes() == UGLY


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (b"x = undefined\n", "tests/page.py:1:5: undefined-name"),
        (b"x = (\n", "tests/page.py:2:1: invalid-syntax"),
    ],
)
def test_what_ruff_cannot_mend_is_told(clone, code, says):
    folder, git = clone
    path = folder / "tests" / "page.py"
    path.write_bytes(code)
    git("add", "tests")
    failed, said = git("commit", "--message", "wrong")
    assert failed
    assert says in said
    assert path.read_bytes() == code


def test_without_an_environment_it_says_what_to_do(clone):
    folder, git = clone
    (folder / ".venv").unlink()
    failed, said = git("commit", "--allow-empty", "--message", "none")
    assert failed
    assert "run `make hooks`" in said


def test_a_notebook_loses_what_an_editor_left():
    cell = v4.new_code_cell("x = {'a': 1}", metadata={"tags": ["hide-input"], "collapsed": True})
    metadata = {"colab": {"provenance": []}, "executed_code": "abc"}
    notebook = v4.new_notebook(cells=[cell], metadata=metadata)
    content, wrong = before_commit.mended("book/page.ipynb", nbformat.writes(notebook).encode())
    assert not wrong
    notebook = nbformat.reads(content.decode(), as_version=4)
    assert notebook.cells[0].source == 'x = {"a": 1}'
    assert notebook.cells[0].metadata == {"tags": ["hide-input"]}
    assert notebook.metadata == notebooks.METADATA | {"executed_code": "abc"}


def test_a_committed_notebook_stays_as_it_is():
    for path in (*build_book.chapters(), *ROOT.glob("assignments/*/**/*.ipynb")):
        content = path.read_bytes()
        assert before_commit.mended(str(path.relative_to(ROOT)), content) == (content, ""), path
