"""Forward passes that leave the model's buffers as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

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
