"""What a notebook's cells become on the book's page."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dropreg.book.plots import COLORS, NEUTRAL
from tools.build_book import ROOT
from tools.staging import SVG, presented

DRAWN = """<?xml version="1.0"?><svg width="360pt" height="9pt" viewBox="0 0 360 9" version="1.1">
 <metadata>who</metadata><defs><clipPath id="p1"><rect/></clipPath></defs>
 <g id="figure_1"><path d="M 1.23456789 2" clip-path="url(#p1)" style="stroke: #0072b2"/>
 <path style="fill: #ffffff"/><text style="fill: #262626">x &lt; 1</text></g></svg>"""


def staged(*cells):
    return presented(new_notebook(cells=list(cells)), "page").cells


def test_a_title_becomes_the_line_that_unfolds():
    (cell,) = staged(new_code_cell("# @title Draw figure 1\nplot()"))
    assert cell.source == "plot()"
    assert cell.metadata.tags == ["hide-input"]
    assert cell.metadata.mystnb["code_prompt_show"] == "Draw figure 1"
    (seen,) = staged(new_code_cell("x = 1  # @title in a line is none"))
    assert "tags" not in seen.metadata
    assert seen.source


def test_solutions_are_known_on_paper():
    (cell,) = staged(
        new_code_cell(
            "# @title Solution to exercise 1: the code\nf()", metadata={"tags": ["hide-cell"]}
        )
    )
    assert cell.metadata.tags == ["hide-cell", "solution"]


def test_a_check_stands_behind_the_last_of_its_equations():
    text = "We\n\n$$\na \\tag{1}\n$$\n\nand\n\n$$\nb\n\\tag{2}\n$$\n\nwhere $c$, and\n\n$$\nd\n$$"
    check = new_code_cell(
        "# @title Checked: (1) and (2)\nf()",
        metadata={"checks": [1, 2], "tags": ["hide-cell", "nbval-check-output"]},
    )
    before, badge, rest = staged(new_markdown_cell(text), check)
    assert before.source.endswith("\\tag{2}\n$$")
    assert "checked" in badge.metadata.tags
    assert rest.source.startswith("where $c$")
    assert before.source + "\n\n" + rest.source == text


@pytest.mark.parametrize("between", [[], [new_code_cell("y = 2")], [new_markdown_cell("text")]])
def test_a_check_stays_where_nothing_follows_its_equation(between):
    check = new_code_cell("# @title Checked: (1)\nf()", metadata={"checks": [1]})
    cells = staged(new_markdown_cell("$$\na \\tag{1}\n$$"), *between, check)
    assert cells[-1].metadata.checks == [1]
    assert len(cells) == 2 + len(between)


def test_a_vote_becomes_a_list_of_its_options():
    (cell,) = staged(
        new_code_cell('# @title Vote: is a < b?\nmy_ab = ""  # @param ["", "yes", "no & never"]')
    )
    assert cell.cell_type == "markdown"
    assert "Is a &lt; b?" in cell.source
    assert 'data-name="my_ab"' in cell.source
    assert re.findall("<li>(.*?)</li>", cell.source) == ["yes", "no &amp; never"]


def test_a_figure_has_the_themes_colours_and_its_caption():
    drawn = new_code_cell("plot()")
    drawn.outputs = [new_output("display_data", {SVG: DRAWN, "text/plain": "<Figure>"})]
    text = "See figure 1, figure 2, and figure 1 of the paper; `figure 1`.\n\n# Figure 1 in a title"
    before, figure, caption = staged(
        new_markdown_cell(text), drawn, new_markdown_cell("**Figure 1.** It $x$ falls.")
    )
    shown = figure.outputs[0].data
    assert list(shown) == ["text/html"]
    html = shown["text/html"]
    assert 'id="page-figure-1"' in html
    assert 'role="img" aria-labelledby="page-figure-1-caption"' in html
    assert "#" not in re.sub(r"url\(#page-figure-1-p1\)", "", html)
    for variable in ("dropout", "ink", "paper"):
        assert f"var(--dr-{variable})" in html
    assert 'id="page-figure-1-p1"' in html
    assert "figure_1" not in html
    assert "1.23 2" in html
    assert "x &lt; 1" in html
    assert 'id="page-figure-1-caption"' in caption.source
    assert "\n\n**Figure 1.** It $x$ falls.\n\n" in caption.source
    assert before.source.count('<a href="#page-figure-1">figure 1</a>') == 1
    assert before.source.replace('<a href="#page-figure-1">figure 1</a>', "figure 1") == text


def test_a_figure_that_moves_keeps_its_script():
    moving = new_code_cell("figure")
    script = '<script type="application/json">{"p":[0.123456789]}</script>'
    html = f'<figure class="dropreg-interactive" data-kind="k">{DRAWN[21:]}{script}</figure>'
    moving.outputs = [new_output("execute_result", {"text/html": html})]
    figure, _ = staged(moving, new_markdown_cell("**Figure 1.** It moves."))
    shown = figure.outputs[0].data["text/html"]
    assert shown.startswith('<figure class="dropreg-interactive" id="page-figure-1" data-kind="k">')
    assert "var(--dr-dropout)" in shown
    assert script in shown


def test_the_committed_notebook_is_not_touched():
    notebook = new_notebook(cells=[new_code_cell("# @title Draw\nplot()")])
    before = nbformat.writes(notebook)
    presented(notebook, "page")
    assert nbformat.writes(notebook) == before


def test_the_style_sheet_has_every_colour_of_a_figure_in_both_themes():
    css = (ROOT / "book/_static/book.css").read_text("utf-8")
    light = re.search(r"^html \{ (--dr-none.*?) \}", css, re.MULTILINE).group(1)
    dark = re.search(r'^html\[data-theme="dark"\] \{ (--dr-none.*?) \}', css, re.MULTILINE).group(1)
    for name, code in (COLORS | NEUTRAL).items():
        assert f"--dr-{name}: {code};" in f"{light};"
        assert f"--dr-{name}: " in dark
        assert f"--dr-{name}: {code};" not in dark
