"""The labs: each shows what it found, and the page of the labs shows all of that."""

from pathlib import Path

import nbformat
import pytest

from tools import ROOT, build_book, labs, notebooks

FOUND = dict(
    zip(
        labs.ROWS, ("It falls.", "It rises by 1 ± 0.5 (n = 8).", "holds here", "Both."), strict=True
    )
)


def lab(found=FOUND, title="A lab", tables=1):
    table = "| | |\n|---|---|\n" + "\n".join(
        f"| **{name}** | {text} |" for name, text in found.items()
    )
    cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\nA reader asks.")]
    for _ in range(tables):
        output = nbformat.v4.new_output("execute_result", {"text/markdown": table})
        cells.append(nbformat.v4.new_code_cell(outputs=[output], metadata={"tags": [labs.TAG]}))
    return nbformat.v4.new_notebook(cells=cells, metadata={"run": {"processor_seconds": 20.4}})


def test_the_page_shows_what_the_labs_found_and_what_they_cost():
    page = labs.index(
        {
            labs.FOLDER / "one.ipynb": lab(),
            Path("book/what/noise.ipynb"): nbformat.v4.new_notebook(),
            labs.FOLDER / "two.ipynb": lab(FOUND | {labs.VERDICT: "not decided"}, "Another"),
        }
    )
    measured = "It rises by 1\xa0±\xa00.5 (n\xa0=\xa08)."
    assert f"| [A lab](one.ipynb) | It falls. | holds here | {measured} |" in page
    assert f"| [Another](two.ipynb) | It falls. | not decided | {measured} |" in page
    assert "- [A lab](one.ipynb): Both." in page
    assert "the 2 labs take 41 seconds of one core, the longest 20;" in page


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lab(tables=0), "A lab: 0 tables"),
        (lab(tables=2), "2 tables"),
        (lab({name: FOUND[name] for name in labs.ROWS[:3]}), "has the rows"),
        (lab(FOUND | {labs.VERDICT: "true"}), "verdict is 'true'"),
    ],
)
def test_a_finding_that_says_something_else_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        labs.finding(wrong)


@pytest.mark.parametrize(
    "path",
    [p for p in build_book.chapters() if p.parent == ROOT / labs.FOLDER],
    ids=lambda p: p.stem,
)
def test_a_lab_says_its_claim_its_interval_and_its_seeds(path):
    notebook = nbformat.read(path, as_version=4)
    measured = labs.finding(notebook)[labs.MEASURED]
    assert "±" in measured
    assert "n = " in measured
    text = "\n".join(cell.source for cell in notebook.cells)
    for heading in (
        "What came out",
        "One open question",
        "What to remember",
        "What this page cost",
    ):
        assert f"\n## {heading}" in f"\n{text}"
    assert "# @title Vote: " in text


def test_every_lab_is_a_page_and_a_project():
    folder = sorted((ROOT / labs.FOLDER).glob("*.ipynb"))
    assert folder == sorted(p for p in build_book.chapters() if p.parent == ROOT / labs.FOLDER)
    projects = (ROOT / "book" / "teach" / "projects.md").read_text("utf-8")
    assert folder
    for path in folder:
        assert (
            f"[{notebooks.title(nbformat.read(path, as_version=4))}](../labs/{path.name})"
            in projects
        )
