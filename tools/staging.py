"""From an executed notebook to what Sphinx reads: folded cells, badges, votes, figures.

A notebook is written so that it reads well in Colab. On the book's page the same cells become:

- a code cell that begins with `# @title …`: folded under that line;
- one with equations to check in its metadata: a badge, right behind the last of them;
- `# @title Vote: …` with a variable and its options: a question, which the page's script
  (book/_static/votes.js) turns into buttons;
- an SVG, with the caption that follows it: a numbered figure in the colours of the reader's theme.
"""

import copy
import html
import itertools
import json
import re
from typing import Any

import nbformat

from dropreg.book.plots import COLORS, NEUTRAL
from tools.reading import FENCED, folded_under

SVG = "image/svg+xml"
CAPTION = re.compile(r"\A\*\*Figure (\d+)\.\*\* ")
VOTE = re.compile(
    r'\A# @title Vote: (?P<question>.+)\n(?P<name>\w+) = "" +# @param (?P<all>\[.*\])\Z'
)
# In the text, but not where it is another's figure ("figure 2 of the paper").
MENTION = re.compile(r"\b[Ff]igure (\d+)\b(?! of )")
# Book.css gives each of these variables a value in each theme.
VARIABLES = {code: f"var(--dr-{name})" for name, code in (COLORS | NEUTRAL).items()} | {
    "#ffffff": "var(--dr-paper)"
}


def presented(notebook: Any, page: str) -> Any:
    """Return the notebook as the book shows it.

    Args:
        notebook: Executed.
        page: The page's name, of which ids are made: in the PDF all pages are one.
    """
    notebook = copy.deepcopy(notebook)
    figures = {
        int(found.group(1))
        for cell in notebook.cells
        if cell.cell_type == "markdown" and (found := CAPTION.match(cell.source))
    }
    cells: list[Any] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, page, figures)
            cells.append(cell)
        elif vote := VOTE.match(cell.source):
            cells.append(question(cell, vote))
        else:
            fold(cell)
            if "checks" in cell.metadata:
                cells += behind_the_equation(cells, cell)
            else:
                cells.append(cell)
    for shown, caption in itertools.pairwise(cells):
        found = CAPTION.match(caption.source)
        if found and shown.cell_type == "code" and caption.cell_type == "markdown":
            name = f"{page}-figure-{found.group(1)}"
            frame(shown, name)
            caption.source = (
                f'<div class="figure-caption" id="{name}-caption">\n\n{caption.source}\n\n</div>'
            )
    notebook.cells = cells
    return notebook


def fold(cell: Any) -> None:
    """Say to MyST-NB under which line a cell is folded, and what it is, for book.css."""
    title = folded_under(cell)
    if title is None:
        return
    tags = cell.metadata.get("tags", [])
    if not {"hide-cell", "hide-input"} & set(tags):
        tags = [*tags, "hide-input"]
    if title.startswith(("Checked:", "Solution")):
        tags = [*tags, title.split(":")[0].split()[0].lower()]
    cell.metadata.tags = tags
    cell.metadata.mystnb = {"code_prompt_show": title, "code_prompt_hide": title}
    cell.source = cell.source.split("\n", 1)[1] if "\n" in cell.source else ""


def behind_the_equation(cells: list[Any], check: Any) -> list[Any]:
    """Put a check behind the last of its equations, if that stands in the cell before it.

    Args:
        cells: The cells before it; the last of them is cut short where text follows the equation.
        check: The checking cell.

    Returns:
        What comes next: the check, and the rest of the text.
    """
    before = cells[-1]
    if before.cell_type != "markdown":
        return [check]
    ends = [
        found.end()
        for found in re.finditer(r"\$\$.+?\$\$[ \t]*(?=\n\n|\Z)", before.source, re.DOTALL)
        if any(f"\\tag{{{number}}}" in found.group() for number in check.metadata["checks"])
    ]
    rest = before.source[ends[-1] :].strip() if ends else ""
    if not rest:
        return [check]
    before.source = before.source[: ends[-1]]
    return [check, nbformat.v4.new_markdown_cell(rest)]


def question(cell: Any, vote: re.Match[str]) -> Any:
    """A vote as a list, for the page's script, for readers without it, and for paper."""
    options = "".join(
        f"<li>{html.escape(option)}</li>" for option in json.loads(vote["all"]) if option
    )
    words = vote["question"]
    return nbformat.v4.new_markdown_cell(
        f'<div class="dropreg-vote" data-name="{vote["name"]}"><p><strong>Your vote.</strong> '
        f"{html.escape(words[0].upper() + words[1:])}</p><ul>{options}</ul></div>",
        id=cell.id,
    )


def linked(text: str, page: str, figures: set[int]) -> str:
    """Link each mention of a figure of the page, outside code and captions."""

    def link(found: re.Match[str]) -> str:
        if int(found.group(1)) not in figures:
            return found.group()
        return f'<a href="#{page}-figure-{found.group(1)}">{found.group()}</a>'

    start = found.end() if (found := CAPTION.match(text)) else 0
    parts, at = [text[:start]], start
    for code in re.finditer(
        rf"{FENCED.pattern}|`[^`\n]+`|^#[^\n]*$", text, re.DOTALL | re.MULTILINE
    ):
        if code.start() >= at:
            parts += [MENTION.sub(link, text[at : code.start()]), code.group()]
            at = code.end()
    return "".join([*parts, MENTION.sub(link, text[at:])])


def frame(cell: Any, name: str) -> None:
    """Turn the SVG that a cell printed into a figure of the page."""
    for output in cell.outputs:
        data = output.get("data", {})
        if SVG in data:
            picture = themed(data[SVG], name)
            data.clear()
            data["text/html"] = f'<figure class="dropreg-figure" id="{name}">{picture}</figure>'
        elif "text/html" in data:  # one that moves has its frame already
            framed = data["text/html"].replace(
                '<figure class="dropreg-interactive"',
                f'<figure class="dropreg-interactive" id="{name}"',
            )
            data["text/html"] = re.sub(
                "<svg.*?</svg>", lambda svg: themed(svg.group(), name), framed, flags=re.DOTALL
            )


def themed(svg: str, name: str) -> str:
    """An SVG to be set into a page: with the theme's colours, ids of its own, and few digits.

    Args:
        svg: As matplotlib writes it.
        name: What its ids begin with. `NAME-caption` is that of the element which describes it.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"-?\d+\.\d{4,}(?:e-?\d+)?", lambda n: f"{float(n.group()):.2f}", svg)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda i: i.group() if i.group(1) in used else "", svg)
    for old in used:
        svg = re.sub(rf'(?<=["#]){re.escape(old)}(?=["\)])', f"{name}-{old}", svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda c: VARIABLES.get(c.group(), c.group()), svg)
    svg = re.sub(r"\*\{stroke-linejoin[^}]*\}", "", svg)
    svg = re.sub(
        r"<svg[^>]*?(viewBox=\"[^\"]+\")[^>]*>",
        rf'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" \1 '
        rf'role="img" aria-labelledby="{name}-caption">',
        svg,
        count=1,
    )
    return re.sub(r"\s*\n\s*", " ", svg).strip()
