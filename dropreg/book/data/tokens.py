"""Text as word numbers, read once and kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dropreg.errors import MissingPackageError, needs

PARTS = ("train", "valid", "test")
UNK, EOS = "<unk>", "<eos>"
UNK_ID, EOS_ID = 0, 1
FORMAT = 2
"""Part of every cache file's name: raise it when the same text would give other tokens, or the file
has another form."""
CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class Tokens:
    """A whole text, every word kept.

    Attributes:
        words: The distinct words, `UNK` and `EOS` first, then by first appearance.
        ids: For each part the number of each word in `words`, one `EOS` a line, int32.
        sha256: For each part the hash of the bytes that were read.
    """

    words: list[str]
    ids: Mapping[str, Tensor]
    sha256: Mapping[str, str]

    def count(self, part: str) -> int:
        """The number of words of a part, end marks not counted."""
        return int((self.ids[part] != EOS_ID).count_nonzero())


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
        # An empty buffer is refused, and an empty text is a text.
        ids[part] = torch.frombuffer(out or array("i", [0]), dtype=torch.int32)[: len(out)]
    hashes = {part: hashlib.sha256(texts[part]).hexdigest() for part in PARTS}
    return Tokens(list(number), ids, hashes)


def cache_folder(purpose: str = "The cache folder") -> Path:
    """The folder for what can be made or fetched again; it may not exist yet.

    Args:
        purpose: What it is wanted for: the subject of the message where it is not known.

    Returns:
        The user's cache folder of this package.

    Raises:
        MissingPackageError: If platformdirs is not installed, which knows where it is.
    """
    with needs("book", purpose):
        import platformdirs
    return platformdirs.user_cache_path("dropreg")


def cached(key: str, read: Callable[[], Tokens]) -> Tokens:
    """Tokens from the cache, or read now and put there.

    The file gets its name only when it is complete, so that neither a killed process nor a second
    one leaves half a file behind. Where the cache cannot be written, the text is read every time;
    so it is without the package platformdirs, where there is no cache.

    Args:
        key: Names the text and its version.
        read: Reads it.

    Returns:
        The tokens.
    """
    try:
        path = cache_folder() / f"{key}.tokens{FORMAT}"
    except MissingPackageError:  # a cache saves a fraction of a second, and is nobody's wish
        return read()
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
        with open(path, "rb") as file:
            checksum, content = file.read(CHECKSUM_BYTES), file.read()
    except OSError:
        return None
    if checksum != _checksum(content):
        return None
    held = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return Tokens(held["words"].split("\n"), held["ids"], held["sha256"])


def _save(path: Path, tokens: Tokens) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    # One text is read faster than many words, none of which holds a line's end.
    words = "\n".join(tokens.words)
    torch.save({"words": words, "ids": tokens.ids, "sha256": tokens.sha256}, content)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_checksum(content.getbuffer()))
            file.write(content.getbuffer())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _checksum(content: bytes | memoryview) -> bytes:
    """Against damage, which `torch.load` does not look for."""
    return zlib.crc32(content).to_bytes(CHECKSUM_BYTES)
