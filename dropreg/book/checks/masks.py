"""Checks of assignment 1, masks and moments."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from dropreg.book.checks.core import SKEWED, Answer, Mistake, Numbers, check, expect, rounds

NOT_SCALED = "kept entries must be divided by 1-q, or the mean shrinks."


@rounds(2)
def mean(dropout: Answer, n: Numbers) -> None:
    """The mean over many masks is the signal itself."""
    q, h, draws = n.uniform(0.25, 0.45), 1 + n.normal(5).abs(), 20_000
    noisy = dropout.numbers(h.expand(draws, 5), q, True, shape=(draws, 5))
    if not 0.1 < (noisy == 0).double().mean() < 0.9:
        raise Mistake("with training=True a share q of the entries must be 0, and no others.")
    expect(
        f"the mean over {draws:,} masks",
        noisy.mean(0),
        h,
        # The larger of the two, as q for the probability to keep is judged by the zeros, not here.
        error=h * math.sqrt(max(q / (1 - q), (1 - q) / q) / draws),
        at=f"q = {q}",
        mistakes={
            NOT_SCALED: (1 - q) * h,
            "kept entries are divided by q, not by 1-q.": (1 - q) / q * h,
            "kept entries are multiplied by 1-q, not divided.": (1 - q) ** 2 * h,
        },
    )


@rounds(2)
def values(dropout: Answer, n: Numbers) -> None:
    """Each entry has a mask of its own, and a share q of them is zero."""
    q, rows, columns = n.uniform(0.15, 0.35), 200, 100
    h = 1 + n.normal(rows, columns).abs()
    dropped = dropout.numbers(h, q, True, shape=(rows, columns)) == 0
    share, size = dropped.double().mean().item(), rows * columns
    if share in (0, 1):
        raise Mistake("nothing is dropped, or everything: is the mask one number for all of h?")
    for along, what in (
        (dropped.double().mean(0), "all rows share one mask"),
        (dropped.double().mean(1), "all entries of a row share one number"),
    ):
        if along.std() > 0.9 * math.sqrt(share * (1 - share)):
            raise Mistake(f"{what}: each entry of h needs a draw of its own.")
    expect(
        "the share of zeros",
        share,
        q,
        error=math.sqrt(q * (1 - q) / size),
        mistakes={"q is the probability of a zero, not of being kept.": 1 - q},
    )
    again = dropout.numbers(h, q, True, shape=(rows, columns)) == 0
    for other, message in (
        (
            again,
            "two calls do not drop independently. Is a seed set in the function?",
        ),
        (dropped.roll(1, 0), "the masks of neighbouring rows are not independent."),
        (dropped.roll(1, 1), "the masks of neighbouring columns are not independent."),
    ):
        both = (dropped & other).double().mean().item()
        if abs(both - q**2) > 6 * q * math.sqrt((1 - q**2) * 3 / size):
            raise Mistake(message)


@rounds(2)
def evaluation(dropout: Answer, n: Numbers) -> None:
    """In evaluation the signal passes as it is."""
    q, h = n.uniform(0.2, 0.45), 1 + n.normal(40, 5).abs()
    got = dropout.numbers(h, q, False, shape=(40, 5))
    if (got == 0).any():
        raise Mistake("with training=False nothing may be dropped.")
    expect(
        "the signal in evaluation",
        got,
        h,
        mistakes={
            "evaluation must not be scaled: training is, by 1/(1-q).": (1 - q) * h,
            "evaluation is divided by 1-q, as only training is.": h / (1 - q),
        },
    )


@rounds(2)
def variance(moments: Answer, n: Numbers) -> None:
    """Mean and variance of the noise are 0 and q/(1-q)."""
    q = n.uniform(0.55, 0.8)
    got = moments.numbers(q, shape=(3,))
    expect(
        "E η",
        got[0],
        0.0,
        size=1.0,
        mistakes={
            "η is what the noise adds, so its mean is 0; that of 1 + η is 1.": 1.0,
            "kept units are missing their factor 1/(1-q).": -q,
            "that is the mean of the bare mask of zeros and ones.": 1 - q,
        },
    )
    expect(
        "E η²",
        got[1],
        q / (1 - q),
        mistakes={
            "q(1-q) is the variance of the bare mask; dividing by 1-q divides it by (1-q)².": q
            * (1 - q),
            "q/(q-1) is the slip of sign in the paper; no variance is negative.": q / (q - 1),
            "this is E (1+η)²; take the square of η.": 1 / (1 - q),
            "this is the root of it, the standard deviation.": math.sqrt(q / (1 - q)),
        },
    )


@rounds(2)
def third(moments: Answer, n: Numbers) -> None:
    """The third moment of the noise is right, with its sign."""
    q = n.uniform(0.55, 0.8)
    truth = q * (2 * q - 1) / (1 - q) ** 2
    expect(
        "E η³",
        moments.numbers(q, shape=(3,))[2],
        truth,
        mistakes={
            "a dropped unit has η = -1, and (-1)³ = -1, not 1.": truth + 2 * q,
            "a symmetric law has none, but dropout's noise is not symmetric.": 0.0,
            "weigh each value with its probability: q for -1, and 1-q for q/(1-q).": (
                (q / (1 - q)) ** 3 - 1
            ),
        },
    )


@rounds(2)
def error(mean_and_error: Answer, n: Numbers) -> None:
    """The standard error is that of a mean of independent draws."""
    draws = n.normal(n.integer(30, 60), 3) * 2 + n.normal(3)
    count, spread = len(draws), draws.std(0)
    got = mean_and_error.numbers(draws, shape=(2, 3))
    expect("the mean", got[0], draws.mean(0))
    expect(
        "the standard error",
        got[1],
        spread / math.sqrt(count),
        rounding=1e-3,
        mistakes={
            "this is the spread of single draws; that of their mean is smaller by √n.": spread,
            "it falls as √n, not as n.": spread / count,
            "this is a variance; take its root.": spread**2 / count,
            "divide the squares by n-1, as the mean was estimated from the same draws.": (
                spread * math.sqrt((count - 1) / count) / math.sqrt(count)
            ),
        },
    )


def _layer(n: Numbers) -> tuple[Tensor, Tensor, float, Tensor, Tensor]:
    """A sequence, weights and q, with the variance without and with a shared mask."""
    h, w, q = n.normal(6, 4) + 0.5, n.normal(4), n.uniform(0.25, 0.45)
    v = q / (1 - q)
    return h, w, q, v * (h * w).square().sum(), v * ((h * w).sum(0)).square().sum()


@rounds(2)
def independent(output_variance: Answer, n: Numbers) -> None:
    """With a mask for each step and unit, the variances add up."""
    h, w, q, apart, together = _layer(n)
    v = q / (1 - q)
    expect(
        "the variance with independent masks",
        output_variance.numbers(h, w, q, False, shape=()),
        apart,
        mistakes={
            "each time step has its own mask here: first square, then sum over steps.": together,
            "independent terms: square each, then sum; you square the sum.": v
            * (h * w).sum().square(),
            "the weights enter squared.": v * (h.square() * w).sum(),
            "the variance of the noise is q/(1-q), not q(1-q).": q * (1 - q) / v * apart,
        },
    )


@rounds(2)
def shared(output_variance: Answer, n: Numbers) -> None:
    """With one mask for all time steps, amplitudes add up before they are squared."""
    h, w, q, apart, together = _layer(n)
    v = q / (1 - q)
    expect(
        "the variance with a shared mask",
        output_variance.numbers(h, w, q, True, shape=()),
        together,
        mistakes={
            "you square before summing over the steps that share a mask: their noise is the same, "
            "so sum first.": apart,
            "units do not share a mask, only time steps do: square before summing over units.": v
            * (h * w).sum().square(),
            "the variance of the noise is q/(1-q), not q(1-q).": q * (1 - q) / v * together,
        },
    )


def _regression(n: Numbers, rows: int = 3) -> tuple[Tensor, Tensor, Tensor, float]:
    return n.normal(4), n.normal(rows, 4), n.normal(rows), n.uniform(0.3, 0.45)


def _losses(w: Tensor, x: Tensor, y: Tensor, q: float) -> tuple[Tensor, Tensor]:
    """The probability of each mask, (2^d,), and the loss of each row under it, (2^d, n)."""
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(w))), dtype=torch.float64)
    chance = (q ** (1 - masks) * (1 - q) ** masks).prod(1)
    return chance, 0.5 * (torch.einsum("ij,mj,j->mi", x, masks / (1 - q), w) - y).square()


def _exact(w: Tensor, x: Tensor, y: Tensor, q: float) -> tuple[float, float, float]:
    """Mean, variance and fourth cumulant of the loss under one mask a row."""
    chance, losses = _losses(w, x, y, q)
    means = chance @ losses
    variances = chance @ (losses - means).square()
    fourth = chance @ (losses - means) ** 4 - 3 * variances.square()
    rows = len(y)  # independent: cumulants of their sum add up
    return (
        means.mean().item(),
        variances.sum().item() / rows**2,
        fourth.sum().item() / rows**4,
    )


@check
def objective(dropout_k_loss: Answer, n: Numbers) -> None:
    """The expected loss is that of dropout, whatever k."""
    w, x, y, q = _regression(n)
    k, draws = n.integer(4, 6), 400
    truth, spread, _ = _exact(w, x, y, q)
    clean = 0.5 * (x @ w - y).square().mean().item()
    got = torch.stack([dropout_k_loss.numbers(w, x, y, q, k, shape=()) for _ in range(draws)])
    if got.std() == 0:
        raise Mistake(
            "all calls give the same loss. Is there a mask in it, and no seed set in the function?"
        )
    v = q / (1 - q)
    expect(
        f"the mean of {draws} losses",
        got.mean(),
        truth,
        # That of the draws, as one mask for all k is judged by the variance, not here; but no more.
        error=min(got.std().item(), math.sqrt(spread)) / math.sqrt(draws),
        at=f"k = {k}",
        mistakes={
            "average the k losses, not the k predictions.": clean + (truth - clean) / k,
            "this is the sum over the masks; divide by k.": k * truth,
            "the loss has a ½ in front, and yours has not.": 2 * truth,
            NOT_SCALED: 0.5 * ((1 - q) * x @ w - y).square().mean().item()
            + (1 - q) ** 2 * v * 0.5 * (x * w).square().sum(1).mean().item(),
        },
    )


@check
def spread(dropout_k_loss: Answer, n: Numbers) -> None:
    """The variance of the loss falls as 1/k."""
    # Many rows whose errors have the signs of their predictions: a mask shared by all rows, or one
    # of the wrong scale, then changes the variance for whatever numbers.
    w, x, _, q = _regression(n, rows=12)
    y = -5 * x @ w
    draws = 600
    _, truth, fourth = _exact(w, x, y, q)
    chance, losses = _losses(w, x, y, q)
    common = losses.mean(1)  # of a mask that all rows share
    of_common = (chance @ (common - chance @ common).square()).item()
    _, of_keeping, fourth_of_keeping = _exact(w, x, y, 1 - q)
    _, not_scaled, fourth_not_scaled = _exact((1 - q) * w, x, y, q)

    def deviation(masks: int, variance: float = truth, cumulant: float = fourth) -> float:
        """The standard error of the variance of the mean of so many masks' losses."""
        fourth_moment = cumulant / masks**3 + 2 * (variance / masks) ** 2
        return SKEWED * math.sqrt(fourth_moment / draws)

    # With k = 1 a loop that makes one mask more or less changes all.
    for k in (1, 6):
        got = torch.stack([dropout_k_loss.numbers(w, x, y, q, k, shape=()) for _ in range(draws)])
        expect(
            f"the variance of the loss with k = {k}",
            got.var(),
            truth / k,
            error=deviation(k),
            mistakes={
                "it is that of k = 1: one mask is used for all k. Draw each anew.": (
                    truth,
                    deviation(1),
                ),
                "it is k² times too large: the sum, not the mean, of the k losses?": (
                    k * truth,
                    k**2 * deviation(k),
                ),
                "the loss has a ½ in front, and yours has not.": (4 * truth / k, 4 * deviation(k)),
                "all rows of x share one mask. Each row has its own.": (
                    of_common / k,
                    of_common / truth * deviation(k),
                ),
                "q is the probability of a zero, not of being kept.": (
                    of_keeping / k,
                    deviation(k, of_keeping, fourth_of_keeping),
                ),
                NOT_SCALED: (not_scaled / k, deviation(k, not_scaled, fourth_not_scaled)),
                "nothing is random in it.": (0.0, None),
            },
        )


@rounds(2)
def trace(noise_trace: Answer, n: Numbers) -> None:
    """The trace of the covariance is the sum of the variances."""
    draws = n.normal(n.integer(20, 40), 5) * (1 + n.normal(5).abs()) + 3
    count = len(draws)
    truth = draws.var(0).sum()
    expect(
        "the trace",
        noise_trace.numbers(draws, shape=()),
        truth,
        rounding=1e-3,
        mistakes={
            "subtract the mean gradient first: noise is what is left.": draws.square()
            .sum(1)
            .mean(),
            "sum the variances over the coordinates, do not average them.": truth / 5,
            "sum variances, not standard deviations.": draws.std(0).sum(),
            "divide by n-1, as the mean was estimated from the same draws.": truth
            * (count - 1)
            / count,
        },
    )


@rounds(2)
def slope(power: Answer, n: Numbers) -> None:
    """The fitted power is that of the law."""
    ks = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    true = -n.uniform(0.6, 1.4)
    traces = 3 * ks**true * torch.exp(0.05 * n.normal(5))

    def line(x: Tensor, y: Tensor) -> float:
        return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()

    right = line(ks.log(), traces.log())
    expect(
        "the power",
        power.numbers(ks, traces, shape=()),
        right,
        rounding=1e-3,
        mistakes={
            "a power is the slope of log against log.": line(ks, traces),
            "you have the logarithm of the trace, but not that of k.": line(ks, traces.log()),
            "the sign is turned around: the trace falls.": -right,
            "you have k over the trace; it is the trace that depends on k.": line(
                traces.log(), ks.log()
            ),
        },
    )
