"""The committed notebooks: executed, current, and readable in Colab as they are."""

import base64
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from tools import build_book, equations, notebooks

CHAPTERS = {str(path.relative_to(build_book.ROOT)): path for path in build_book.chapters()}
REPOSITORY = yaml.safe_load((build_book.ROOT / "_config.yml").read_text("utf-8"))["repository"]

INSTALL = f"""\
import importlib.util

if importlib.util.find_spec("dropreg") is None:  # on Colab
    %pip install -q "dropreg[book] @ git+{REPOSITORY["url"]}\""""

# What MyST would take for markup and Colab would put on the screen as it stands.
RAW_MYST = {
    "directive": re.compile(r"^\s*(`{3,}|~{3,})\s*\{", re.MULTILINE),
    "colon fence": re.compile(r"^\s*:{3,}", re.MULTILINE),
    "role": re.compile(r"\{[a-zA-Z][\w:.+-]*\}`"),
    "target": re.compile(r"^\([\w:.-]+\)=\s*$", re.MULTILINE),
    "comment": re.compile(r"^%", re.MULTILINE),
    "block break": re.compile(r"^\+\+\+", re.MULTILINE),
}
CODE = re.compile(r"(?P<fence>`{3,}|~{3,}).*?(?P=fence)|`[^`\n]+`", re.DOTALL)
MATH = re.compile(r"\$\$.+?\$\$|(?<!\\)\$[^$\n]+(?:\n[^$\n]+)*\$", re.DOTALL)


@pytest.fixture(params=CHAPTERS)
def notebook(request):
    return nbformat.read(CHAPTERS[request.param], as_version=4)


def cells(notebook, kind):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def test_the_toc_names_notebooks():
    assert CHAPTERS


def test_executed_in_order_without_error(notebook):
    nbformat.validate(notebook)
    code = cells(notebook, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), (
        "make notebooks"
    )
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error", output.get("evalue")
            assert output.get("name") != "stderr", output.text


def test_outputs_are_of_this_code(notebook):
    assert notebook.metadata.get("executed_code") == notebooks.code_hash(notebook), "make notebooks"


def test_compared_cells_have_something_to_compare(notebook):
    for cell in cells(notebook, "code"):
        tagged = "nbval-check-output" in cell.metadata.get("tags", [])
        if tagged or "NBVAL_CHECK_OUTPUT" in cell.source:
            assert cell.outputs, cell.source


def test_the_stated_time_is_about_the_stored_one(notebook):
    said = re.findall(
        r"\*Running:\* (?:about (\d+) seconds of one core)?", notebook.cells[0].source
    )
    texts = [o.get("text", "") for cell in cells(notebook, "code") for o in cell.outputs]
    printed = re.findall(r"^(\d+) s of one core$", "".join(texts), re.MULTILINE)
    assert len(said) == len(printed) <= 1
    for stated, took in zip(map(int, said), map(int, printed), strict=True):
        assert took / 2 <= stated <= 2 * took, f"stated {stated} s, stored {took} s"


def test_first_cell_is_the_title(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")


def test_first_code_cell_installs_only_what_is_missing(notebook):
    first = cells(notebook, "code")[0]
    assert first.source == INSTALL
    assert "remove-cell" in first.metadata.get("tags", [])
    assert not first.outputs


def test_markdown_is_plain(notebook):
    for cell in cells(notebook, "markdown"):
        text = CODE.sub("", cell.source)
        for name, pattern in RAW_MYST.items():
            found = pattern.search(cell.source if name in ("directive", "role") else text)
            assert not found, f"{name} {found.group()!r} in:\n{cell.source}"
        outside = re.search(r"\\[a-zA-Z]+", MATH.sub("", text))
        assert not outside, f"{outside.group()} stands outside $…$ in:\n{cell.source}"


def test_folded_text_is_still_markdown(notebook):
    for cell in cells(notebook, "markdown"):
        for start in re.finditer(r"</summary>(.{0,2})", cell.source, re.DOTALL):
            assert start.group(1) == "\n\n", f"an empty line goes after </summary>:\n{cell.source}"
        for end in re.finditer(r"(.{0,2})</details>", cell.source, re.DOTALL):
            assert end.group(1) == "\n\n", f"an empty line goes before </details>:\n{cell.source}"


def test_equation_numbers_are_unique_and_in_order(notebook):
    text = "\n".join(CODE.sub("", cell.source) for cell in cells(notebook, "markdown"))
    tags = re.findall(r"\\tag\*?\{([^}]*)\}", text)
    assert len(tags) == len(set(tags))
    numbers = [int(tag) for tag in tags if tag.isdigit()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_every_numbered_equation_is_checked(notebook):
    assert not equations.unchecked(notebook)
    for cell in notebook.cells:
        if "checks" in cell.metadata:
            assert cell.cell_type == "code"
            assert "nbval-check-output" in cell.metadata.get("tags", []), cell.source
            assert set(cell.metadata["checks"]) <= set(equations.equations(notebook)), cell.source


def test_the_index_shows_each_equation_with_what_its_check_printed():
    checked = nbformat.v4.new_code_cell(metadata={"checks": [1, 2]})
    checked.outputs = [nbformat.v4.new_output("stream", text="both: True\n")]
    once_more = nbformat.v4.new_code_cell(metadata={"checks": [2]})
    once_more.outputs = [nbformat.v4.new_output("stream", text="(2): True\n")]
    math = "# Title\n\n$$\na = b \\tag{1}\n$$\n\ntext $c$\n\n$$\nd\n\\tag{2}\n$$ and $$e \\tag{3}$$"
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(math), checked, once_more])
    assert equations.unchecked(page) == {3}
    shown = equations.index({Path("book/part/page.ipynb"): page})
    assert "There are 3 of them." in shown
    assert shown.endswith(
        "## [Title](../../book/part/page.ipynb)\n\n"
        "$$\na = b \\tag{1}\n$$\n\n$$\nd\n\\tag{2}\n$$\n\n"
        "```text\nboth: True\n```\n\nAnd once more (2):\n\n```text\n(2): True\n```\n"
    )


def test_every_figure_says_what_it_shows(notebook):
    for cell in cells(notebook, "code"):
        images = [o for o in cell.outputs if any(m.startswith("image/") for m in o.get("data", {}))]
        assert len(images) <= 1, f"two figures share one description:\n{cell.source}"
        if images:
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) >= 20, f"no alt text:\n{cell.source}"
    for cell in cells(notebook, "markdown"):
        assert not re.search(r"!\[\s*\]\(", cell.source), cell.source


def test_the_first_page_shows_the_figure_of_its_notebook():
    stored = {path: nbformat.read(path, as_version=4) for path in CHAPTERS.values()}
    committed = (build_book.ROOT / build_book.LANDING_FIGURE).read_bytes()
    drawn = build_book.landing_figure(stored, "image/png")
    assert committed == base64.b64decode(drawn), "make notebooks"
    intro = (build_book.ROOT / "intro.md").read_text("utf-8")
    assert f"]({build_book.LANDING_FIGURE.as_posix()})" in intro
