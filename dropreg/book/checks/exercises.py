"""Checks of exercises in the book's chapters, for readers' own functions."""

from __future__ import annotations

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
