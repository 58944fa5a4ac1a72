"""From any file that a student hands in to a notebook in order: read, cleaned, aligned.

Nothing here raises, whatever a file holds: a cell or an output that cannot be read costs itself,
and a note says so. Of what a student sends only text and pictures are taken over. No text of a
student is dropped: what is not an answer is kept beside the cell where it stood, and what may be an
answer is put into the answer's cell, which is what makes nbgrader ask a person for a mark.
"""

import ast
import contextlib
import copy
import dataclasses
import difflib
import io
import itertools
import json
import re
import tokenize
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader import utils

from assignments.grader.definitions import is_stub, statements

MAX_FILE, MAX_TEXT, MAX_IMAGES = 20_000_000, 20_000, 6_000_000
# Of one cell; and of all that is kept beside the answers.
MAX_SOURCE, MAX_KEPT, MAX_CELLS = 100_000, 1_000_000, 1000
IMAGES = ("image/png", "image/jpeg")
TEXTS = ("text/markdown", "text/plain", "text/latex")
# What a picture's text and its name may consist of: neither may end an attribute of a page.
BASE64, NAME = re.compile(r"[A-Za-z0-9+/=\s]+"), re.compile(r"[\w .()-]{1,200}")
# Where a link of a student may lead.
PICTURE = r"(attachment:|data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+[\s)])"
LINKS = rf"(https?://|mailto:|{PICTURE})"
# Colab writes pictures into the text, which they would make too long.
IN_TEXT = re.compile(
    r"!\[[^\[\]]{0,500}\]\(\s{0,9}data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)"
    r"(?:\s{1,9}[\"'][^\"'\n]{0,300}[\"'])?\s{0,9}\)"
    r"|<img\b[^<>]{0,300}?\bsrc=[\"']data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)[\"'][^<>]{0,300}>"
)
# Colours of a terminal, titles and links; then what else is no text.
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")
HEADING = re.compile(r"^[^\w\n]*(Your answer to question (\d{1,3}))\b", re.M | re.I)
# How a student may name the question that a text answers, at the beginning of a line.
NAMED = re.compile(
    r"^[^\w\n]*(?:(?:my |the )?(?:answers?|questions?|exercise|task|frage|antwort|aufgabe)\b"
    r"(?: (?:to|for|of|question|q|no|nr|number|zu|frage))*[^\w\n]{0,3}|[qa][ .]?)(\d{1,3})\b",
    re.M | re.I,
)
FENCED = re.compile(r"\A\s*(`{3,})[^\n`]*\n(.*)\n\1\s*\Z", re.S)
# In scripts without spaces each sign counts as a word.
WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_]+")
# From so many words on a comment or a text in code may be an answer.
PROSE = 8


# --- Reading what students send -------------------------------------------------------------------


def read_submission(path: Path) -> tuple[NotebookNode | None, list[str]]:
    """Read a notebook of any origin, and what is odd about it; None, and why, if it is none."""
    if not path.is_file():  # a folder, or a pipe that never ends
        return None, ["There is no such file."]
    try:
        if path.stat().st_size > MAX_FILE:
            return None, [f"The file is larger than {MAX_FILE // 1_000_000} MB and was not read."]
        raw = path.read_bytes()
    except OSError as error:
        return None, [f"The file cannot be read ({error.strerror})."]
    notes: list[str] = []
    try:
        text = raw.decode(json.detect_encoding(raw))
    except ValueError:
        text = raw.decode("latin-1")
        notes.append("The file is not UTF-8: letters with accents may be wrong.")
    try:
        content = json.loads(text.lstrip("\ufeff"))
    except (ValueError, RecursionError, MemoryError) as error:
        return None, [f"The file is not a notebook that can be read: {kind_of(raw, error)}."]
    try:
        cells = cells_in(content)
    except ValueError as error:
        return None, [f"The file is not a notebook that can be read: {error}."]
    found, odd = cleaned(cells)
    notebook = NotebookNode(cells=found, metadata=NotebookNode(), nbformat=4, nbformat_minor=5)
    return notebook, notes + odd


def kind_of(raw: bytes, error: Exception) -> str:
    """What a file is that holds no JSON, in words."""
    begin = raw[:1000].lstrip().removeprefix(b"\xef\xbb\xbf").lower()
    kinds = {
        b"%pdf": "it is a PDF",
        b"pk\x03\x04": "it is a zip archive or an office document",
        b"\x1f\x8b": "it is a compressed archive",
        b"<": "it is a web page",
        b"\x89png": "it is a picture",
        b"\xff\xd8\xff": "it is a picture",
        b"version https://git-lfs": "it only says where Git keeps the file",
    }
    if not begin:
        return "it is empty"
    if known := [words for sign, words in kinds.items() if begin.startswith(sign)]:
        return known[0]
    if isinstance(error, json.JSONDecodeError):
        if begin.startswith(b"{"):
            return f"it is damaged or cut off at line {error.lineno}, column {error.colno}"
        return "it is text, and perhaps a program"
    return "it is damaged"


def cells_in(content: Any) -> list[Any]:
    """The cells of a notebook of any version, as they are."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    if isinstance(content.get("cells"), list):
        return list(content["cells"])
    sheets = content.get("worksheets")  # versions 2 and 3
    if not isinstance(sheets, list):
        raise ValueError("it has no list of cells")
    found = [sheet.get("cells") for sheet in sheets if isinstance(sheet, dict)]
    return [cell for cells in found if isinstance(cells, list) for cell in cells]


def text_in(value: Any) -> str:
    """A text, or a list of its lines, as one text that every encoding and page can hold."""
    if isinstance(value, list):
        value = "".join(part for part in value if isinstance(part, str))
    if not isinstance(value, str):
        return ""
    # Two halves of a letter may stand in two lines; a half alone is no letter.
    value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    value = ESCAPES.sub("", value).replace("\r\n", "\n").replace("\r", "\n")
    return CONTROL.sub("", value)


def cleaned(cells: list[Any]) -> tuple[list[NotebookNode], list[str]]:
    """Text, pictures and names of each cell, and nothing else; and what could not be read."""
    found: list[NotebookNode] = []
    odd: dict[str, list[str]] = {}

    def note(what: str, number: int) -> None:
        odd.setdefault(what, []).append(str(number))

    for number, cell in enumerate(cells, 1):
        raw = cell.get("source", cell.get("input")) if isinstance(cell, dict) else None
        if not isinstance(cell, dict) or not isinstance(raw, str | list):
            note("not read, as it is no cell", number)
            continue
        source, pictures = lifted(text_in(raw))
        if isinstance(raw, list) and not all(isinstance(line, str) for line in raw):
            note("read only in part, as not all of it is text", number)
        if len(source) > MAX_SOURCE:
            note(f"cut after {MAX_SOURCE:,} characters", number)
            source = source[:MAX_SOURCE]
        kind = cell.get("cell_type")
        if kind == "heading":  # version 3
            level = cell.get("level")
            depth = level if isinstance(level, int) and 0 < level < 7 else 1
            kind, source = "markdown", f"{'#' * depth} {source}"
        if kind not in ("code", "markdown", "raw"):
            note("without a type, and taken for text", number)
            kind = "markdown"
        new = NotebookNode(cell_type=kind, source=source, metadata=names_in(cell))
        if isinstance(cell.get("id"), str):
            new["id"] = cell["id"]
        if kind == "code":
            new.outputs, whole = outputs_in(cell.get("outputs"))
        else:
            new.attachments, whole = attachments_in(cell.get("attachments"), pictures)
        if not whole:
            note("with an output or a picture that cannot be shown or is too long", number)
        found.append(new)
    return found, [
        f"{'Cell' if len(numbers) == 1 else 'Cells'} {', '.join(numbers[:10])}"
        f"{f' and {len(numbers) - 10} more' if len(numbers) > 10 else ''} {what}."
        for what, numbers in odd.items()
    ]


def names_in(cell: Mapping[str, Any]) -> NotebookNode:
    """The names that nbgrader and Colab keep in the metadata of a cell."""
    metadata = cell.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    nbgrader = metadata.get("nbgrader")
    kept = NotebookNode()
    if isinstance(nbgrader, dict) and isinstance(nbgrader.get("grade_id"), str):
        kept["nbgrader"] = NotebookNode(grade_id=nbgrader["grade_id"])
    if isinstance(metadata.get("id"), str):
        kept["id"] = metadata["id"]
    return kept


def outputs_in(outputs: Any) -> tuple[list[NotebookNode], bool]:
    """Pictures and plain text, nothing that a browser would run; and whether that is all."""
    kept: list[NotebookNode] = []
    whole = outputs is None or isinstance(outputs, list)
    room, length = MAX_IMAGES, MAX_TEXT
    for output in outputs if isinstance(outputs, list) else []:
        if not isinstance(output, dict):
            whole = False
            continue
        data = output.get("data")
        data = data if isinstance(data, dict) else {}
        early = {"image/png": output.get("png"), "image/jpeg": output.get("jpeg")}  # version 3
        if found := picture_of({**early, **data}, room):
            room -= len(found[1])
            kept.append(new_output("display_data", dict([found])))
            continue
        sources = (output.get("text"), *(data.get(kind) for kind in TEXTS), output.get("evalue"))
        text = next(filter(None, map(text_in, sources)), "")
        if output.get("output_type") in ("error", "pyerr") and isinstance(output.get("ename"), str):
            text = f"{text_in(output['ename'])}: {text}"
        nothing = not text and output.get("text") not in ("", [])
        whole = whole and not nothing and len(text) <= length
        if text := text[:length]:
            length -= len(text)
            kept.append(new_output("stream", name="stdout", text=text))
    return kept, whole


def attachments_in(attachments: Any, pictures: Mapping[str, Any]) -> tuple[NotebookNode, bool]:
    """The pictures of a text, beside it and once in it; and whether that is all."""
    beside = attachments if isinstance(attachments, dict) else {}
    kept, room = NotebookNode(), MAX_IMAGES
    for name, bundle in {**beside, **pictures}.items():
        if NAME.fullmatch(name) and (found := picture_of(bundle, room)):
            room -= len(found[1])
            kept[name] = NotebookNode([found])
    known = attachments is None or isinstance(attachments, dict)
    return kept, known and len(kept) == len(beside) + len(pictures)


def lifted(source: str) -> tuple[str, dict[str, Any]]:
    """A text with the pictures that are written into it beside it."""
    pictures: dict[str, Any] = {}

    def name_of(found: re.Match[str]) -> str:
        kind = found[1] or found[3]
        name = f"in-text-{len(pictures) + 1}.{kind}"
        pictures[name] = {f"image/{kind}": found[2] or found[4]}
        return f"![{name}](attachment:{name})"

    return IN_TEXT.sub(name_of, source), pictures


def picture_of(bundle: Any, room: int) -> tuple[str, str] | None:
    """The kind and text of a picture, if there is one that fits and is nothing else."""
    if isinstance(bundle, dict):
        for kind in IMAGES:
            data = bundle.get(kind)
            if isinstance(data, list) and all(isinstance(part, str) for part in data):
                data = "".join(data)
            if isinstance(data, str) and len(data) <= room and BASE64.fullmatch(data):
                return kind, data
    return None


def harmless(text: str, pictures: Mapping[str, Any] | None = None) -> str:
    """A student's Markdown with nothing a browser would run or fetch, wherever it is opened.

    A space ends what could be a tag, a link to anything but a page, a picture that does not travel
    with the text, or a link, style or definition in math. Our own pages need none of this (see
    `feedback.py`); Jupyter, and whatever else opens the notebook, may.
    """
    here = "|".join(re.escape(name) for name in pictures or ()) or "(?!)"
    own = rf"\[[^\[\]]{{0,500}}\]\((attachment:({here})[\s)]|data:image/(png|jpeg);base64,)"
    text = re.sub(r"<(?=[A-Za-z/!?])", "< ", text)
    text = re.sub(rf"!(?=\[)(?!{own})", "! ", text)
    text = re.sub(rf"\](?=\s{{0,20}}[(:])(?!\s{{0,20}}[(:]\s{{0,20}}{LINKS})", "] ", text)
    return re.sub(
        r"\\(?=(href|url|unicode|class|style|cssId|require|data|def|let|csname|includegraphics"
        r"|(re)?newcommand|(re)?newenvironment)(?![A-Za-z]))",
        r"\\ ",
        text,
    )


# --- What is in a cell ----------------------------------------------------------------------------


def names_of(cell: NotebookNode) -> set[str]:
    """What a cell may be known by: its grade_id, its id, and where Colab keeps its id."""
    found = (cell.metadata.get("nbgrader", {}).get("grade_id"), cell.get("id"))
    return {name for name in (*found, cell.metadata.get("id")) if name}


def attempt(parse: Callable[[str], Iterable[ast.stmt]], source: str) -> list[ast.stmt] | None:
    """What a cell says in Python; None if it is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            return list(parse(source))
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            return None


def defined(source: str) -> dict[str, bool]:
    """The functions at the top of a cell, and whether each is written."""
    nodes = [n for n in attempt(statements, source) or [] if isinstance(n, ast.FunctionDef)]
    return {node.name: not is_stub(node) for node in nodes}


def words(text: str) -> int:
    return len(WORD.findall(text))


def plain(line: str) -> str:
    """A line as it is compared: emphasis, comment signs and spaces do not count."""
    return re.sub(r"[\s*_#>`~|-]+", " ", line).strip().casefold()


def inserted(source: str, own: str) -> str:
    """What stands in a cell of the release that the release has not there."""
    lines, theirs = own.split("\n"), source.split("\n")
    if len(theirs) > 2000:  # finding the difference takes the square
        return source
    matcher = difflib.SequenceMatcher(
        None, [plain(line) for line in lines], [plain(line) for line in theirs], autojunk=False
    )
    blocks = [theirs[a:b] for tag, _, _, a, b in matcher.get_opcodes() if tag != "equal"]
    return "\n\n".join("\n".join(block) for block in blocks).strip()


def prose_in(source: str) -> tuple[list[str], bool]:
    """Comments and texts of a code cell, and whether it holds nothing else.

    Within functions they are about the code, but for those that name a question. A cell that is not
    Python is prose as a whole.
    """
    # As `statements`, but with all that it leaves out: lines for the notebook are no prose.
    code = re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source, flags=re.M)
    body = attempt(lambda code: ast.parse(code).body, code)
    if body is None:
        return [source], True
    inside: set[int] = set()
    found: list[tuple[int, str]] = []
    texts = 0
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            text = ast.get_docstring(node) or ""
            found += [(node.lineno, text)] if NAMED.search(text) else []
            continue
        texts += isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                found.append((part.lineno, part.value))
    # A tokenizer may stumble where the parser does not; what stands before was read.
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            line, text = token.start[0], token.string
            if token.type == tokenize.COMMENT and (line not in inside or NAMED.search(text)):
                found.append((line, text))
    return [text for _, text in sorted(found)], texts == len(body)


def fenced(text: str) -> str:
    """A text as it is, for a cell of Markdown."""
    fence = "`" * (1 + max([2, *(len(run) for run in re.findall("`+", text))]))
    return f"{fence}\n{text}\n{fence}"


def unfenced(text: str) -> str:
    found = FENCED.match(text)
    return found[2] if found else text


def question(source: str) -> str | None:
    """The number of the question under whose heading a text stands."""
    found = HEADING.search(source)
    return str(int(found[2])) if found else None


def by_question(source: str, numbers: set[str]) -> list[tuple[str, str]]:
    """A text cut at the headings of its answers: several cells may have been merged."""
    spots = [m for m in HEADING.finditer(source) if str(int(m[2])) in numbers]
    starts = [0, *(m.start() for m in spots[1:]), len(source)]
    return [
        (str(int(m[2])), source[a:b].strip())
        for m, a, b in zip(spots, starts, starts[1:], strict=False)
    ]


# --- Putting a notebook in order ------------------------------------------------------------------


@dataclasses.dataclass
class Text:
    """Text of a student, and where it stood."""

    text: str
    where: str
    place: float
    cell: int
    pictures: Mapping[str, Any]

    @property
    def number(self) -> str | None:
        found = NAMED.search(self.text)
        return str(int(found[1])) if found else None


class Aligning:
    """A submission beside its release: which cell stands for which, and what is the student's."""

    def __init__(self, submitted: NotebookNode, release: NotebookNode) -> None:
        """Clean the submission and find where its cells belong."""
        self.theirs, self.notes = cleaned(list(submitted.cells))
        self.release = release
        self.sources = [cell.source.strip() for cell in self.theirs]
        self.code = [cell.cell_type == "code" for cell in self.theirs]
        ids = [names_of(cell) for cell in self.theirs]
        self.by_id = {name: i for i in reversed(range(len(ids))) for name in ids[i]}
        own_text = {c.source.strip(): i for i, c in reversed(list(enumerate(release.cells)))}
        own_ids = {name: i for i, cell in enumerate(release.cells) for name in names_of(cell)}
        # Which cell of the release each of theirs stands for, by its id or by its text.
        self.place = [
            next((own_ids[n] for n in ids[i] if n in own_ids), own_text.get(self.sources[i]))
            for i in range(len(ids))
        ]
        self.known = {plain(line) for cell in release.cells for line in cell.source.split("\n")}
        self.known.add("")
        self.known |= {
            plain(text)
            for cell in release.cells
            if cell.cell_type == "code"
            for text in prose_in(cell.source)[0]
        }
        # For those of nobody: the cell of the release that they follow, or -1.
        self.after = list(
            itertools.accumulate(self.place, lambda at, p: at if p is None else p, initial=-1)
        )[1:]
        # The places of the written answers, by the number of the question; by name without one.
        self.written: dict[str, int] = {}
        for i, cell in enumerate(release.cells):
            if utils.is_solution(cell) and cell.cell_type == "markdown":
                number, name = question(cell.source), cell.metadata.nbgrader.grade_id
                self.written[name if number is None or number in self.written else number] = i

    def is_new(self, text: str) -> bool:
        """Whether a text says anything that the release does not."""
        return any(plain(line) not in self.known for line in text.split("\n"))

    def where(self, index: int) -> str:
        """Where one of their cells stands, in words."""
        kind = {"code": "a code cell", "raw": "a raw cell", "markdown": "a cell of text"}
        kind_here, at = kind[self.theirs[index].cell_type], self.after[index]
        if at < 0:
            return f"{kind_here} at the beginning"
        if self.place[index] is None:
            kind_here += " below"
        begin = re.sub(r"[^\w ,.?!()-]", "", self.release.cells[at].source.strip().split("\n")[0])
        return f"{kind_here} “{begin[:40].strip()}…”"

    def code_cells(self) -> dict[int, int]:
        """For each place of code that a student may change, which of their cells stands there.

        A function is the last written one of its name, wherever it stands; then what its own cell
        defines under another name; then one in a cell that was turned into text as a whole.
        """
        found = [defined(s) if c else {} for s, c in zip(self.sources, self.code, strict=True)]
        chosen: dict[int, int] = {}
        for at, cell in enumerate(self.release.cells):
            if cell.cell_type != "code" or utils.is_locked(cell):
                continue
            named = [self.by_id[n] for n in names_of(cell) if n in self.by_id]
            same = [i for i in named if self.code[i]]
            if not utils.is_solution(cell):
                chosen |= {at: same[-1]} if same else {}
                continue
            name = cell.metadata.nbgrader.grade_id
            begins = re.compile(rf"^[ \t]*def[ \t]+{re.escape(name)}\b", re.M)
            written = [i for i, functions in enumerate(found) if functions.get(name)]
            renamed = [i for i in same if any(found[i].values())]
            spelled = [i for i, source in enumerate(self.sources) if begins.search(source)]
            as_text = [i for i in spelled if not self.code[i]]
            whole = [i for i in as_text if defined(unfenced(self.sources[i])).get(name)]
            broken = [i for i in spelled if self.code[i] and not found[i]]
            if candidates := written or renamed or whole or broken or same:
                chosen[at] = candidates[-1]
            if as_text and not (written or renamed):
                self.notes.append(
                    f"`{name}` was taken from {self.where(whole[-1])}."
                    if whole
                    else f"`{name}` stands in {self.where(as_text[-1])}, which is not Python as a "
                    "whole: not tested."
                )
        return chosen

    def direct(self) -> dict[str, list[Text]]:
        """What stands under the heading of each question, or in its own cell, in their order."""
        at_number: dict[int | None, str] = {at: n for n, at in self.written.items()}
        found: dict[str, list[Text]] = {number: [] for number in self.written}
        for i, cell in enumerate(self.theirs):
            parts = by_question(self.sources[i], set(self.written))
            if not parts and (number := at_number.get(self.place[i])):
                parts = [(number, self.sources[i])]
            for number, text in parts:
                pictures = cell.get("attachments", {})
                if len(parts) > 1:
                    pictures = {n: p for n, p in pictures.items() if f"attachment:{n}" in text}
                if self.is_new(text) or pictures:
                    text = fenced(text) if self.code[i] else harmless(text, pictures)
                    at = self.written[number]
                    found[number].append(Text(text, self.where(i), at, i, pictures))
        return found

    def elsewhere(self, code: set[int], under: set[int]) -> list[Text]:
        """What else the student wrote that is no code."""
        found = []
        for i, cell in enumerate(self.theirs):
            at, source = self.place[i], self.sources[i]
            where, place = self.where(i), self.after[i] + (0.5 if at is None else 0.25)
            text, pictures = "", NotebookNode()
            if i in under:
                continue
            if self.code[i]:
                text, alone = self.prose(i, i in code)
                where = where if alone else f"comments and texts of {where}"
                if not text and at is None and self.shows(cell):
                    text, where = self.shows(cell), f"the output of {where}"
            elif i not in code:
                own = self.release.cells[at] if at is not None else None
                text = inserted(source, own.source) if own and source else source
                pictures = cell.attachments
                text = harmless(text, pictures) if self.is_new(text) else ""
            if text or pictures:
                found.append(Text(text, where, place, i, pictures))
        return found

    def prose(self, index: int, used: bool) -> tuple[str, bool]:
        """The student's words in a code cell, as Markdown; and whether it holds nothing else."""
        source = self.sources[index]
        texts, alone = prose_in(source)
        if alone and not used and not re.search(r"^[ \t]*(def|class)[ \t]+\w+", source, re.M):
            return (fenced(source) if any(map(self.is_new, texts)) else ""), True
        if texts == [source]:  # broken code
            texts = [line for line in source.split("\n") if line.lstrip().startswith("#")]
        comments = [t for t in texts if t.lstrip().startswith("#") and self.is_new(t)]
        new = comments if words(" ".join(comments)) >= PROSE else []
        new += [t for t in texts if t not in comments and words(t) >= PROSE and self.is_new(t)]
        return (fenced("\n".join(new)) if new else ""), False

    @staticmethod
    def shows(cell: NotebookNode) -> str:
        """What an output may say in answer to a question: sentences, or a picture from a file."""
        lines = "\n".join(output.get("text", "") for output in cell.outputs).split("\n")
        said = [x for x in lines if words(x) >= PROSE and not re.search(r"(Error|Warning)\b", x)]
        if said:
            return fenced("\n".join(said))
        picture = any("data" in output for output in cell.outputs)
        return "*a picture*" if picture and re.search(r"\bImage\b|imread", cell.source) else ""

    def assign(self, found: list[Text], direct: Mapping[str, list[Text]]) -> dict[str, list[Text]]:
        """For each question that has no answer in its place, which texts may be it.

        A text belongs to the question that it names, else to the nearest of them.
        """
        missing = {number: at for number, at in self.written.items() if not direct[number]}
        moved: dict[str, list[Text]] = {number: [] for number in missing}
        room = dict.fromkeys(missing, MAX_SOURCE)
        for text in found:
            nearest = min(missing, key=lambda n: abs(missing[n] - text.place), default=None)
            number = text.number if text.number in self.written else nearest
            if number in moved and room[number] >= len(text.text):
                moved[number].append(text)
                room[number] -= len(text.text)
        for number, texts in moved.items():
            if texts:
                more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
                places = "; ".join(text.where for text in texts[:5])
                self.notes.append(
                    f"Question {number}: what may be its answer is in {places}{more}."
                )
        return moved

    def written_answers(
        self, found: list[Text], direct: Mapping[str, list[Text]], moved: Mapping[str, list[Text]]
    ) -> dict[int, tuple[str, NotebookNode]]:
        """What each answer's cell shows, and its pictures; none where nothing was written."""
        elsewhere = [
            f"the answer to question {number}" for number, texts in direct.items() if texts
        ]
        elsewhere += [text.where for text in found]
        shown = {}
        for number, at in self.written.items():
            parts: list[tuple[str, Mapping[str, Any]]] = []
            heading = self.release.cells[at].source.split("\n")[0]
            if direct[number]:
                *earlier, last = direct[number]
                others = {text.text: text for text in earlier if text.text != last.text}
                parts = [(last.text, last.pictures)]
                room = MAX_SOURCE
                for text in others.values():
                    room -= len(text.text)
                    if room > 0:
                        line = f"*Under the same heading, in {text.where}:*"
                        parts.append((f"{line}\n\n{text.text}", text.pictures))
                if room <= 0:
                    self.notes.append(f"Question {number}: not all answers are shown: too many.")
            elif moved[number]:
                parts = [(heading, {})]
                for text in moved[number]:
                    parts.append((f"*Found in {text.where}:*\n\n{text.text}", text.pictures))
            elif elsewhere:
                line = "; ".join(elsewhere[:5])
                parts = [
                    (heading, {}),
                    (f"*Nothing stands here. The student wrote in {line}.*", {}),
                ]
            if parts:
                shown[at] = joined(parts)
        return shown

    def beside(
        self, code: set[int], gone: set[int], rest: Mapping[int, Text]
    ) -> dict[int, list[NotebookNode]]:
        """All that is left of the student's, by the place of the cell that it followed."""
        extra: dict[int, list[NotebookNode]] = {}
        room, count = MAX_KEPT + MAX_IMAGES, 0
        for i, cell in enumerate(self.theirs):
            at = self.place[i]
            new = NotebookNode(id=f"theirs-{i}", cell_type="markdown", metadata=NotebookNode())
            if self.code[i]:
                same = at is not None and self.sources[i] == self.release.cells[at].source.strip()
                empty = not (self.sources[i] or cell.outputs)
                if i in code or i in gone or same or empty:
                    continue
                new.update(cell_type="code", source=cell.source, execution_count=None)
                new.outputs = cell.outputs
            elif i in rest:
                line = "" if at is None else "*Written into the cell above:*\n\n"
                new.source, pictures = joined([(line + rest[i].text, rest[i].pictures)])
                if pictures:
                    new.attachments = pictures
            else:
                continue
            room -= len(json.dumps(new))
            count += 1
            if room >= 0 and count <= MAX_CELLS:
                extra.setdefault(self.after[i], []).append(new)
        if room < 0 or count > MAX_CELLS:
            self.notes.append("Not all cells beside the answers are shown: there are too many.")
        return extra


def joined(texts: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[str, NotebookNode]:
    """Texts with their pictures as one; names that occur twice are changed."""
    whole, kept = [], NotebookNode()
    for text, pictures in texts:
        for name in sorted(pictures, key=len, reverse=True):
            new = re.sub(r"[^\w.-]", "_", name, flags=re.A)
            while kept.get(new, pictures[name]) != pictures[name]:
                new = f"_{new}"
            kept[new] = pictures[name]
            for spelled in (name, quote(name)):
                text = text.replace(f"(attachment:{spelled}", f"(attachment:{new}")
            if f"(attachment:{new}" not in text:
                text += f"\n\n![{new}](attachment:{new})"
        whole.append(text.strip())
    return "\n\n".join(whole), kept


def align(submitted: NotebookNode, release: NotebookNode) -> tuple[NotebookNode, list[str]]:
    """Return the released notebook with the student's answers and further cells in their places.

    Metadata, tests and given cells are the release's own. Where a written answer is missing and the
    student wrote something elsewhere, that is put into the answer's cell, with a line that says
    where it stood; else it is kept where it stood. With it come notes on what was found odd.
    """
    own = Aligning(submitted, release)
    code, direct = own.code_cells(), own.direct()
    under = {text.cell for texts in direct.values() for text in texts}
    found = own.elsewhere(set(code.values()), under)
    moved = own.assign(found, direct)
    written = own.written_answers(found, direct, moved)
    # What is shown with a question is not shown twice; but code may be needed.
    shown = {text.cell for texts in moved.values() for text in texts}
    words_only = {
        i
        for i in shown | under
        if not own.code[i] or (prose_in(own.sources[i])[1] and not own.theirs[i].outputs)
    }
    rest = {text.cell: text for text in found if text.cell not in shown}
    extra = own.beside(set(code.values()), words_only, rest)
    notebook = copy.deepcopy(release)
    cells = list(extra.get(-1, []))
    for at, cell in enumerate(notebook.cells):
        if at in code:
            theirs = own.theirs[code[at]]
            cell.source = theirs.source if own.code[code[at]] else unfenced(theirs.source)
            cell.outputs = theirs.get("outputs", [])
        if at in written:
            cell.source, pictures = written[at]
            if pictures:
                cell.attachments = pictures
        cells += [cell, *extra.get(at, [])]
    notebook.cells = cells
    return notebook, own.notes
