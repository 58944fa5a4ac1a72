"""Who handed in what: each student's notebooks, in a folder or a zip of any origin.

Nothing vanishes without a word: what is not read is listed with the reason, two students who would
get one id are an error that names both files, and a file that holds the notebook of another
assignment is not graded as this one's.
"""

import contextlib
import json
import math
import os
import re
import shutil
import stat
import struct
import tempfile
import unicodedata
import weakref
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import IO, Any

from assignments.grader.lms import LMS, LmsError, Origin, names_a_student, origin
from assignments.grader.roster import ClassroomError, Roster, folded, student_id
from tools import ROOT

STUDENT = ROOT / "assignments" / "student"
MAX_FILE = 20_000_000  # as `reading.read_submission` has it, which says so to the student
MAX_ZIP = 200_000_000  # of one student's zip
MAX_ENTRIES, MAX_BYTES = 50_000, 4 << 30  # of all that is read out of zips
DEPTH = 2  # the class's zip, and a student's in it
MAX_FOLDERS = 50  # of a path
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError)
JUNK = {"__MACOSX", "__pycache__", "node_modules", "Thumbs.db", "desktop.ini"}
# What browsers, e-mail programs and file managers add to a file's name.
ADDED = re.compile(
    r"( ?\(\d+\)|-Copy\d+| - Copy| - Kopie|\.ipynb|\.txt|\.json|\.download)$", re.IGNORECASE
)
COPY_OF = re.compile(r"^(Copy of|Kopie von|Copie de|Copia de) ", re.IGNORECASE)
NOT_NOTEBOOKS = {
    ".py": "a Python script; the notebook itself is needed (File → Download → .ipynb)",
    ".html": "a page, not the notebook (File → Download → .ipynb)",
    ".pdf": "a print, not the notebook (File → Download → .ipynb)",
} | dict.fromkeys(
    (".rar", ".7z", ".gz", ".tgz", ".tar", ".xz", ".bz2"), "an archive of this kind is not opened"
)


class ClashError(ClassroomError):
    """Two students would be taken for one, or one for two."""


@dataclass(frozen=True)
class Handed:
    """One notebook that a student handed in."""

    path: Path
    shown_name: str  # its path in the folder or zip, as it can be printed
    time: datetime | None  # with a time zone; None where nothing tells
    late: bool = False  # as the learning-management system says
    container: str = ""  # the folder or file by whose name that system knows the student again
    problem: str | None = None  # why the file could not be read out of its zip


@dataclass
class Found:
    """All that was found. Files out of a zip exist as long as this object, or until `close`."""

    students: dict[str, list[Handed]] = field(default_factory=dict)  # the newest last
    unread: list[tuple[str, str]] = field(default_factory=list)  # which file, and why
    unmatched: list[tuple[str, str]] = field(default_factory=list)  # graded, not on the class list
    close: Callable[[], Any] = field(default=lambda: None, repr=False)

    def __enter__(self) -> "Found":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Entry:
    """A file in the folder or zip, before anybody knows what it is."""

    parts: tuple[str, ...]
    path: Path
    time: datetime
    problem: str | None = None

    @property
    def shown(self) -> str:
        return shown("/".join(self.parts))


def find(
    source: Path, assignment: str, *, roster: Roster | None = None, lms: str | None = None
) -> Found:
    """Find each student's notebooks of an assignment.

    Args:
        source: A folder, or a zip as a learning-management system gives it out.
        assignment: Its name.
        roster: The class list. Then everybody on it is among the students, also with nothing.
        lms: Read names as this system writes them: one of `lms.LMS`.

    Raises:
        ClashError: If it is not clear whose a file is, so that marks could go to the wrong student.
        ClassroomError: If the source cannot be read, or is nothing of that system.
    """
    if lms is not None and lms not in LMS:
        raise LmsError(f"There is no “{lms}”: one of {', '.join(LMS)}.")
    found, entries = collected(source, assignment)
    containers = by_system(entries, lms) if lms else {}
    owners = {entry: of for entry, (_, of) in containers.items()}
    if lms and entries and not owners:
        raise LmsError(
            f"No file in {source.name} is named as {lms.capitalize()} names what was handed in. "
            "Grade the zip that it gives out, as it is; or leave out --lms."
        )
    names = {e: o.student for e, o in owners.items()}
    names |= by_name([e for e in entries if e not in owners], assignment, roster)
    ids = resolve(names, owners, roster, found)
    for entry, student in ids.items():
        of = owners.get(entry)
        # Canvas's zip has the time of its making.
        time = of.time or (None if lms == "canvas" else entry.time) if of else entry.time
        late, container = (of.late, containers[entry][0]) if of else (False, "")
        handed = Handed(entry.path, entry.shown, time, late, container, entry.problem)
        found.students.setdefault(student, []).append(handed)
    for person in roster.people if roster else []:
        found.students.setdefault(person.id, [])
    if lms and not roster:
        # Who handed in something else, as a print of the notebook, has a row, too.
        levels = {entry.parts.index(part) for entry, (part, _) in containers.items()}
        for parts in (name.split("/") for name, _ in found.unread):
            for level in levels & set(range(len(parts))):
                if of := origin(lms, parts[level]):
                    found.students.setdefault(student_id(of.student), [])
    for files in found.students.values():
        files.sort(key=newest)
    for person in roster.people if roster else []:
        if person.handed_in and (files := found.students[person.id]):
            files[-1] = replace(files[-1], time=person.handed_in)
    found.students = dict(sorted(found.students.items()))
    return found


def find_one(source: Path, assignment: str) -> Found:
    """Find the notebooks of one student, in a folder or zip that holds nobody else's."""
    found, entries = collected(source, assignment)
    handed = [Handed(e.path, e.shown, e.time, problem=e.problem) for e in entries]
    found.students = {"": sorted(handed, key=newest)} if handed else {}
    return found


def collected(source: Path, assignment: str) -> tuple[Found, list[Entry]]:
    """The notebooks of an assignment; what else there is, in `unread`."""
    scratch = tempfile.mkdtemp(prefix="handed-in-")
    found = Found()
    found.close = weakref.finalize(found, shutil.rmtree, scratch, ignore_errors=True)
    entries = Collector(Path(scratch), found.unread).collect(source)
    return found, [entry for entry in entries if is_of(entry, assignment, found.unread)]


def newest(handed: Handed) -> tuple[float, list[int], str]:
    """To sort by: the time; without one, the numbers in the name, which systems count up."""
    time = handed.time.timestamp() if handed.time else 0.0
    numbers = [] if handed.time else [int(n[:30]) for n in re.findall(r"\d+", handed.shown_name)]
    return time, numbers, handed.shown_name


def late_days(time: datetime, due: datetime) -> int:
    """How many days a file is late, each begun day counted as one; 0 for none.

    A time without a zone is one of this machine's zone. A day has 24 hours, also when the clocks
    are changed.
    """
    late = time.astimezone(UTC) - due.astimezone(UTC)
    return max(0, math.ceil(late / timedelta(days=1)))


def parse_due(text: str) -> datetime:
    """`2026-12-01 23:59`, or a day, to its end; of this machine's zone if it names none."""
    try:
        due = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ClassroomError(
            f"“{text}” is no time. Write it as 2026-12-01 23:59, or 2026-12-01 23:59+01:00."
        ) from None
    if not re.search(r"\d:\d", text):
        due += timedelta(hours=23, minutes=59)
    if not re.search(r"\d:\d\d:\d\d", text.replace("+", " ")):
        due += timedelta(seconds=59, microseconds=999_999)
    return due.astimezone()


# --- Files ----------------------------------------------------------------------------------------


def shown(name: str) -> str:
    """A name as it can be printed: what has no sign of its own, or half of one, is spelled out."""
    name = unicodedata.normalize("NFC", name)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


@dataclass
class Collector:
    """Goes through a folder or a zip; what can be no notebook goes to `unread`."""

    scratch: Path
    unread: list[tuple[str, str]]
    entries: int = 0
    bytes: int = 0

    def collect(self, source: Path) -> Iterator[Entry]:
        if source.is_dir():
            yield from self.folder(source)
        elif zipfile.is_zipfile(source):
            yield from self.zip(source, ())
        else:
            raise ClassroomError(f"{source} is neither a folder nor a zip.")

    def refuse(self, parts: Sequence[str], reason: str) -> None:
        self.unread.append((shown("/".join(parts)), reason))

    def folder(self, root: Path) -> Iterator[Entry]:
        # No link is followed: it could lead out of the folder, or round in it.
        for folder, folders, files in os.walk(root, onerror=self.closed):
            at = Path(folder).relative_to(root).parts
            for name in sorted(folders):
                path = Path(folder, name)
                if path.is_symlink() or junk(name):
                    folders.remove(name)
                    inside = sum(len(files) for _, _, files in os.walk(path))
                    self.refuse((*at, name), junk_or_link(name, inside))
            folders.sort()
            for name in sorted(files):
                path, parts = Path(folder, name), (*at, name)
                mode = path.lstat().st_mode
                if stat.S_ISLNK(mode):
                    self.refuse(parts, "a link")
                elif not stat.S_ISREG(mode):
                    self.refuse(parts, "not a file")
                elif junk(name):
                    self.refuse(parts, "a hidden file of some program's")
                else:
                    yield from self.file(parts, path)

    def closed(self, error: OSError) -> None:
        self.unread.append((shown(str(error.filename)), f"cannot be opened ({error.strerror})"))

    def file(self, parts: tuple[str, ...], path: Path) -> Iterator[Entry]:
        time = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
        if len(parts) > MAX_FOLDERS:
            self.refuse(parts, f"in more than {MAX_FOLDERS} folders")
            return
        try:
            if parts[-1].casefold().endswith(".zip"):
                yield from self.inner_zip(parts, path, depth=1)
                return
            with path.open("rb") as file:
                reason = why_not(parts[-1], file)
        except OSError as error:
            reason = f"cannot be opened ({error.strerror})"
            if parts[-1].casefold().endswith(".ipynb"):
                yield Entry(parts, path, time, reason)
                return
        if reason is None:
            yield Entry(parts, path, time)
        else:
            self.refuse(parts, reason)

    def inner_zip(self, parts: tuple[str, ...], path: Path, depth: int) -> Iterator[Entry]:
        if depth > DEPTH:
            self.refuse(parts, "a zip in a zip in a zip")
        elif path.stat().st_size > MAX_ZIP:
            self.refuse(parts, f"a zip of more than {MAX_ZIP // 1_000_000} MB")
        elif (entries := directory_entries(path)) > MAX_ENTRIES - self.entries:
            self.refuse(parts, f"a zip that may hold {entries} files")
        else:
            yield from self.zip(path, parts, depth)

    def zip(self, path: Path, prefix: tuple[str, ...], depth: int = 1) -> Iterator[Entry]:
        hidden: Counter[tuple[str, ...]] = Counter()
        try:
            archive = zipfile.ZipFile(path)
        except (*BROKEN, struct.error) as error:
            if not prefix:
                raise ClassroomError(f"{path} cannot be opened as a zip: {error}.") from None
            self.refuse(prefix, "a zip that cannot be opened")
            return
        with archive:
            for info in archive.infolist():
                name = member_name(info).replace("\\", "/")
                inside = tuple(part for part in name.split("/") if part not in {"", "."})
                parts = (*prefix, *inside)
                at = next((i for i, part in enumerate(inside) if junk(part)), None)
                if name.endswith("/"):
                    continue
                if ".." in inside or not inside or re.match(r"/|[A-Za-z]:", name):
                    self.refuse(parts or (name,), "its name leads out of the zip")
                elif len(parts) > MAX_FOLDERS:
                    self.refuse(parts, f"in more than {MAX_FOLDERS} folders")
                elif max(map(len, parts)) > 255:  # which no file system has
                    self.refuse((f"{name[:50]}…",), "its name is too long")
                elif at is not None and at < len(inside) - 1:
                    hidden[parts[: len(prefix) + at + 1]] += 1
                elif at is not None:
                    self.refuse(parts, "a hidden file of some program's")
                elif stat.S_ISLNK(info.external_attr >> 16):
                    self.refuse(parts, "a link")
                else:
                    yield from self.member(archive, info, parts, depth)
        for folder, count in hidden.items():
            self.refuse(folder, junk_or_link(folder[-1], count))

    def member(
        self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, parts: tuple[str, ...], depth: int
    ) -> Iterator[Entry]:
        """Copy one file out of a zip, never more of it than is read, under a name of our own."""
        self.entries += 1
        if self.entries > MAX_ENTRIES or self.bytes > MAX_BYTES:
            self.refuse(parts, "too much in one zip; unpack it, and grade the folder")
            return
        inner, notebook = (parts[-1].casefold().endswith(end) for end in (".zip", ".ipynb"))
        limit = MAX_ZIP + 1 if inner else MAX_FILE + 1
        target, problem = self.scratch / f"{self.entries}", None
        target.touch()
        try:
            with archive.open(info) as file, target.open("wb") as copy:
                if not (inner or notebook) and (reason := why_not(parts[-1], file)):
                    self.refuse(parts, reason)
                    return
                file.seek(0)
                while limit > 0 and (chunk := file.read(min(1 << 20, limit))):
                    limit -= copy.write(chunk)
        except NotImplementedError:
            problem = "is packed in its zip in a way that is not known"
        except RuntimeError:
            problem = "is locked by a password in its zip"
        except BROKEN:
            problem = "is damaged in its zip"
        self.bytes += target.stat().st_size
        if problem and not notebook:
            self.refuse(parts, problem)
        elif inner:
            yield from self.inner_zip(parts, target, depth + 1)
        else:
            yield Entry(parts, target, time_of(info), problem)


def junk(name: str) -> bool:
    return name in JUNK or name.startswith((".", "~$"))


def junk_or_link(name: str, count: int) -> str:
    return f"a folder of some program's, with {count} files" if junk(name) else "a link"


def member_name(info: zipfile.ZipInfo) -> str:
    """The name as it was meant: most programs that say cp437 write UTF-8."""
    if info.flag_bits & 0x800:
        return info.filename
    with contextlib.suppress(UnicodeError):
        return info.filename.encode("cp437").decode("utf-8")
    return info.filename


def time_of(info: zipfile.ZipInfo) -> datetime:
    """When a file in a zip was written: to the second where the zip says so, else in local time."""
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        if kind == 0x5455 and size >= 5 and extra[4] & 1 and len(extra) >= 9:
            return datetime.fromtimestamp(struct.unpack("<i", extra[5:9])[0], UTC).astimezone()
        extra = extra[4 + size :]
    try:
        return datetime(*info.date_time).astimezone()
    except (ValueError, OverflowError):  # month 0, as some programs write
        return datetime(1980, 1, 1).astimezone()


def directory_entries(path: Path) -> int:
    """How many files a zip could list, before Python keeps an object for each."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16) - 22))
        end = file.read()
    at = end.rfind(b"PK\5\6")
    if at < 0 or len(end) < at + 22:
        return 0
    (size,) = struct.unpack("<L", end[at + 12 : at + 16])
    return path.stat().st_size // 46 if b"PK\6\7" in end[:at] else size // 46


def why_not(name: str, file: IO[bytes]) -> str | None:
    """Why a file is not read; None for a notebook, whatever its name ends with."""
    if name.casefold().endswith(".ipynb"):
        return None
    reason = NOT_NOTEBOOKS.get(Path(name).suffix.casefold(), "not a notebook")
    begin = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if begin.startswith(b"{"):
        file.seek(0)
        return None if cells_of(file.read(MAX_FILE)) is not None else reason
    return reason


# --- Which assignment -----------------------------------------------------------------------------


def cells_of(data: bytes) -> list[dict[str, Any]] | None:
    """The cells of a notebook; None if it is none, whatever else it is."""
    try:
        content = json.loads(data)
        cells = content["cells"] if "cells" in content else content["worksheets"][0]["cells"]
        return [c for c in cells if isinstance(c, dict)] if isinstance(cells, list) else None
    except (ValueError, RecursionError, MemoryError, AttributeError, TypeError, LookupError):
        return None


def marks_of(cell: dict[str, Any]) -> set[str]:
    """What a cell is known by: its ids, in any of their places, and its text."""
    metadata = cell.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    nbgrader = metadata.get("nbgrader")
    grade_id = nbgrader.get("grade_id") if isinstance(nbgrader, dict) else None
    source = cell.get("source")
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    text = source.strip() if isinstance(source, str) else ""
    found = (grade_id, cell.get("id"), metadata.get("id"), text)
    return {mark for mark in found if isinstance(mark, str) and mark}


@cache
def releases() -> dict[str, set[str]]:
    """For each assignment, what only its cells are known by."""
    marks = {
        path.stem: set().union(*map(marks_of, cells_of(path.read_bytes()) or []))
        for path in sorted(STUDENT.glob("*.ipynb"))
    }
    often = Counter(mark for own in marks.values() for mark in own)
    return {name: {mark for mark in own if often[mark] == 1} for name, own in marks.items()}


def assignment_in(path: Path) -> str | None:
    """Whose notebook a file holds; None where its cells do not tell."""
    with path.open("rb") as file:
        cells = cells_of(file.read(MAX_FILE)) or []
    marks = [marks_of(cell) for cell in cells]
    shares = Counter({name: sum(bool(m & own) for m in marks) for name, own in releases().items()})
    (best, most), (_, second) = [*shares.most_common(2), ("", 0), ("", 0)][:2]
    return best if most >= 3 and most > 2 * second else None


def is_of(entry: Entry, assignment: str, unread: list[tuple[str, str]]) -> bool:
    """Whether a notebook is one of this assignment: by its cells, or else by its name."""
    other = assignment_in(entry.path) if entry.problem is None else None
    if other is None:
        others = {name.casefold() for name in releases()} - {assignment.casefold()}
        stem = {word.casefold() for word in re.split(r"[\W_]+", stem_of(entry.parts[-1]))}
        folders = {part.casefold() for part in entry.parts[:-1]}
        named = sorted(others & (folders | (stem if assignment.casefold() not in stem else set())))
        if named:
            unread.append((entry.shown, f"named as one of the assignment “{named[0]}”"))
        return not named
    if other != assignment:
        unread.append((entry.shown, f"holds the notebook of the assignment “{other}”"))
    return other == assignment


# --- Whose ----------------------------------------------------------------------------------------


def by_system(entries: Sequence[Entry], lms: str) -> dict[Entry, tuple[str, Origin]]:
    """Which part of each path is the system's name for a student, and what it says.

    It is the outermost, so that nobody hands in for others by folders in a zip of their own; but
    for outer folders that hold the whole class, whose names can look the same.
    """
    named = {
        entry: [(i, part, of) for i, part in enumerate(entry.parts) if (of := origin(lms, part))]
        for entry in entries
    }
    named = {entry: found for entry, found in named.items() if found}
    while len({found[0][1] for found in named.values()}) == 1 and all(
        len(found) > 1 for found in named.values()
    ):
        named = {entry: found[1:] for entry, found in named.items()}
    below: dict[str, set[str]] = defaultdict(set)
    for (outer, part, _), *inner in named.values():
        below[part] |= {name for i, name, _ in inner if i == outer + 1}
        if len(below[part]) > 1:
            raise ClashError(
                f"“{shown(part)}” holds {listed(sorted(below[part]))}. If they are students, grade "
                f"“{shown(part)}” by itself; if one student has handed them in so, take them out."
            )
    return {entry: (part, of) for entry, ((_, part, of), *_) in named.items()}


def stem_of(name: str) -> str:
    """A file's name without its ending, and without what programs add when they save it."""
    name = unicodedata.normalize("NFC", name)
    while (shorter := ADDED.sub("", COPY_OF.sub("", name))) != name:
        name = shorter
    return name


def person_in(name: str) -> str:
    """The student in a file's name: what is left without the assignments' names."""
    alternatives = "|".join(map(re.escape, releases()))
    marked = re.sub(rf"(?<![^\W_])({alternatives})(?![^\W_])", "\0", name, flags=re.IGNORECASE)
    return re.sub(r"[\s_.-]*\0[\s_.\0-]*", "\0", marked).strip("\0").replace("\0", "_")


def by_name(entries: Sequence[Entry], assignment: str, roster: Roster | None) -> dict[Entry, str]:
    """Whose each notebook is, by the names of folders and files."""
    names: dict[Entry, str] = {}
    _share_out([(entry, entry.parts) for entry in entries], assignment, roster, names)
    return names


def _share_out(
    group: Sequence[tuple[Entry, tuple[str, ...]]],
    assignment: str,
    roster: Roster | None,
    names: dict[Entry, str],
) -> None:
    """Share out what lies in a folder that holds several students'."""
    folders: dict[str, list[tuple[Entry, tuple[str, ...]]]] = defaultdict(list)
    for entry, (first, *rest) in group:
        if rest:
            folder = re.sub(r"\.zip$", "", unicodedata.normalize("NFC", first), flags=re.IGNORECASE)
            folders[folder].append((entry, tuple(rest)))
        else:
            names[entry] = person_in(stem_of(first))
    for folder, inside in folders.items():
        alone = len(inside) == len(group)
        if holds_students(folder, inside, assignment, roster, alone=alone):
            _share_out(inside, assignment, roster, names)
        else:
            names |= dict.fromkeys((entry for entry, _ in inside), person_in(folder) or folder)


def holds_students(
    folder: str,
    inside: Sequence[tuple[Entry, tuple[str, ...]]],
    assignment: str,
    roster: Roster | None,
    *,
    alone: bool,
) -> bool:
    """Whether a folder holds several students' files, and is not one student's own."""

    def known(name: str) -> bool:
        return names_a_student(name) or bool(roster and roster.match(person_in(name)))

    if folder.casefold() == assignment.casefold():
        return True
    # A folder of the assignment's own name, as nbgrader has it, is none for a student.
    nested = [p[0].casefold() == assignment.casefold() and len(p) > 1 for _, p in inside]
    own = [p[1:] if below else p for (_, p), below in zip(inside, nested, strict=True)]
    folders = sorted({p[0] for p in own if len(p) > 1})
    files = {stem_of(p[0]) for p in own if len(p) == 1}
    people = {person_in(stem) for stem in files}
    named = sorted(stem for stem in files if person_in(stem) not in {stem, ""})
    several = len({person_in(stem) for stem in named}) > 1
    if known(folder):
        return False
    if alone and several:
        return True
    if "" in people:
        return False
    if any(map(known, (*folders, *people))):
        return True
    if alone:
        if len(folders) + len(people) != 1 or people:
            return len(folders) + len(people) > 1
        # One folder in one folder: the inner is a student's if a system or nbgrader has made it.
        if any(origin("ilias", p[0]) or p[1].casefold() == assignment.casefold() for p in own):
            return True
        deeper = [(entry, p[1:]) for (entry, _), p in zip(inside, own, strict=True)]
        return holds_students(folders[0], deeper, assignment, roster, alone=True)
    if len(folders) > 1 or several:
        raise ClashError(
            f"The folder “{shown(folder)}” holds {listed([*folders, *named])}. Are they several "
            f"students', or one's? If several, move them out of “{shown(folder)}”; if one's, leave "
            "one of them there. A class list (--roster) tells, too, and so does --lms."
        )
    return False


def resolve(
    names: dict[Entry, str],
    owners: dict[Entry, Origin],
    roster: Roster | None,
    found: Found,
) -> dict[Entry, str]:
    """The id of each file's student; ClashError if two students would share one."""
    ids: dict[Entry, str] = {}
    claims: dict[str, dict[str, Entry]] = defaultdict(dict)  # id → whose name → one of the files
    for person in roster.people if roster else []:
        claims[folded(person.id)] = {}
    for entry, name in names.items():
        of = owners.get(entry)
        # What follows a system's numbers is how the student called the file, or anybody.
        wanted = of.name if of else re.split(r"(?<=\d)_(?=\d+_)|_assignsubmission_", name)[0]
        people = []
        if roster:
            people = roster.match(
                wanted, lms_id=of.lms_id if of else "", login=of.login if of else ""
            )
        if len(people) == 1:
            ids[entry] = people[0].id
            continue
        if people:
            who = ", ".join(f"{p.name or p.id} ({p.id})" for p in people)
            found.unread.append((entry.shown, f"fits several on the class list: {who}; rename it"))
            continue
        ids[entry] = student_id(name)
        if roster:
            found.unmatched.append((entry.shown, "fits nobody on the class list"))
        key = unicodedata.normalize("NFC", name) if name else entry.shown
        claims[folded(ids[entry])].setdefault(key, entry)
    taken = {folded(person.id): person.id for person in roster.people} if roster else {}
    for key, claim in claims.items():
        if len(claim) > 1 or (claim and key in taken):
            files = [entry.shown for entry in claim.values()]
            also = f" and “{taken[key]}” of the class list" if key in taken else ""
            raise ClashError(
                f"{listed(files)}{also} would be one student, “{ids[next(iter(claim.values()))]}”. "
                "If they are one student's, leave one of them; if not, rename them: "
                "ASSIGNMENT_NAME.ipynb, with the student's name or user name."
            )
    return ids


def listed(names: Sequence[str]) -> str:
    more = [f"{len(names) - 5} more"] if len(names) > 6 else []
    *first, last = [shown(name) for name in names[: 5 if more else None]] + more
    return f"{', '.join(first)} and {last}" if first else last
