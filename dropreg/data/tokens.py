"""Text as arrays of word numbers, read once and kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import zipfile
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import platformdirs

PARTS = ("train", "valid", "test")
UNK, EOS = "<unk>", "<eos>"
UNK_ID, EOS_ID = 0, 1
FORMAT = 1
"""Part of every cache file's name: raise it when the same text would give other tokens."""


@dataclass(frozen=True)
class Tokens:
    """A whole text, every word kept.

    Attributes:
        words: The distinct words, `UNK` and `EOS` first, then by first appearance.
        ids: For each part the number of each word in `words`, one `EOS` a line, int32.
        sha256: For each part the hash of the bytes that were read.
    """

    words: list[str]
    ids: Mapping[str, npt.NDArray[np.int32]]
    sha256: Mapping[str, str]

    def count(self, part: str) -> int:
        """The number of words of a part, end marks not counted."""
        return int(np.count_nonzero(self.ids[part] != EOS_ID))


def encode(texts: Mapping[str, bytes]) -> Tokens:
    r"""Number the words, which are what white space separates; each line ends with `EOS`.

    Args:
        texts: For each part its text in UTF-8. An empty line is a line too.

    Returns:
        The tokens.

    >>> tokens = encode({"train": b"to be or\nnot to be\n", "valid": b"be\n", "test": b"\n"})
    >>> tokens.words, tokens.ids["train"].tolist()
    (['<unk>', '<eos>', 'to', 'be', 'or', 'not'], [2, 3, 4, 1, 5, 2, 3, 1])
    """
    number: defaultdict[str, int] = defaultdict()
    number.default_factory = number.__len__  # an unseen word gets the next number
    assert (number[UNK], number[EOS]) == (UNK_ID, EOS_ID)
    ids = {}
    for part in PARTS:
        out = array("i")
        for line in io.TextIOWrapper(io.BytesIO(texts[part]), encoding="utf-8"):
            out.extend(map(number.__getitem__, line.split()))
            out.append(EOS_ID)
        ids[part] = np.frombuffer(out, dtype=np.int32)
    hashes = {part: hashlib.sha256(texts[part]).hexdigest() for part in PARTS}
    return Tokens(list(number), ids, hashes)


def cache_folder() -> Path:
    """The folder for what can be made or fetched again; it may not exist yet."""
    return platformdirs.user_cache_path("dropreg")


def cached(key: str, read: Callable[[], Tokens]) -> Tokens:
    """Tokens from the cache, or read now and put there.

    The file gets its name only when it is complete, so that neither a killed process nor a second
    one leaves half a file behind. Where the cache cannot be written, the text is read every time.

    Args:
        key: Names the text and its version.
        read: Reads it.

    Returns:
        The tokens.
    """
    path = cache_folder() / f"{key}.tokens{FORMAT}.npz"
    tokens = _load(path)
    if tokens is None:
        tokens = read()
        # A home that is read-only or full costs the next process the reading, and nothing else.
        with contextlib.suppress(OSError):
            _save(path, tokens)
    return tokens


def _load(path: Path) -> Tokens | None:
    """What a cache file holds; None if there is none or it is damaged."""
    try:
        # Reading compares the checksum of every array.
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            words = file["words"].tobytes().decode().split("\n")
            sha256 = dict(zip(PARTS, file["sha256"].tobytes().decode().split("\n"), strict=True))
            return Tokens(words, {part: file[part] for part in PARTS}, sha256)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _save(path: Path, tokens: Tokens) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {"words": tokens.words, "sha256": [tokens.sha256[part] for part in PARTS]}
    arrays = {
        name: np.frombuffer("\n".join(each).encode(), np.uint8) for name, each in text.items()
    }
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays, **tokens.ids)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
