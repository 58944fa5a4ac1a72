"""Forward passes that leave the model as it was: its buffers, attributes and parameters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dropreg.control.kernels import exclusive


@contextmanager
def scratch_buffers(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Let forward passes write to copies of the model's buffers, such as running means.

    Other threads wait: the model may be theirs too.

    Args:
        model: The model; it has its own buffers again afterwards, whatever happened.

    Yields:
        A function that tells whether any buffer has changed by now.
    """
    with exclusive(), _copied_buffers(model) as changed:
        yield changed


@contextmanager
def _copied_buffers(model: nn.Module) -> Iterator[Callable[[], bool]]:
    originals = [(m, dict(m._buffers.items())) for m in model.modules()]
    copies: dict[int, Tensor | None] = {}  # a buffer that two modules share stays shared

    def copy(b: Tensor | None) -> Tensor | None:
        return copies.setdefault(id(b), None if b is None else b.clone())

    def changed() -> bool:
        return any(
            dict(m._buffers.items()).keys() != original.keys()
            or any(_written(b, copies[id(b)], m._buffers[k]) for k, b in original.items())
            for m, original in originals
        )

    try:
        for module, original in originals:
            _set_buffers(module, {k: copy(b) for k, b in original.items()})
        yield changed
    finally:
        for module, original in originals:
            _set_buffers(module, original)


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@contextmanager
def scratch_attributes(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Let forward passes set attributes of the modules: counters, caches, weights that they drop.

    Args:
        model: The model; its modules have their own attributes again afterwards, and what a list or
            dict among them held.

    Yields:
        A function that tells whether any has changed by now.
    """
    # A wrapper of torch's for several processes keeps account of its passes.
    modules = [
        m
        for m in model.modules()
        if not isinstance(m, torch.jit.ScriptModule)
        and not type(m).__module__.startswith(("torch.nn.parallel", "torch.distributed"))
    ]
    before = [(m, _attributes(m)) for m in modules]

    def changed() -> bool:
        return any(
            now.keys() != old.keys()
            or any(now[k][0] is not v or not _same(now[k][1], held) for k, (v, held) in old.items())
            for now, old in ((_attributes(m), old) for m, old in before)
        )

    try:
        yield changed
    finally:
        for module, old in before:
            for name in [n for n in vars(module) if n not in _OF_EVERY_MODULE and n not in old]:
                del vars(module)[name]
            for name, (value, held) in old.items():
                vars(module)[name] = value
                if isinstance(held, list):
                    value[:] = held
                elif held is not None:
                    value.clear()
                    value.update(held)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute, and what it holds if it is a list or dict."""
    return {
        name: (value, value.copy() if type(value) in (list, dict, OrderedDict) else None)
        for name, value in vars(module).items()
        if name not in _OF_EVERY_MODULE or name in ("_parameters", "_modules")
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(a[k] is b[k] for k in a)
    return a is b or (len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True)))


def _set_buffers(module: nn.Module, buffers: Mapping[str, Tensor | None]) -> None:
    if isinstance(module, torch.jit.ScriptModule):  # its table of buffers is a read-only view
        for name, buffer in buffers.items():
            setattr(module, name, buffer)
    else:
        module._buffers.clear()
        module._buffers.update(buffers)


def _written(original: Tensor | None, copy: Tensor | None, now: Tensor | None) -> bool:
    """Whether a pass has written to a buffer, even if the value is the same (a fixed point)."""
    if now is not copy:
        return True
    if original is None or copy is None:
        return False
    # Batch norm writes its statistics without counting the version up.
    return (not copy.is_inference() and copy._version > 0) or not torch.equal(original, copy)
