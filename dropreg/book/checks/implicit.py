"""Checks of assignment 4, the implicit noise."""

from __future__ import annotations

import torch
from torch import Tensor

from dropreg.book.checks import two_layers as net
from dropreg.book.checks.core import Answer, Mistake, Numbers, as_numbers, expect, rounds
from dropreg.book.checks.explicit import PLAIN_Q, SUMMED, costs_once

SQRT2 = 2**0.5


@rounds(2)
def size(signs: Answer, n: Numbers) -> None:
    """`signs` have dropout's variance, all of one size."""
    q = n.uniform(0.2, 0.45)
    v = q / (1 - q)
    eta = as_numbers("signs", signs(6, 5, q))
    if (
        eta.shape == (6, 5)
        and (eta < 0).any()
        and eta.std() > 0
        and (eta.abs() != eta.abs()[0, 0]).any()
    ):
        values = eta.unique()
        if len(values) == 2:
            raise Mistake(
                "signs: that is dropout's own law, of two sizes. Rademacher noise has one size, "
                "and both signs are equally likely."
            )
    expect(
        "the size of the noise",
        eta.abs(),
        torch.full((6, 5), v**0.5),
        mistakes={
            "it is the variance. The size of a sign is the root of its variance, √(q/(1-q)).": v,
            PLAIN_Q: q**0.5,
            "signs of size 1 have variance 1. Dropout's noise has the variance q/(1-q).": 1.0,
        },
    )


@rounds(2)
def fair(signs: Answer, n: Numbers) -> None:
    """`signs` are fair, and drawn for every example and unit."""
    rows, units, q = 2000, 8, n.uniform(0.2, 0.45)
    drawn, again = (signs.numbers(rows, units, q, shape=(rows, units)).sign() for _ in range(2))
    if (drawn == drawn[0]).all():
        raise Mistake("signs: all examples have the same noise. Each draws its own.")
    if (drawn == drawn[:, :1]).all():
        raise Mistake("signs: all units of an example have the same noise. Each draws its own.")
    for what, products in (
        (f"the mean sign of each unit, over {rows} examples: both are equally likely", drawn),
        ("signs: two calls, which should not depend on each other", drawn * again),
        ("signs: neighbouring examples, which should not either", drawn[1:] * drawn[:-1]),
        ("signs: neighbouring units, which should not either", drawn * drawn.roll(1, 1)),
    ):
        expect(
            what,
            products.mean(0),
            torch.zeros(units),
            error=torch.full((units,), len(products) ** -0.5),
            mistakes={"each call gives the same. Is a seed set in the function?": 1.0}
            if products.mean() == 1
            else None,
        )


def one_example(n: Numbers) -> tuple[list[Tensor], Tensor, Tensor]:
    """Weights of a net of layers 3-2-2-3, an example and its label."""
    return net.random_weights(n, 3, 2, 3), n.normal(1, 3), torch.tensor([n.integer(0, 2)])


def pair(eta: Tensor) -> list[Tensor]:
    """The noise of two layers of two units, as the student's functions take it."""
    return [eta[..., :2], eta[..., 2:]]


def xis(
    weights: list[Tensor], eta: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """ξ of one example, and what mistakes lead to; eta (4,), x (1, inputs), y (1,)."""
    m = net.mixed(weights, x, y)[0]
    truth, clean = m @ eta, net.gradient(weights, torch.zeros_like(eta), x[0], y[0])
    under, mirrored = (net.gradient(weights, s * eta, x[0], y[0]) for s in (1, -1))
    leaves = [w.clone().requires_grad_() for w in weights]
    h = net.units(leaves, x)
    with_h_only = (net.slopes(weights, x, y) / h.detach() * eta * h).sum()
    found = torch.autograd.grad(with_h_only, leaves, materialize_grads=True)
    through_h = torch.cat([g.flatten() for g in found])
    last = torch.tensor([0.0, 0.0, 1.0, 1.0]) * eta
    return truth, {
        "∂ℓ/∂h is detached. It depends on the weights as h does; ask autograd to keep the "
        "graph of the first derivative.": through_h,
        "h is detached. It depends on the weights as ∂ℓ/∂h does.": truth - through_h,
        "that is the gradient under the noise. ξ is its part that is linear in η, without the "
        "clean gradient.": under,
        "that is the gradient under the noise minus the clean one, with all orders in η. ξ is "
        "the linear one: take the slope at η = 0.": under - clean,
        "that is half the difference under η and -η, with all odd orders. ξ is the linear one: "
        "take the slope at η = 0.": (under - mirrored) / 2,
        "the noise of the first layer is missing.": m @ last,
        "the noise of the second layer is missing.": m @ (eta - last),
        "the sign is wrong: ξ is the slope along η, not along -η.": -truth,
    }


@rounds(2)
def noise(xi: Answer, n: Numbers) -> None:
    """`xi` is the gradient of the slope along the noise."""
    weights, x, y = one_example(n)
    eta = (0.7 * n.normal(1, 4)).clamp(-1.2, 1.2)
    truth, mistakes = xis(weights, eta[0], x, y)
    expect("xi of one example", xi(weights, pair(eta), x, y), truth, mistakes=mistakes)


def named(xi: Answer, weights: list[Tensor], eta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The right ξ of each example, or those of the mistake that the student's function makes."""
    rows = [xis(weights, eta[i], x[i, None], y[i, None]) for i in range(len(x))]
    truth = torch.stack([right for right, _ in rows])
    mistaken = [torch.stack([wrongs[name] for _, wrongs in rows]) for name in rows[0][1]]
    try:
        found = [xi(weights, pair(eta[i, None]), x[i, None], y[i, None]) for i in range(len(x))]
        own = torch.stack([as_numbers("xi", one, shape=truth.shape[1:]) for one in found])
    except Mistake:
        return truth
    return costs_once(own, truth, mistaken)


@rounds(2)
def noise_mean(xi: Answer, n: Numbers) -> None:
    """`xi` of a batch is the mean over its examples."""
    weights, x, y = net.random_weights(n, 3, 2, 3), n.normal(4, 3), torch.tensor([0, 1, 2, 1])
    eta = n.normal(4, 4)
    each = named(xi, weights, eta, x, y)
    expect(
        "xi of 4 examples, against those of each",
        xi(weights, pair(eta), x, y),
        each.mean(0),
        mistakes={SUMMED: each.sum(0)},
    )


def own_mixed(xi: Answer, weights: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The matrix M of the noise of one example, or that of the mistake that the student makes."""
    every = torch.eye(4, dtype=torch.float64)
    return named(xi, weights, every, x.expand(4, -1), y.expand(4)).T


def covariances(m: Tensor, q: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The covariance of M η under dropout's noise, and what mistakes lead to."""
    v, plain = q / (1 - q), m @ m.T
    return v * plain, {
        "the variance of the noise, q/(1-q), is missing.": plain,
        PLAIN_Q: q * plain,
        "the variance of the noise enters once; its size, the root, twice.": v**2 * plain,
        "the variance of the noise enters once, not its root.": v**0.5 * plain,
        "the ξ of the coordinates are added before they are multiplied. The coordinates of η "
        "are independent: it is their covariances that add.": v * torch.outer(m.sum(1), m.sum(1)),
    }


@rounds(2)
def covariance(xi_covariance: Answer, xi: Answer, n: Numbers) -> None:
    """`xi_covariance` is right for one example."""
    weights, x, y = one_example(n)
    q = n.uniform(0.2, 0.4)
    truth, mistakes = covariances(net.mixed(weights, x, y)[0], q)
    expect(
        "xi_covariance of one example",
        xi_covariance(weights, x, y, q),
        truth,
        mistakes=mistakes,
        follows=[covariances(own_mixed(xi, weights, x, y), q)[0]],
    )


@rounds(2)
def covariance_batch(xi_covariance: Answer, n: Numbers) -> None:
    """`xi_covariance` of a batch is right, given that of each example."""
    weights, x, y = net.random_weights(n, 3, 2, 3), n.normal(3, 3), torch.tensor([0, 1, 2])
    q = n.uniform(0.2, 0.4)
    count = sum(w.numel() for w in weights)
    every = torch.eye(4, dtype=torch.float64)
    rights, wrongs = [], []
    for i in range(3):
        one, label = x[i, None], y[i, None]
        right, mistaken = covariances(net.mixed(weights, one, label)[0], q)
        columns = [xis(weights, e, one, label)[1] for e in every]
        built_on = [torch.stack([c[name] for c in columns], 1) for name in columns[0]]
        rights.append(right)
        wrongs.append([*mistaken.values(), *(covariances(m, q)[0] for m in built_on)])
    single = [
        xi_covariance.numbers(weights, x[i, None], y[i, None], q, shape=(count, count))
        for i in range(3)
    ]
    kinds = [torch.stack(kind) for kind in zip(*wrongs, strict=True)]
    each = costs_once(torch.stack(single), torch.stack(rights), kinds)
    mean = net.mixed(weights, x, y).mean(0)
    factor = each[0].trace() / (net.mixed(weights, x[:1], y[:1])[0] ** 2).sum()
    expect(
        "xi_covariance of 3 examples, against those of each",
        xi_covariance(weights, x, y, q),
        each.sum(0) / 9,
        mistakes={
            "it is the mean of the examples' covariances. ξ of the batch is a mean, and the "
            "variance of a mean of B independent terms is divided by B².": each.mean(0),
            "it is the sum of the examples' covariances; the variance of a mean of B independent "
            "terms is divided by B².": each.sum(0),
            "all examples share one noise. Each has its own, and what is independent adds up as "
            "covariances.": factor * mean @ mean.T,
        },
    )


@rounds(2)
def odd_part(odd_covariance: Answer, n: Numbers) -> None:
    """`odd_covariance` is that of dropout's odd part, over all masks."""
    weights, x, y = one_example(n)
    strength = n.uniform(0.6, 0.9)
    signs = net.every_sign(4)
    under = torch.stack([net.gradient(weights, strength * s, x[0], y[0]) for s in signs])
    odd = (under - under.flip(0)) / 2 / strength  # the last sign pattern mirrors the first
    truth = odd.T @ odd / 16
    all_orders = (under - under.mean(0)) / strength
    expect(
        "odd_covariance of one example",
        odd_covariance(weights, x, y, strength),
        truth,
        mistakes={
            "the odd part is *half* the difference under η and -η.": 4 * truth,
            "it is not divided by the square of the strength.": strength**2 * truth,
            "it is divided by the strength once; a covariance is a square.": strength * truth,
            "these are all the masks there are, equally likely: divide by their number, not by one "
            "less.": truth * 16 / 15,
            "it is not divided by the number of masks.": 16 * truth,
            "that is the covariance of the whole gradient. Take its odd part first.": all_orders.T
            @ all_orders
            / 16,
        },
    )


@rounds(2)
def agreement(match: Answer, n: Numbers) -> None:
    """`match` compares the size and the shape of two covariances."""
    factors = n.normal(2, 4, 3)
    first, second = factors @ factors.mT
    ratio, cosine = match.numbers(first, second, shape=(2,))
    expect(
        "the ratio of the sizes",
        ratio,
        first.trace() / second.trace(),
        mistakes={
            "the ratio is upside down: first over second.": second.trace() / first.trace(),
            "the size asked for is the trace, the sum of the variances.": first.norm()
            / second.norm(),
        },
    )
    product = (first * second).sum()
    expect(
        "the cosine",
        cosine,
        product / (first.norm() * second.norm()),
        mistakes={
            "it is not divided by the lengths of both.": product,
            "the length of a matrix is the root of the sum of its squares, not its trace.": product
            / (first.trace() * second.trace()),
        },
    )


@rounds(2)
def put_back(pair_noise: Answer, n: Numbers) -> None:
    """`pair_noise` has the covariance of dropout's noise."""
    weights, x, y = one_example(n)
    first, second = 0.7 * n.normal(2, 4)
    difference = net.gradient(weights, first, x[0], y[0]) - net.gradient(
        weights, second, x[0], y[0]
    )
    value = as_numbers(
        "pair_noise", pair_noise(weights, pair(first[None]), pair(second[None]), x, y)
    )
    if value.shape == difference.shape and value @ difference < 0:
        value = -value  # either order has the same law
    expect(
        "pair_noise of one example",
        value,
        difference / SQRT2,
        mistakes={
            "it is √2 too large. The variance of a difference is the sum of two "
            "variances.": difference,
            "it is √2 too small: half the difference has half the variance of one.": difference / 2,
        },
    )


def batch_with_masks(
    n: Numbers, k: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, Tensor]:
    """Weights, k masks of dropout with q = ½ for 3 examples, another noise, examples and labels."""
    masks = torch.stack([n.normal(3, 4).sign() for _ in range(k)])
    x, y = n.normal(3, 3), torch.tensor([0, 1, 2])
    return net.random_weights(n, 3, 2, 3), pair(masks), pair(n.normal(3, 4).sign()), x, y


@rounds(2)
def dialled_objective(dialled: Answer, n: Numbers) -> None:
    """`dialled` at strength 0 is the gradient of Dropout_k."""
    k = n.integer(3, 5)
    weights, masks, eta, x, y = batch_with_masks(n, k)
    together = torch.cat(masks, 2)

    def batch_gradient(noises: Tensor) -> Tensor:
        rows = zip(noises, x, y, strict=True)
        return torch.stack([net.gradient(weights, e, i, c) for e, i, c in rows]).mean(0)

    each = torch.stack([batch_gradient(noises) for noises in together])
    expect(
        "dialled with strength 0",
        dialled(weights, masks, eta, x, y, 0.0),
        each.mean(0),
        at=f"k = {k}",
        mistakes={
            "it is the sum over the masks; Dropout_k is their mean.": each.sum(0),
            "only the first mask is used.": each[0],
            "it is the clean gradient. Put the masks in.": batch_gradient(0 * together[0]),
            "the masks are averaged before the pass. It is the losses that are averaged: a mean "
            "mask is hardly any mask.": batch_gradient(together.mean(0)),
        },
    )


@rounds(2)
def dialled_scale(dialled: Answer, xi: Answer, n: Numbers) -> None:
    """`dialled` adds as much noise as Dropout_k lacks."""
    # Not 3, where the share that is left and a slip of √2 give the same.
    k, strength = n.integer(4, 6), n.uniform(1.5, 2.5)
    weights, masks, eta, x, y = batch_with_masks(n, k)
    mixed = net.mixed(weights, x, y)
    count = mixed.shape[1:2]
    with_noise, without = (
        dialled.numbers(weights, masks, eta, x, y, s, shape=count) for s in (strength, 0.0)
    )

    def xi_of(noise: list[Tensor]) -> Tensor:
        return torch.einsum("npj,nj->p", mixed, torch.cat(noise, 1)) / len(x)

    own = named(xi, weights, torch.cat(eta, 1), x, y).mean(0)
    factor, noise = strength * (1 - 1 / k) ** 0.5, xi_of(eta)
    expect(
        "what the noise adds",
        with_noise - without,
        factor * noise,
        at=f"strength {strength} with {k} masks",
        follows=[factor * own, factor * len(x) * own],  # a sum over the examples costs once, too
        mistakes={
            "it is not scaled. Dropout_k has 1/k of the variance left, so 1 - 1/k is to be "
            "added.": strength * noise,
            "1 - 1/k is the share of the variance. The noise is scaled by its root.": strength
            * (1 - 1 / k)
            * noise,
            "1/k is the share that Dropout_k still has. Add the rest.": strength * k**-0.5 * noise,
            "it is √2 too small. Half of a difference of two passes has that factor; ξ has "
            "not.": factor / SQRT2 * noise,
            "it is √2 too large. A difference of two passes needs that factor; ξ does not.": factor
            * SQRT2
            * noise,
            "the noise η is not used: a mask of the objective is used again. Then the two are not "
            "independent, and their variances do not add.": factor
            * xi_of([mask[0] for mask in masks]),
        },
    )
