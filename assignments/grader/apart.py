"""Work in processes of its own, so that what one file does to it the others do not notice.

A notebook may crash the parser, hang a regular expression or fill the memory of who only reads it.
So each piece of work is forked from a process that has imported everything and read nothing, has
limits, and may die.
"""

import contextlib
import multiprocessing
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["assignments.grader.marking"])
MEMORY = 3 << 30  # beyond what Python and torch have mapped at the start


class CannotGradeError(Exception):
    """Why a submission cannot be graded, in words for the instructor and the student."""


@dataclass(frozen=True)
class Done:
    """What became of a piece of work.

    Attributes:
        key: Whose it was.
        value: What it returned, if it ended well.
        reason: Why there is no value, if there is none.
        details: The traceback of an error that nobody foresaw.
        seconds: How long it took.
    """

    key: str
    value: Any
    reason: str | None
    details: str
    seconds: float


def each(
    work: Callable[..., Any],
    arguments: Mapping[str, tuple[Any, ...]],
    *,
    jobs: int,
    seconds: float,
) -> Iterator[Done]:
    """Do a piece of work for each key, several at a time, and yield them as they end.

    Args:
        work: A function at the top of a module.
        arguments: Its arguments for each key.
        jobs: How many processes at a time.
        seconds: How long each may take.

    Yields:
        One `Done` for each key, whatever happened.
    """
    waiting = list(arguments)[::-1]
    running: dict[Connection, tuple[str, BaseProcess, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                key = waiting.pop()
                receiver, sender = CONTEXT.Pipe(duplex=False)
                process: BaseProcess = CONTEXT.Process(
                    target=_child, args=(work, arguments[key], sender)
                )
                process.start()
                sender.close()
                running[receiver] = key, process, time.monotonic()
            first = min(begun for _, _, begun in running.values())
            ready = wait(list(running), timeout=max(0.0, first + seconds - time.monotonic()))
            ended = [p for p, (*_, begun) in running.items() if _over(p, ready, begun, seconds)]
            for pipe in ended:
                key, process, begun = running.pop(pipe)
                yield Done(key, *_result(pipe, process, pipe in ready), time.monotonic() - begun)
    finally:
        for _, process, _ in running.values():
            _kill(process)


def _over(pipe: Connection, ready: list[Any], begun: float, seconds: float) -> bool:
    return pipe in ready or time.monotonic() - begun > seconds


def _result(pipe: Connection, process: BaseProcess, answered: bool) -> tuple[Any, str | None, str]:
    with pipe:
        try:
            if answered:
                value, reason, details = pipe.recv()
                process.join(5)
                return value, reason, details
        except EOFError:
            process.join()
            code = process.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"status {code}"
            return None, f"the process that reads it ended with {how}", ""
        finally:
            _kill(process)
    return None, "it takes too long to read and test it", ""


def _kill(process: BaseProcess) -> None:
    """End a process and what it has started."""
    if not process.is_alive():
        return
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.join()
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(family, timeout=5)


def _child(work: Callable[..., Any], arguments: tuple[Any, ...], pipe: Connection) -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, hard))
    torch.set_num_threads(1)
    try:
        pipe.send((work(*arguments), None, ""))
    except CannotGradeError as error:
        pipe.send((None, str(error), ""))
    except Exception as error:
        text = f"{type(error).__name__}: {error}".encode("utf-8", "replace").decode()
        pipe.send((None, " ".join(text.split())[:300], traceback.format_exc(limit=-8)))
