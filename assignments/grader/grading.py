"""From a downloaded notebook to marks: put in order, run in the sandbox, test.

nbgrader does the rest: gradebook, manual grading, feedback pages.
"""

import ast
import contextlib
import html
import io
import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_output
from nbgrader import utils
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Bool, Integer

from assignments.grader.definitions import Notebook, define, find, is_stub, statements
from assignments.grader.sandbox import Limits, Sandbox
from dropreg.book.checks import Answer, Mistake

MAX_FILE, MAX_TEXT, MAX_IMAGES = 20_000_000, 20_000, 6_000_000
IMAGES = ("image/png", "image/jpeg")
# What a picture's text and its name may consist of: neither may end an attribute of a page.
BASE64, NAME = re.compile(r"[A-Za-z0-9+/=\s]+"), re.compile(r"[\w .()-]+")
# Where a link of a student may lead; Colab writes pictures into the text.
LINKS = r"(https?://|mailto:|attachment:|data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+[\s)])"
MARKER = re.compile(r"\W*(Your answer to question \d+)\b")


# --- Reading what students send -------------------------------------------------------------------


def read_submission(path: Path) -> tuple[NotebookNode | None, list[str]]:
    """Read a notebook of any origin; None, and why, if it is none."""
    if path.stat().st_size > MAX_FILE:
        return None, [f"The file is larger than {MAX_FILE // 1_000_000} MB and was not read."]
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
        notebook = nbformat.convert(nbformat.from_dict(content), 4)
        cells = [c for c in notebook.cells if isinstance(c.source, str | list)]
        for cell in cells:
            cell.source = "".join(cell.source)
            if not isinstance(cell.get("metadata"), dict):
                cell.metadata = NotebookNode()
    except Exception as error:  # of whatever a file may hold
        return None, [f"The file is not a notebook that can be read ({type(error).__name__})."]
    notebook.cells = cells
    return notebook, []


def names_of(cell: NotebookNode) -> set[str]:
    """What a cell may be known by: its grade_id, its id, and where Colab keeps its id."""
    nbgrader = cell.metadata.get("nbgrader")
    grade_id = nbgrader.get("grade_id") if isinstance(nbgrader, dict) else None
    found = (grade_id, cell.get("id"), cell.metadata.get("id"))
    return {name for name in found if isinstance(name, str)}


def defined(source: str) -> dict[str, bool]:
    """The functions at the top of a cell, and whether each is written."""
    try:
        nodes = [n for n in statements(source) if isinstance(n, ast.FunctionDef)]
    except SyntaxError:
        return {}
    return {node.name: not is_stub(node) for node in nodes}


def question(source: str) -> str | None:
    found = MARKER.match(source.strip())
    return found[1] if found else None


def align(submitted: NotebookNode, release: NotebookNode) -> NotebookNode:
    """Return the released notebook with the student's answers and further cells in their places.

    Metadata, tests and given cells are the release's own. An answer is the last written function of
    its name, wherever it stands; a text the last one under its heading. If there is none, the cell
    with the id of the release. Everything else that the student wrote is kept where it stood.
    """
    theirs = list(submitted.cells)
    ids = [names_of(cell) for cell in theirs]
    by_id = {name: i for i in reversed(range(len(theirs))) for name in ids[i]}
    functions = [defined(c.source) if c.cell_type == "code" else {} for c in theirs]
    sources = [cell.source.strip() for cell in theirs]
    # Which cell of the release each of theirs stands for, by its id or by its text.
    own_text = {cell.source.strip(): i for i, cell in reversed(list(enumerate(release.cells)))}
    own_ids = {name: i for i, cell in enumerate(release.cells) for name in names_of(cell)}
    place = [
        next((own_ids[n] for n in ids[i] if n in own_ids), own_text.get(sources[i]))
        for i in range(len(theirs))
    ]
    result, used = [], set()
    for index, cell in enumerate(release.cells):
        new = NotebookNode(json.loads(json.dumps(cell)))
        candidates = []
        if utils.is_solution(cell) and cell.cell_type == "code":
            name = cell.metadata.nbgrader.grade_id
            candidates = [i for i, f in enumerate(functions) if f.get(name)]
        elif utils.is_solution(cell):
            heading = question(cell.source)
            candidates = [
                i
                for i, other in enumerate(theirs)
                if other.cell_type == "markdown"
                and (i not in used)
                and question(other.source) == heading
                and sources[i] != cell.source.strip()
            ]
        same = by_id.get(cell.metadata.get("nbgrader", {}).get("grade_id", cell.get("id")))
        if not candidates and same is not None and theirs[same].cell_type == cell.cell_type:
            candidates = [same]
        if candidates and not utils.is_locked(cell):
            chosen = theirs[candidates[-1]]
            used.add(candidates[-1])
            if cell.cell_type == "code" or utils.is_solution(cell):
                new.source = chosen.source if cell.cell_type == "code" else harmless(chosen.source)
                keep_shown(chosen, new)
        result.append((index, new))
    # Those that stand for a cell of the release and were not chosen are dropped, if they are the
    # same text or a test; else they are kept beside it, as an import added to a given cell.
    extra: dict[int, list[NotebookNode]] = {}
    after = -1
    for i, cell in enumerate(theirs):
        at = place[i]
        after = at if at is not None else after
        own = release.cells[at] if at is not None else None
        same_text = own is not None and sources[i] == own.source.strip()
        replaced = same_text or (own and utils.is_grade(own) and not functions[i])
        if i in used or replaced or not sources[i] or (own and cell.cell_type != "code"):
            continue
        copy = NotebookNode({"cell_type": cell.cell_type, "metadata": {}, "source": cell.source})
        copy["id"] = f"theirs-{i}"
        if cell.cell_type == "code":
            copy.update(execution_count=None, outputs=[])
        else:
            copy.update(cell_type="markdown", source=harmless(cell.source))
        keep_shown(cell, copy)
        extra.setdefault(after, []).append(copy)
    aligned: list[NotebookNode] = extra.get(-1, [])
    for index, cell in result:
        aligned.append(cell)
        following = extra.get(index, [])
        own = release.cells[index]
        texts = [c for c in following if c.cell_type == "markdown"]
        if texts and utils.is_solution(own) and cell.source == own.source:
            # The answer was written below the cell that was meant for it.
            cell.source = "\n\n".join([cell.source, *(c.source for c in texts)])
            following = [c for c in following if c.cell_type != "markdown"]
        aligned += following
    notebook = NotebookNode(json.loads(json.dumps(release)))
    notebook.cells = aligned
    return notebook


def harmless(text: str) -> str:
    """A student's Markdown with nothing a browser would run: graders read it in theirs.

    A space ends what could be a tag, a link to anything but a page or a picture, or a link in math.
    """
    text = re.sub(r"<(?=[A-Za-z/!?])", "< ", text)
    text = re.sub(rf"\](?=\s*[(:])(?!\s*[(:]\s*{LINKS})", "] ", text)
    return re.sub(r"\\(?=href)", r"\\ ", text)


def picture_of(bundle: Any, room: int) -> tuple[str, str] | None:
    """The kind and text of a picture, if there is one that fits and is nothing else."""
    if isinstance(bundle, dict):
        for kind in IMAGES:
            data = bundle.get(kind)
            data = "".join(data) if isinstance(data, list) else data
            if isinstance(data, str) and len(data) <= room and BASE64.fullmatch(data):
                return kind, data
    return None


def keep_shown(old: NotebookNode, new: NotebookNode) -> None:
    """Take over pictures and plain text, nothing that a browser would run."""
    room, length = MAX_IMAGES, 0
    if old.cell_type == "markdown":
        kept = {}
        for name, bundle in (old.get("attachments") or {}).items():
            if NAME.fullmatch(name) and (found := picture_of(bundle, room)):
                room -= len(found[1])
                kept[name] = dict([found])
        if kept:
            new["attachments"] = kept
        return
    if new.cell_type != "code":
        return
    new.outputs = []
    for output in old.get("outputs") or []:
        data = output.get("data") or {}
        if found := picture_of(data, room):
            room -= len(found[1])
            new.outputs.append(new_output("display_data", dict([found])))
            continue
        text = output.get("text") or data.get("text/plain") or output.get("evalue") or ""
        text = "".join(text)[: MAX_TEXT - length]
        length += len(text)
        if text:
            new.outputs.append(new_output("stream", name="stdout", text=text))


# --- Testing --------------------------------------------------------------------------------------


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def answers_of(notebook: NotebookNode) -> dict[str, str]:
    """The graded functions, and the source of the cell of each."""
    return {
        cell.metadata.nbgrader.grade_id: cell.source
        for cell in code_cells(notebook)
        if utils.is_solution(cell)
    }


def definitions(notebook: NotebookNode) -> list[str]:
    """Sources whose definitions count: all cells but tests, and the answers once more at the end.

    So that an older version of a function, further down, does not win over the answer.
    """
    sources = [cell.source for cell in code_cells(notebook) if not utils.is_grade(cell)]
    return sources + list(answers_of(notebook).values())


def given_cells(notebook: NotebookNode) -> list[str]:
    """Sources of the cells that the release gives, which are no tests."""
    return [c.source for c in code_cells(notebook) if utils.is_locked(c) and not utils.is_grade(c)]


def test_names(notebook: NotebookNode, answers: Mapping[str, Answer], fresh: int) -> dict[str, Any]:
    """What a test cell can name: the functions, FRESH, and what given cells import."""
    names: dict[str, Any] = {}
    for source in given_cells(notebook):
        for node in statements(source):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([node], []), "<given>", "exec"), names)
    return {**names, **answers, "FRESH": fresh}


def run_test(source: str, names: Mapping[str, Any]) -> str | None:
    """Run a test cell; return what is wrong, or None."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the ticks of the checks
            exec(compile(source, "<test>", "exec"), dict(names))
    except Mistake as mistake:
        return str(mistake)
    except Exception as error:
        # Of a check that stumbles over what it was given: shown to the instructor as well.
        return f"CHECK STOPPED: {type(error).__name__}: {error}"[:600]
    return None


def run_tests(notebook: NotebookNode, names: Mapping[str, Any]) -> dict[str, str | None]:
    """What is wrong in each test cell of a notebook with its hidden tests, by grade_id."""
    return {
        cell.metadata.nbgrader.grade_id: run_test(cell.source, names)
        for cell in code_cells(notebook)
        if utils.is_grade(cell) and not utils.is_solution(cell)
    }


def local_answers(notebook: NotebookNode) -> dict[str, Answer]:
    """The functions in this process: for the author's own solutions, never for a student's."""
    functions = answers_of(notebook)
    given = given_cells(notebook)
    cells = Notebook([*given, *functions.values()], functions, given)
    names, errors = define(cells, seconds=5.0)
    if errors:
        raise ValueError(f"the cells do not run: {errors}")
    found = {name: find(name, cells, names) for name in functions}
    return {name: Answer.local(function) for name, function in found.items() if function}


class GradeInSandbox(NbGraderPreprocessor):
    """In the place of nbgrader's Execute: no kernel runs, tests and functions live apart."""

    isolated = Bool(True, help="Insist on bubblewrap.").tag(config=True)
    fresh = Integer(0, help="Seed of the hidden tests' numbers.").tag(config=True)
    limits = Limits()

    def preprocess(
        self, nb: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """Fill the outputs of the test cells, from which nbgrader reads the marks."""
        functions = answers_of(nb)
        with Sandbox(
            definitions(nb),
            functions,
            isolated=self.isolated,
            limits=self.limits,
            given=given_cells(nb),
            tests=[c.source for c in code_cells(nb) if utils.is_grade(c)],
            write_yourself=nb.metadata.get("dropreg", {}).get("write_yourself"),
        ) as sandbox:
            answers = {name: sandbox.answer(name) for name in functions}
            wrong = run_tests(nb, test_names(nb, answers, self.fresh))
        for cell in code_cells(nb):
            grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
            if grade_id in wrong:
                message = wrong[grade_id]
                cell.outputs = [
                    new_output("stream", name="stdout", text="✓ all tests of this cell passed")
                    if message is None
                    else new_output(
                        "error",
                        ename="Mistake",
                        evalue=message,
                        traceback=[textwrap.fill(f"✗ {message}", 90)],  # not wider than the page
                    )
                ]
        stopped = [f"{i}: {m}" for i, m in wrong.items() if m and m.startswith("CHECK STOPPED")]
        notes = list(nb.metadata.get("dropreg", {}).get("notes", [])) + sandbox.notes + stopped
        nb.metadata["dropreg"] = {"notes": notes}
        if notes:
            shown = "\n".join(f"- <code>{html.escape(' '.join(n.split()))}</code>" for n in notes)
            nb.cells.insert(0, new_markdown_cell(f"**Noticed while grading**\n\n{shown}"))
        return nb, resources
