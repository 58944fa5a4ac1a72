"""Who is in the class: ids out of names, and the class list.

A student's id is a folder's name, a key of the gradebook and a cell of a table, so it is made of
letters (of any script), digits, `_`, `.`, `@` and `-` only. A class list is any table with a
heading for a user name, an e-mail address, a number or a name, or the export of a
learning-management system.
"""

import csv
import hashlib
import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

MAX_ID = 100  # bytes, of the 255 that a file system and the 128 that the gradebook allow
# Names that Windows keeps for devices, also on a Linux folder that is shared with it.
DEVICES = {"con", "prn", "aux", "nul"} | {f"{d}{i}" for d in ("com", "lpt") for i in range(10)}
# What each kind of column is called: in English, in German, and in the exports of the systems.
HEADINGS = {
    "login": "login|login id|sis login id|username|user name|benutzername|anmeldename",
    "email": "email|e mail|email address|e mail address|mail|e mail adresse|email adresse",
    "number": "id number|student id|studentid|student number|matriculation number|sis user id|"
    "orgdefinedid|org defined id|matrikelnummer|matriculation|number|id|user id",
    "lms_id": "usr id",
    "participant": "identifier|kennung|identifikator|identifiant|identificador|identificatore",
    "first": "first name|firstname|first|given name|given names|vorname|prénom|nombre",
    "last": "last name|lastname|last|surname|family name|nachname|familienname|apellido s",
    "full": "name|full name|fullname|student|student name|display name|vollständiger name",
    "handed_in": "last modified submission",
}
KIND = {heading: kind for kind, names in HEADINGS.items() for heading in names.split("|")}
# Letters that are no letter with an accent; and how systems write umlauts without.
STROKES = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ı": "i"})
UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})


class ClassroomError(ValueError):
    """Something that the instructor must put right before anything is graded; says what."""


class RosterError(ClassroomError):
    """The class list cannot be read, or is ambiguous."""


def student_id(name: str) -> str:
    """The id of a student of that name: a safe file name, the same in every run.

    Both ways to write an accent give one id. Letters, their marks and digits are kept, so only
    names that differ in punctuation alone can meet; `submissions.find` refuses these.
    """
    name = unicodedata.normalize("NFC", name)
    kept = "".join(c if c in "_.@-" or unicodedata.category(c)[0] in "LMN" else " " for c in name)
    text = re.sub(r"\.{2,}", ".", re.sub(" +", "_", kept)).strip("._-@")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    if not text:
        return f"unnamed_{digest}" if name.strip(" _.@-") else "unnamed"
    if len(text.encode()) > MAX_ID:
        text = f"{text.encode()[: MAX_ID - 9].decode(errors='ignore')}_{digest}"
    return f"_{text}" if text.split(".")[0].casefold() in DEVICES else text


def folded(identity: str) -> str:
    """An id as a file system that knows no capitals has it."""
    return unicodedata.normalize("NFC", identity.casefold())


def plain(text: str) -> str:
    """A name to compare by: no difference of case, punctuation or spelling of an accent."""
    text = folded(unicodedata.normalize("NFC", text))
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join("".join(kept).split())


def bare(text: str) -> str:
    """`plain`, without accents: these, and no sign that is a vowel in another script."""
    decomposed = unicodedata.normalize("NFKD", plain(text).translate(STROKES))
    return "".join(c for c in decomposed if not "\u0300" <= c <= "\u036f")


SIMPLER: tuple[Callable[[str], str], ...] = (
    plain,
    bare,
    lambda text: bare(plain(text).translate(UMLAUTS)),
)


@dataclass(frozen=True)
class Person:
    """One line of the class list."""

    id: str
    name: str
    login: str
    lms_id: str  # by which Canvas, ILIAS and, for one assignment, Moodle know a student
    others: tuple[str, ...]  # e-mail address, number: what a file may be called, too
    row: int  # of Roster.rows
    handed_in: datetime | None = None  # where the list says so, as Moodle's worksheet does

    def spellings(self) -> set[str]:
        """All that a file of this student's may be called."""
        last, comma, first = self.name.partition(",")
        words = self.name.split()
        orders = [f"{first} {last}"] if comma else [" ".join(words[-1:] + words[:-1])]
        mails = [other.partition("@")[0] for other in self.others]
        names = {self.id, self.name, self.login, *self.others, *orders, *mails}
        # Canvas writes "Lovelace, Ada" as lovelaceada.
        return names | {plain(name).replace(" ", "") for name in (self.name, *orders)}


@dataclass(frozen=True)
class Roster:
    """The class list, and the table from which it was read."""

    people: list[Person]
    headings: list[str]
    rows: list[list[str]]
    delimiter: str
    bom: bool

    @classmethod
    def read(cls, path: Path) -> "Roster":
        """Read a class list: UTF-8, comma, semicolon or tab; columns are known by their headings.

        Raises:
            RosterError: If it cannot be read, no heading is known, or two lines are one student.
        """
        data = path.read_bytes()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise RosterError(
                f"{path.name} is not UTF-8. In Excel, save it as “CSV UTF-8 (comma-separated)”."
            ) from None
        text = re.sub(r"\Asep=.\r?\n", "", text)  # Excel's own first line
        first_line = text.partition("\n")[0]
        delimiter = max(",;\t", key=first_line.count)
        try:
            table = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        except csv.Error as error:
            raise RosterError(f"{path.name} is not a table that can be read: {error}.") from None
        headings = table[0] if table else []
        columns = columns_of(headings)
        if not columns:
            raise RosterError(
                f"{path.name} has no heading that is known. Found: {', '.join(headings) or 'none'}."
                " Wanted is at least one of: username, email, student id, name, or first name and "
                "last name; or an export of Canvas, Moodle, Brightspace or ILIAS as it is."
            )
        rows = [row + [""] * (len(headings) - len(row)) for row in table[1:]]
        people = []
        seen: dict[str, tuple[int, list[str]]] = {}
        for index, row in enumerate(rows):
            person = person_of(row, columns, index)
            if person is None:
                continue
            line, before = seen.setdefault(folded(person.id), (index, row))
            if line == index:
                people.append(person)
            elif before != row:
                raise RosterError(
                    f"{path.name}: lines {line + 2} and {index + 2} are both “{person.id}”. "
                    "Correct one, or add a column with user names or e-mail addresses."
                )
        if not people:
            raise RosterError(f"{path.name} has headings, and no student below them.")
        return cls(people, headings, rows, delimiter, data.startswith(b"\xef\xbb\xbf"))

    def match(self, name: str, *, lms_id: str = "", login: str = "") -> list[Person]:
        """Those whom a name can mean: one is found, none or several are not."""
        if lms_id and any(person.lms_id for person in self.people):
            # Not by name as well: two can have one name, and one of them be off the list.
            return [person for person in self.people if person.lms_id == lms_id]
        if login and (known := [p for p in self.people if plain(p.login) == plain(login)]):
            return known
        for simplify, index in zip(SIMPLER, self._index, strict=True):
            if hits := index.get(simplify(name)):
                return hits
        # A name within a longer one, as in ada_lovelace_final: who shares the most words with it.
        words = set(bare(name).split())
        sizes = [max((len(own) for own in owns if own <= words), default=0) for owns in self._words]
        most = max(sizes)
        return [p for p, size in zip(self.people, sizes, strict=True) if 0 < size == most]

    @cached_property
    def _index(self) -> list[dict[str, list[Person]]]:
        """Who is meant by a spelling, for each way to simplify it."""
        indices: list[dict[str, list[Person]]] = []
        for simplify in SIMPLER:
            indices.append({})
            for person in self.people:
                for spelling in {simplify(s) for s in person.spellings()} - {""}:
                    indices[-1].setdefault(spelling, []).append(person)
        return indices

    @cached_property
    def _words(self) -> list[list[set[str]]]:
        """Words that mean a student together: the names, or a number as s1234567.

        Within a longer name, a user name may be somebody's first name, and a short number anything.
        """
        found = []
        for person in self.people:
            owns = [set(simplify(person.name).split()) for simplify in SIMPLER[1:]]
            owns = [own for own in owns if len(own) > 1]
            for other in (person.login, *person.others):
                if re.fullmatch(r"[^\W\d]+\d{3,}|\d{7,}", other):
                    owns.append({bare(other)})
            found.append(owns)
        return found


def columns_of(headings: Sequence[str]) -> dict[str, int]:
    """Which column is which, by the headings."""
    columns: dict[str, int] = {}
    for index, heading in enumerate(headings):
        kind = KIND.get(plain(heading))
        if kind is not None:
            columns.setdefault(kind, index)
    if "first" in columns and "last" not in columns and "full" in columns:
        columns["last"] = columns.pop("full")  # “Vorname; Name”
    known = [plain(heading) for heading in headings]
    if {"student", "id", "section"} <= set(known):  # Canvas
        columns["lms_id"] = known.index("id")
        columns["number"] = known.index("sis user id" if "sis user id" in known else "id")
    return columns if columns.keys() - {"handed_in"} else {}


def person_of(row: Sequence[str], columns: dict[str, int], index: int) -> Person | None:
    """The student of a line; None if there is none on it."""
    value = {kind: row[i].strip() for kind, i in columns.items()}
    # Brightspace writes a # before numbers and names, so that Excel leaves them alone.
    login, number, email, lms_id = (
        value.get(kind, "").removeprefix("#") for kind in ("login", "number", "email", "lms_id")
    )
    names = (value.get("first", ""), value.get("last", ""))
    name = " ".join(filter(None, names)) or value.get("full", "")
    participant = value.get("participant", "")
    known = login or email or number or name or participant
    # Canvas has a line for the points possible, one for how marks are posted, and a test student.
    if not known or plain(name) in {"points possible", "student test"}:
        return None
    return Person(
        student_id(known),
        name,
        login,
        lms_id or (m[0] if (m := re.search(r"\d+$", participant)) else ""),
        tuple(filter(None, (email, number))),
        index,
        moodle_time(value.get("handed_in", "")),
    )


def moodle_time(text: str) -> datetime | None:
    """The time in a grading worksheet, of this machine's zone; None if in another language."""
    for form in ("%A, %d %B %Y, %I:%M %p", "%A, %d %B %Y, %H:%M"):
        try:
            return datetime.strptime(text, form).astimezone()
        except ValueError:
            continue
    return None
