"""Checks of assignment 2, two effects."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dropreg.book.checks.core import SKEWED, Answer, Fixture, Mistake, Numbers, expect, rounds
from dropreg.book.checks.fixtures import TINY_Q, tiny_network
from dropreg.book.statistics import student

EQUAL = "all gradients are equal: each needs a forward pass with a mask of its own."


@dataclass(frozen=True)
class Exact:
    """What dropout does to the tiny network on one batch of one image, over all 16 masks.

    Attributes:
        clean: The loss without noise.
        mean: The expected loss.
        deviation: The standard deviation of the loss.
        fourth: The fourth moment of the loss around its mean.
        clean_gradient: The gradient without noise, (parameters,).
        gradient: The expected gradient.
        covariance: The covariance of the gradient.
        fourth_length: The mean of the fourth power of the length of its noise.
    """

    clean: float
    mean: float
    deviation: float
    fourth: float
    clean_gradient: Tensor
    gradient: Tensor
    covariance: Tensor
    fourth_length: float


@functools.cache
def _exact(seed: int, x: tuple[float, ...], y: int) -> Exact:
    model = tiny_network(seed)
    inputs, target = torch.tensor([x], dtype=torch.float64), torch.tensor([y])

    def loss_and_gradient(mask: Tensor) -> tuple[float, Tensor]:
        loss = F.cross_entropy(model[3](model[:2](inputs) * mask), target)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        return loss.item(), torch.cat([grad.flatten() for grad in grads])

    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    chance = (TINY_Q ** (1 - masks) * (1 - TINY_Q) ** masks).prod(1)
    results = [loss_and_gradient(mask / (1 - TINY_Q)) for mask in masks]
    losses = torch.tensor([loss for loss, _ in results], dtype=torch.float64)
    gradients = torch.stack([gradient for _, gradient in results])
    clean, clean_gradient = loss_and_gradient(torch.ones(4, dtype=torch.float64))
    mean, gradient = chance @ losses, chance @ gradients
    centred = gradients - gradient
    return Exact(
        clean,
        mean.item(),
        (chance @ (losses - mean).square()).sqrt().item(),
        (chance @ (losses - mean) ** 4).item(),
        clean_gradient,
        gradient,
        centred.T @ (chance[:, None] * centred),
        (chance @ centred.square().sum(1).square()).item(),
    )


def _problem(n: Numbers) -> tuple[tuple[Fixture, Tensor, Tensor], Exact]:
    """A tiny network and an image on which both effects are easy to see, and the truth."""
    for _ in range(50):
        seed, x, y = n.seed(), n.normal(1, 3), n.integer(0, 2)
        exact = _exact(seed, tuple(x[0].tolist()), y)
        change = (exact.gradient - exact.clean_gradient).norm() / exact.clean_gradient.norm()
        if abs(exact.mean - exact.clean) > exact.deviation / 3 and change > 0.3:
            break
    return (Fixture("tiny_network", (seed,)), x, torch.tensor([y])), exact


@rounds(2)
def explicit(explicit_effect: Answer, n: Numbers) -> None:
    """The explicit effect is the expected loss minus the clean one."""
    problem, exact = _problem(n)
    draws = 3000
    got = explicit_effect.numbers(*problem, draws, shape=(2,))
    truth, error = exact.mean - exact.clean, exact.deviation / math.sqrt(draws)
    expect(
        f"the explicit effect from {draws} masks",
        got[0],
        truth,
        error=error,
        mistakes={
            "this is the expected loss; subtract the clean one.": exact.mean,
            "this is the clean loss alone.": exact.clean,
            "the sign is turned around: it is the noisy loss minus the clean one.": -truth,
            "it is zero: is the model in the same mode for both losses?": 0.0,
            "there is a ½ too much.": truth / 2,
        },
    )


@rounds(2)
def explicit_error(explicit_effect: Answer, n: Numbers) -> None:
    """The error of the explicit effect is that of a mean."""
    problem, exact = _problem(n)
    draws = 1000
    got = explicit_effect.numbers(*problem, draws, shape=(2,))[1]
    truth = exact.deviation / math.sqrt(draws)
    if got.abs() < 1e-9 * truth:
        raise Mistake(
            "the standard error is zero: the losses do not differ. Is dropout switched on?"
        )
    # That of a variance, relative to it; a standard deviation has half of it.
    relative = math.sqrt((exact.fourth / exact.deviation**4 - 1) / draws)

    def near(value: float, power: int = 1) -> tuple[float, float]:
        """A value that holds a power of the standard deviation, and its standard error."""
        return value, SKEWED * value * power * relative / 2

    expect(
        f"the standard error from {draws} masks",
        got,
        truth,
        error=near(truth)[1],
        mistakes={
            "this is the spread of single losses; their mean has one smaller by √n.": near(
                exact.deviation
            ),
            "it falls as √n, not as n.": near(exact.deviation / draws),
            "this is a variance; take its root.": near(exact.deviation**2 / draws, 2),
        },
    )


@rounds(2)
def gradient_mean(gradient_draws: Answer, n: Numbers) -> None:
    """The draws have the expected gradient as their mean."""
    problem, exact = _problem(n)
    draws, size = 600, len(exact.gradient)
    got = gradient_draws.numbers(*problem, draws, shape=(draws, size))
    if (got == got[0]).all() and not torch.allclose(got[0], exact.clean_gradient, rtol=1e-3):
        raise Mistake(EQUAL)
    variances = exact.covariance.diag()
    expect(
        f"the mean of {draws} gradients",
        got.mean(0),
        exact.gradient,
        error=(variances / draws).sqrt(),
        rounding=1e-3,
        mistakes={
            "gradients pile up in .grad: each is the sum of all before it. Set .grad to None "
            "before each backward pass, or use torch.autograd.grad.": (
                exact.gradient * (draws + 1) / 2,
                (variances * draws / 3).sqrt(),
            ),
            "this is the gradient without noise: switch dropout on with model.train().": (
                exact.clean_gradient
            ),
        },
    )


@rounds(2)
def gradient_spread(gradient_draws: Answer, n: Numbers) -> None:
    """The draws have dropout's noise: each its own mask."""
    problem, exact = _problem(n)
    draws, size = 600, len(exact.gradient)
    got = gradient_draws.numbers(*problem, draws, shape=(draws, size))
    truth = exact.covariance.trace().item()
    if (got == got[0]).all():
        raise Mistake(EQUAL)
    expect(
        "the trace of the covariance",
        got.var(0).sum(),
        truth,
        error=SKEWED * math.sqrt((exact.fourth_length - truth**2) / draws),
    )
    steps = (got[1:] - got[:-1]).square().sum(1).mean() / 2
    if (steps / got.var(0).sum() - 1).abs() > 0.5:
        raise Mistake("the gradients are not independent of each other: draw a mask for each.")


@rounds(2)
def ratio(noise_to_signal: Answer, n: Numbers) -> None:
    """The length of the noise is compared with that of the mean gradient."""
    gradients = 2 * n.normal(n.integer(20, 30), 6) + 1 + n.normal(6)
    count, mean, trace = len(gradients), gradients.mean(0).norm(), gradients.var(0).sum()
    expect(
        "noise over signal",
        noise_to_signal.numbers(gradients, shape=()),
        trace.sqrt() / mean,
        rounding=1e-3,
        mistakes={
            "take the root of the trace: lengths, not squares, are compared.": trace / mean,
            "both are squared; the ratio of the lengths is the root of it.": trace / mean**2,
            "signal over noise is turned around.": mean / trace.sqrt(),
            "subtract the mean gradient before you take the length of the noise.": (
                gradients.square().sum(1).mean().sqrt() / mean
            ),
            "the signal is the length of the mean, not the mean of the lengths.": trace.sqrt()
            / gradients.norm(dim=1).mean(),
            "divide by n-1, as the mean was estimated from the same draws.": (
                trace * (count - 1) / count
            ).sqrt()
            / mean,
        },
    )


@rounds(2)
def pair(pair_noise: Answer, n: Numbers) -> None:
    """The noise of a pair has mean zero and the covariance of one draw."""
    first, second = n.normal(4), n.normal(4)
    got, difference = pair_noise.numbers(first, second, shape=(4,)), first - second
    if (got * difference).sum() < 0:
        difference = -difference  # the other order is as good
    expect(
        "the noise of a pair",
        got,
        difference / math.sqrt(2),
        mistakes={
            "off by √2: variances of independent terms add up, so divide by √2.": difference,
            "off by √2: a difference has twice the variance, so divide by √2, not by 2.": difference
            / 2,
            "off by √2: divide by √2, do not multiply.": difference * math.sqrt(2),
            "a sum keeps the mean gradient; the difference has mean zero.": (first + second)
            / math.sqrt(2),
        },
    )


def _weights(noise_back: Answer, n: Numbers, k: int) -> Tensor:
    """The weights with which a linear rule combines k + 2 gradients."""
    weights = noise_back.numbers(torch.eye(k + 2, dtype=torch.float64), k, shape=(k + 2,))
    others = n.normal(k + 2, 3)
    expect(
        "the same weights, with other gradients",
        noise_back.numbers(others, k, shape=(3,)),
        weights @ others,
    )
    return weights


@rounds(2)
def back_mean(noise_back: Answer, n: Numbers) -> None:
    """Putting the noise back keeps the mean gradient."""
    k = n.integer(3, 9)
    weights = _weights(noise_back, n, k)
    expect(
        "the sum of the weights of all gradients",
        weights.sum(),
        1.0,
        mistakes={
            "the first k are added up; their mean is wanted.": float(k),
            "the pair is added; its difference has mean zero.": 1 + math.sqrt(2 * (1 - 1 / k)),
            "the noise is there, but the mean gradient is not.": 0.0,
        },
    )
    expect(
        "the weights of the first k gradients",
        weights[:k],
        torch.full((k,), 1.0 / k),
        mistakes={
            "the last two are for the noise, not for the mean.": torch.full((k,), 1 / (k + 2))
        },
    )


@rounds(2)
def back_spread(noise_back: Answer, n: Numbers) -> None:
    """With the noise back the covariance is that of a single mask."""
    k = n.integer(3, 9)
    weights = _weights(noise_back, n, k)
    missing = 1 - 1 / k
    expect(
        "the covariance, in units of that of one mask",
        weights.square().sum(),
        1.0,
        mistakes={
            "no noise is put back, and the k masks alone have 1/k of it.": 1 / k,
            "too much by 1/k: the k masks bring some noise already; √(1-1/k) is missing.": 1
            + 1 / k,
            "off by √2: divide the difference of the pair by √2.": 1 / k + 2 * missing,
            "off by √2: divide the difference of the pair by √2, not by 2.": 1 / k + missing / 2,
            "1-1/k is the share of the variance; a factor enters squared, so take its root.": 1 / k
            + missing**2,
            "the factor 1/k is that of Dropout_k; the noise that it lacks has 1-1/k.": 2 / k,
        },
    )
    expect(
        "the share of the last two in it",
        weights[k:].square().sum(),
        missing,
        mistakes={
            "the pair brings all of it, and the first k are not used.": 1.0,
            "the last two are not used.": 0.0,
        },
    )


@rounds(2)
def split(even_odd: Answer, n: Numbers) -> None:
    """Even and odd part add up to the loss under the mask."""
    up, down = 2 + n.uniform(0.1, 1.0), n.uniform(0.1, 1.0)
    even, odd = (up + down) / 2, (up - down) / 2
    expect(
        "even and odd part",
        even_odd.numbers(up, down, shape=(2,)),
        torch.tensor([even, odd]),
        mistakes={
            "the ½ is missing.": torch.tensor([2 * even, 2 * odd]),
            "even and odd part have changed places.": torch.tensor([odd, even]),
            "the odd part changes its sign with the mask: it is up minus down.": torch.tensor(
                [even, -odd]
            ),
        },
    )


@rounds(2)
def paired(paired_interval: Answer, n: Numbers) -> None:
    """The interval is that of the differences, seed by seed."""
    count = n.integer(4, 8)
    common = 5 * n.normal(count)
    first, second = common + n.normal(count), common + n.normal(count) + 1
    difference = first - second
    t, root = student(count - 1), math.sqrt(count)
    got = paired_interval.numbers(first, second, shape=(2,))
    expect(
        "the mean difference",
        got[0],
        difference.mean(),
        mistakes={"it is the first minus the second.": -difference.mean()},
    )
    half = t * difference.std() / root
    expect(
        "the half-width",
        got[1],
        half,
        rounding=2e-3,
        mistakes={
            "take the differences seed by seed first: what seeds share drops out.": t
            * (first.var() + second.var()).sqrt()
            / root,
            "with so few seeds use Student's t with n-1 degrees of freedom, not 1.96.": 1.96
            * difference.std()
            / root,
            "with so few seeds use Student's t with n-1 degrees of freedom, not 2.": 2
            * difference.std()
            / root,
            "the spread is that of single seeds; divide by √n.": t * difference.std(),
            "this is the standard error; an interval of 95 % is t times as wide.": (
                difference.std() / root
            ),
            "t has n-1 degrees of freedom, not n.": student(count) * difference.std() / root,
        },
    )
