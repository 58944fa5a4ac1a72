"""Run a student's functions where they can do no harm, and call them from here.

The student's code gets a process of its own, behind a wall (`wall.py`): no network, no process of
anybody else, an empty folder to write to that vanishes, and of the disk only Python, its packages
and those modules of `dropreg` that the assignment's given cells import. So it sees no hidden test,
no solution, no other submission, no gradebook. Tests stay in this process and call the functions
over a pipe, by numbers. Time, memory, processes, files and printed text are limited, and between
calls everything stands still. Not provided: protection from errors in the kernel. Who needs these
grades in a virtual machine.
"""

import ast
import contextlib
import dataclasses
import functools
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from assignments.grader import wire
from assignments.grader.definitions import statements
from assignments.grader.uses import imported
from assignments.grader.wall import (
    INSIDE,
    NoIsolationError,
    best_wall,
    isolation_works,
    with_scope,
)
from dropreg.book.checks import Answer, Fixture, Mistake
from dropreg.book.checks.core import stopped

__all__ = ["Limits", "NoIsolationError", "Sandbox", "isolation_works"]

ROOT = Path(__file__).resolve().parents[2]
CHILD = "assignments.grader.sandbox_child"
FIXTURES = "dropreg.book.checks.fixtures"
# How often memory, processes and files are counted, in seconds.
WATCH = 0.1


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one submission may use."""

    call_seconds: float = 30.0
    definition_seconds: float = 5.0
    total_seconds: float = 300.0
    memory: int = 3 << 30  # of all its processes and files together; a single allocation too
    processes: int = 16
    file_bytes: int = 1 << 26
    files: int = 10_000
    printed: int = 4000


# --- What is shown of the package -----------------------------------------------------------------


def may_import(given: Iterable[str], tests: Iterable[str]) -> set[str]:
    """The modules of `dropreg` that answers may import: those of the given cells.

    But for what only the tests name, such as `check`: there the right values are.
    """
    named = {
        node.id
        for source in tests
        for statement in statements(source)
        for node in ast.walk(statement)
        if isinstance(node, ast.Name)
    }
    return {
        path
        for source in given
        for statement in statements(source)
        for node in ast.walk(statement)
        for name, path in imported(node)
        if path.split(".")[0] == "dropreg" and name not in named
    }


def file_of(module: str) -> Path | None:
    """The file of one of this repository's modules."""
    path = ROOT.joinpath(*module.split("."))
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@functools.cache
def with_their_imports(modules: frozenset[str]) -> dict[str, Path]:
    """The modules of this repository among some names, and all that those import, with files."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = file_of(name)
        if path is None:  # a function or a class: its module's file has it
            name = name.rpartition(".")[0]
            path = file_of(name) if name else None
        if path is None or name in found:
            continue
        found[name] = path
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            waiting += [
                p for _, p in imported(node) if p.split(".")[0] in ("dropreg", "assignments")
            ]
    return found


def put_modules(folder: Path, modules: Iterable[str]) -> None:
    """Copy modules and what they import into a folder; packages around them are left empty."""
    found = with_their_imports(frozenset(modules))
    for path in found.values():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        for package in target.relative_to(folder).parents[:-1]:
            if not (folder / package / "__init__.py").exists():
                (folder / package / "__init__.py").touch()
    for path in [folder, *folder.rglob("*")]:  # whatever the grader's umask
        path.chmod(0o755 if path.is_dir() else 0o644)


# --- Counting -------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """A process and all that descend from it, the first one first."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    found += [int(child) for child in file.read().split()]
    return found


def memory_of(pid: int) -> int:
    """The bytes that a process holds, in memory or swapped; what it shares counts by its share."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            lines = [line.split() for line in file]
        return sum(int(line[1]) << 10 for line in lines if line[0] in ("Pss:", "SwapPss:"))
    except ProcessLookupError:
        return 0
    except OSError:
        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(pid).memory_info().rss)
        return 0


class Sandbox:
    """A student's functions, in a process of their own.

    Attributes:
        notes: What an instructor should know: definitions that failed, limits that were met, and
            what an answer takes from elsewhere that it should write itself.
        printed: The beginning of what was printed.
    """

    def __init__(
        self,
        cells: Sequence[str],
        functions: Mapping[str, str],
        *,
        isolated: bool = True,
        limits: Limits | None = None,
        given: Sequence[str] = (),
        tests: Sequence[str] = (),
        write_yourself: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Keep the sources; the process starts at the first call.

        Args:
            cells: Source of the code cells that count, in their order.
            functions: For each function its own cell, where it is looked for under another name.
            isolated: Whether to insist on bubblewrap. Without it, limits hold and nothing else.
            limits: What the submission may use.
            given: Those of the cells that the release gives. What they import of `dropreg` is
                there, and nothing else of it; an error that they raise is named as theirs.
            tests: Sources of the tests: what they name is not for answers to import.
            write_yourself: For each function, patterns of what it should not use.

        Raises:
            NoIsolationError: If isolation is asked for and there is none here.
        """
        self._wall = best_wall() if isolated else None
        self.limits, self.printed = limits or Limits(), bytearray()
        self.notes: list[str] = []
        self._cells, self._functions = list(cells), dict(functions)
        self._given = list(given)
        self._allowed = sorted(may_import(given, tests))
        self._write_yourself = {n: list(p) for n, p in (write_yourself or {}).items()}
        self._found: set[str] = set()
        self._unread: dict[str, str] = {}
        self._errors: list[str] = []
        self._dead: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._left = self.limits.total_seconds
        self._stack = contextlib.ExitStack()
        self._still: list[int] = []
        self._files: int | None = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, name: str) -> Answer:
        """The function of that name, for the checks."""
        return Answer(name, lambda seed, args: self.call(name, seed, args))

    def call(self, name: str, seed: int, args: tuple[Any, ...]) -> Any:
        """Call a function; `Mistake` if it fails or is not written."""
        if name in self._dead:
            raise Mistake(self._dead[name])
        if self._process is None:
            self._start()
        if name not in self._found:
            raise Mistake(self._not_found(name))
        try:
            reply = self._exchange(f"`{name}`", (name, seed, list(args)), self.limits.call_seconds)
        except Mistake as mistake:
            self._dead[name] = str(mistake)
            raise
        if "value" in reply:
            return reply["value"]
        kind, message, building, place, unwritten = (
            str(reply.get(key) or "")[:300]
            for key in ("error", "message", "building", "where", "unwritten")
        )
        if building:
            self._note(f"the grader could not build `{building}` for `{name}`: {message}")
            raise Mistake(
                f"`{name}` was not tested: the grader could not build `{building}`. This may not "
                "be your mistake: please tell your instructor.",
                f"({message})",
            )
        text = f"{message.removeprefix(f'{kind}: ')}{place}".strip()
        raise stopped(name, kind, text[:600], unwritten or None)

    def close(self) -> None:
        """End the process, and all that it has started."""
        if self._process is not None:
            for pid in [*self._still, *family(self._process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        self._still, self._files = [], None
        self._stack.close()

    def _not_found(self, name: str) -> str:
        if self._unread.get(name):
            message = f"the cell of `{name}` cannot be read: {self._unread[name]}"
        else:
            shown = "; ".join(self._errors[:5])
            hint = f"Write `def {name}(…):` into a code cell; it may have become text."
            message = f"no function `{name}` was found. {shown or hint}"
        self._note(message)
        return message

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _start(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        modules = folder / "modules"
        modules.mkdir()
        put_modules(modules, [CHILD, FIXTURES, *self._allowed])
        folder.chmod(0o755)
        # The interpreter's symbolic link as it is, by which a virtual environment is known; and the
        # working folder not on the path (-P).
        command = [sys.executable, "-s", "-B", "-P", "-m", CHILD]
        environment = {
            "HOME": "/tmp",
            "USER": "student",
            "MPLBACKEND": "agg",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(INSIDE if self._wall else modules),
        }
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        limits = self.limits
        if self._wall:
            # A little more than is counted here, which says what it was.
            way = with_scope(self._wall, limits.memory + limits.memory // 4, 16 * limits.processes)
            process = way.start(command, modules, limits.file_bytes, environment, **pipes)
        else:
            process = subprocess.Popen(
                command, env=environment, cwd=folder, start_new_session=True, bufsize=0, **pipes
            )
        self._process = process
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            self._stack.callback(pipe.close)
            os.set_blocking(pipe.fileno(), False)
        rlimits = {
            "RLIMIT_AS": limits.memory + (4 << 30),  # torch maps much and uses little
            "RLIMIT_FSIZE": limits.file_bytes,
            "RLIMIT_CORE": 0,
            "RLIMIT_CPU": int(limits.total_seconds) + 10,
            "RLIMIT_NOFILE": 128,
        }
        version = tuple(int(n) for n in platform.release().split("-")[0].split(".")[:2])
        if self._wall and version >= (5, 14):  # older ones count what others of that user run, too
            rlimits["RLIMIT_NPROC"] = 16 * limits.processes  # threads as well
        start = {
            "cells": self._cells,
            "functions": self._functions,
            "given": self._given,
            "allowed": self._allowed,
            "write_yourself": self._write_yourself,
            "limits": rlimits,
            "seconds": limits.definition_seconds,
        }
        try:
            uses = self._exchange("reading the notebook", start, 30 + limits.call_seconds)
            self.notes += [str(use) for use in uses.get("uses") or [] if str(use) not in self.notes]
            if self._wall:
                _, _, child, *_ = [*family(process.pid), 0, 0]
                with contextlib.suppress(OSError):
                    self._files = os.open(f"/proc/{child}/root/tmp", os.O_PATH | os.O_DIRECTORY)
                    self._stack.callback(os.close, self._files)
            # Twice six times the processor's time of a definition, for sleepers.
            seconds = 12 * limits.definition_seconds + limits.call_seconds
            reply = self._exchange("defining the functions", "define", seconds)
        except Mistake as mistake:
            self._dead = dict.fromkeys(self._functions, str(mistake))
            raise
        for key, kind in (("errors", list), ("unread", dict), ("found", list)):
            if not isinstance(reply.get(key), kind):  # forged
                reply[key] = kind()
        self._errors = [str(error) for error in reply["errors"]]
        self._unread = {str(name): str(why) for name, why in reply["unread"].items()}
        self._found = {str(name) for name in reply["found"]} & set(self._functions)

    def _exchange(self, what: str, message: Any, seconds: float) -> dict[str, Any]:
        """Send a message and wait for the reply; `Mistake`, and an end, if that breaks a limit."""
        if self._left <= 0:
            raise Mistake(
                f"not tested: the notebook has used up its {self.limits.total_seconds:.0f} s."
            )
        seconds = min(seconds, self._left)
        begin = time.monotonic()
        try:
            with self._moving():
                header, body = self._talk(wire.encode(message, Fixture), begin + seconds)
            reply = wire.decode(header, body)
            if not isinstance(reply, dict):
                raise ValueError("not a reply")
        except (ValueError, EOFError, BrokenPipeError, TimeoutError, MemoryError) as error:
            reason = {
                TimeoutError: f"took longer than {seconds:.0f} s and was stopped. "
                "Does a loop never end?",
                MemoryError: "used too much memory or too many processes or files, and was "
                "stopped.",
                ValueError: "gave back something that cannot be read.",
            }.get(type(error), "ended the process in which it ran.")
            self.notes.append(f"{what} {reason}")
            self.close()
            raise Mistake(self.notes[-1]) from None
        finally:
            self._left -= time.monotonic() - begin
        return reply

    @contextlib.contextmanager
    def _moving(self) -> Iterator[None]:
        """Let the processes run; afterwards stop all, so that none computes between calls."""
        assert self._process is not None
        for pid in self._still:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._still = []
        yield
        while moving := set(family(self._process.pid)) - set(self._still):
            self._still += moving
            if len(self._still) > 10 * self.limits.processes:
                raise MemoryError
            for pid in moving:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)

    def _talk(self, request: bytes, deadline: float) -> tuple[bytes, bytes]:
        """Send a request, and read header and body of the reply, and all that is printed."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        sent, received = memoryview(request), bytearray()
        wanted, sizes = 16, (0, 0)
        reading = [process.stdout, process.stderr]
        next_watch = time.monotonic() + WATCH
        while len(received) < wanted:
            writing = [process.stdin] if sent else []
            readable, writable, _ = select.select(reading, writing, [], WATCH)
            if writable:
                sent = sent[os.write(process.stdin.fileno(), sent[: 1 << 16]) :]
            if process.stderr in readable and not self._print(process.stderr.fileno()):
                reading.remove(process.stderr)
            if process.stdout in readable:
                chunk = os.read(process.stdout.fileno(), min(1 << 20, wanted - len(received)))
                if not chunk:
                    raise EOFError
                received += chunk
                if wanted == 16 and len(received) == 16:
                    sizes = (
                        int.from_bytes(received[:8], "big"),
                        int.from_bytes(received[8:], "big"),
                    )
                    if sizes[0] > wire.MAX_HEADER or sizes[1] > wire.MAX_BYTES:
                        raise ValueError("too long")
                    wanted += sum(sizes)
            # On a clock of its own, whatever comes through the pipes.
            now = time.monotonic()
            if now > deadline:
                raise TimeoutError
            if now > next_watch:
                self._watch()
                next_watch = time.monotonic() + WATCH
        with contextlib.suppress(BlockingIOError):
            self._print(process.stderr.fileno())
        return bytes(received[16 : 16 + sizes[0]]), bytes(received[16 + sizes[0] :])

    def _print(self, pipe: int) -> bool:
        """Read what was printed, so that nothing blocks, and keep the beginning."""
        chunk = os.read(pipe, 1 << 16)
        self.printed += chunk[: self.limits.printed - len(self.printed)]
        return bool(chunk)

    def _watch(self) -> None:
        """Raise MemoryError if all together hold too much, or are too many."""
        assert self._process is not None
        processes = family(self._process.pid)
        memory = sum(memory_of(pid) for pid in processes)
        files = 0
        if self._files is not None:
            disk = os.statvfs(self._files)
            memory += (disk.f_blocks - disk.f_bfree) * disk.f_frsize
            files = disk.f_files - disk.f_ffree
        if (
            memory > self.limits.memory
            or len(processes) > self.limits.processes
            or files > self.limits.files
        ):
            raise MemoryError
