"""The committed notebooks: executed, current, and readable in Colab as they are."""

import base64
import html
import itertools
import json
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from dropreg.book.page import COLUMNS
from tools import build_book, equations, lite, notebooks, reading, staging

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


def test_first_code_cell_installs_only_what_is_missing(notebook, request):
    first = cells(notebook, "code")[0]
    if request.node.callspec.params["notebook"] == str(lite.NOTEBOOK):
        assert "dropreg" not in {*re.findall(r"(?:import|from) (\w+)", first.source)}
        return  # it runs where nothing can be installed: tests/book/test_try_it.py
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


def test_every_figure_is_followed_by_its_caption(notebook):
    numbers = []
    for cell, after in itertools.pairwise(notebook.cells):
        if pictures(cell):
            assert len(pictures(cell)) == 1, f"two figures in one cell:\n{cell.source}"
            found = staging.CAPTION.match(after.source)
            assert found, f"no caption follows:\n{cell.source}"
            assert len(after.source) >= 60, f"this says too little: {after.source}"
            assert "\n\n" not in after.source, f"text that is no caption: {after.source}"
            numbers.append(int(found.group(1)))
        else:
            assert not staging.CAPTION.match(after.source), f"no figure before: {after.source}"
    assert numbers == list(range(1, len(numbers) + 1))
    text = "\n".join(cell.source for cell in cells(notebook, "markdown"))
    for number in numbers:
        assert re.search(rf"(?<!\*\*)[Ff]igures? (\d+ and |\d+, )*{number}\b", text), (
            f"figure {number} is not mentioned in the text"
        )
    for cell in cells(notebook, "markdown"):
        assert not re.search(r"!\[\s*\]\(", cell.source), cell.source


def pictures(cell):
    if cell.cell_type != "code":
        return []
    data = [output.get("data", {}) for output in cell.outputs]
    return [
        d.get(staging.SVG) or d["text/html"]
        for d in data
        if staging.SVG in d or "<figure" in d.get("text/html", "")
    ]


def test_figures_keep_to_the_colours_that_have_a_meaning(notebook):
    for cell in cells(notebook, "code"):
        for picture in pictures(cell):
            colours = set(re.findall(r"(?:fill|stroke|stop-color): *(#[0-9a-f]{6})\b", picture))
            assert colours <= staging.VARIABLES.keys(), cell.source


def test_figures_are_as_wide_as_a_phone_and_light(notebook):
    for cell in cells(notebook, "code"):
        for picture in pictures(cell):
            for width in re.findall(r'<svg[^>]*viewBox="0 0 ([\d.]+) ', picture):
                assert float(width) <= 390, f"{width} points are too wide:\n{cell.source}"
            assert len(picture) < 200_000, cell.source


def test_code_that_is_seen_is_short(notebook):
    for cell in reading.seen_code(notebook):
        lines = cell.source.splitlines()
        assert len(lines) <= reading.LINES, f"{len(lines)} lines:\n{cell.source}"
        assert max(map(len, lines)) <= COLUMNS, cell.source


def test_a_folded_cell_says_what_it_does_in_colab_too(notebook):
    for cell in cells(notebook, "code")[1:]:
        tags = set(cell.metadata.get("tags", []))
        title = reading.folded_under(cell)
        if title is None:
            assert not any(tag.startswith(("hide", "remove")) for tag in tags), cell.source
            assert "checks" not in cell.metadata, cell.source
            continue
        assert cell.metadata.get("cellView") == "form", cell.source
        assert "mystnb" not in cell.metadata, cell.source
        assert max(map(len, cell.source.splitlines())) <= 100, cell.source
        is_vote = staging.VOTE.match(cell.source)
        assert title.startswith("Vote:") == bool(is_vote), cell.source
        if not is_vote:
            assert len({"hide-cell", "hide-input"} & tags) == 1, cell.source
        if title.startswith("Checked:"):
            assert {"hide-cell", "nbval-check-output"} <= tags, cell.source
            assert "holds(" in cell.source
        if title.startswith("Check "):  # an answer that nobody on the page has given
            assert "hide-cell" in tags, cell.source
        if "checks" in cell.metadata:
            named = set(map(int, re.findall(r"\((\d+)\)", title.partition(":")[2])))
            assert title.startswith("Checked:"), cell.source
            assert set(cell.metadata["checks"]) <= spanned(title, named), cell.source


def spanned(title, named):
    """The equations of a title such as "Checked: (1) to (3) and (5)"."""
    for first, last in re.findall(r"\((\d+)\)(?: to |–)\((\d+)\)", title):
        named |= set(range(int(first), int(last) + 1))
    return named


def test_a_vote_is_answered_in_its_section_by_one_of_its_options(notebook):
    open_vote = None
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = re.search(r"^#+ ", cell.source, re.MULTILINE)
            assert not (open_vote and heading), f"not answered in its section: {open_vote}"
        elif vote := staging.VOTE.match(cell.source):
            assert open_vote is None, f"a vote inside another's result:\n{cell.source}"
            options = json.loads(vote["all"])
            assert options[0] == ""
            assert len(options) > 2
            assert all(options[1:])
            open_vote = vote["name"]
        elif "came_out(" in cell.source and reading.folded_under(cell):
            assert f"came_out({open_vote}," in "".join(cell.source.split()), cell.source
            (shown,) = (o.data["text/html"] for o in cell.outputs if "data" in o)
            came = re.search(r'data-option="([^"]*)"', shown)
            assert came is None or html.unescape(came.group(1)) in options[1:], shown
            open_vote = None
    assert open_vote is None


def test_words_that_trip_a_reader(notebook):
    for cell in cells(notebook, "markdown"):
        text = CODE.sub("", cell.source)
        found = re.search(r"\btold apart\b|\bgoal\b|written no prediction", text)
        assert not found, f"{found.group()!r} in:\n{cell.source}"


def test_the_stated_reading_time_is_the_measured_one(notebook, request):
    said = re.findall(r"\*Reading:\* (\d+) minutes", notebook.cells[0].source)
    path = CHAPTERS[request.node.callspec.params["notebook"]]
    minutes = reading.length(path).minutes
    for stated in map(int, said):
        assert minutes <= stated < minutes + 5 + 1, f"{minutes} minutes by tools.reading"


def test_the_main_line_can_be_read():
    sizes = {path: reading.length(path) for path in reading.main_line()}
    too_long = {
        path.name: size for path, size in sizes.items() if size.minutes > 25 or size.numbered > 8
    }
    assert not too_long
    assert sum(size.words for size in sizes.values()) < 20_000


def test_the_first_page_shows_the_figure_of_its_notebook():
    stored = {path: nbformat.read(path, as_version=4) for path in CHAPTERS.values()}
    committed = (build_book.ROOT / build_book.LANDING_FIGURE).read_bytes()
    drawn = build_book.landing_figure(stored, "image/png")
    assert committed == base64.b64decode(drawn), "make notebooks"
    intro = (build_book.ROOT / "intro.md").read_text("utf-8")
    assert f"]({build_book.LANDING_FIGURE.as_posix()})" in intro
