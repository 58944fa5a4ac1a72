"""Checks of the pieces that a reader writes, chapter by chapter, until they are `replace_dropout`.

Each piece is a function of a loss, or of logits, that depend on the noise of all layers as one
tensor; so it knows nothing of layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dropreg.book.checks.core import Answer, Mistake, Numbers, check, expect


@check
def dropout(answer: Answer, n: Numbers) -> None:
    """A share q of the entries is 0, the others are divided by 1 - q, and each call draws anew."""
    q, h = n.uniform(0.2, 0.4), 1 + n.normal(200, 100).abs()
    noisy = answer.numbers(h, q, shape=(200, 100))
    zero = noisy == 0
    along = zero.double().mean(0)
    if along.std() > 0.9 * math.sqrt(q * (1 - q)):
        raise Mistake("each entry of h needs a draw of its own; here whole columns share one.")
    expect(
        "the share of zeros",
        zero.double().mean(),
        q,
        error=math.sqrt(q * (1 - q) / h.numel()),
        at=f"q = {q}",
        mistakes={"q is the probability of a zero, not of being kept.": 1 - q},
    )
    expect(
        "what is kept",
        noisy,
        torch.where(zero, 0.0, h / (1 - q)),
        at=f"q = {q}",
        mistakes={
            "divide it by 1 - q, or the mean shrinks.": torch.where(zero, 0.0, h),
            "divide it by 1 - q, the probability of being kept, not by q.": torch.where(
                zero, 0.0, h / q
            ),
            "multiplied by 1 - q it shrinks twice; divide.": torch.where(zero, 0.0, h * (1 - q)),
        },
    )
    if ((answer.numbers(h, q, shape=(200, 100)) == 0) == zero).all():
        raise Mistake("two calls drop the same entries. Is a seed set in the function?")


def _masks(n: Numbers, count: int) -> tuple[list[Tensor], Callable[[], Tensor], list[int]]:
    """Some masks, a function that hands out one after the other, and how many it has given."""
    masks, given = [n.normal(5) for _ in range(count)], [0]

    def draw() -> Tensor:
        given[0] += 1
        return masks[(given[0] - 1) % count]

    return masks, draw, given


def _cubic(n: Numbers) -> Callable[[Tensor], Tensor]:
    """A loss of a noise of 5 units, with even and odd parts."""
    a, b = n.normal(5), n.normal(5)
    return lambda eta: 1.5 + (a * eta).sum() + (b * eta).sum() ** 2 + (b * eta).sum() ** 3 / 5


@check
def dropout_k(answer: Answer, n: Numbers) -> None:
    """The loss is a mean over k masks, each drawn for itself."""
    k, loss = n.integer(3, 7), _cubic(n)
    masks, draw, given = _masks(n, k)
    value = answer.numbers(loss, draw, k, shape=())
    values = torch.stack([loss(eta) for eta in masks])
    if given[0] not in (1, k):
        raise Mistake("draw k masks, one for each of the k losses.", f"(You drew {given[0]}.)")
    expect(
        "the mean loss",
        value,
        values.mean(),
        at=f"k = {k}",
        mistakes={
            "that is one mask's loss: draw anew for each of the k.": values[0],
            "that is the sum; divide it by k.": values.sum(),
            "average the losses, not the masks.": loss(torch.stack(masks).mean(0)),
        },
    )


@check
def pair_noise(answer: Answer, n: Numbers) -> None:
    """Two masks and their factor: the variance that k masks have lost comes back."""
    k, loss = n.integer(3, 7), _cubic(n)
    masks, draw, given = _masks(n, 2)
    value = answer.numbers(loss, draw, k, shape=())
    if given[0] != 2:
        raise Mistake("draw two masks, independent of each other.", f"(You drew {given[0]}.)")
    gap = loss(masks[0]) - loss(masks[1])
    factor = math.sqrt((1 - 1 / k) / 2)
    either = {
        "a difference of two draws has twice the variance of one: divide by the root of 2.": (
            2**0.5 * factor
        ),
        "the factor enters squared: its root belongs on the gradient.": (1 - 1 / k) / 2,
        "without the root of 1 - 1/k it has the noise of one mask in full, and the k masks have "
        "some, too.": 0.5**0.5,
        "1/k is what is left; what is missing is 1 - 1/k.": math.sqrt(1 / k / 2),
    }
    expect(
        "the noise",
        value,
        factor * gap,
        follows=[-factor * gap],
        at=f"k = {k}",
        mistakes={why: torch.sign(value * gap) * wrong * gap for why, wrong in either.items()},
    )


@check
def explicit(answer: Answer, n: Numbers) -> None:
    """R_approx along a probe agrees with the whole Jacobian, example by example."""
    first, second, bias = n.normal(6, 4), n.normal(4, 3), n.normal(5, 3)
    eta = n.normal(5, 6)

    def logits(eta: Tensor) -> Tensor:
        return bias + (1 + eta @ first / 2).tanh() @ second

    clean = logits(torch.zeros_like(eta))
    slope = 1 - torch.tensor(1.0, dtype=torch.float64).tanh() ** 2
    moved = slope * (eta @ first / 2) @ second  # the Jacobian by hand, times the probe
    p = clean.softmax(-1)
    squares, mean = (p * moved**2).sum(-1), (p * moved).sum(-1)
    value = answer(logits, eta)
    if isinstance(value, Tensor) and value.shape == (5,):
        raise Mistake("there is one number for each example; return their mean.")
    expect(
        "R_approx",
        value,
        0.5 * (squares - mean**2).mean(),
        mistakes={
            "the factor 1/2 is missing.": (squares - mean**2).mean(),
            "H_out is diag(p) - p pᵀ; its second part is missing.": 0.5 * squares.mean(),
            "take the mean over the examples, not the sum.": 0.5 * (squares - mean**2).sum(),
            "that has the identity in the place of H_out.": 0.5 * (moved**2).sum(-1).mean(),
        },
    )


@check
def implicit(answer: Answer, n: Numbers) -> None:
    """The slope along the noise is right, and so is its gradient in the weights."""
    a, eta = n.normal(5), n.normal(5)
    weights = n.normal(5).requires_grad_()

    def loss(eta: Tensor) -> Tensor:
        return ((1 + eta) * weights @ a).tanh() + ((1 + eta) * weights).square().sum()

    w = weights.detach()
    z = (w @ a).tanh()
    truth = (1 - z**2) * (eta * w @ a) + 2 * (eta * w**2).sum()
    with torch.enable_grad():
        slope = answer(loss, eta)
        expect(
            "the slope",
            slope,
            truth,
            mistakes={
                "that is the loss under the noise, not its slope at no noise.": loss(eta).detach(),
                "take the slope at no noise, at ε = 0, not under the noise.": (
                    1 - ((1 + eta) * w @ a).tanh() ** 2
                )
                * (eta * w @ a)
                + 2 * ((1 + eta) * eta * w**2).sum(),
            },
        )
        if not isinstance(slope, Tensor) or not slope.requires_grad:
            raise Mistake(
                "the slope has no gradient: ask for create_graph=True, so that it can be "
                "differentiated once more."
            )
        (gradient,) = torch.autograd.grad(slope, weights)
    second = -2 * z * (1 - z**2)
    by_hand = second * (eta * w @ a) * a + (1 - z**2) * eta * a + 4 * eta * w
    expect("the gradient of the slope in the weights", gradient, by_hand)


@check
def even_odd(answer: Answer, n: Numbers) -> None:
    """Both strengths do what they say: 1 and 1 give the loss under the mask."""
    loss, eta = _cubic(n), n.normal(5)
    e, i = n.uniform(0.2, 0.8), n.uniform(1.1, 1.9)
    clean, up, down = loss(torch.zeros_like(eta)), loss(eta), loss(-eta)
    even, odd = (up + down) / 2, (up - down) / 2
    expect(
        "the loss with its two strengths",
        answer.numbers(loss, eta, e, i, shape=()),
        clean + e * (even - clean) + i * odd,
        at=f"explicit {e}, implicit {i}",
        mistakes={
            "the strengths are exchanged.": clean + i * (even - clean) + e * odd,
            "the even part holds the clean loss already: only what is beyond it has a strength.": (
                clean + e * even + i * odd
            ),
            "the clean loss must stay where both strengths are 0.": e * even + i * odd,
            "even and odd part have the factor 1/2.": (
                clean + e * (up + down - clean) + i * (up - down)
            ),
            "the sign of the odd part is that of -η.": clean + e * (even - clean) - i * odd,
        },
    )
