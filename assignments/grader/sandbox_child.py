"""The process in which a student's functions run: it defines them, and answers calls.

It is given source code and calls on standard input and answers on what was standard output. Nothing
but JSON and the bytes of tensors crosses, in either direction. What the student's code prints goes
to standard error. `sandbox.py` starts it, and does not trust it.
"""

import ctypes
import importlib
import os
import resource
import signal
import sys
import traceback
import types
from dataclasses import dataclass
from typing import Any

import torch

from assignments.grader.definitions import SHOWN, Notebook, define, explained, find
from assignments.grader.uses import suspicious
from assignments.grader.wire import decode, encode


@dataclass
class Wanted:
    """A fixture that is to be built."""

    name: str
    args: tuple[Any, ...]


def where(error: BaseException, notebook: Notebook) -> str:
    """Which line of the notebook an error comes from, and whose it is."""
    steps = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if name.startswith("<cell ") and name[6:-1].isdecimal():
            source = notebook.cells[int(name[6:-1])]
            text = [*source.splitlines(), *[""] * line][line - 1].strip()[:80]
            steps.append((source in notebook.given, frame.f_code.co_name, line, text))
    if not steps:
        return ""
    is_given, function, line, text = steps[-1]
    if not is_given:
        return f" (line {line} of its cell: `{text}`)"
    calls = next((step for step in reversed(steps) if not step[0]), None)
    shown = f" (raised in `{function}`, which is given: `{text}`"
    return (
        f"{shown}; called by line {calls[2]} of your cell: `{calls[3]}`)" if calls else shown + ")"
    )


def described(error: BaseException, notebook: Notebook) -> str:
    """An error in words, whatever its class makes of them."""
    try:
        why = notebook.failed.get(error.name or "", "") if isinstance(error, NameError) else ""
        return explained(error) + (f"; its definition failed: {why}" if why else "")
    except Exception:
        return type(error).__name__


def main() -> None:
    """Serve until standard input ends."""
    # With the grader, though it be killed: bubblewrap sees to that, and is not always there.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    torch.set_num_threads(1)

    def receive() -> Any:
        sizes = requests.read(16)
        if len(sizes) < 16:
            sys.exit()
        header = requests.read(int.from_bytes(sizes[:8], "big"))
        body = requests.read(int.from_bytes(sizes[8:], "big"))
        return decode(header, body, text=str, fixture=Wanted)

    def send(reply: bytes) -> None:
        replies.write(reply)
        replies.flush()

    start = receive()
    for kind, limit in start["limits"].items():
        resource.setrlimit(getattr(resource, kind), (limit, limit))
    notebook = Notebook(start["cells"], start["functions"], start["given"])
    # Before anything of the student's runs, which could say something else.
    uses = suspicious(notebook, start["allowed"], start["write_yourself"])
    send(encode({"uses": uses}))
    receive()
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    names, errors = define(notebook, start["seconds"], module)
    functions = {name: find(name, notebook, names) for name in notebook.answers}
    send(
        encode(
            {
                "found": [name for name, function in functions.items() if function is not None],
                "unread": {n: notebook.unread.get(c, "") for n, c in notebook.answers.items()},
                "errors": errors[:20],
            }
        )
    )
    while True:
        name, seed, args = receive()
        function = functions[name]
        assert function is not None
        # torch.manual_seed formats a traceback for each kind of device that is not there.
        torch.default_generator.manual_seed(seed)
        building = ""
        try:
            built = []
            for arg in args:
                if isinstance(arg, Wanted):
                    building = arg.name
                    fixtures = importlib.import_module("dropreg.book.checks.fixtures")
                    arg = getattr(fixtures, arg.name)(*arg.args)
                built.append(arg)
            building = ""
            reply = encode({"value": function(*built)})
        except BaseException as error:
            kind = type(error).__name__[:SHOWN]
            found = {"error": kind, "message": described(error, notebook), "building": building}
            found["where"] = where(error, notebook)
            if isinstance(error, NotImplementedError) and not error.args:
                found["unwritten"] = traceback.extract_tb(error.__traceback__)[-1].name
            reply = encode(found)
        send(reply)


if __name__ == "__main__":
    main()
