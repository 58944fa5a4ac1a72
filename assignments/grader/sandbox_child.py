"""The process in which a student's functions run: it defines them, and answers calls.

It is given source code and calls on standard input and answers on what was standard output. Nothing
but JSON and the bytes of tensors crosses, in either direction. What the student's code prints goes
to standard error. `sandbox.py` starts it, and does not trust it.
"""

import ast
import json
import os
import re
import resource
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from dropreg.book.checks import Fixture

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.int64, torch.int32, torch.uint8, torch.bool)
}
# What is shown of a student's error or text.
SHOWN = 300
# A tensor's bytes, and the text that says what they are, may be this long.
MAX_BYTES, MAX_HEADER = 1 << 26, 1 << 20


def encode(value: Any) -> bytes:
    """Write a number, text, tensor, fixture, or list or dict of these as bytes."""
    blobs: list[bytes] = []

    def tree(value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [tree(item) for item in value]}
        if isinstance(value, dict):
            return {"dict": [[tree(key), tree(item)] for key, item in value.items()]}
        if isinstance(value, Fixture):
            return {"fixture": value.name, "args": list(value.args)}
        if type(value).__module__ == "numpy":
            return tree(torch.as_tensor(value))
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"a number, text or tensor is expected, not {type(value).__name__}")
        flat = value.detach().to("cpu").contiguous()
        if (name := str(flat.dtype).removeprefix("torch.")) not in DTYPES:
            flat, name = flat.to(torch.float64), "float64"
        blobs.append(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
        return {"tensor": list(flat.shape), "dtype": name, "bytes": len(blobs[-1])}

    header = json.dumps(tree(value)).encode()
    body = b"".join(blobs)
    if len(header) > MAX_HEADER or len(body) > MAX_BYTES:
        raise ValueError("too much data for one call")
    return len(header).to_bytes(8, "big") + len(body).to_bytes(8, "big") + header + body


def decode(header: bytes, body: bytes) -> Any:
    """Read what `encode` wrote; a ValueError if it did not write this."""
    position = 0

    def value(node: Any) -> Any:
        nonlocal position
        if not isinstance(node, dict):
            if isinstance(node, list):
                raise ValueError("a list without its name")
            return node
        if "tensor" in node:
            shape, dtype, size = node["tensor"], DTYPES[node["dtype"]], node["bytes"]
            data = bytearray(body[position : position + size])
            position += size
            raw = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0)
            if dtype is torch.bool:  # any other byte than 0 and 1 would be no bool
                raw = (raw != 0).to(torch.uint8)
            return raw.to(torch.uint8).view(dtype).reshape(shape)
        if "fixture" in node:
            return Fixture(node["fixture"], tuple(node["args"]))
        if "dict" in node:
            return {value(key): value(item) for key, item in node["dict"]}
        if "tuple" in node:
            return tuple(value(item) for item in node["tuple"])
        return [value(item) for item in node["list"]]

    try:
        return value(json.loads(header))
    except (KeyError, TypeError, OverflowError, RuntimeError, RecursionError) as error:
        raise ValueError(f"not a message: {error}") from error


def is_stub(node: ast.stmt) -> bool:
    """Whether a function does nothing but say that it is not written."""
    body = node.body if isinstance(node, ast.FunctionDef) else []
    last = body[-1] if body else None
    raised = last.exc if isinstance(last, ast.Raise) else None
    name = raised.func if isinstance(raised, ast.Call) else raised
    only = len(body) == 1 or (len(body) == 2 and isinstance(body[0], ast.Expr))
    return only and isinstance(name, ast.Name) and name.id == "NotImplementedError"


def statements(source: str) -> Iterator[ast.stmt]:
    """Yield what a cell defines: imports, functions, classes, values. Not what it does."""
    # Lines for the notebook, not for Python.
    plain = re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    return (node for node in ast.parse(plain).body if isinstance(node, kinds))


class TooLongError(Exception):
    """A definition takes longer than it may."""


def define(cells: Sequence[str], seconds: float) -> tuple[dict[str, Any], list[str]]:
    """Run the definitions of all cells in their order; return the names and the errors.

    One that fails or takes too long is left out: it may be a cell that nothing needs. All together
    may take six times as long as one. A function that is not written yet does not replace one that
    is.
    """

    def stop(*_: object) -> None:
        raise TooLongError(f"took longer than {seconds:.0f} s")

    # Time of the processor, as the machine may be busy; and six times that for sleepers.
    timers = ((signal.ITIMER_PROF, seconds), (signal.ITIMER_REAL, 6 * seconds))
    for kind in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(kind, stop)
    module = types.ModuleType("notebook")
    sys.modules["notebook"] = module  # dataclasses look their module up
    names: dict[str, Any] = vars(module)
    errors: list[str] = []
    begin_cpu, begin = time.process_time(), time.monotonic()
    for number, source in enumerate(cells):
        try:
            parsed = list(statements(source))
        except (SyntaxError, ValueError, RecursionError) as error:
            errors.append(f"cell {number}: {type(error).__name__}: {error}"[:SHOWN])
            continue
        for node in parsed:
            if is_stub(node) and isinstance(node, ast.FunctionDef) and node.name in names:
                continue
            spent = max(time.process_time() - begin_cpu, (time.monotonic() - begin) / 2)
            if spent > 6 * seconds:
                errors.append(f"cell {number} and what follows: no time was left to define it")
                return names, errors
            for timer, limit in timers:
                signal.setitimer(timer, limit)
            try:
                code = compile(ast.Module([node], []), f"<cell {number}>", "exec")
                exec(code, names)
            except BaseException as error:
                errors.append(f"cell {number}: {type(error).__name__}: {error}"[:SHOWN])
            finally:
                for timer, _ in timers:
                    signal.setitimer(timer, 0)
    return names, errors


def find(name: str, cell: str, names: dict[str, Any]) -> Callable[..., Any] | None:
    """Return the function of that name; if there is none, the only one that its cell defines."""
    found = names.get(name)
    if found is None and cell:
        try:
            defined = [n.name for n in statements(cell) if isinstance(n, ast.FunctionDef)]
        except SyntaxError:
            defined = []
        found = names.get(defined[0]) if len(defined) == 1 else None
    return found if callable(found) else None


def main() -> None:
    """Serve until standard input ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    torch.set_num_threads(1)

    def receive() -> Any:
        sizes = requests.read(16)
        if len(sizes) < 16:
            sys.exit()
        header = requests.read(int.from_bytes(sizes[:8], "big"))
        return decode(header, requests.read(int.from_bytes(sizes[8:], "big")))

    def send(value: Any) -> None:
        replies.write(encode(value))
        replies.flush()

    start = receive()
    for kind, limit in start["limits"].items():
        resource.setrlimit(getattr(resource, kind), (limit, limit))
    names, errors = define(start["cells"], start["seconds"])
    functions = {name: find(name, cell, names) for name, cell in start["functions"].items()}
    send({"found": [n for n, f in functions.items() if f is not None], "errors": errors[:20]})
    while True:
        name, seed, args = receive()
        function = functions[name]
        assert function is not None
        torch.manual_seed(seed)
        try:
            built = [arg.build() if isinstance(arg, Fixture) else arg for arg in args]
            reply = encode({"value": function(*built)})
        except BaseException as error:
            reply = encode({"error": type(error).__name__, "message": str(error)[:SHOWN]})
        replies.write(reply)
        replies.flush()


if __name__ == "__main__":
    main()
