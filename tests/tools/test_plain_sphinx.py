"""The book without Jupyter Book: Sphinx alone makes the same files."""

import os
import shutil
import subprocess
import sys

import pytest

from tools import build_book, lite


def made(folder):
    """What Sphinx has made there: no printed book, no app, nor the hash of the settings it got."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    others = (build_book.PDF, ".buildinfo")
    return {path for path in files if path.name not in others and path.parts[0] != lite.FOLDER}


@pytest.mark.slow
def test_the_same_book_where_jupyter_book_cannot_be_imported(tmp_path, monkeypatch):
    staged = build_book.BUILD / "source"
    assert (staged / "conf.py").is_file(), f"{staged} has no conf.py: run `make book`"
    shutil.copytree(staged, tmp_path / "source", ignore=shutil.ignore_patterns("_build"))
    (tmp_path / "jupyter_book.py").write_text("raise ImportError('on purpose')")
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    command = (sys.executable, "-c", "import jupyter_book")
    assert "on purpose" in subprocess.run(command, stderr=subprocess.PIPE, text=True).stderr

    plain = build_book.sphinx(tmp_path / "source", "html", plain=True)
    assert made(plain) == made(build_book.HTML)
    other = [
        path.as_posix()
        for path in sorted(made(plain))
        if (plain / path).read_bytes() != (build_book.HTML / path).read_bytes()
    ]
    assert not other, f"not as in {build_book.HTML}: {other}; is that book of these sources?"
