"""Feedback pages, and how a student's words are shown: safe by construction.

A page is one HTML file that fetches nothing and runs nothing: Markdown without HTML, formulas in
MathML of elements that only show, pictures that travel with the notebook, and a policy that forbids
the browser everything else. The formgrader shows Markdown in the same way.
"""

import dataclasses
import html
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element

import nbformat
from jinja2 import pass_context
from jinja2.runtime import Context
from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from mdit_py_plugins.amsmath import amsmath_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbformat import NotebookNode
from nbgrader import utils
from nbgrader.api import Gradebook
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from traitlets.config import Config

from assignments.grader.reading import question

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
LINKS = re.compile(r"(https?://|mailto:|#)", re.I)
PICTURES = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=\s]+")
# What a formula may consist of; none of it fetches, links or runs.
ELEMENTS = {
    "math", "mi", "mn", "mo", "ms", "mtext", "mspace", "mrow", "mfrac", "msqrt", "mroot",
    "mstyle", "merror", "mpadded", "mphantom", "msub", "msup", "msubsup", "munder", "mover",
    "munderover", "mmultiscripts", "mprescripts", "none", "mtable", "mtr", "mtd", "menclose",
}  # fmt: skip
ATTRIBUTES = {
    "accent", "accentunder", "columnalign", "columnspacing", "columnlines", "columnspan",
    "depth", "display", "displaystyle", "fence", "form", "height", "largeop", "linebreak",
    "linethickness", "lspace", "mathcolor", "mathsize", "mathvariant", "maxsize", "minsize",
    "movablelimits", "notation", "rowalign", "rowlines", "rowspacing", "rspace",
    "scriptlevel", "separator", "stretchy", "symmetric", "voffset", "width",
}  # fmt: skip
DEFINES = re.compile(r"\\(def|let|(re)?newcommand|DeclareMathOperator)(?![A-Za-z])")
# Longer ones are shown as they are: typesetting may take the square of their length.
MAX_FORMULA, MAX_SET = 5_000, 20_000
FOLDS = re.compile(r"(<p>)?&lt;(/?(?:details|summary))&gt;(</p>)?")


# --- What a student writes, as HTML ---------------------------------------------------------------


def mathml(latex: str, display: bool) -> str:
    """A formula, typeset; as it was written where that cannot be done."""
    as_written = f'<code class="tex">{html.escape(latex)}</code>'
    if len(latex) > MAX_FORMULA or DEFINES.search(latex):
        return as_written
    # The converter has no aligned environments within others.
    latex = re.sub(r"\\(begin|end)\{(aligned|split)\}", r"\\\1{align*}", latex)
    try:
        return safe(convert_to_element(latex, display="block" if display else "inline"))
    except Exception:  # of whatever the converter stumbles over
        return as_written


def safe(element: Element) -> str:
    """An element of MathML as text, with what only shows."""
    if element.tag not in ELEMENTS:
        raise ValueError(f"<{element.tag}> in a formula")
    attributes = "".join(
        f' {name}="{html.escape(value)}"' for name, value in element.items() if name in ATTRIBUTES
    )
    inner = html.escape(html.unescape(element.text or ""), quote=False)
    inner += "".join(map(safe, element))
    return f"<{element.tag}{attributes}>{inner}</{element.tag}>"


def picture(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """A picture that is here; the words in its place, if it is elsewhere."""
    token = tokens[index]
    source = str(token.attrs.get("src", ""))
    name = unquote(source.removeprefix("attachment:"))
    if source.startswith("attachment:") and (bundle := env["pictures"].get(name)):
        ((kind, data),) = bundle.items()
        source = f"data:{kind};base64,{''.join(data.split())}"
    words = html.escape(token.content or name)
    if not PICTURES.fullmatch(source):
        return f'<span class="missing">[picture not shown: {words}]</span>'
    return f'<img src="{source}" alt="{words}">'


def leads_somewhere(url: str) -> bool:
    """Whether an address is a page's, or a picture's that is here."""
    here = url.startswith("attachment:") or PICTURES.fullmatch(url)
    return bool(here or LINKS.match(url))


def converter() -> MarkdownIt:
    """Markdown without HTML, with formulas, tables and pictures."""
    md = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    dollarmath_plugin(
        md,
        allow_labels=False,
        double_inline=True,
        renderer=lambda latex, options: mathml(latex, options["display_mode"]),
    )
    amsmath_plugin(md, renderer=lambda latex: mathml(latex, display=True))
    md.add_render_rule("image", picture)
    md.validateLink = leads_somewhere  # type: ignore[method-assign]
    return md


MARKDOWN = converter()


def markdown(source: str, pictures: Mapping[str, Any] | None = None) -> str:
    """Markdown as HTML; the folds of given cells stay folds."""
    if len(source) > MAX_SET:
        return as_it_is(source)
    shown = MARKDOWN.render(source, {"pictures": pictures or {}})
    shown = FOLDS.sub(r"<\2>", shown)
    # A picture's address is no link's.
    shown = re.sub(r'<a href="(?:attachment|data):[^"]*"', "<a", shown, flags=re.I)
    for plain, ours in (
        ("<a href=", '<a rel="noreferrer nofollow" href='),
        ("<pre>", '<pre tabindex="0">'),
        ("<table>", '<div class="wide" tabindex="0"><table>'),
        ("</table>", "</table></div>"),
    ):
        shown = shown.replace(plain, ours)
    return shown


@pass_context
def markdown_in_formgrader(context: Context, source: str) -> str:
    """As nbconvert's filter of this name. The class keeps MathJax away, which has links."""
    cell = context.get("cell") or {}
    return f'<div class="tex2jax_ignore">{markdown(source, cell.get("attachments"))}</div>'


def show_safely(c: Config) -> None:
    """Let the formgrader show Markdown as the feedback pages do."""
    c.HTMLExporter.filters = {"markdown2html": markdown_in_formgrader}


def as_it_is(text: str) -> str:
    return f'<pre tabindex="0">{html.escape(text)}</pre>'


def coloured(source: str) -> str:
    if len(source) > MAX_SET:
        return as_it_is(source)
    shown = str(highlight(source, PythonLexer(), HtmlFormatter(cssclass="code")))
    return shown.replace("<pre>", '<pre tabindex="0">')


# --- The page -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a test or an answer has.

    Attributes:
        name: What it is about, for a student.
        grade_id: The name of its cell.
        points: What it has so far.
        max_points: What it can have; 0 for a function, which its tests mark.
        waiting: Whether a person has yet to read it.
        comment: What the person wrote.
    """

    name: str
    grade_id: str
    points: float
    max_points: float
    waiting: bool = False
    comment: str = ""

    @property
    def state(self) -> tuple[str, str]:
        """How it is called in the style sheet, and to the student."""
        whole = f"of {number(self.max_points)}"
        if self.waiting:
            return "waits", f"… waits to be marked ({number(self.max_points)})"
        if self.points >= self.max_points:
            return "full", f"✓ {number(self.points)} {whole}"
        kind, sign = ("part", "◐") if self.points > 0 else ("none", "✗")
        return kind, f"{sign} {number(self.points)} {whole}"


def number(points: float) -> str:
    return f"{points:.2f}".rstrip("0").rstrip(".")


def summary(marks: Iterable[Mark]) -> str:
    """The score so far; what waits is not counted as lost."""
    marks = [mark for mark in marks if mark.max_points]
    read = [mark for mark in marks if not mark.waiting]
    points, best = sum(m.points for m in read), sum(m.max_points for m in read)
    waiting = sum(mark.max_points for mark in marks if mark.waiting)
    share = 100 * points / best if best else 0
    more = f"{number(waiting)} points wait to be marked; the assignment has "
    more += f"{number(best + waiting)} in all."
    return (
        f'<p class="score"><strong>{number(points)}</strong> of {number(best)} points'
        f"{' so far' if waiting else ''}</p>"
        '<div class="bar" aria-hidden="true">'
        f'<div style="width: {min(share, 100):.0f}%"></div></div>'
        f"{f'<p>{more}</p>' if waiting else ''}"
    )


def table(marks: Iterable[Mark]) -> str:
    rows = []
    for mark in marks:
        if mark.max_points:
            kind, points = mark.state
            rows.append(
                f'<tr class="{kind}"><td><a href="#{html.escape(mark.grade_id)}">'
                f'{named(mark.name)}</a></td><td class="points">{points}</td></tr>'
            )
    head = '<tr><th scope="col">What</th><th scope="col">Points</th></tr>'
    return (
        f'<div class="wide" tabindex="0"><table class="marks"><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def named(name: str) -> str:
    """A name, with the function before the colon as code."""
    function, colon, rest = html.escape(name).partition(": ")
    return f"<code>{function}</code> {rest}" if colon else function


def outputs(cell: NotebookNode) -> str:
    """What a cell shows: text and pictures."""
    shown = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        for kind in ("image/png", "image/jpeg"):
            if kind in data:
                source = f"data:{kind};base64,{''.join(data[kind].split())}"
                if PICTURES.fullmatch(source):
                    shown.append(f'<img src="{source}" alt="A picture that this cell made">')
        text = output.get("text") or data.get("text/plain") or output.get("evalue") or ""
        if text:
            shown.append(f'<pre class="output" tabindex="0">{html.escape(text)}</pre>')
    return "".join(shown)


def verdict(mark: Mark, cell: NotebookNode) -> str:
    """What a test found, or what a person wrote about an answer."""
    parts = []
    if mark.max_points:
        parts.append(f"<p><strong>{mark.state[1]}</strong></p>")
    if cell.cell_type == "code" and utils.is_grade(cell):
        said = [o.get("evalue") or "" for o in cell.outputs if o.output_type == "error"]
        parts += [f"<p>{html.escape(text)}</p>" for text in said if text]
    if mark.comment:
        parts.append(f'<p class="comment">{html.escape(mark.comment)}</p>')
    kind = mark.state[0] if mark.max_points else "comments"
    return f'<div class="verdict {kind}">{"".join(parts)}</div>' if parts else ""


def shown_cell(cell: NotebookNode, mark: Mark | None) -> str:
    test = cell.cell_type == "code" and utils.is_grade(cell)
    label = f' id="{html.escape(mark.grade_id)}"' if mark else ""
    name = f"<h5>{named(mark.name)}</h5>" if mark and mark.max_points else ""
    if cell.cell_type != "code":
        body = markdown(cell.source, cell.get("attachments"))
        # The page's own headings are the first two levels.
        body = re.sub(r"(</?h)([1-4])>", lambda m: f"{m[1]}{int(m[2]) + 2}>", body)
    else:
        body = coloured(cell.source) + ("" if test else outputs(cell))
    own = utils.is_solution(cell) or str(cell.get("id", "")).startswith("theirs-")
    kind = "test" if test else "own" if own else "given"
    return (
        f'<section class="{kind}"{label}>{name}{body}'
        f"{verdict(mark, cell) if mark else ''}</section>"
    )


def render(
    notebook: NotebookNode,
    marks: Sequence[Mark],
    *,
    student: str,
    title: str,
    notes: Sequence[str] = (),
) -> str:
    """The page of one student, as a whole: nothing on it is fetched, and nothing runs."""
    by_id = {mark.grade_id: mark for mark in marks}
    cells = []
    for cell in notebook.cells:
        if "noticed" in cell.metadata.get("dropreg", {}):
            continue
        grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
        cells.append(shown_cell(cell, by_id.get(grade_id)))
    noticed = "".join(f"<li>{html.escape(' '.join(note.split()))}</li>" for note in notes)
    if noticed:
        noticed = f"<h2>Noticed while grading</h2><ul>{noticed}</ul>"
    light, dark = (
        HtmlFormatter(style=style, cssclass="code").get_style_defs(".code")
        for style in ("a11y-high-contrast-light", "github-dark")
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{html.escape(title)}: feedback for {html.escape(student)}</title>
<style>{STYLE}
{light}
@media (prefers-color-scheme: dark) {{ {dark} }}
{LAST}</style>
</head>
<body>
<header>
<p class="who">Feedback for <strong>{html.escape(student)}</strong></p>
<h1>{html.escape(title)}</h1>
{summary(marks) if marks else '<p class="score">Your file could not be graded.</p>'}
</header>
<main>
{f"<h2>Points</h2>{table(marks)}" if marks else ""}
{noticed}
{f"<h2>Your notebook</h2>{''.join(cells)}" if cells else ""}
</main>
</body>
</html>
"""


# --- From the gradebook ---------------------------------------------------------------------------


def names_of_tests(release: NotebookNode, assignment: str) -> dict[str, str]:
    """What each graded cell is about: its question, or its function and what the check says."""
    try:
        checks: Any = importlib.import_module(f"dropreg.book.checks.{assignment}")
    except ModuleNotFoundError:  # an assignment of the instructor's own
        checks = None
    names = {}
    for cell in release.cells:
        if not utils.is_grade(cell):
            continue
        grade_id = cell.metadata.nbgrader.grade_id
        function, _, rest = grade_id.partition("-")
        name = f"{function}: {rest.replace('_', ' ').replace('-', ' ')}" if rest else grade_id
        if utils.is_solution(cell):
            asked = question(cell.source)
            name = f"Question {asked}" if asked else name
        else:
            called = re.search(r"\bcheck\.(\w+)\(", cell.source)
            said = getattr(getattr(checks, called[1], None), "__doc__", None) if called else None
            if said:
                name = f"{function}: {said.splitlines()[0].rstrip('.')}"
        names[grade_id] = name
    return names


def marks_of(submission: Any, names: Mapping[str, str]) -> list[Mark]:
    """What the gradebook has for one student, in the order of the names; then what is said."""
    (notebook,) = submission.notebooks
    comments = {c.name: c.manual_comment or "" for c in notebook.comments}
    found = {
        grade.name: Mark(
            names.get(grade.name, grade.name),
            grade.name,
            grade.score or 0.0,
            grade.max_score,
            bool(grade.needs_manual_grade),
            comments.pop(grade.name, ""),
        )
        for grade in notebook.grades
    }
    ordered = sorted(found.values(), key=lambda mark: list(names).index(mark.grade_id))
    said = [Mark(name, name, 0, 0, comment=words) for name, words in comments.items() if words]
    return ordered + said


def write(book: Gradebook, course: Path, assignment: str, student: str) -> Path:
    """Write a student's page from the gradebook and the graded notebook; return where it is."""
    file = f"{assignment}.ipynb"
    release = nbformat.read(course / "release" / assignment / file, as_version=4)
    graded = nbformat.read(course / "autograded" / student / assignment / file, as_version=4)
    # The graded notebook holds the hidden tests; the release never did.
    own = {
        cell.metadata.nbgrader.grade_id: cell.source
        for cell in release.cells
        if utils.is_locked(cell)
    }
    for cell in graded.cells:
        if utils.is_locked(cell):
            cell.source = own.get(cell.metadata.nbgrader.get("grade_id"), "")
    page = render(
        graded,
        marks_of(book.find_submission(assignment, student), names_of_tests(release, assignment)),
        student=student,
        title=title_of(release),
        notes=graded.metadata.get("dropreg", {}).get("notes", []),
    )
    return put(page, course, assignment, student)


def write_refusal(course: Path, assignment: str, student: str, notes: Sequence[str]) -> Path:
    """Write the page of a student whose file could not be graded: why, and nothing else."""
    release = nbformat.read(course / "release" / assignment / f"{assignment}.ipynb", as_version=4)
    page = render(NotebookNode(cells=[]), [], student=student, title=title_of(release), notes=notes)
    return put(page, course, assignment, student)


def title_of(release: NotebookNode) -> str:
    return str(release.cells[0].source.split("\n")[0].lstrip("# "))


def put(page: str, course: Path, assignment: str, student: str) -> Path:
    target = course / "feedback" / student / assignment / f"{assignment}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    half_written = target.with_suffix(".part")
    half_written.write_text(page, "utf-8")
    half_written.replace(target)
    return target


STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --page: #ffffff; --soft: #f4f6f8;
  --line: #d0d7de; --faint: #57606a; --link: #0550ae; --full: #116329; --none: #a40e26;
  --waits: #7a4b00; --full-page: #e9f6ec; --none-page: #fdeef0; --waits-page: #fff6e0; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --page: #0d1117; --soft: #161b22;
  --line: #30363d; --faint: #9da7b3; --link: #79b8ff; --full: #6fdd8b; --none: #ff9492;
  --waits: #f0c25c; --full-page: #10241a; --none-page: #2d1417; --waits-page: #2a2110; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 1rem 4rem; max-width: 50rem; background: var(--page);
  color: var(--text); font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.2rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.6rem; }
h3, h4 { font-size: 1.15rem; margin: 1.6rem 0 0.5rem; }
h5, h6 { font-size: 1rem; margin: 0 0 0.5rem; }
a { color: var(--link); }
header { padding-top: 2rem; }
.who { margin: 0; color: var(--faint); }
.score { font-size: 1.15rem; margin: 0; }
.score strong { font-size: 2rem; }
.bar { height: 0.5rem; border-radius: 0.25rem; background: var(--line); margin: 0.4rem 0 0.8rem; }
.bar div { height: 100%; border-radius: 0.25rem; background: var(--full); }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.94rem; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.6rem;
  border-bottom: 1px solid var(--line); overflow-wrap: normal; }
.marks { width: 100%; }
.marks td:first-child { min-width: 9rem; }
.marks td:last-child { min-width: 5rem; }
.full .points { color: var(--full); }
.part .points, .waits .points { color: var(--waits); }
.none .points { color: var(--none); }
section { margin: 0 0 1rem; scroll-margin-top: 1rem; overflow-x: auto; }
section > :first-child { margin-top: 0; }
.own { border-left: 4px solid var(--link); padding-left: 0.9rem; }
.test { border: 1px solid var(--line); border-radius: 0.5rem; padding: 0.8rem; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 0.25rem; }
math[display="block"] { overflow-x: auto; overflow-y: hidden; max-width: 100%; padding: 0.3rem 0; }
code, pre { font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace;
  font-size: 0.875rem; }
code { background: var(--soft); padding: 0.1em 0.3em; border-radius: 0.25rem; }
pre code { background: none; padding: 0; }
details { border: 1px solid var(--line); border-radius: 0.5rem; padding: 0.4rem 0.8rem; }
.missing, .who { font-style: normal; color: var(--faint); }
.verdict { margin-top: 0.6rem; padding: 0.6rem 0.8rem; border-radius: 0.5rem;
  background: var(--soft); }
.verdict p { margin: 0; white-space: pre-wrap; }
.verdict p + p { margin-top: 0.4rem; }
.verdict.full { background: var(--full-page); }
.verdict.none { background: var(--none-page); }
.verdict.part, .verdict.waits { background: var(--waits-page); }
.comment::before { content: "Comment: "; font-weight: 600; }
blockquote { margin-left: 0; padding-left: 1rem; border-left: 3px solid var(--line); }
"""
# After the colours of the code, which bring a background of their own.
LAST = """
.code { background: none; }
pre { margin: 0.5rem 0; padding: 0.7rem 0.8rem; overflow-x: auto; max-width: 100%;
  background: var(--soft); border-radius: 0.5rem; line-height: 1.45; overflow-wrap: normal; }
pre.output { background: none; border: 1px solid var(--line); max-height: 30rem; overflow: auto; }
"""
