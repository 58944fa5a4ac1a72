"""Records of runs: one file each, written whole or not at all.

A run that has ended is a JSON file in the results folder, to be committed, and so is one that was
stopped by the clock, with what it had by then. A run in progress is a checkpoint and a lock in the
work folder. Both have the run's name for a path, so processes that
work side by side never write to the same file, and results from another machine are just copied in.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, Any

import torch

from dropreg import __version__
from dropreg.errors import DropregError

SCHEMA = 1
"""Version of the files' form; `results/README.md` describes it."""
COMMIT, CHANGED = "DROPREG_COMMIT", "+changed"
"""The variable that names the commit, and how it ends where the library has been changed since."""


class RecordError(DropregError):
    """A file of results is damaged, or of another form."""


class StorageError(DropregError):
    """A folder or a file cannot be written or read: a right is missing, or room."""


def cannot(path: Path, error: OSError) -> str:
    """What a `StorageError` says.

    Args:
        path: The file or folder.
        error: What the system said.

    Returns:
        Which file it is, why, and what to do.
    """
    return (
        f"{path} cannot be written or read ({error.strerror or error}). See to its rights and to "
        "room on the disk, or name other folders with --results and --work."
    )


@dataclass(frozen=True)
class Record:
    """What a run left.

    Attributes:
        run: Its name.
        config: All that decides its outcome but the versions of software and hardware.
        status: "finished", or "diverged: " and why, or "stopped after epoch n": it can go on, and
            until it has ended nothing is concluded from it.
        sessions: For each stretch of epochs where, when and how it was run.
        epochs: One row each; see `results/README.md`.
        final: Perplexities of the weights after the last epoch; empty unless the run finished.
    """

    run: str
    config: Mapping[str, Any]
    status: str
    sessions: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    final: dict[str, float]

    @property
    def finished(self) -> bool:
        """Whether all epochs were run."""
        return self.status == "finished"

    @property
    def ended(self) -> bool:
        """Whether the run is over, finished or diverged."""
        return not self.status.startswith("stopped")

    def column(self, name: str) -> list[float]:
        """The values of a quantity in the epochs that have it."""
        return [row[name] for row in self.epochs if name in row]

    @property
    def best(self) -> float:
        """Lowest validation perplexity of any epoch."""
        return min(self.column("valid_perplexity"))

    @property
    def last(self) -> float:
        """Validation perplexity after the last epoch."""
        return self.column("valid_perplexity")[-1]

    @property
    def seconds(self) -> float:
        """Time spent training, without validation."""
        return sum(self.column("seconds"))

    def write(self, folder: Path) -> Path:
        """Write the file, one epoch a line.

        Args:
            folder: Folder of the results.

        Returns:
            Its path.
        """
        head = {
            "schema": SCHEMA,
            "run": self.run,
            "status": self.status,
            "config": self.config,
            "sessions": self.sessions,
            "final": self.final,
        }
        rows = ",\n  ".join(map(_json, self.epochs))
        lines = [f'"{name}": {_json(value)}' for name, value in head.items()]
        text = "{" + ",\n ".join([*lines, f'"epochs": [\n  {rows}\n ]']) + "}\n"
        path = folder / f"{self.run}.json"
        write_whole(path, lambda file: file.write(text.encode()))
        return path


def _json(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def read_record(path: Path) -> Record:
    """Read what a run left.

    Args:
        path: Its file.

    Returns:
        The record.

    Raises:
        RecordError: If the file is damaged or of another form.
        StorageError: If it cannot be read.
    """
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_size, status.st_ino)
    except OSError as error:
        raise StorageError(cannot(path, error)) from error


@lru_cache(maxsize=1000)  # of some 25 KB each
def _read(path: Path, *version: int) -> Record:
    """Read a file once, until another stands in its place: whoever looks for work asks for all."""
    try:
        data = json.loads(path.read_bytes())
        if data.pop("schema") != SCHEMA:
            raise RecordError(f"{path} is not of the form {SCHEMA}, which this version reads.")
        return Record(**data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path} is not the record of a run, or is damaged: {error!r}. Restore it (`git "
            f"checkout -- {path}`), or delete it, and the run is trained again."
        ) from error


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under another name, and give it its own when it is safely on the disk.

    Args:
        path: The file; its folder is made.
        write: Writes the content.

    Raises:
        StorageError: If it cannot be written; the old file is still there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp's files are for the owner only
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise StorageError(cannot(path, error)) from error


def prepare(path: Path) -> None:
    """See that a file can be written, before the work whose outcome it will hold.

    Args:
        path: The file; its folder is made. What a killed process left of it is removed, so nobody
            else may be writing it.

    Raises:
        StorageError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
            leftover.unlink()
    except OSError as error:
        raise StorageError(cannot(path, error)) from error


def results_folder() -> Path:
    """The results that come with the package: the repository's, or the installed copy of them."""
    package = Path(__file__).parents[2]
    installed = package / "results"
    return installed if installed.is_dir() else package.parent / "results"


def session(device: torch.device) -> dict[str, Any]:
    """Where, when and by which command this process runs."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["dropreg", *sys.argv[1:]]),
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass that checkpoints refuse
        **commit(),
    }


@cache
def commit() -> dict[str, Any]:
    """The commit of the code, and whether the library has been changed since.

    DROPREG_COMMIT stands for it where the code runs outside its repository, or with another of its
    processes; it ends in "+changed" if the library has been.

    Returns:
        "commit", a hash or a version, and "changed".
    """
    given = os.environ.get(COMMIT)
    if given:
        return {"commit": given.removesuffix(CHANGED), "changed": given.endswith(CHANGED)}
    package = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) == package.parent:
            changed = bool(git("status", "--porcelain", "--", str(package)))
            return {"commit": git("rev-parse", "HEAD"), "changed": changed}
    except (OSError, subprocess.CalledProcessError):
        pass  # no git here, or an installed package: its version has to do
    return {"commit": f"dropreg {__version__}", "changed": False}
