"""Which terms of a loss have noise in common: they must be pulled back one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PullBack = Callable[..., tuple[Tensor, ...]]
"""Takes a vector of logit space to the noise of every site."""


def uncoupled(
    logits: Tensor, term_dims: int, pull_back: PullBack, weights: Sequence[Tensor] = ()
) -> list[tuple[int | slice, ...]]:
    """Groups of terms with no noise coordinate in common, as few as possible.

    Args:
        logits: The logits, whose first `term_dims` dimensions count the terms.
        term_dims: How many dimensions that are.
        pull_back: From the space of the logits to the noise; takes `create_graph` by name.
        weights: In what the result will be differentiated.

    Returns:
        An index into the logits for each group. They cover all terms.
    """
    loops: list[Sequence[int | slice]] = [
        range(logits.shape[dim]) if _coupled(logits, dim, pull_back, weights) else [slice(None)]
        for dim in range(term_dims)
    ]
    return list(itertools.product(*loops))


def _coupled(logits: Tensor, dim: int, pull_back: PullBack, weights: Sequence[Tensor]) -> bool:
    """Whether some noise coordinate acts on two different indices of a dimension."""
    # Any two indices differ in a binary digit. So for each digit the indices where it is 0 are set
    # against those where it is 1: log2(n) tests of two backward passes cover all pairs. With random
    # numbers nothing cancels. Terms may share a backward pass if the squares of their sum are the
    # sums of their squares: where no coordinate gets something from both sides, and where that
    # stays so as the weights move. A derivative can be 0 by chance (identity weights, one-hot
    # inputs), and its own derivative need not be.
    index = torch.arange(logits.shape[dim], device=logits.device)
    index = index.reshape([-1 if d == dim else 1 for d in range(logits.ndim)])
    generator = torch.Generator().manual_seed(0)

    def random(like: Tensor) -> Tensor:
        return (0.5 + torch.rand(like.shape, generator=generator)).to(like)

    vector = random(logits)
    for digit in range((logits.shape[dim] - 1).bit_length()):
        is_one = ((index >> digit) & 1).bool().expand(logits.shape)
        sides = [
            pull_back(vector.masked_fill(side, 0.0), create_graph=bool(weights))
            for side in (is_one, ~is_one)
        ]
        products = [a * b for a, b in zip(*sides, strict=True)]
        if any(product.count_nonzero() for product in products):
            return True
        total = sum((p * random(p)).sum().to(logits.device) for p in products)
        if isinstance(total, Tensor) and total.requires_grad:
            moved = torch.autograd.grad(total, weights, retain_graph=True, allow_unused=True)
            if any(g is not None and g.count_nonzero() for g in moved):
                return True
    return False
