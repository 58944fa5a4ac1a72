"""From any file that a student hands in to a notebook in order: read, cleaned, aligned."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader import utils

from assignments.grader.sandbox_child import is_stub, statements

MAX_FILE, MAX_TEXT, MAX_IMAGES = 20_000_000, 20_000, 6_000_000
IMAGES = ("image/png", "image/jpeg")
# What a picture's text and its name may consist of: neither may end an attribute of a page.
BASE64, NAME = re.compile(r"[A-Za-z0-9+/=\s]+"), re.compile(r"[\w .()-]+")
# Where a link of a student may lead; Colab writes pictures into the text.
LINKS = r"(https?://|mailto:|attachment:|data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+[\s)])"
MARKER = re.compile(r"\W*(Your answer to question \d+)\b")


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
    except (SyntaxError, ValueError, RecursionError):
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
