"""The build: what fails stops it, and what was there before stays."""

import re
import shutil
import textwrap
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient.exceptions import CellExecutionError
from nbformat import v4

from tools import build_book, notebooks, times


def notebook(code="1 + 1", text="Text."):
    return v4.new_notebook(cells=[v4.new_markdown_cell(text), v4.new_code_cell(code)])


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
    assert notebooks.code_of(nbformat.read(path, as_version=4)) == ["edited"]


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
    executed.metadata.run = {"key": "of all that decides them"}
    build_book.fill(source, executed)
    assert source.cells[1].outputs == executed.cells[1].outputs
    assert source.cells[1].metadata == {"tags": ["remove-cell"]}
    assert source.metadata.executed_code == notebooks.code_hash(source)
    assert source.metadata.run.key == "of all that decides them"


def test_only_what_has_changed_is_executed(tmp_path, monkeypatch):
    monkeypatch.setattr(build_book, "ROOT", tmp_path)
    monkeypatch.setattr(build_book, "EXECUTED", tmp_path / "executed")
    monkeypatch.setattr(build_book, "landing_figure", lambda notebooks, kind: "")
    monkeypatch.setattr(build_book, "LANDING_FIGURE", Path("figure.png"))
    code = "from pathlib import Path\ncount = Path('count')\n"
    code += "print(count.write_text(count.read_text() + 'x') if count.exists() else 0)"
    path = tmp_path / "chapter.ipynb"
    (tmp_path / "count").touch()

    def printed():
        (shown,) = build_book.execute_all([path], workers=1).values()
        return shown.cells[1].outputs[0].text.strip()

    nbformat.write(notebook(code=code), path)
    build_book.store(build_book.execute_all([path], workers=1))
    assert nbformat.read(path, as_version=4).cells[1].outputs[0].text.strip() == "1"
    shutil.rmtree(tmp_path / "executed")
    assert printed() == "1"  # of the outputs that are stored
    build_book.store(build_book.execute_all([path], workers=1, again=True))
    assert printed() == "2"
    nbformat.write(notebook(code=f"{code}\n"), path)  # whose outputs are of nothing
    assert printed() == "3"
    assert printed() == "3"  # of the execution that is kept


def test_a_failed_cell_stops_the_build_and_the_old_book_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(build_book, "ROOT", tmp_path)
    monkeypatch.setattr(build_book, "EXECUTED", tmp_path / "executed")
    good, bad = tmp_path / "good.ipynb", tmp_path / "bad.ipynb"
    nbformat.write(notebook(), good)
    nbformat.write(notebook(code="raise ValueError('on purpose')"), bad)
    with pytest.raises(SystemExit, match=r"FAILED notebooks: bad\.ipynb"):
        build_book.execute_all([good, bad], workers=1)
    (kept,) = (tmp_path / "executed").iterdir()
    assert nbformat.read(kept, as_version=4).metadata.run.processor_seconds > 0


@pytest.fixture
def rendering(tmp_path, monkeypatch):
    """A book of two pages, of which Sphinx is made to write some, over an older book."""
    monkeypatch.setattr(build_book, "HTML", tmp_path / "html")
    monkeypatch.setattr(build_book, "read_toc", lambda: ["intro", "book/chapter"])
    monkeypatch.setattr(build_book, "print_book", lambda page, pdf: pdf.write_text("the book"))
    monkeypatch.setattr(build_book, "browser", lambda: "chromium")
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "old.html").touch()
    made = []

    def sphinx(source, builder, *, plain):
        for page in made:
            path = source / builder / f"{page}.html"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return source / builder

    monkeypatch.setattr(build_book, "sphinx", sphinx)
    return made, tmp_path


def test_a_missing_page_is_not_published(rendering):
    made, folder = rendering
    made.append("intro")
    with pytest.raises(SystemExit, match="pages not made: book/chapter"):
        build_book.render(folder / "source")
    assert [path.name for path in (folder / "html").iterdir()] == ["old.html"]


def test_a_complete_book_replaces_the_old_one(rendering):
    made, folder = rendering
    made += ["intro", "book/chapter"]
    build_book.render(folder / "source")
    names = {path.name for path in (folder / "html").iterdir()}
    assert names == {"intro.html", "book", build_book.PDF}


def test_in_ci_a_book_without_its_pdf_is_not_published(rendering, monkeypatch, capsys):
    made, folder = rendering
    made += ["intro", "book/chapter"]
    monkeypatch.setattr(build_book, "browser", lambda: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(SystemExit, match="no PDF of the book: no Chromium"):
        build_book.render(folder / "source")
    assert (folder / "html" / "old.html").exists()
    monkeypatch.delenv("CI")
    build_book.render(folder / "source")
    assert "without the PDF" in capsys.readouterr().out


def test_a_forks_site_points_to_the_fork():
    config = yaml.safe_load((build_book.ROOT / "_config.yml").read_text("utf-8"))
    url, site = config["repository"]["url"], config["html"]["baseurl"]
    text = f"{site}intro.html {url}/blob/main/README.md colab/github/{url[19:]}/blob"
    assert build_book.moved(text, None) == text
    assert build_book.moved(text, "Some-One/fork") == (
        "https://some-one.github.io/fork/intro.html https://github.com/Some-One/fork/blob/main/README.md"
        " colab/github/Some-One/fork/blob"
    )
    own_host = build_book.moved(site, "Some-One/some-one.github.io")
    assert own_host == "https://some-one.github.io/"


def test_times_are_shown_and_added():
    fast, slow = notebook(text="# Fast"), notebook(text="# Slow")
    for timed, seconds in (fast, 12.3), (slow, 45.6):
        timed.metadata.run = {
            "processor_seconds": seconds,
            "date": "2026-01-02",
            "machine": "x86_64, 2 cores",
        }
    page = times.index({Path("book/a/fast.ipynb"): fast, Path("book/b.ipynb"): slow})
    assert "| [Fast](../../book/a/fast.ipynb) | 12 | 2026-01-02 | x86_64, 2 cores |" in page
    assert page.endswith("| all of them | 58 | | |\n")


def test_the_longest_are_executed_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build_book, "ROOT", tmp_path)
    monkeypatch.setattr(build_book, "EXECUTED", tmp_path / "executed")
    took = {"short": 5.0, "long": 80.5, "new": None}
    for name, seconds in took.items():
        chapter = notebook(code=f"print({name!r})")
        if seconds is not None:
            chapter.metadata.run = {"processor_seconds": seconds}
        nbformat.write(chapter, tmp_path / f"{name}.ipynb")
    build_book.execute_all([tmp_path / f"{name}.ipynb" for name in took], workers=1)
    shown = re.findall(r"(\w+)\.ipynb: ", capsys.readouterr().out)
    assert shown == ["new", "long", "short"]
