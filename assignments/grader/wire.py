"""What crosses between the grader and a student's functions: JSON and the bytes of tensors.

Both sides use it. What comes from a student's side may be anything at all: it is checked against
its own length before anything is made of it.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import torch

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.int64, torch.int32, torch.uint8, torch.bool)
}
# A tensor's bytes, and the text that says what they are, may be this long.
MAX_BYTES, MAX_HEADER = 1 << 26, 1 << 20
MAX_NODES, MAX_DIMENSIONS, MAX_DIGITS = 100_000, 16, 40


def clean(text: str) -> str:
    """Text that can be written, shown and sent anywhere: no half of a character, no control."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def encode(value: Any, fixture: type[Any] | None = None) -> bytes:
    """Write a number, text, tensor, or list or dict of these as bytes; fixtures, if they may be."""
    blobs: list[bytes] = []

    def tree(value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str(value)
        if isinstance(value, int):
            return int(value) if -(2**63) <= value < 2**63 else float(value)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [tree(item) for item in value]}
        if isinstance(value, dict):
            return {"dict": [[tree(key), tree(item)] for key, item in value.items()]}
        if fixture is not None and isinstance(value, fixture):
            return {"fixture": value.name, "args": list(value.args)}
        if type(value).__module__ == "numpy":
            return tree(torch.as_tensor(value))
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"a number, text or tensor is expected, not {type(value).__name__}")
        flat = value.detach().to("cpu").contiguous()
        if (name := str(flat.dtype).removeprefix("torch.")) not in DTYPES:
            flat, name = flat.to(torch.float64), "float64"
        blobs.append(flat.resolve_neg().numpy().tobytes())
        return {"tensor": list(flat.shape), "dtype": name, "bytes": len(blobs[-1])}

    header = json.dumps(tree(value)).encode()
    body = b"".join(blobs)
    if len(header) > MAX_HEADER or len(body) > MAX_BYTES:
        raise ValueError("too much data for one call")
    return len(header).to_bytes(8, "big") + len(body).to_bytes(8, "big") + header + body


def decode(
    header: bytes,
    body: bytes,
    *,
    text: Callable[[str], str] = clean,
    fixture: Callable[[str, tuple[Any, ...]], Any] | None = None,
) -> Any:
    """Read what `encode` wrote; a ValueError if it did not write this.

    Every byte of the body belongs to one tensor, in order. NaN and infinity are numbers here.
    Text is cleaned, and fixtures are refused, unless the reader says what to make of them.
    """
    position, nodes = 0, 0

    def number(digits: str) -> int:
        if len(digits) > MAX_DIGITS or not -(2**63) <= (value := int(digits)) < 2**63:
            raise ValueError("a number of more than 64 bits")
        return value

    def real(digits: str) -> float:
        if len(digits) > MAX_DIGITS:
            raise ValueError("a number of too many digits")
        return float(digits)

    def tensor(shape: Any, name: Any, size: Any) -> torch.Tensor:
        nonlocal position
        dtype = DTYPES[name]
        if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
            raise ValueError("no shape")
        if any(type(n) is not int or not 0 <= n <= MAX_BYTES for n in [*shape, size]):
            raise ValueError("no size")
        if math.prod(shape) * dtype.itemsize != size or position + size > len(body):
            raise ValueError("a size that is not that of its bytes")
        data = bytearray(body[position : position + size])
        position += size
        if not data:
            return torch.empty(shape, dtype=dtype)
        raw = torch.frombuffer(data, dtype=torch.uint8)
        if dtype is torch.bool:  # any other byte than 0 and 1 would be no bool
            raw = (raw != 0).to(torch.uint8)
        return raw.view(dtype).reshape(shape)

    def value(node: Any) -> Any:
        nonlocal nodes
        nodes += 1
        if nodes > MAX_NODES:
            raise ValueError("too many values")
        if isinstance(node, str):
            return text(node)
        if not isinstance(node, dict):
            if isinstance(node, list):
                raise ValueError("a list without its name")
            return node
        if "tensor" in node:
            return tensor(node["tensor"], node["dtype"], node["bytes"])
        if "fixture" in node:
            if fixture is None:
                raise ValueError("a fixture where there can be none")
            return fixture(node["fixture"], tuple(node["args"]))
        if "dict" in node:
            return {value(key): value(item) for key, item in node["dict"]}
        if "tuple" in node:
            return tuple(value(item) for item in node["tuple"])
        return [value(item) for item in node["list"]]

    try:
        found = value(json.loads(header, parse_int=number, parse_float=real))
    except (KeyError, TypeError, OverflowError, RuntimeError, RecursionError) as error:
        raise ValueError(f"not a message: {error}") from error
    if position != len(body):
        raise ValueError("bytes that belong to nothing")
    return found
