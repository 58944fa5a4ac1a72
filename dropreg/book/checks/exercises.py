"""Checks of exercises in the book's chapters, for readers' own functions."""

from __future__ import annotations

import torch

from dropreg.book.checks.core import Answer, Numbers, check, expect


@check
def variance_of_sum(answer: Answer, n: Numbers) -> None:
    """The variance of the sum is right, with a mask a step and with one for all steps."""
    q, steps = n.uniform(0.2, 0.4), n.integer(5, 30)
    v = q / (1 - q)
    for locked, truth, other in (
        (False, v * steps, "each step has a mask of its own here: variances add up."),
        (True, v * steps**2, "one mask for all steps: the sum is one number times the mask."),
    ):
        expect(
            f"{'locked' if locked else 'ordinary'} dropout",
            answer.numbers(q, steps, locked, shape=()),
            truth,
            at=f"q = {q} with {steps} steps",
            mistakes={
                other: v * steps**2 if not locked else v * steps,
                "the variance of the noise is q/(1-q); q(1-q) is that of the bare mask.": truth
                * (1 - q) ** 2,
                "that is the standard deviation.": truth**0.5,
            },
        )


@check
def without_the_root(answer: Answer, n: Numbers) -> None:
    """The covariance without the root of 2 is right for each k."""
    k = n.integer(3, 12)
    expect(
        "the covariance, in units of Σ",
        answer.numbers(k, shape=()),
        1 / k + 2 * (1 - 1 / k),
        at=f"k = {k}",
        mistakes={
            "that is with the root of 2.": 1.0,
            "that is without the factor (3), too.": 1 / k + 2,
            "the factor (3) enters squared.": 1 / k + 2 * (1 - 1 / k) ** 0.5,
            "do not forget the noise of the mean of k gradients.": 2 * (1 - 1 / k),
        },
    )


@check
def factor_of_copies(answer: Answer, n: Numbers) -> None:
    """The factor is right for each number of copies and each q."""
    k, q = n.integer(2, 12), n.uniform(0.2, 0.6)
    v = q / (1 - q)
    expect(
        "the factor on the sum of the weights",
        answer.numbers(k, q, shape=()),
        k / (k + v),
        at=f"k = {k} and q = {q}",
        mistakes={
            "that is for one copy; the off-diagonal entries of A matter.": 1 - q,
            "that is for each weight; k of them add up.": 1 / (k + v),
            "v is q/(1-q), not q.": k / (k + q),
        },
    )


@check
def probability_of_width(answer: Answer, n: Numbers) -> None:
    """The dropout probability is right for each width."""
    q, old, new = n.uniform(0.2, 0.6), n.integer(4, 10), n.integer(12, 40)
    strength = q / (1 - q) * new / old
    expect(
        "the dropout probability",
        answer.numbers(q, old, new, shape=()),
        strength / (1 + strength),
        at=f"q = {q}, from {old} to {new} units",
        mistakes={
            "what grows like the width is q/(1-q), not q.": q * new / old,
            "that is q/(1-q); solve for q.": strength,
            "a wider layer is regularized less at the same q.": q,
        },
    )


@check
def curvature_of_one_logit(answer: Answer, n: Numbers) -> None:
    """The second derivative of the binary cross-entropy in its logit is right."""
    logit = 2 * n.normal() + 1.0
    p = logit.sigmoid()
    for label in (0.0, 1.0):
        expect(
            f"the second derivative for the label {label:.0f}",
            answer.numbers(logit, label, shape=()),
            p * (1 - p),
            at="a logit of a check's own",
            mistakes={
                "that is the first derivative; differentiate once more.": p - label,
                "that is the predicted probability, the first derivative of ln(1 + e^F).": p,
                "one quarter is its largest value, at even odds.": 0.25,
            },
        )


@check
def share_left(answer: Answer, n: Numbers) -> None:
    """The share that is left is right for each k and each order."""
    k = n.integer(3, 12)
    for order, name in ((2, "the variance"), (3, "the third cumulant"), (4, "the fourth")):
        expect(
            f"the share of {name}",
            answer.numbers(k, order, shape=()),
            k ** (1 - order),
            at=f"k = {k}",
            mistakes={
                "k independent terms add up: k of them, each with the factor 1/k to that "
                "power.": float(k) ** -order,
                "that is the variance's share, for every order.": 1 / k,
                "that is what grows, not what is left.": float(k ** (order - 1)),
            },
        )


@check
def three_weights(answer: Answer, n: Numbers) -> None:
    """The weights of the clean and the two masked losses are right."""
    e, i = n.uniform(0.2, 0.8), n.uniform(1.1, 1.9)
    expect(
        "the weights of clean loss, mask and mirror image",
        answer.numbers(e, i, shape=(3,)),
        (1 - e, (e + i) / 2, (e - i) / 2),
        at=f"explicit {e}, implicit {i}",
        mistakes={
            "the signs of mask and mirror image are exchanged.": torch.tensor(
                [1 - e, (e - i) / 2, (e + i) / 2]
            ),
            "the even part holds the clean loss already: its weight is reduced by the explicit "
            "strength.": torch.tensor([1.0, (e + i) / 2, (e - i) / 2]),
            "even and odd part have the factor 1/2.": torch.tensor([1 - e, e + i, e - i]),
        },
    )


@check
def best_share(answer: Answer, n: Numbers) -> None:
    """The share of least variance at equal time is right, if a share costs s times its rows."""
    s = n.uniform(1.5, 4)
    for A, B in ((0.05 * n.uniform(1, 2), n.uniform(1, 2)), (20.0 * s, 1.0)):
        truth = min(1.0, (A / (s * B)) ** 0.5)
        expect(
            "the best share",
            answer.numbers(A, B, s, shape=()),
            truth,
            at=f"A = {A}, B = {B} and s = {s}",
            mistakes={
                "that is without what a share costs.": min(1.0, (A / B) ** 0.5),
                "a share is at most 1.": (A / (s * B)) ** 0.5,
                "that is its square.": min(1.0, A / (s * B)),
                "a share that costs more should be smaller.": min(1.0, (s * A / B) ** 0.5),
            },
        )
