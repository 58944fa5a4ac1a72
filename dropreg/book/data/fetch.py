"""Finding the files of a corpus: in the user's folder, or fetched once and checked.

Nothing is ever unpacked to disk: what is wanted is read out of an archive by its name, up to a
limit, and its hash compared. So no path inside an archive can lead anywhere.
"""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dropreg.book.data.tokens import PARTS, cache_folder
from dropreg.errors import DataError, needs

VARIABLE = "DROPREG_DATA"
MAX_BYTES = 1 << 30
"""More than any file here holds (WikiText-103's largest has 0.54 GB): what is larger is refused."""
PATIENCE = 3600.0
"""Seconds that one download may take, and that a process waits for another one's."""
SILENCE = 30.0
"""Seconds without a byte after which a server is given up."""
BLOCK = 1 << 16
"""Bytes read at a time; what a broken connection brought of the last block is lost."""


@dataclass(frozen=True)
class Text:
    """One part of a corpus.

    Attributes:
        file: Its file name.
        digest: Hash of its content, "algorithm:hex".
        words: Number of words, end marks not counted.
    """

    file: str
    digest: str
    words: int


@dataclass(frozen=True)
class Source:
    """Where a corpus comes from, and what it must be.

    Attributes:
        title: Its name for people.
        origin: Who made it, and where it is fetched from.
        folders: The folders that its files may lie in, in DROPREG_DATA and in an archive.
        archive: Name of a zip archive that may hold them.
        downloads: For each file to fetch its address and hash.
        texts: The parts.
    """

    title: str
    origin: str
    folders: tuple[str, ...]
    archive: str
    downloads: Mapping[str, tuple[str, str]]
    texts: Mapping[str, Text]

    @property
    def fetching(self) -> str:
        """What a package is needed for: the subject of a message."""
        return f"Fetching {self.title} ({VARIABLE} names no folder that holds it)"

    @property
    def by_hand(self) -> str:
        """What to do without a network."""
        addresses = " and ".join(address for address, _ in self.downloads.values())
        return (
            f"Download {addresses} by hand, put what you get into a folder, and set the "
            f"environment variable {VARIABLE} to that folder."
        )


def read(source: Source) -> dict[str, bytes]:
    """The text of every part, with its hash checked.

    Args:
        source: The corpus.

    Returns:
        For each part its bytes.

    Raises:
        DataError: If DROPREG_DATA holds a damaged or incomplete copy, or holds none and the corpus
            cannot be fetched.
        MissingPackageError: If it has to be fetched and a package for that is not installed.
    """
    named = os.environ.get(VARIABLE)
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise DataError(f"{VARIABLE} is {named!r}, which is not a folder (from {Path.cwd()}).")
        texts = _look_into(folder, source)
        if texts:
            return texts
    folder = cache_folder(source.fetching) / "downloads"
    _fetch(source, folder)
    texts = _look_into(folder, source)
    if not texts:
        raise DataError(f"What was fetched for {source.title} holds none of its files.")
    return texts


def _look_into(folder: Path, source: Source) -> dict[str, bytes]:
    """The texts that lie in a folder: all of them, or an empty dict."""
    texts = {part: _find(folder, source, source.texts[part].file) for part in PARTS}
    found = {part: text for part, text in texts.items() if text is not None}
    missing = [source.texts[part].file for part in PARTS if part not in found]
    if found and missing:
        raise DataError(f"{folder} holds {source.title} without {', '.join(missing)}.")
    for part, text in found.items():
        wanted = source.texts[part]
        algorithm, digest = wanted.digest.split(":")
        actual = hashlib.new(algorithm, text, usedforsecurity=False).hexdigest()
        if actual != digest:
            raise DataError(
                f"{wanted.file} in {folder} is not {source.title} as published, or is damaged: its "
                f"{algorithm} is {actual}, not {digest}. Remove it, or put the right file there."
            )
    return found


def _find(folder: Path, source: Source, file: str) -> bytes | None:
    """The content of one file, from the folder itself or out of an archive in it."""
    names = ["/".join(filter(None, (inner, file))) for inner in source.folders]
    for name in names:
        path = folder / name
        if path.is_file():
            _refuse_size(path.stat().st_size, path)
            return path.read_bytes()
    archive = folder / source.archive
    if not archive.is_file():
        return None
    _refuse_size(archive.stat().st_size, archive)
    try:
        with zipfile.ZipFile(archive) as members:
            present = set(members.namelist())
            for name in filter(present.__contains__, names):
                _refuse_size(members.getinfo(name).file_size, archive)  # read() stops there
                return members.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        # The last two: an encrypted member, an unknown compression.
        raise DataError(f"{archive} is damaged or not a plain zip archive: {error}") from error
    return None


def _refuse_size(size: int, where: Path) -> None:
    if size > MAX_BYTES:
        raise DataError(f"{where} claims to hold {size:,} bytes, more than {MAX_BYTES:,}: refused.")


def _fetch(source: Source, folder: Path) -> None:
    """Download what is not there yet; a second process waits for the first."""
    with needs("book", source.fetching):
        import filelock
        import pooch  # and with it requests, for `_download`

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock", timeout=PATIENCE):
            for left_over in folder.glob("tmp*"):  # of a download that was killed
                left_over.unlink()
            for name, (address, digest) in source.downloads.items():
                # Written under another name, and renamed when the hash is right.
                pooch.retrieve(address, digest, fname=name, path=folder, downloader=_download)
    except (OSError, ValueError) as error:  # pooch raises ValueError for a wrong hash
        raise DataError(
            f"{source.title} could not be fetched: {error}\n{source.by_hand}"
        ) from error


def _download(address: str, path: str, _pooch: object = None) -> None:
    """Fetch an address into a file, resuming as long as each connection brings something."""
    import requests

    deadline = time.monotonic() + PATIENCE
    with open(path, "wb") as file:
        while True:
            start = file.tell()
            try:
                return _continue(address, file, deadline)
            except (
                requests.ConnectionError,
                requests.Timeout,
                requests.exceptions.ChunkedEncodingError,
            ):
                if file.tell() == start:
                    raise


def _continue(address: str, file: BinaryIO, deadline: float) -> None:
    import requests

    headers = {"User-Agent": "dropreg", "Accept-Encoding": "identity"}
    if file.tell():
        headers["Range"] = f"bytes={file.tell()}-"
    with requests.get(address, headers=headers, stream=True, timeout=SILENCE) as response:
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            file.seek(0)  # the server does not resume and sends everything again
            file.truncate()
        for block in response.iter_content(BLOCK):
            if file.tell() + len(block) > MAX_BYTES:
                raise OSError(f"{address} sends more than {MAX_BYTES:,} bytes")
            if time.monotonic() > deadline:
                raise OSError(f"{address} took more than {PATIENCE:.0f} seconds")
            file.write(block)
