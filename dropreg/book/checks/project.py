"""Checks of assignment 5, the project. What its notebook gives lies in `language`."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropreg
from dropreg.book.checks import two_layers as net
from dropreg.book.checks.core import Answer, Mistake, Numbers, as_numbers, check, expect, rounds
from dropreg.book.checks.explicit import costs_once
from dropreg.book.checks.language import (
    CLIP,
    LEARNING_RATE,
    new_model,
    text,
    training_windows,
    window_losses,
)
from dropreg.book.models import detach
from dropreg.book.statistics import student

# Notebooks of the first students import them from here.
__all__ = ["CLIP", "LEARNING_RATE", "new_model", "text", "training_windows", "window_losses"]


def perplexities(losses: list[float], counts: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """The perplexity of a text of some windows, and what mistakes lead to."""
    values, weights = torch.tensor(losses).double(), torch.tensor(counts).double()
    mean = (values * weights).sum() / weights.sum()
    return mean.exp(), {
        "every window weighs the same. The last one is shorter: weigh by the "
        "words.": values.mean().exp(),
        "the perplexities are averaged. Average the losses, then take the exponential.": (
            values.exp() * weights
        ).sum()
        / weights.sum(),
        "the perplexities of the windows are averaged. Average the losses over the words, then "
        "take the exponential.": values.exp().mean(),
        "the losses are in nats: the base is e, not 2.": 2**mean,
        "that is the mean loss. Perplexity is its exponential.": mean,
    }


@rounds(2)
def of_windows(perplexity: Answer, n: Numbers) -> None:
    """`perplexity` weighs every word alike."""
    losses = [n.uniform(3, 3.4), n.uniform(3.4, 3.8), n.uniform(4, 5)]
    counts = [500, 500, n.integer(40, 90)]
    truth, mistakes = perplexities(losses, counts)
    expect("perplexity of three windows", perplexity(losses, counts), truth, mistakes=mistakes)


def two_logits(n: Numbers) -> tuple[Tensor, Tensor, Tensor, float]:
    """Logits under +noise and -noise for 2 x 3 words, the targets, and the step."""
    plus, minus = n.normal(2, 2, 3, 4)
    targets = torch.tensor([[n.integer(0, 3) for _ in range(3)] for _ in range(2)])
    return plus, minus, targets, n.uniform(0.1, 0.3)


def explicits(
    plus: Tensor, minus: Tensor, targets: Tensor, step: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The explicit part of two passes, and what mistakes lead to."""
    t = ((plus - minus) / (2 * step)).flatten(0, 1)
    middle = ((plus + minus) / 2).flatten(0, 1)
    p = middle.softmax(1)
    truth = 0.5 * torch.einsum("nc,ncd,nd->n", t, net.output_hessian(middle), t).mean()
    at_label = (p - F.one_hot(targets.flatten(), 4)) * t
    return truth, {
        "it is twice the truth: Taylor's second-order term starts with ½.": 2 * truth,
        "the change of the logits is taken over a distance of 2 steps, not one.": 4 * truth,
        "the change of the logits is not divided by the 2 steps between the two passes.": 4
        * step**2
        * truth,
        "the mean of t under p is not taken off. tᵀHt is a variance: raising all logits alike "
        "changes no prediction.": 0.5 * (p * t**2).sum(1).mean(),
        "all classes count alike. H_out weighs them by the probabilities.": 0.5
        * (t**2).sum(1).mean(),
        "the slope of the loss stands there, squared. H_out does not see the target.": 0.5
        * at_label.sum(1).square().mean(),
        "it is a sum over the words. Take the mean.": targets.numel() * truth,
    }


def slopes(
    plus: Tensor, minus: Tensor, targets: Tensor, step: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The slope of the loss between two passes, and what mistakes lead to."""
    losses = [F.cross_entropy(z.flatten(0, 1), targets.flatten()) for z in (plus, minus)]
    truth = (losses[0] - losses[1]) / (2 * step)
    return truth, {
        "between the two passes lie 2 steps, not one.": 2 * truth,
        "the difference is not divided by the 2 steps between the two passes.": 2 * step * truth,
        "the sign is wrong: the loss under +η comes first.": -truth,
        "it is a sum over the words. Take the mean.": targets.numel() * truth,
    }


@rounds(2)
def explicit_part(two_passes: Answer, n: Numbers) -> None:
    """`two_passes` gives ½ tᵀHt, the estimate of R_approx."""
    passes = two_logits(n)
    truth, mistakes = explicits(*passes)
    expect("the explicit part", first_two(two_passes(*passes))[0], truth, mistakes=mistakes)


@rounds(2)
def slope_part(two_passes: Answer, n: Numbers) -> None:
    """`two_passes` gives the slope of the loss along the noise."""
    passes = two_logits(n)
    truth, mistakes = slopes(*passes)
    expect("the slope", first_two(two_passes(*passes))[1], truth, mistakes=mistakes)


@rounds(2)
def padding(two_passes: Answer, n: Numbers) -> None:
    """`two_passes` leaves out what has no target."""
    plus, minus, targets, step = two_logits(n)
    found = first_two(two_passes(plus, minus, targets, step))
    parts = (explicits(plus, minus, targets, step), slopes(plus, minus, targets, step))
    short = torch.stack(
        [
            costs_once(own, truth, list(mistakes.values()))
            for own, (truth, mistakes) in zip(found, parts, strict=True)
        ]
    )
    more = torch.cat([plus, n.normal(2, 1, 4)], 1), torch.cat([minus, n.normal(2, 1, 4)], 1)
    padded = torch.cat([targets, torch.full((2, 1), -100)], 1)
    expect(
        "both parts, with two words more that have the target -100",
        first_two(two_passes(*more, padded, step)),
        short,
        mistakes={
            "the words without a target are in the denominator. Count those that are "
            "predicted.": short * 6 / 8
        },
    )


def two(what: str, value: Any, names: str) -> Tensor:
    """Two numbers that a student returns."""
    numbers = as_numbers(what, value)
    if numbers.shape != (2,):
        raise Mistake(f"{what}: two numbers are expected, {names}.")
    return numbers


def first_two(value: Any) -> Tensor:
    """The two numbers that two_passes returns."""
    return two("two_passes", value, "[explicit part, slope]")


Found = tuple[list[float], list[int]]  # what `window_losses` says


@functools.lru_cache(maxsize=8)
def recipe(
    seed: int,
    *,
    rule: tuple[float, float] | bool = False,
    zero: bool = True,
    carry: bool = True,
    noisy: bool = False,
    epochs: int = 2,
) -> list[Found]:
    """The project's training, or one with a mistake.

    Args:
        seed: Seed of the weights.
        rule: False without dropout, True with it, else both strengths of its replacement.
        zero: Set the gradients to zero before each step.
        carry: Carry the state from window to window.
        noisy: Leave dropout on for the evaluation.
        epochs: How many.

    Returns:
        What `window_losses` says of the validation text, after each epoch.
    """
    model = new_model(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    replacement = None
    if isinstance(rule, tuple):
        replacement = dropreg.replace_dropout(model, explicit=rule[0], implicit=rule[1], share=1)
    found = []
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        for _ in range(epochs):
            model.train(bool(rule))
            state = None
            for inputs, targets in training_windows():
                if replacement is None:
                    logits, state = model(inputs, state)
                    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
                else:
                    loss = replacement.loss((inputs, state), targets)
                    state = replacement.output[1]
                state = detach(state) if carry else None
                if zero:
                    optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
            found.append(window_losses(model.train(noisy), text()[1]))
    return found


# What is judged by the first rule's cell. Each is named there, and the rules' cell goes with it.
SLIPS: dict[str, dict[str, Any]] = {
    "dropout is on while you train without it.": {"rule": True},
    "the gradient of the last step is still there when the next is added.": {"zero": False},
    "the state is not carried from window to window.": {"carry": False},
    "dropout is on while you evaluate.": {"noisy": True},
}


def curves(train: Answer, rule: Any, seed: int, epochs: int) -> list[list[float]]:
    """The validation and the test perplexities, in the shape that is asked for."""
    value = train(rule, seed, epochs)
    try:
        valid, test = ([float(v) for v in part] for part in value)
    except (TypeError, ValueError):
        raise Mistake(
            "train: two lists are expected, the perplexities on the validation and the test text."
        ) from None
    if {len(valid), len(test)} != {epochs + 1}:
        raise Mistake(
            f"train: each list should have {epochs + 1} entries, before training and after each "
            "epoch.",
            f"(They have {len(valid)} and {len(test)}.)",
        )
    return [valid, test]


NEAR, SAME = math.log(1.002), 1e-5
"""Differences of ln(perplexity) that rounding in float32 stays far below, and mistakes above: after
two epochs of training, in which it grows, and before."""
FEW_PER_CENT = 0.03
"""How far two evaluations under noise may be apart."""
DRAWN = 0.6
"""How far apart, in ln(perplexity), two runs of an epoch may be that draw other masks: 5 standard
deviations of their difference. A network that has not learned is 1.4 away."""


def far(first: float, second: float) -> float:
    """The distance of two perplexities, as a logarithm; infinite if one of them is none."""
    ratio = first / second if second else math.nan
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf


class Measure:
    """How the student measures a training: rightly, or with mistakes that cost points elsewhere."""

    def __init__(self, start: float, seed: int) -> None:
        """See which measures agree with what the student says of the network before training.

        Args:
            start: The validation perplexity before training.
            seed: That of the network.
        """
        found = window_losses(new_model(seed).eval(), text()[1])
        right, wrong = perplexities(*found)
        self.start = float(right)
        named = [name for name, value in wrong.items() if far(start, float(value)) <= SAME]
        self.fits = far(start, self.start) <= SAME or bool(named)
        self._named = named

    def distance(self, perplexity: float, found: Found) -> float:
        """How far a perplexity is from what one of the measures says of a training."""
        right, wrong = perplexities(*found)
        values = [right, *(wrong[name] for name in self._named)]
        return min(far(perplexity, float(value)) for value in values)


@check
def train_none(train: Answer, n: Numbers) -> None:
    """`train` follows the recipe, and evaluates without noise."""
    seed = n.integer(0, 1000)
    valid, test = curves(train, "none", seed, 2)
    measure = Measure(valid[0], seed)
    if not measure.fits:
        raise Mistake(
            "train, before training: dropout is on while you evaluate, or the network is not "
            "`new_model(seed)`, or the numbers are not those of `perplexity`.",
            f"(You have {valid[0]:.4f}, it should be {measure.start:.4f}.)",
        )
    other = window_losses(new_model(seed).eval(), text()[2])
    if measure.distance(test[0], other) > SAME:
        raise Mistake("train: the second list is not that of the test text, `text()[2]`.")
    if measure.distance(valid[2], recipe(seed)[-1]) <= NEAR:
        if far(test[2], test[0]) <= NEAR:
            raise Mistake("train: the test perplexity stays what it was before training.")
        return
    distances = {
        message: measure.distance(valid[2], recipe(seed, **slip)[-1])
        for message, slip in SLIPS.items()
    }
    message = min(distances, key=lambda m: distances[m])
    # Where masks are drawn, two runs differ by a few per cent; the others are the same, or nearly.
    drawn = any(SLIPS[message].get(key) for key in ("rule", "noisy"))
    if distances[message] > (FEW_PER_CENT if drawn else NEAR):
        message = (
            "nothing has been learned."
            if far(valid[2], valid[0]) <= NEAR
            # Without clipping rounding errors grow so fast that nothing is left to compare with.
            else "that is not what the recipe gives. Is the gradient clipped? Is the step size "
            "right?"
        )
    truth = float(perplexities(*recipe(seed)[-1])[0])
    raise Mistake(
        f"train, rule 'none', after 2 epochs: {message}",
        f"(You have {valid[2]:.2f}, it should be {truth:.2f}.)",
    )


def trained(none: list[float], measure: Measure, seed: int) -> bool:
    """Whether rule 'none' gives what the recipe gives, or one of its slips, after an epoch."""
    exact: tuple[dict[str, Any], ...] = ({}, {"zero": False}, {"carry": False})
    if any(measure.distance(none[1], recipe(seed, **slip)[0]) <= NEAR for slip in exact):
        return True
    noisy = measure.distance(none[1], recipe(seed, noisy=True)[0])
    return not measure.fits and noisy <= FEW_PER_CENT


@check
def train_rules(train: Answer, n: Numbers) -> None:
    """`train` treats each rule differently, and starts them all from the same weights."""
    seed = n.integer(0, 1000)
    rules = ("none", "dropout", [0.0, 0.0])
    none, dropout, nothing = (curves(train, rule, seed, 1)[0] for rule in rules)
    if far(none[0], dropout[0]) > SAME:
        raise Mistake(
            "train: two rules with the same seed start from different weights, or are evaluated "
            "under noise. Then their difference is not that of the rules."
        )
    measure = Measure(none[0], seed)
    if not trained(none, measure, seed):
        raise Mistake(
            "train: rule 'none' does not follow the recipe, so that the other rules cannot be held "
            "against it. The cell of checks above says more."
        )
    if far(none[1], dropout[1]) < SAME:
        raise Mistake("train: rule 'dropout' gives what 'none' gives. Is the model in train mode?")
    if measure.distance(dropout[1], recipe(seed, rule=True)[0]) > DRAWN:
        raise Mistake("train: rule 'dropout' does not learn as the recipe does.")
    if far(none[1], nothing[1]) > NEAR:
        raise Mistake(
            "train: with both strengths 0 nothing is left but the clean loss, and yet the result "
            "is not that of 'none'. Do the strengths reach the objective, and is its gradient "
            "clipped?"
        )
    for other in (seed, seed + 1):  # a training that is thrown off recovers once in many times
        explicit, noise = (
            curves(train, rule, other, 1)[0][1] for rule in ([20.0, 0.0], [0.0, 20.0])
        )
        if noise >= explicit:
            return
    raise Mistake(
        "train: a noise 20 times as strong throws the training off, a regularizer 20 times as "
        "strong does not. Here it is the other way round: the order is [explicit, implicit]."
    )


@rounds(2)
def chosen(choose: Answer, n: Numbers) -> None:
    """`choose` never looks at the test text to choose."""
    # Also in the first and in the last epoch, which a loop may leave out.
    for dip in (n.integer(3, 5), 0, 9):
        valid = [40.0 + abs(epoch - dip) + n.uniform(0, 0.4) for epoch in range(10)]
        test = [42.0 + abs(epoch - (dip + 2) % 10) + n.uniform(0, 0.4) for epoch in range(10)]
        best = min(range(10), key=lambda epoch: valid[epoch])
        expect(
            "the test perplexity to report",
            choose(valid, test),
            test[best],
            mistakes={
                "it is the best test perplexity: then the test text has chosen the epoch. Choose "
                "by the validation text.": min(test),
                "it is the validation perplexity of the epoch.": min(valid),
                "it is that of the last epoch. Choose by the validation text.": test[-1],
            },
        )


@rounds(2)
def paired(compare: Answer, n: Numbers) -> None:
    """`compare` pairs the seeds, and gives Student's interval."""
    seeds = n.integer(3, 6)
    level = 3.5 + 0.1 * n.normal(seeds)  # what two runs of a seed share
    first, second = (level + 0.02 * n.normal(2, seeds) + torch.tensor([[-0.1], [0.0]])).exp()
    ratio = (first / second).log()
    sd = float(ratio.std())
    t = student(seeds - 1)
    mean, half = ratio.mean(), t * sd / seeds**0.5
    value = two("compare", compare(first.tolist(), second.tolist()), "[mean, half-width]")
    expect(
        "the mean log ratio",
        value[0],
        mean,
        mistakes={
            "the sign is wrong: first over second.": -mean,
            "that is the ratio minus 1, not its logarithm.": (first / second).mean() - 1,
            "that is a difference of perplexities. Take the logarithm of their ratio.": (
                first - second
            ).mean(),
        },
    )
    unpaired = (first.log().var() / seeds + second.log().var() / seeds) ** 0.5
    expect(
        "its half-width",
        value[1],
        half,
        rounding=5e-4,  # t may come from a table with three decimals
        mistakes={
            "1.96 is for a known standard deviation. With few seeds take Student's t, with one "
            "degree of freedom fewer than there are seeds.": 1.96 * half / t,
            "that is the spread of single seeds. Divide by √n for their mean.": half * seeds**0.5,
            "the standard deviation divides by n; take n-1, as the mean is estimated, too.": half
            * ((seeds - 1) / seeds) ** 0.5,
            "the seeds are not paired: what both runs of a seed share has not been taken off.": t
            * unpaired,
            "that is the standard error, 1 of them. 95 % take more.": sd / seeds**0.5,
            "the whole width is twice the half.": 2 * half,
        },
    )


@rounds(2)
def judged(verdict: Answer, n: Numbers) -> None:
    """`verdict` says no more than the interval does."""
    margin = n.uniform(0.015, 0.025)
    wide, narrow = n.uniform(0.04, 0.06), n.uniform(0.003, 0.0045)
    cases = [
        (-wide - narrow, narrow, "lower", "the whole interval lies below 0."),
        (wide + narrow, narrow, "higher", "the whole interval lies above 0."),
        (
            narrow / 2,
            wide,
            "not told apart",
            "the interval holds 0, and also differences larger than the margin. 'Not told apart' "
            "is not 'equal': it says that the seeds were too few.",
        ),
        (narrow / 2, narrow, "equal", "all of the interval lies within the margin."),
        (
            2 * narrow,
            narrow,
            "equal",
            "0 lies outside, but all of the interval within the margin: a difference is there, and "
            "it is smaller than what you said matters.",
        ),
    ]
    # Ends of the interval on both sides of each border, which is at 0 or at the margin.
    ends = [near * margin for near in (-1.1, -0.9, -0.1, 0.1, 0.9, 1.1)]
    for low, high in itertools.combinations(ends, 2):
        if -margin < low and high < margin:
            truth, why = "equal", "all of the interval lies within the margin."
        elif low <= 0 <= high:
            truth, why = "not told apart", "the interval holds 0, and differences that matter."
        else:
            side = "below" if high < 0 else "above"
            truth = "lower" if high < 0 else "higher"
            why = f"the whole interval lies {side} 0, and not within the margin."
        cases.append(((low + high) / 2, (high - low) / 2, truth, why))
    for mean, half, truth, why in cases:
        said = verdict(mean, half, margin)
        if said != truth:
            raise Mistake(
                f"verdict: where it should be {truth!r}, another word comes: {why}",
                f"(verdict({mean:.3f}, {half:.3f}, margin {margin:.3f}) is {said!r}.)",
            )
