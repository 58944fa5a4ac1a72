"""Which terms of a loss have noise in common: they must be pulled back one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PullBack = Callable[..., tuple[Tensor, ...]]
"""Takes a vector of logit space to the noise of every site."""


def uncoupled(logits: Tensor, term_dims: int, pull_back: PullBack) -> list[tuple[int | slice, ...]]:
    """Groups of terms with no noise coordinate in common, as few as possible.

    Args:
        logits: The logits, whose first `term_dims` dimensions count the terms.
        term_dims: How many dimensions that are.
        pull_back: From the space of the logits to the noise; takes `create_graph` by name.

    Returns:
        An index into the logits for each group. They cover all terms.
    """
    loops: list[Sequence[int | slice]] = [
        range(logits.shape[dim]) if _coupled(logits, dim, pull_back) else [slice(None)]
        for dim in range(term_dims)
    ]
    return list(itertools.product(*loops))


def _coupled(logits: Tensor, dim: int, pull_back: PullBack) -> bool:
    """Whether some noise coordinate acts on two different indices of a dimension."""
    # Any two indices differ in a binary digit. So for each digit the indices where it is 0 are set
    # against those where it is 1: log2(n) tests of two backward passes cover all pairs. What is
    # pulled back is NaN, which spreads along every path, also where a derivative is 0 by chance
    # (identity weights, one-hot inputs): its own derivative need not be 0.
    index = torch.arange(logits.shape[dim], device=logits.device)
    index = index.reshape([-1 if d == dim else 1 for d in range(logits.ndim)])
    nothing = torch.zeros_like(logits)
    for digit in range((logits.shape[dim] - 1).bit_length()):
        is_one = ((index >> digit) & 1).bool().expand(logits.shape)
        with torch.autograd.set_detect_anomaly(False):
            zeros = pull_back(nothing.masked_fill(~is_one, torch.nan), create_graph=False)
            ones = pull_back(nothing.masked_fill(is_one, torch.nan), create_graph=False)
        if any((a.isnan() & b.isnan()).any() for a, b in zip(zeros, ones, strict=True)):
            return True
    return False
