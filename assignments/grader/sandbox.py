"""Run a student's functions where they can do no harm, and call them from here.

The student's code gets a process of its own, under bubblewrap (`bwrap`): no network, no process of
anybody else, an empty folder to write to that vanishes, and of the disk only Python, its packages
and `dropreg`. So it sees no hidden test, no solution, no other submission, no gradebook. Tests stay
in this process and call the functions over a pipe, by numbers. Time, memory, processes, files and
printed text are limited. Not provided: a filter on system calls, and protection from errors in the
kernel. Who needs these grades in a virtual machine.
"""

import contextlib
import dataclasses
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

import dropreg
from assignments.grader import sandbox_child
from dropreg.book.checks import Answer, Mistake

PACKAGE = Path(dropreg.__file__).resolve().parent
CHILD = Path(sandbox_child.__file__).resolve()
# Where it is behind the wall, where nothing is to be seen of the assignments' folder.
INSIDE = "/sandbox_child.py"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one submission may use."""

    call_seconds: float = 30.0
    definition_seconds: float = 5.0
    total_seconds: float = 300.0
    memory: int = 3 << 30  # of all its processes together; a single allocation stops there too
    processes: int = 16
    file_bytes: int = 1 << 26
    printed: int = 4000


class NoIsolationError(RuntimeError):
    """There is no working bubblewrap here."""


def isolation_works() -> bool:
    """Whether bubblewrap is installed and may make namespaces."""
    if shutil.which("bwrap") is None:
        return False
    test = ["bwrap", "--unshare-all", "--unshare-user", "--ro-bind", "/", "/", "true"]
    return subprocess.run(test, capture_output=True).returncode == 0


def wall(command: Sequence[str], limits: Limits) -> list[str]:
    """The command under bubblewrap, with only what Python needs in sight."""
    options = ["--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"]
    options += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox"]
    options += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        options += ["--size", str(limits.file_bytes), "--tmpfs", folder]
    visible = [Path("/usr"), *(Path(p) for p in (sys.prefix, sys.base_prefix)), PACKAGE]
    visible += [Path(p) for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    visible += [Path("/etc/ld.so.cache")]
    for name in ("/lib", "/lib32", "/lib64", "/bin"):
        link = Path(name)
        if link.is_symlink():
            options += ["--symlink", os.readlink(link), name]
        else:
            visible.append(link)
    for path in dict.fromkeys(p for p in visible if p.exists()):
        options += ["--ro-bind", str(path), str(path)]
    options += ["--ro-bind", str(CHILD), INSIDE]
    return ["bwrap", *options, "--remount-ro", "/", "--chdir", "/tmp", "--", *command]


class Sandbox:
    """A student's functions, in a process of their own.

    Attributes:
        notes: What an instructor should know: definitions that failed, limits that were met.
    """

    def __init__(
        self,
        cells: Sequence[str],
        functions: Mapping[str, str],
        *,
        isolated: bool = True,
        limits: Limits | None = None,
    ) -> None:
        """Keep the sources; the process starts at the first call.

        Args:
            cells: Source of the code cells whose definitions count, in their order.
            functions: For each function its own cell, where it is looked for under another name.
            isolated: Whether to insist on bubblewrap. Without it, limits hold and nothing else.
            limits: What the submission may use.

        Raises:
            NoIsolationError: If isolation is asked for and there is none here.
        """
        if isolated and not isolation_works():
            raise NoIsolationError(
                "Students' code is not run here without isolation: `bwrap` is missing or may not "
                "make namespaces. Debian and Ubuntu: `apt-get install bubblewrap`, and where "
                "AppArmor forbids it `sysctl kernel.apparmor_restrict_unprivileged_userns=0`. In a "
                "container or virtual machine of its own, which holds nothing else, you may say "
                "`--no-isolation`."
            )
        self.limits, self.printed = limits or Limits(), bytearray()
        self.notes: list[str] = []
        self._cells, self._functions, self._isolated = list(cells), dict(functions), isolated
        self._found: set[str] = set()
        self._errors: list[str] = []
        self._dead: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._left = self.limits.total_seconds
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, name: str) -> Answer:
        """The function of that name, for the checks."""
        return Answer(name, lambda seed, args: self.call(name, seed, args))

    def call(self, name: str, seed: int, args: tuple[Any, ...]) -> Any:
        """Call a function; `Mistake` if it fails, NotImplementedError if it is not written."""
        if name in self._dead:
            raise Mistake(self._dead[name])
        if self._process is None:
            self._start()
        if name not in self._found:
            shown = "; ".join(self._errors[:5])
            for note in (f"no function `{name}` was found.", shown and f"Not defined: {shown}"):
                self.notes += [note] if note and note not in self.notes else []
            raise Mistake(f"no function `{name}` was found. {shown}".strip())
        try:
            reply = self._exchange(f"`{name}`", (name, seed, list(args)), self.limits.call_seconds)
        except Mistake as mistake:
            self._dead[name] = str(mistake)
            raise
        if "value" in reply:
            return reply["value"]
        error, message = str(reply.get("error")), str(reply.get("message"))
        if error == "NotImplementedError":
            raise NotImplementedError
        raise Mistake(f"`{name}` stopped with an error: {error}: {message}"[:600])

    def close(self) -> None:
        """End the process, and all that it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._drain.join()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        # The interpreter's symbolic link as it is, by which a virtual environment is known; and the
        # child's folder not on the path (-P), where `sandbox` or `grading` would be our modules.
        command = [sys.executable, "-s", "-B", "-P", INSIDE if self._isolated else str(CHILD)]
        self._folder = tempfile.TemporaryDirectory()
        environment = {
            "HOME": "/tmp",
            "USER": "student",
            "MPLBACKEND": "agg",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(PACKAGE.parent),
        }
        self._process = subprocess.Popen(
            wall(command, self.limits) if self._isolated else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=self._folder.name,
            start_new_session=True,
            bufsize=0,
        )
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._drain = threading.Thread(target=self._keep_printed, args=(self._process,))
        self._drain.start()
        rlimits = {
            "RLIMIT_AS": self.limits.memory + (4 << 30),  # torch maps much and uses little
            "RLIMIT_FSIZE": self.limits.file_bytes,
            "RLIMIT_CORE": 0,
            "RLIMIT_CPU": int(self.limits.total_seconds) + 10,
            "RLIMIT_NOFILE": 256,
        }
        start = {
            "cells": self._cells,
            "functions": self._functions,
            "limits": rlimits,
            "seconds": self.limits.definition_seconds,
        }
        what, seconds = "defining the functions", 60 + self.limits.call_seconds
        try:
            reply = self._exchange(what, start, seconds)
        except Mistake as mistake:
            self._dead = dict.fromkeys(self._functions, str(mistake))
            raise
        found, self._errors = reply.get("found", []), [str(e) for e in reply.get("errors", [])]
        self._found = {str(name) for name in found} & set(self._functions)

    def _keep_printed(self, process: "subprocess.Popen[bytes]") -> None:
        """Read all that is printed, so that nothing blocks, and keep the beginning."""
        assert process.stderr is not None
        with process.stderr as pipe:
            while chunk := pipe.read(1 << 16):
                self.printed += chunk[: self.limits.printed - len(self.printed)]

    def _exchange(self, what: str, message: Any, seconds: float) -> dict[str, Any]:
        """Send a message and wait for the reply; `Mistake`, and an end, if that breaks a limit."""
        if self._left <= 0:
            raise Mistake(
                f"not tested: the notebook has used up its {self.limits.total_seconds:.0f} s."
            )
        seconds = min(seconds, self._left)
        begin = time.monotonic()
        try:
            reply = self._talk(sandbox_child.encode(message), begin + seconds)
            if not isinstance(reply, dict):
                raise ValueError("not a reply")
        except (ValueError, EOFError, BrokenPipeError, TimeoutError, MemoryError) as error:
            reason = {
                TimeoutError: f"took longer than {seconds:.0f} s and was stopped. "
                "Does a loop never end?",
                MemoryError: "used too much memory or too many processes, and was stopped.",
                ValueError: "gave back something that cannot be read.",
            }.get(type(error), "ended the process in which it ran.")
            self.notes.append(f"{what} {reason}")
            self.close()
            raise Mistake(self.notes[-1]) from None
        finally:
            self._left -= time.monotonic() - begin
        return reply

    def _talk(self, request: bytes, deadline: float) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        sent, received = memoryview(request), bytearray()
        wanted, sizes = 16, (0, 0)
        watched = psutil.Process(self._process.pid)
        while len(received) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError
            readable, writable, _ = select.select(
                [self._process.stdout], [self._process.stdin] if sent else [], [], 0.2
            )
            if writable:
                sent = sent[os.write(self._process.stdin.fileno(), sent[: 1 << 16]) :]
            if readable:
                chunk = os.read(self._process.stdout.fileno(), min(1 << 20, wanted - len(received)))
                if not chunk:
                    raise EOFError
                received += chunk
                if wanted == 16 and len(received) == 16:
                    sizes = (
                        int.from_bytes(received[:8], "big"),
                        int.from_bytes(received[8:], "big"),
                    )
                    if sizes[0] > sandbox_child.MAX_HEADER or sizes[1] > sandbox_child.MAX_BYTES:
                        raise ValueError("too long")
                    wanted += sum(sizes)
            elif not writable:
                self._watch(watched)
        header, body = received[16 : 16 + sizes[0]], received[16 + sizes[0] :]
        return sandbox_child.decode(bytes(header), bytes(body))

    def _watch(self, watched: psutil.Process) -> None:
        """Raise MemoryError if all the processes together hold too much, or are too many."""
        family, memory = [watched], 0
        with contextlib.suppress(psutil.NoSuchProcess):
            family += watched.children(recursive=True)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                memory += process.memory_info().rss
        if memory > self.limits.memory or len(family) > self.limits.processes:
            raise MemoryError
