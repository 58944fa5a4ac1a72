"""The app of the page *Try it*: what is laid out for it, and what is said where there is none."""

import nbformat
import pytest

from tools import ROOT, lite


def test_a_package_brings_what_it_depends_on(monkeypatch):
    monkeypatch.setattr(lite, "IMPORTED", ("scikit-learn",))
    monkeypatch.setattr(lite, "OF_THE_KERNEL", ("ipython",))
    lock = {
        name: {"depends": depends}
        for name, depends in {
            "scikit-learn": ["scipy"], "scipy": ["numpy"], "numpy": [], "pandas": ["numpy"],
            "ipython": ["prompt_toolkit"], "prompt-toolkit": [],
        }.items()
    }  # fmt: skip
    assert lite.needed(lock).keys() == lock.keys() - {"pandas"}


def test_the_app_opens_the_notebook_not_run_and_its_links_lead_to_the_book():
    notebook = nbformat.read(ROOT / lite.NOTEBOOK, as_version=4)
    cells = lite.for_the_app(notebook, "https://example.org/book/").cells
    nbformat.validate(notebook)
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    folded = [cell.metadata.get("jupyter", {}).get("source_hidden", False) for cell in code]
    assert folded == [cell.source.startswith("# @title") for cell in code]
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert "](https://example.org/book/book/start/quickstart.html)" in text
    assert "](https://example.org/book/book/start/../exact/ridge.html)" in text
    assert ".ipynb)" not in text


def test_without_a_package_index_the_book_is_built_and_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lite, "BUILD", tmp_path)
    monkeypatch.setattr(lite, "fetch", lambda: False)
    monkeypatch.delenv("CI", raising=False)
    assert lite.make("") is None
    assert lite.PINS.name in capsys.readouterr().out
    assert "built without the app" in lite.invitation(None)
    assert "href" not in lite.invitation(None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(SystemExit, match="no app for the page"):
        lite.make("")


def test_the_app_is_made_once(monkeypatch, tmp_path):
    monkeypatch.setattr(lite, "BUILD", tmp_path)
    monkeypatch.setattr(lite, "fetch", lambda: True)
    monkeypatch.setattr(lite, "lay_out", lambda site, book: site)
    built = []
    monkeypatch.setattr(lite, "build", built.append)
    assert lite.make("here") == lite.make("here") == lite.APP
    assert len(built) == 1
    lite.make("elsewhere")
    assert built == 2 * [tmp_path / "site"]


def test_a_build_that_fails_is_said_and_not_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lite, "APP", tmp_path / "app")
    monkeypatch.setattr(lite, "PACKAGES", tmp_path / "packages")  # with no JupyterLite in it
    site = tmp_path / "site"
    site.mkdir()
    with pytest.raises(SystemExit, match="did not make the app"):
        lite.build(site)
    assert "jupyterlite_core" in capsys.readouterr().out
