"""The small network of assignments 3 and 4: two tanh layers with noise on each, three matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from dropreg.book.checks.core import Numbers


def variances(q: Sequence[float], weights: Sequence[Tensor]) -> Tensor:
    """The variance q/(1-q) of each noise coordinate, those of the first layer first.

    Args:
        q: The dropout probability of each of the two layers.
        weights: The three matrices.

    Returns:
        The variances, (units of both layers,).
    """
    layers = zip(q, weights, strict=False)  # the third matrix makes the logits
    return torch.cat([w.new_full((w.shape[1],), p / (1 - p)) for p, w in layers])


def random_weights(n: Numbers, inputs: int, units: int, classes: int) -> list[Tensor]:
    """Weights for a check.

    The second matrix is near a multiple of the identity: noise on a unit of the first layer acts
    much like noise on its successor, so that a noise that is wrongly shared by both shows.

    Args:
        n: Where the numbers come from.
        inputs: Features of an example.
        units: Units of either hidden layer.
        classes: Number of classes.

    Returns:
        The three matrices, each (from, to).
    """
    second = 1.5 * torch.eye(units, dtype=torch.float64) + 0.3 * n.normal(units, units)
    return [n.normal(inputs, units), second, 1.5 * n.normal(units, classes)]


def every_sign(count: int) -> Tensor:
    """All sign patterns.

    Args:
        count: Number of coordinates.

    Returns:
        The patterns, (2^count, count).
    """
    return torch.tensor(list(product((-1.0, 1.0), repeat=count)), dtype=torch.float64)


def logits(weights: Sequence[Tensor], eta: Tensor, x: Tensor) -> Tensor:
    """The logits of one example.

    Args:
        weights: The three matrices.
        eta: Noise on the units of both layers, (units of both layers,).
        x: The example, (inputs,).

    Returns:
        The logits, (classes,).
    """
    first, second, third = weights
    eta1, eta2 = eta.split([first.shape[1], second.shape[1]])
    h1 = torch.tanh(x @ first)
    h2 = torch.tanh((h1 + eta1 * h1) @ second)
    return (h2 + eta2 * h2) @ third


def loss(weights: Sequence[Tensor], eta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy of one example; arguments as of `logits`, and its label y."""
    return F.cross_entropy(logits(weights, eta, x), y)


def units(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """What both hidden layers hold without noise, (n, units of both layers)."""
    h1 = torch.tanh(x @ weights[0])
    return torch.cat([h1, torch.tanh(h1 @ weights[1])], 1)


def over_examples(
    function: Callable[..., Tensor], weights: Sequence[Tensor], x: Tensor, *labels: Tensor
) -> Tensor:
    """A function (weights, eta, example, label) at no noise, for each example."""
    none = x.new_zeros(sum(w.shape[1] for w in weights[:2]))
    each = vmap(function, in_dims=(None, None, *[0] * (1 + len(labels))))
    result: Tensor = each(list(weights), none, x, *labels)
    return result


def jacobian(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """How the logits move with each noise coordinate: J h, (n, classes, units of both layers)."""
    return over_examples(jacrev(logits, argnums=1), weights, x)


def output_hessian(z: Tensor) -> Tensor:
    """The second derivatives of the cross-entropy in the logits, (n, classes, classes)."""
    second: Tensor = vmap(hessian(lambda one: one.logsumexp(0)))(z)
    return second


def clean_logits(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """The logits without noise, (n, classes)."""
    return over_examples(logits, weights, x)


def bends(a: Tensor, h_out: Tensor) -> Tensor:
    """The quadratic forms a_j' H a_j of the columns of a, (n, units of both layers)."""
    return torch.einsum("ncj,ncd,ndj->nj", a, h_out, a)


def full_bends(weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The second derivative of the loss in each noise coordinate, (n, units of both layers)."""
    return over_examples(hessian(loss, argnums=1), weights, x, y).diagonal(dim1=1, dim2=2)


def slopes(weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The first derivative of the loss in each noise coordinate, (n, units of both layers)."""
    return over_examples(grad(loss, argnums=1), weights, x, y)


def gradient(weights: Sequence[Tensor], eta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of one example's loss in all weights, one vector."""
    return torch.cat([g.flatten() for g in grad(loss)(list(weights), eta, x, y)])


def mixed(weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The matrix M of the noise, (n, weights, units of both layers): noise eta gives M eta."""
    return over_examples(jacfwd(gradient, argnums=1), weights, x, y)
