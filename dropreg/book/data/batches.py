"""Language-model batches: every word but the first is predicted once, from those before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dropreg.errors import InputError

IGNORED = -100
"""Target of a position that does not count: PyTorch's and `dropreg.CrossEntropy`'s default."""


class Batch(NamedTuple):
    """One window of all streams.

    Attributes:
        inputs: Word numbers, (batch, time), int64.
        targets: The word after each, (batch, time), int64; -100 where a stream has ended.
    """

    inputs: Tensor
    targets: Tensor


def windows(
    tokens: Tensor, batch_size: int, length: int, *, generator: torch.Generator | None = None
) -> Iterator[Batch]:
    r"""Cut a text into windows for truncated backpropagation through time.

    The text's :math:`N - 1` pairs (word, next word) are dealt to `batch_size` streams, each a
    contiguous piece of it. The windows cut all streams at the same places, so a recurrent state
    carried from window to window continues each stream. No pair is lost and none occurs twice:
    where `batch_size` does not divide :math:`N - 1`, the last streams are one pair shorter, and the
    very last window marks their missing target by -100, which cross-entropy leaves out by default,
    PyTorch's and `dropreg.CrossEntropy`.

    With a generator, lengths vary as in Merity, Keskar and Socher 2017, "Variable length
    backpropagation sequences": for each window a base is drawn, `length` with probability 0.95 and
    half of it otherwise, then the window's length from a normal law around the base with standard
    deviation 5, at least 5. They scale the learning rate by the window's length over `length`; that
    is left to the training loop.

    Args:
        tokens: The text, (N,), int64.
        batch_size: Number of streams.
        length: Length of a window; the last may be shorter.
        generator: Source of randomness for the lengths; all are `length` if None.

    Yields:
        The windows, in the order of the text.

    Raises:
        InputError: If the text is not a vector, or too short for that many streams, or a number is
            not positive.

    >>> for inputs, targets in windows(torch.arange(8), batch_size=2, length=3):
    ...     print(inputs.tolist(), targets.tolist())
    [[0, 1, 2], [4, 5, 6]] [[1, 2, 3], [5, 6, 7]]
    [[3], [0]] [[4], [-100]]
    """
    if tokens.ndim != 1:
        raise InputError(f"tokens has shape {tuple(tokens.shape)}; it must be a vector.")
    if batch_size < 1 or length < 1:
        raise InputError(f"batch_size={batch_size} and length={length} must both be at least 1.")
    if len(tokens) <= batch_size:
        raise InputError(
            f"{len(tokens)} tokens make {max(0, len(tokens) - 1)} pairs, which do not fill "
            f"{batch_size} streams. Take a smaller batch_size, or more text."
        )
    inputs = _deal(tokens[:-1], batch_size, padding=0)
    targets = _deal(tokens[1:], batch_size, padding=IGNORED)
    start, total = 0, inputs.shape[1]
    while start < total:
        stop = start + (length if generator is None else _draw(length, generator))
        yield Batch(inputs[:, start:stop], targets[:, start:stop])
        start = stop


def _deal(row: Tensor, streams: int, padding: int) -> Tensor:
    """Contiguous streams as rows, the first `len(row) % streams` of them one entry longer."""
    shorter, longer = divmod(len(row), streams)
    if not longer:
        return row.view(streams, shorter)
    cut = longer * (shorter + 1)
    tail = row[cut:].view(streams - longer, shorter)
    return torch.cat([row[:cut].view(longer, -1), F.pad(tail, (0, 1), value=padding)])


def _draw(length: int, generator: torch.Generator) -> int:
    at = generator.device
    whole = torch.rand((), generator=generator, device=at).item() < 0.95
    normal = torch.randn((), generator=generator, device=at).item()
    return max(5, int((length if whole else length / 2) + 5 * normal))
