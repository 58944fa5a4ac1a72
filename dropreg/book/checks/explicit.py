"""Checks of assignment 3, the explicit regularizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import hessian, vmap

from dropreg.book.checks import two_layers as net
from dropreg.book.checks.core import (
    SKEWED,
    Answer,
    Mistake,
    Numbers,
    as_numbers,
    check,
    expect,
    rounds,
)

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


def effects(
    rows: tuple[Tensor, Tensor, Tensor, float], q: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The exact effect on each row with a noise for each feature, and what mistakes lead to."""
    clean = logistic_loss(*rows)
    truth = average(rows, 0, 1 / (1 - q), q) - clean
    return truth, {
        "kept features are left as they are. Dropout divides them by 1-q.": average(rows, 0, 1, q)
        - clean,
        "all masks count alike. A mask with m of d features dropped has the probability "
        "qᵐ (1-q)ᵈ⁻ᵐ.": average(rows, 0, 1 / (1 - q), 0.5) - clean,
        "q is the probability to drop a feature, not to keep it.": average(rows, 0, 1 / q, 1 - q)
        - clean,
        "that is the loss under masks. Take the clean loss off.": truth + clean,
    }


@rounds(2)
def effect(exact_effect: Answer, n: Numbers) -> None:
    """`exact_effect` is the mean over all masks."""
    rows, q = some_rows(n, 3), n.uniform(0.2, 0.35)
    truth, mistakes = effects(rows, q)
    expect(
        "exact_effect, three features with a noise each",
        exact_effect(*rows, q, torch.eye(3, dtype=torch.float64)),
        truth,
        mistakes=mistakes,
    )


def shared(
    answer: Answer, n: Numbers, values: Callable[..., tuple[Tensor, dict[str, Tensor]]], apart: str
) -> None:
    """Features of one group must count as one feature that holds their sum.

    Args:
        answer: The student's function.
        n: Where the numbers come from.
        values: Gives what is right, and what those mistakes lead to that cost points elsewhere.
        apart: What to say if each feature has a noise of its own.
    """
    x, y, w, b = some_rows(n, 5)
    q = n.uniform(0.2, 0.35)
    members = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 1, 1]], dtype=torch.float64)
    sums = (x * w) @ members.T
    truth, named = values((sums, y, torch.ones(2, dtype=torch.float64), b), q)
    alone, named_alone = values((x, y, w, b), q)
    found = as_numbers(answer.name, answer(x, y, w, b, q, members))
    mistakes = {apart: alone}
    for message, value in named_alone.items():  # this mistake, on top of another
        if found.shape == value.shape and torch.allclose(found, value, rtol=1e-4):
            mistakes = {f"{apart} And: {message}": value}
    expect(
        f"{answer.name}, five features in two groups",
        found,
        truth,
        mistakes=mistakes,
        follows=list(named.values()),
    )


@rounds(2)
def effect_shared(exact_effect: Answer, n: Numbers) -> None:
    """`exact_effect` draws one noise for each group."""
    shared(
        exact_effect,
        n,
        effects,
        "each feature has a noise of its own. A group has one η for all its members.",
    )


def forms(rows: tuple[Tensor, Tensor, Tensor, float], q: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The second-order term of each row with a noise for each feature, and what mistakes give."""
    x, y, w, b = rows
    v = q / (1 - q)

    def noisy(eta: Tensor, one_x: Tensor, one_y: Tensor) -> Tensor:
        return logistic_loss(one_x * (1 + eta), one_y, w, b)

    none = torch.zeros_like(w)
    bends = vmap(hessian(noisy), in_dims=(None, 0, 0))(none, x, y).diagonal(dim1=1, dim2=2)
    truth = 0.5 * v * bends.sum(1)
    p = (x @ w + b).sigmoid()
    size = 0.5 * v * (x * w).square().sum(1)
    return truth, {
        HALF: 2 * truth,
        PLAIN_Q: (1 - q) * truth,
        "q(1-q) is the variance of a mask of zeros and ones. Kept features are divided by 1-q, "
        "which divides the variance by (1-q)².": (1 - q) ** 2 * truth,
        "the slope of the loss stands there, squared. Its bend, the second derivative in the "
        "logit, does not see the label.": size * (p - (1 + y) / 2) ** 2,
        "every row weighs the same. Where is the second derivative of the loss?": size,
        "the sign is wrong: the variance is q/(1-q). (The paper's q/(q-1) is a slip.)": -truth,
    }


@rounds(2)
def form(quadratic_form: Answer, n: Numbers) -> None:
    """`quadratic_form` is the second-order term."""
    rows, q = some_rows(n, 3), n.uniform(0.2, 0.35)
    x, _, w, b = rows
    truth, mistakes = forms(rows, q)
    p = (x @ w + b).sigmoid()
    ridge = 0.5 * q / (1 - q) * p * (1 - p) * w.square().sum()
    expect(
        "quadratic_form, three features with a noise each",
        quadratic_form(*rows, q, torch.eye(3, dtype=torch.float64)),
        truth,
        mistakes={
            **mistakes,
            "the features are missing: what is perturbed is x_j w_j, not w_j.": ridge,
        },
    )


@rounds(2)
def form_shared(quadratic_form: Answer, n: Numbers) -> None:
    """`quadratic_form` is right for features that share a noise."""
    shared(quadratic_form, n, forms, SQUARED_FIRST)


def hessians(z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The second derivatives of the cross-entropy in the logits, and what mistakes give."""
    p, truth = z.softmax(1), net.output_hessian(z)
    outer = p[:, :, None] * p[:, None, :]
    return truth, {
        "off the diagonal there is something, too: raise one logit, and every probability "
        "moves.": truth.diagonal(dim1=1, dim2=2).diag_embed(),
        "the probabilities alone are not it: differentiate the softmax.": p.diag_embed(),
        "the sign of the outer product is wrong: rows of the Hessian add up to 0.": p.diag_embed()
        + outer,
        "every logit has a sigmoid of its own there. The classes share one softmax.": (
            z.sigmoid() * (1 - z.sigmoid())
        ).diag_embed(),
    }


@rounds(2)
def output_hessian(h_out: Answer, n: Numbers) -> None:
    """`h_out` is the second derivative of the cross-entropy in the logits."""
    z = n.normal(3, 4)
    truth, mistakes = hessians(z)
    expect("h_out of 3 rows of 4 logits", h_out(z), truth, mistakes=mistakes)


def is_made(value: Any, mistaken: Tensor) -> bool:
    """Whether a student's result is that of a mistake."""
    try:
        expect("", value, mistaken)
    except Mistake:
        return False
    return True


def own_hessians(h_out: Answer, z: Tensor) -> list[Tensor]:
    """The matrices to judge by what is built on h_out: a mistake that has a name costs once.

    Args:
        h_out: The student's function.
        z: The logits, (n, classes).

    Returns:
        The right ones; and those of a mistake, if that is what the student's function gives.
    """
    truth, mistakes = hessians(z)
    try:
        own = h_out(z)
    except Mistake:
        return [truth]
    return [truth, *(wrong for wrong in mistakes.values() if is_made(own, wrong))]


APART = (
    "each layer is squared by itself. That has the right mean as well, but costs a pass a layer: "
    "add the changes of the logits first."
)
REGULARIZER = {
    "first": "the first hidden layer is missing; every noised layer has a term.",
    "second": "the second hidden layer is missing; every noised layer has a term.",
    "h": "the perturbation is η times h. Where is h?",
    "identity": "there is no H_out: squared changes of the logits are added as they are.",
}


def regularizers(
    weights: list[Tensor], x: Tensor, y: Tensor, q: list[float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """R_approx of each example, and what mistakes lead to, (n,) each."""
    v, a = net.variances(q, weights), net.jacobian(weights, x)
    z, h = net.clean_logits(weights, x), net.units(weights, x)
    bends = net.bends(a, net.output_hessian(z))
    truth = 0.5 * bends @ v
    count = weights[0].shape[1], weights[1].shape[1]
    plain = torch.tensor([q[0]] * count[0] + [q[1]] * count[1], dtype=torch.float64)
    first = torch.tensor([1.0] * count[0] + [0.0] * count[1], dtype=torch.float64)
    return truth, {
        HALF: 2 * truth,
        PLAIN_Q: 0.5 * bends @ plain,
        REGULARIZER["first"]: 0.5 * bends @ (v * (1 - first)),
        REGULARIZER["second"]: 0.5 * bends @ (v * first),
        "both layers have the q of the first one.": 0.5 * v[0] * bends.sum(1),
        "both layers have the q of the second one.": 0.5 * v[-1] * bends.sum(1),
        "the loss Jacobian stands in the place of H_out. H_out is the second derivative of the "
        "loss in the logits, and does not see the label.": 0.5 * net.slopes(weights, x, y) ** 2 @ v,
        REGULARIZER["identity"]: 0.5 * a.square().sum(1) @ v,
        REGULARIZER["h"]: 0.5 * (bends / h**2) @ v,
        "h enters once. It is the perturbation that is squared, so h is, too.": 0.5
        * (bends / h)
        @ v,
        "that is the full second-order term. Gauss and Newton leave out the bend of the "
        "network, and keep that of the loss.": 0.5 * net.full_bends(weights, x, y) @ v,
    }


@rounds(2)
def regularizer(r_approx: Answer, h_out: Answer, n: Numbers) -> None:
    """`r_approx` is the Gauss-Newton form, over both layers."""
    weights, x, y = net.random_weights(n, 3, 3, 3), n.normal(1, 3), torch.tensor([n.integer(0, 2)])
    q = [n.uniform(0.15, 0.25), n.uniform(0.35, 0.5)]
    v, a, z = net.variances(q, weights), net.jacobian(weights, x), net.clean_logits(weights, x)
    truth, mistakes = regularizers(weights, x, y, q)
    expect(
        "r_approx of one example",
        r_approx(weights, x, y, q),
        truth[0],
        mistakes={message: value[0] for message, value in mistakes.items()},
        follows=[0.5 * v @ net.bends(a, own)[0] for own in own_hessians(h_out, z)],
    )


@rounds(2)
def regularizer_mean(r_approx: Answer, n: Numbers) -> None:
    """`r_approx` of a batch is the mean over its examples."""
    weights, x = net.random_weights(n, 3, 2, 3), n.normal(4, 3)
    y, q = torch.tensor([0, 1, 2, 1]), [n.uniform(0.15, 0.25), n.uniform(0.35, 0.5)]
    v, a, z = net.variances(q, weights), net.jacobian(weights, x), net.clean_logits(weights, x)
    single = [r_approx.numbers(weights, x[i : i + 1], y[i : i + 1], q, shape=()) for i in range(4)]
    truth, mistakes = regularizers(weights, x, y, q)
    built_on = [0.5 * net.bends(a, wrong) @ v for wrong in hessians(z)[1].values()]
    each = costs_once(torch.stack(single), truth, [*mistakes.values(), *built_on])
    expect(
        "r_approx of 4 examples, against those of each",
        r_approx(weights, x, y, q),
        each.mean(),
        mistakes={SUMMED: each.sum()},
    )


def costs_once(found: Tensor, truth: Tensor, mistaken: Sequence[Tensor]) -> Tensor:
    """What to judge by what is built on an earlier step: the truth, or a mistake that has a name.

    Args:
        found: What the student's function gives for the earlier step.
        truth: What is right.
        mistaken: What the mistakes lead to that cost points there.

    Returns:
        The mistake that is made, if it is one of them, else the truth.
    """
    return next((wrong for wrong in mistaken if is_made(found, wrong)), truth)


@dataclass(frozen=True)
class Probe:
    """What a probe draws from: ½ tᵀHt = sᵀBs for signs s, for each example.

    Attributes:
        b: The matrices B, (n, units of both layers, units of both layers).
        scale: What the mean over the examples is multiplied by.
    """

    b: Tensor
    scale: float = 1.0

    @property
    def mean(self) -> Tensor:
        """The mean over signs and examples."""
        return self.scale * self.b.diagonal(dim1=1, dim2=2).sum(1).mean()

    def cumulants(self) -> tuple[float, float, float]:
        """The variance and the two cumulants after it, of one probe with signs for each example."""
        signs = net.every_sign(self.b.shape[1])
        each = torch.einsum("sj,njk,sk->sn", signs, self.b, signs)
        around = each - each.mean(0)
        second, third = around.square().mean(0), (around**3).mean(0)
        fourth = (around**4).mean(0) - 3 * second**2
        size = self.scale / len(self.b)
        return (
            size**2 * second.sum().item(),
            size**3 * third.sum().item(),
            size**4 * fourth.sum().item(),
        )


def probes(weights: list[Tensor], x: Tensor, q: list[float]) -> dict[str, Probe]:
    """What a probe draws from if it is right, by the name "", and with mistakes."""
    v, a, z = net.variances(q, weights), net.jacobian(weights, x), net.clean_logits(weights, x)
    counts = [w.shape[1] for w in weights[:2]]
    plain = torch.cat([v.new_full((c,), p) for c, p in zip(counts, q, strict=True)])
    right, h = net.output_hessian(z), net.units(weights, x)[:, None]

    def probe(size: Tensor, matrix: Tensor = right, a: Tensor = a, scale: float = 1.0) -> Probe:
        t = a * size
        return Probe(0.5 * torch.einsum("ncj,ncd,ndk->njk", t, matrix, t), scale)

    layer = torch.arange(len(v)) < counts[0]
    same_layer = layer[:, None] == layer

    identity = torch.eye(z.shape[1], dtype=z.dtype).expand_as(right)
    return {
        "": probe(v.sqrt()),
        HALF: probe(v.sqrt(), scale=2.0),
        "q/(1-q) is the variance of the noise. Its size is the root of that.": probe(v),
        "the signs go in as they are, of variance 1. The noise has the variance q/(1-q).": probe(
            torch.ones_like(v)
        ),
        PLAIN_Q: probe(plain.sqrt()),
        SUMMED: probe(v.sqrt(), scale=float(len(x))),
        REGULARIZER["h"]: probe(v.sqrt(), a=a / h),
        REGULARIZER["identity"]: probe(v.sqrt(), identity),
        APART: Probe(probe(v.sqrt()).b * same_layer),
        **{f"h_out: {m}": probe(v.sqrt(), wrong) for m, wrong in hessians(z)[1].items()},
    }


@rounds(2)
def probe_mean(probe: Answer, h_out: Answer, n: Numbers) -> None:
    """`probe` has the mean R_approx over all sign patterns."""
    weights, x = net.random_weights(n, 3, 2, 3), n.normal(1, 3)
    q = [n.uniform(0.15, 0.25), n.uniform(0.35, 0.5)]
    v, a, z = net.variances(q, weights), net.jacobian(weights, x), net.clean_logits(weights, x)
    signs = net.every_sign(4)
    known = probes(weights, x.expand(16, -1), q)
    truth = known.pop("").mean
    expect(
        "the mean of probe over all 16 sign patterns",
        probe(weights, x.expand(16, -1), q, [signs[:, :2], signs[:, 2:]]),
        truth,
        mistakes={
            m: wrong.mean for m, wrong in known.items() if not m.startswith("h_out") and m != APART
        },
        follows=[0.5 * v @ net.bends(a, own)[0] for own in own_hessians(h_out, z)],
    )


@rounds(2)
def probe_together(probe: Answer, h_out: Answer, n: Numbers) -> None:
    """`probe` sends the noise of both layers through together."""
    weights, x, p = net.random_weights(n, 3, 2, 3), n.normal(1, 3), n.uniform(0.2, 0.4)
    a, z = net.jacobian(weights, x)[0], net.clean_logits(weights, x)
    one, two = torch.ones(1, 2, dtype=torch.float64), torch.tensor([[1.0, -1.0]]).double()
    none = torch.zeros(1, 2, dtype=torch.float64)
    t1, t2 = a[:, :2] @ one[0], a[:, 2:] @ two[0]
    alone = [[one, none], [none, two]]
    both = [[one, sign * two] for sign in (1, -1)]
    first, second, third, fourth = (
        probe.numbers(weights, x, [p, p], signs, shape=()) for signs in alone + both
    )

    def expected(middle: Tensor) -> Tensor:
        return 4 * (t1 @ middle @ t2) / (t1 @ middle @ t1 + t2 @ middle @ t2)

    expect(
        "probe(s₁, s₂) minus probe(s₁, -s₂), over probe(s₁, 0) and probe(0, s₂)",
        (third - fourth) / (first + second) if first + second != 0 else 0.0,
        expected(net.output_hessian(z)[0]),
        follows=[expected(own[0]) for own in own_hessians(h_out, z)],
        mistakes={
            APART
            if first + second != 0
            else "with noise on one layer alone nothing comes back.": 0.0
        },
    )


DRAWS, ROWS = 80, 8


def own_probe(probe: Answer, weights: list[Tensor], x: Tensor, q: list[float]) -> list[Probe]:
    """What to judge an estimate by: the right probe, and the mistaken one that the student has."""
    signs = net.every_sign(4)
    single = x[:1].expand(16, -1)
    found = []
    try:
        for s in signs:  # one row at a time: a sum over the examples shows in the mean below
            found.append(probe.numbers(weights, x[:1], q, [s[None, :2], s[None, 2:]], shape=()))
        together = probe.numbers(weights, single, q, [signs[:, :2], signs[:, 2:]], shape=())
    except Mistake:
        return [probes(weights, x, q)[""]]
    known, alone = probes(weights, x, q), probes(weights, x[:1], q)
    own = [known[""]]
    for name, wrong in known.items():
        b = alone[name]
        values = b.scale * torch.einsum("sj,jk,sk->s", signs, b.b[0], signs)
        summed = 16.0 if name == SUMMED else 1.0
        if is_made(torch.stack(found), values) and is_made(together, summed * values.mean()):
            own.append(wrong)
    return own


@rounds(2)
def estimate_mean(estimate: Answer, probe: Answer, n: Numbers) -> None:
    """`estimate` has the mean R_approx."""
    weights, x = net.random_weights(n, 3, 2, 3), n.normal(ROWS, 3)
    q = [n.uniform(0.3, 0.4), n.uniform(0.3, 0.4)]
    values = as_numbers("estimate", estimate(weights, x, q, DRAWS))
    if values.numel() > 1:
        values = as_numbers("estimate", values, shape=(DRAWS,))
        if (values == values[0]).all():
            raise Mistake("estimate: all estimates are equal. Draw a new noise for each.")
    # That it is their mean already is judged by the scatter.
    expect_mean(values, own_probe(probe, weights, x, q))


def expect_mean(values: Tensor, own: list[Probe]) -> None:
    """Compare the mean of estimates with that of the right probe, or of the student's mistake."""
    right, judged = own[0], own[-1]
    both_layers = right.b[:, :2, 2:].diagonal(dim1=1, dim2=2).sum(1).mean()
    expect(
        f"the mean of {DRAWS} estimates",
        values.mean(),
        judged.mean,
        error=(judged.cumulants()[0] / DRAWS) ** 0.5,
        mistakes={
            "both layers get the same noise, so that their changes of the logits do not cancel on "
            "average. Draw one for each.": right.mean + 2 * both_layers,
        },
    )


@rounds(2)
def estimate_spread(estimate: Answer, probe: Answer, n: Numbers) -> None:
    """`estimate` draws fresh noise for every example and every estimate."""
    weights = net.random_weights(n, 3, 2, 3)
    x = n.normal(1, 3).expand(ROWS, -1)  # equal examples: a noise that they share shows most
    q = [n.uniform(0.3, 0.4), n.uniform(0.3, 0.4)]
    values = as_numbers("estimate", estimate(weights, x, q, DRAWS), shape=(DRAWS,))
    if (values == values[0]).all():
        raise Mistake("estimate: all estimates are equal. Draw a new noise for each.")
    own = own_probe(probe, weights, x, q)
    variance, _, fourth = own[-1].cumulants()

    def deviation(examples: int) -> float:
        """The standard error of the variance if so many examples share each noise."""
        return SKEWED * ((fourth * examples**3 + 2 * (variance * examples) ** 2) / DRAWS) ** 0.5

    shared = (values.var() - ROWS * variance).abs() < 2 * deviation(ROWS)
    if not shared:
        expect_mean(values, own)
    expect(
        f"the variance of {DRAWS} estimates",
        values.var(),
        variance,
        error=deviation(1),
        mistakes={
            "all examples share one noise. The mean is right, but nothing averages out.": (
                ROWS * variance,
                deviation(ROWS),
            ),
        },
    )
    steps = (values[1:] - values[:-1]).square().mean() / 2
    if (steps / values.var() - 1).abs() > 0.7:
        raise Mistake("estimate: the estimates depend on each other. Draw a new noise for each.")


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
