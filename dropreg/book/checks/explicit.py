"""Checks of assignment 3, the explicit regularizer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import hessian, vmap

from dropreg.book.checks import two_layers as net
from dropreg.book.checks.core import Answer, Mistake, Numbers, as_numbers, check, expect

HALF = "it is twice the truth: Taylor's second-order term starts with ½."
PLAIN_Q = "the noise has variance q/(1-q), not q: kept units are divided by 1-q."
SUMMED = "it is a sum over the examples; the loss is a mean over them."
SQUARED_FIRST = (
    "each feature is squared by itself. Features of a group share one η: what has the same noise "
    "is added first, then squared."
)


def logistic_loss(x: Tensor, y: Tensor, w: Tensor, b: float) -> Tensor:
    """The loss ln(1 + exp(-y z)) of each row, (n,); labels are ±1."""
    return F.softplus(-y * (x @ w + b))


def average(
    rows: tuple[Tensor, Tensor, Tensor, float], dropped: float, kept: float, chance: float
) -> Tensor:
    """The mean loss over all masks, (n,).

    Args:
        rows: Features (n, d), labels, weights and bias.
        dropped: What a dropped feature is multiplied by.
        kept: What a kept one is multiplied by.
        chance: Probability to drop.

    Returns:
        The mean for each row.
    """
    x, y, w, b = rows
    total = torch.zeros_like(y)
    for sign in net.every_sign(len(w)):
        factors = torch.where(sign < 0, dropped, kept).double()
        probability = torch.where(sign < 0, chance, 1 - chance).double().prod()
        total += probability * logistic_loss(x * factors, y, w, b)
    return total


def some_rows(n: Numbers, features: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Features (6, d), labels ±1, weights and a bias."""
    y = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    return 1.5 * n.normal(6, features), y, n.normal(features), n.uniform(-0.5, 0.5)


@check
def effect(exact_effect: Answer, n: Numbers) -> None:
    """`exact_effect` is the mean over all masks."""
    rows, q = some_rows(n, 3), n.uniform(0.2, 0.35)
    clean = logistic_loss(*rows)
    truth = average(rows, 0, 1 / (1 - q), q) - clean
    expect(
        "exact_effect, three features with a noise each",
        exact_effect(*rows, q, torch.eye(3, dtype=torch.float64)),
        truth,
        mistakes={
            "kept features are left as they are. Dropout divides them by 1-q.": average(
                rows, 0, 1, q
            )
            - clean,
            "all masks count alike. A mask with m of d features dropped has the probability "
            "qᵐ (1-q)ᵈ⁻ᵐ.": average(rows, 0, 1 / (1 - q), 0.5) - clean,
            "q is the probability to drop a feature, not to keep it.": average(
                rows, 0, 1 / q, 1 - q
            )
            - clean,
            "that is the loss under masks. Take the clean loss off.": truth + clean,
        },
    )


def expect_change(what: str, values: Tensor) -> None:
    """Refuse what is the same for inputs that differ: it would agree with itself."""
    if (values == values[0]).all():
        raise Mistake(f"{what}: the result is the same for inputs that differ.")


def shared(answer: Answer, n: Numbers) -> None:
    """Features of one group must count as one feature that holds their sum."""
    x, y, w, b = some_rows(n, 5)
    q = n.uniform(0.2, 0.35)
    members = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 1, 1]], dtype=torch.float64)
    expect_change(answer.name, answer.numbers(x, y, w, b, q, members, shape=(6,)))
    one, apart = torch.ones(2, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    expect(
        f"{answer.name}, five features in two groups, against two features that hold the sums",
        answer(x, y, w, b, q, members),
        answer.numbers((x * w) @ members.T, y, one, b, q, apart[:2, :2], shape=(6,)),
        mistakes={
            SQUARED_FIRST
            if answer.name == "quadratic_form"
            else "each feature has a noise of its own. A group has one η for all its "
            "members.": answer.numbers(x, y, w, b, q, apart, shape=(6,))
        },
    )


@check
def effect_shared(exact_effect: Answer, n: Numbers) -> None:
    """`exact_effect` draws one noise for each group."""
    shared(exact_effect, n)


@check
def form(quadratic_form: Answer, n: Numbers) -> None:
    """`quadratic_form` is the second-order term."""
    rows, q = some_rows(n, 3), n.uniform(0.2, 0.35)
    x, y, w, b = rows
    v = q / (1 - q)

    def noisy(eta: Tensor, one_x: Tensor, one_y: Tensor) -> Tensor:
        return logistic_loss(one_x * (1 + eta), one_y, w, b)

    none = torch.zeros(3, dtype=torch.float64)
    bends = vmap(hessian(noisy), in_dims=(None, 0, 0))(none, x, y).diagonal(dim1=1, dim2=2)
    truth = 0.5 * v * bends.sum(1)
    p = (x @ w + b).sigmoid()
    size = 0.5 * v * (x * w).square().sum(1)
    expect(
        "quadratic_form, three features with a noise each",
        quadratic_form(*rows, q, torch.eye(3, dtype=torch.float64)),
        truth,
        mistakes={
            HALF: 2 * truth,
            PLAIN_Q: (1 - q) * truth,
            "q(1-q) is the variance of a mask of zeros and ones. Kept features are divided by 1-q, "
            "which divides the variance by (1-q)².": (1 - q) ** 2 * truth,
            "the slope of the loss stands there, squared. Its bend, the second derivative in the "
            "logit, does not see the label.": size * (p - (1 + y) / 2) ** 2,
            "every row weighs the same. Where is the second derivative of the loss?": size,
            "the features are missing: what is perturbed is x_j w_j, not w_j.": 0.5
            * v
            * p
            * (1 - p)
            * w.square().sum(),
            "the sign is wrong: the variance is q/(1-q). (The paper's q/(q-1) is a slip.)": -truth,
        },
    )


@check
def form_shared(quadratic_form: Answer, n: Numbers) -> None:
    """`quadratic_form` is right for features that share a noise."""
    shared(quadratic_form, n)


@check
def output_hessian(h_out: Answer, n: Numbers) -> None:
    """`h_out` is the second derivative of the cross-entropy in the logits."""
    z = n.normal(3, 4)
    p = z.softmax(1)
    truth = net.output_hessian(z)
    outer = p[:, :, None] * p[:, None, :]
    expect(
        "h_out of 3 rows of 4 logits",
        h_out(z),
        truth,
        mistakes={
            "off the diagonal there is something, too: raise one logit, and every probability "
            "moves.": truth.diagonal(dim1=1, dim2=2).diag_embed(),
            "the probabilities alone are not it: differentiate the softmax.": p.diag_embed(),
            "the sign of the outer product is wrong: rows of the Hessian add up to "
            "0.": p.diag_embed() + outer,
            "every logit has a sigmoid of its own there. The classes share one softmax.": (
                z.sigmoid() * (1 - z.sigmoid())
            ).diag_embed(),
        },
    )


def own_hessian(h_out: Answer, z: Tensor) -> Tensor:
    """What the student's h_out gives, to judge what is built on it: a mistake costs once."""
    truth = net.output_hessian(z)
    try:
        own = torch.as_tensor(h_out(z)).double()
    except (Mistake, TypeError, ValueError, RuntimeError):
        return truth
    return own if own.shape == truth.shape else truth


def number(what: str, value: Any) -> Tensor:
    """One number out of what a student returns."""
    found = as_numbers(what, value)
    if found.numel() != 1:
        raise Mistake(f"{what}: one number is expected, not the shape {tuple(found.shape)}.")
    return found.reshape(())


def expect_either(
    what: str, value: Any, truth: Any, follows: Any, mistakes: Mapping[str, Any], error: Any = None
) -> None:
    """Compare with the truth, or with what follows from the student's own earlier function."""
    try:
        expect(what, value, follows, error=error)
    except Mistake:
        expect(what, value, truth, error=error, mistakes=mistakes)


@check
def regularizer(r_approx: Answer, h_out: Answer, n: Numbers) -> None:
    """`r_approx` is the Gauss-Newton form, over both layers."""
    weights, x, y = net.random_weights(n, 3, 3, 3), n.normal(1, 3), torch.tensor([n.integer(0, 2)])
    q = [n.uniform(0.15, 0.25), n.uniform(0.35, 0.5)]
    v, a = net.variances(q, weights), net.jacobian(weights, x)
    z, h = net.clean_logits(weights, x), net.units(weights, x)
    bends = net.bends(a, net.output_hessian(z))[0]
    truth = 0.5 * v @ bends
    plain = torch.tensor([q[0]] * 3 + [q[1]] * 3, dtype=torch.float64)
    first = torch.tensor([1.0] * 3 + [0.0] * 3, dtype=torch.float64)
    expect_either(
        "r_approx of one example",
        r_approx(weights, x, y, q),
        truth,
        0.5 * v @ net.bends(a, own_hessian(h_out, z))[0],
        {
            HALF: 2 * truth,
            PLAIN_Q: 0.5 * plain @ bends,
            "the first hidden layer is missing; every noised layer has a term.": 0.5
            * (v * (1 - first))
            @ bends,
            "the second hidden layer is missing; every noised layer has a term.": 0.5
            * (v * first)
            @ bends,
            "both layers have the q of the first one.": 0.5 * v[0] * bends.sum(),
            "both layers have the q of the second one.": 0.5 * v[-1] * bends.sum(),
            "the loss Jacobian stands in the place of H_out. H_out is the second derivative of the "
            "loss in the logits, and does not see the label.": 0.5
            * v
            @ net.slopes(weights, x, y)[0] ** 2,
            "there is no H_out: squared changes of the logits are added as they are.": 0.5
            * v
            @ a.square().sum(1)[0],
            "the perturbation is η times h. Where is h?": 0.5 * v @ (bends / h[0] ** 2),
            "h enters once. It is the perturbation that is squared, so h is, too.": 0.5
            * v
            @ (bends / h[0]),
            "that is the full second-order term. Gauss and Newton leave out the bend of the "
            "network, and keep that of the loss.": 0.5 * v @ net.full_bends(weights, x, y)[0],
        },
    )


@check
def regularizer_mean(r_approx: Answer, n: Numbers) -> None:
    """`r_approx` of a batch is the mean over its examples."""
    weights, x = net.random_weights(n, 3, 2, 3), n.normal(4, 3)
    y, q = torch.tensor([0, 1, 2, 1]), [n.uniform(0.15, 0.25), n.uniform(0.35, 0.5)]
    single = [r_approx(weights, x[i : i + 1], y[i : i + 1], q) for i in range(4)]
    each = torch.stack([number("r_approx of one example", value) for value in single])
    expect_change("r_approx", each)
    expect(
        "r_approx of 4 examples, against those of each",
        r_approx(weights, x, y, q),
        each.mean(),
        mistakes={SUMMED: each.sum()},
    )


@check
def probe_mean(probe: Answer, h_out: Answer, n: Numbers) -> None:
    """`probe` has the mean R_approx over all sign patterns."""
    weights, x = net.random_weights(n, 3, 2, 3), n.normal(1, 3)
    q = [n.uniform(0.15, 0.25), n.uniform(0.35, 0.5)]
    v, a, z = net.variances(q, weights), net.jacobian(weights, x), net.clean_logits(weights, x)
    bends, h = net.bends(a, net.output_hessian(z))[0], net.units(weights, x)[0]
    signs = net.every_sign(4)
    truth = 0.5 * v @ bends
    plain = torch.tensor([q[0]] * 2 + [q[1]] * 2, dtype=torch.float64)
    expect_either(
        "the mean of probe over all 16 sign patterns",
        probe(weights, x.expand(16, -1), q, [signs[:, :2], signs[:, 2:]]),
        truth,
        0.5 * v @ net.bends(a, own_hessian(h_out, z))[0],
        {
            HALF: 2 * truth,
            "q/(1-q) is the variance of the noise. Its size is the root of that.": 0.5
            * v.square()
            @ bends,
            "the signs go in as they are, of variance 1. The noise has the variance q/(1-q).": 0.5
            * bends.sum(),
            PLAIN_Q: 0.5 * plain @ bends,
            SUMMED: 16 * truth,
            "the perturbation is η times h. Where is h?": 0.5 * v @ (bends / h**2),
            "there is no H_out: the squared change of the logits is added as it is.": 0.5
            * v
            @ a.square().sum(1)[0],
        },
    )


@check
def probe_together(probe: Answer, h_out: Answer, n: Numbers) -> None:
    """`probe` sends the noise of both layers through together."""
    weights, x, p = net.random_weights(n, 3, 2, 3), n.normal(1, 3), n.uniform(0.2, 0.4)
    a, z = net.jacobian(weights, x)[0], net.clean_logits(weights, x)
    one, two = torch.ones(1, 2, dtype=torch.float64), torch.tensor([[1.0, -1.0]]).double()
    none = torch.zeros(1, 2, dtype=torch.float64)
    t1, t2 = a[:, :2] @ one[0], a[:, 2:] @ two[0]
    alone = [probe(weights, x, [p, p], pair) for pair in ([one, none], [none, two])]
    both = [probe(weights, x, [p, p], [one, sign * two]) for sign in (1, -1)]
    first, second, third, fourth = (number("probe", value) for value in alone + both)

    def expected(middle: Tensor) -> Tensor:
        return 4 * (t1 @ middle @ t2) / (t1 @ middle @ t1 + t2 @ middle @ t2)

    expect_either(
        "probe(s₁, s₂) minus probe(s₁, -s₂), over probe(s₁, 0) and probe(0, s₂)",
        (third - fourth) / (first + second),
        expected(net.output_hessian(z)[0]),
        expected(own_hessian(h_out, z)[0]),
        {
            "each layer is squared by itself. That has the right mean as well, but costs a pass a "
            "layer: add the changes of the logits first.": 0.0
        },
    )


def moments(weights: list[Tensor], x: Tensor, q: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices B of the examples, ½ tᵀHt = sᵀBs for signs s; mean and variance of a probe."""
    a = net.jacobian(weights, x) * net.variances(q, weights).sqrt()
    h_out = net.output_hessian(net.clean_logits(weights, x))
    b = 0.5 * torch.einsum("ncj,ncd,ndk->njk", a, h_out, a)
    trace = b.diagonal(dim1=1, dim2=2).sum(1)
    around = b.square().sum((1, 2)) - b.diagonal(dim1=1, dim2=2).square().sum(1)
    return b, trace.mean(), 2 * around.sum() / len(x) ** 2


DRAWS, ROWS = 80, 8


@check
def estimate_mean(estimate: Answer, probe: Answer, n: Numbers) -> None:
    """`estimate` has the mean R_approx."""
    weights, x = net.random_weights(n, 3, 2, 3), n.normal(ROWS, 3)
    q = [n.uniform(0.3, 0.4), n.uniform(0.3, 0.4)]
    b, truth, variance = moments(weights, x, q)
    factor = own_factor(probe, weights, x, q, truth)
    values = as_numbers("estimate", estimate(weights, x, q, DRAWS))
    both_layers = b[:, :2, 2:].diagonal(dim1=1, dim2=2).sum(1).mean()
    expect_either(
        f"the mean of {DRAWS} estimates",
        values.mean() if values.shape == (DRAWS,) else values,
        truth,
        factor * truth,
        {
            "both layers get the same noise, so that their changes of the logits do not cancel on "
            "average. Draw one for each.": truth + 2 * both_layers,
        },
        error=(variance / DRAWS) ** 0.5 * max(1.0, abs(factor)),
    )


def own_factor(
    probe: Answer, weights: list[Tensor], x: Tensor, q: list[float], truth: Tensor
) -> float:
    """The mean of the student's probe over the truth, to judge what is built on it."""
    signs = net.every_sign(4).repeat(len(x), 1)
    rows = x.repeat_interleave(16, 0)
    try:
        mean = float(probe(weights, rows, q, [signs[:, :2], signs[:, 2:]]))
    except (Mistake, TypeError, ValueError, RuntimeError):
        return 1.0
    return mean / float(truth)


@check
def estimate_spread(estimate: Answer, probe: Answer, n: Numbers) -> None:
    """`estimate` draws fresh noise for every example and every estimate."""
    weights = net.random_weights(n, 3, 2, 3)
    x = n.normal(1, 3).expand(ROWS, -1)  # equal examples: a noise that they share shows most
    q = [n.uniform(0.3, 0.4), n.uniform(0.3, 0.4)]
    _, mean, variance = moments(weights, x, q)
    values = as_numbers("estimate", estimate(weights, x, q, DRAWS))
    if values.shape != (DRAWS,):
        raise Mistake(f"estimate: the shape is {tuple(values.shape)}, but should be ({DRAWS},).")
    if values.std() < 1e-9 * values.mean().abs():
        raise Mistake("estimate: all estimates are equal. Draw a new noise for each.")
    squares = (values / values.mean() - 1) ** 2
    expect_either(
        f"the variance of {DRAWS} estimates over their squared mean",
        squares.mean(),
        variance / mean**2,
        own_spread(probe, weights, x, q, variance / mean**2),
        {
            "all examples share one noise. The mean is right, but nothing averages out.": len(x)
            * variance
            / mean**2,
        },
        # Of the mean in the denominator, a tenth of the error, there is enough room in the rest.
        error=1.1 * squares.std() / DRAWS**0.5,
    )


def own_spread(
    probe: Answer, weights: list[Tensor], x: Tensor, q: list[float], truth: Tensor
) -> Tensor:
    """Variance over squared mean of the student's probe, for equal examples with fair signs."""
    try:
        each = torch.stack(
            [
                number("probe", probe(weights, x[:1], q, [s[None, :2], s[None, 2:]]))
                for s in net.every_sign(4)
            ]
        )
    except Mistake:
        return truth
    return each.var(correction=0) / len(x) / each.mean() ** 2


@check
def label_gradient(sampled_label_gradient: Answer, n: Numbers) -> None:
    """`sampled_label_gradient` has the mean ∇R_approx over the model's own labels."""
    weights, x = net.random_weights(n, 3, 2, 2), n.normal(3, 3)
    q = [n.uniform(0.15, 0.25), n.uniform(0.35, 0.5)]
    leaves = [w.requires_grad_() for w in weights]
    v, a, h = net.variances(q, leaves), net.jacobian(leaves, x), net.units(leaves, x)
    p = net.clean_logits(leaves, x).softmax(1)
    bends = net.bends(a, p.diag_embed() - p[:, :, None] * p[:, None, :])
    frozen = net.bends(a, net.output_hessian(p.log()).detach())
    squares = (bends / h**2).detach()  # of the slopes, in the mean over labels

    def gradient(regularizer: Tensor) -> Tensor:
        value = 0.5 * (regularizer @ v).mean()
        found = torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    truth, plain = gradient(bends), gradient(frozen)
    values, chances = [], []
    for labels in product(range(2), repeat=3):
        given = [w.detach() for w in weights]
        value = sampled_label_gradient.numbers(given, x, q, torch.tensor(labels), shape=truth.shape)
        values.append(value)
        chances.append(p[range(3), labels].prod().item())
    mean = sum(chance * value for chance, value in zip(chances, values, strict=True))
    expect(
        "the mean of sampled_label_gradient over all labels, by their probability",
        mean,
        truth,
        mistakes={
            "the sampled label is differentiated plainly. Its probability depends on the weights "
            "as well, and autograd does not know: H_out is frozen.": plain,
            "only the probability of the label is differentiated. The squares depend on the "
            "weights, too.": truth - plain,
            "∂ℓ/∂h is detached. It depends on the weights as h does: create_graph=True.": gradient(
                h**2 * squares
            ),
            HALF: 2 * truth,
            SUMMED: 3 * truth,
            "it is divided by the number of examples twice: square the slopes of the sum of the "
            "losses, not those of their mean.": truth / 3,
        },
    )
