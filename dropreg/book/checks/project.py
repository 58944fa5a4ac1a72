"""Text, network and checks of assignment 5, the project."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg.book.checks import two_layers as net
from dropreg.book.checks.core import Answer, Mistake, Numbers, as_numbers, check, expect
from dropreg.book.checks.explicit import expect_change
from dropreg.book.data import load_corpus, windows
from dropreg.book.models import LSTMLanguageModel, detach
from dropreg.book.statistics import student

WORDS, UNITS, Q = 300, 64, 0.4
LEARNING_RATE, CLIP = 10.0, 0.25


@functools.lru_cache(maxsize=1)
def text() -> tuple[Tensor, Tensor, Tensor]:
    """A little of the King James Bible.

    Returns:
        Word numbers for training (8,000), validation (5,000) and test (5,000).
    """
    corpus = load_corpus("kjv", max_train_tokens=8_000, vocab_size=WORDS)
    return corpus.train, corpus.valid[:5_000], corpus.test[:5_000]


def new_model(seed: int) -> LSTMLanguageModel:
    """The network of the project: one LSTM layer, locked dropout before and after it.

    Args:
        seed: Weights of the same seed are equal, whatever was drawn before.

    Returns:
        The network, in train mode.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return LSTMLanguageModel(
            WORDS,
            embedding_size=UNITS,
            hidden_size=UNITS,
            depth=1,
            embedding_p=Q,
            output_p=Q,
            weight_p=0.0,
        )


def training_windows() -> list[tuple[Tensor, Tensor]]:
    """The training text, in 10 streams cut into windows of 35 words.

    Returns:
        Inputs and targets of each window, in order: carry the state from one to the next.
    """
    return [(batch.inputs, batch.targets) for batch in windows(text()[0], 10, 35)]


def window_losses(model: nn.Module, tokens: Tensor) -> tuple[list[float], list[int]]:
    """Read a text with the network as it is: in train mode with dropout, in eval mode without.

    Args:
        model: The network.
        tokens: The text, (n,). It is sent to the device of the network.

    Returns:
        For each window the mean loss, in nats, and the number of words predicted.
    """
    losses, counts, state = [], [], None
    tokens = tokens.to(next(model.parameters()).device)
    with torch.no_grad():
        for batch in windows(tokens, 10, 50):
            logits, state = model(batch.inputs, state)
            losses.append(F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).item())
            counts.append(int((batch.targets >= 0).sum()))
    return losses, counts


@check
def of_windows(perplexity: Answer, n: Numbers) -> None:
    """`perplexity` weighs every word alike."""
    losses = [n.uniform(3, 3.4), n.uniform(3.4, 3.8), n.uniform(4, 5)]
    counts = [500, 500, n.integer(40, 90)]
    values, weights = torch.tensor(losses).double(), torch.tensor(counts).double()
    mean = (values * weights).sum() / weights.sum()
    expect(
        "perplexity of three windows",
        perplexity(losses, counts),
        mean.exp(),
        mistakes={
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
        },
    )


def two_logits(n: Numbers) -> tuple[Tensor, Tensor, Tensor, float]:
    """Logits under +noise and -noise for 2 x 3 words, the targets, and the step."""
    plus, minus = n.normal(2, 2, 3, 4)
    targets = torch.tensor([[n.integer(0, 3) for _ in range(3)] for _ in range(2)])
    return plus, minus, targets, n.uniform(0.1, 0.3)


@check
def explicit_part(two_passes: Answer, n: Numbers) -> None:
    """`two_passes` gives ½ tᵀHt, the estimate of R_approx."""
    plus, minus, targets, step = two_logits(n)
    t = ((plus - minus) / (2 * step)).flatten(0, 1)
    middle = ((plus + minus) / 2).flatten(0, 1)
    p = middle.softmax(1)
    truth = 0.5 * torch.einsum("nc,ncd,nd->n", t, net.output_hessian(middle), t).mean()
    at_label = (p - F.one_hot(targets.flatten(), 4)) * t
    expect(
        "the explicit part",
        first_two(two_passes(plus, minus, targets, step))[0],
        truth,
        mistakes={
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
            "it is a sum over the words. Take the mean.": 6 * truth,
        },
    )


@check
def slope_part(two_passes: Answer, n: Numbers) -> None:
    """`two_passes` gives the slope of the loss along the noise."""
    plus, minus, targets, step = two_logits(n)
    losses = [F.cross_entropy(z.flatten(0, 1), targets.flatten()) for z in (plus, minus)]
    truth = (losses[0] - losses[1]) / (2 * step)
    expect(
        "the slope",
        first_two(two_passes(plus, minus, targets, step))[1],
        truth,
        mistakes={
            "between the two passes lie 2 steps, not one.": 2 * truth,
            "the difference is not divided by the 2 steps between the two passes.": 2
            * step
            * truth,
            "the sign is wrong: the loss under +η comes first.": -truth,
            "it is a sum over the words. Take the mean.": 6 * truth,
        },
    )


@check
def padding(two_passes: Answer, n: Numbers) -> None:
    """`two_passes` leaves out what has no target."""
    plus, minus, targets, step = two_logits(n)
    short = first_two(two_passes(plus, minus, targets, step))
    other = first_two(two_passes(2 * plus, minus, targets, step))
    expect_change("two_passes", torch.stack([short, other]))
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


def first_two(value: Any) -> Tensor:
    """The two numbers that two_passes returns."""
    numbers = as_numbers("two_passes", value)
    if numbers.shape != (2,):
        raise Mistake("two_passes: two numbers are expected, [explicit part, slope].")
    return numbers


def recipe(
    seed: int, *, dropout: bool = False, zero: bool = True, carry: bool = True, noisy: bool = False
) -> tuple[list[float], list[int]]:
    """Two epochs of the project's training without dropout, or with a mistake.

    Args:
        seed: Seed of the weights.
        dropout: Leave dropout on.
        zero: Set the gradients to zero before each step.
        carry: Carry the state from window to window.
        noisy: Leave dropout on for the evaluation.

    Returns:
        What `window_losses` says of the validation text.
    """
    model = new_model(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        for _ in range(2):
            model.train(dropout)
            state = None
            for inputs, targets in training_windows():
                logits, state = model(inputs, state)
                state = detach(state) if carry else None
                if zero:
                    optimizer.zero_grad()
                F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
        return window_losses(model.train(noisy), text()[1])


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
            f"epoch; they have {len(valid)} and {len(test)}."
        )
    return [valid, test]


NEAR, SAME = math.log(1.002), 1e-5
"""Differences of ln(perplexity) that rounding in float32 stays far below, and mistakes above: after
two epochs of training, in which it grows, and before."""


def far(first: float, second: float) -> float:
    """The distance of two perplexities, as a logarithm; infinite if one of them is none."""
    ratio = first / second if second else math.nan
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf


@check
def train_none(train: Answer, perplexity: Answer, n: Numbers) -> None:
    """`train` follows the recipe, and evaluates without noise."""
    seed = n.integer(0, 1000)
    valid, test = curves(train, "none", seed, 2)

    def of(found: tuple[list[float], list[int]]) -> float:
        losses, counts = (torch.tensor(v, dtype=torch.float64) for v in found)
        try:
            own = float(perplexity(*found))
        except (Mistake, TypeError, ValueError, RuntimeError):
            own = math.nan
        return own if math.isfinite(own) else float((losses * counts).sum().div(counts.sum()).exp())

    start, other = (of(window_losses(new_model(seed).eval(), part)) for part in text()[1:])
    if far(valid[0], start) > SAME:
        raise Mistake(
            f"train, before training: dropout is on while you evaluate, or the network is not "
            f"`new_model(seed)`. (You have {valid[0]:.4f}, it should be {start:.4f}.)"
        )
    if far(test[0], other) > SAME:
        raise Mistake("train: the second list is not that of the test text, `text()[2]`.")
    truth = of(recipe(seed))
    if far(valid[2], truth) <= NEAR:
        return
    mistakes = {
        "dropout is on while you train without it.": recipe(seed, dropout=True),
        "the gradient of the last step is still there when the next is added.": recipe(
            seed, zero=False
        ),
        "the state is not carried from window to window.": recipe(seed, carry=False),
        "dropout is on while you evaluate.": recipe(seed, noisy=True),
    }
    distances = {message: far(valid[2], of(found)) for message, found in mistakes.items()}
    message = min(distances, key=lambda m: distances[m])
    # Where masks are drawn, two runs differ by a few per cent.
    if distances[message] > 0.03:
        # Without clipping rounding errors grow so fast that nothing is left to compare with.
        message = (
            "that is not what the recipe gives. Is the gradient clipped? Is the step size right?"
        )
    raise Mistake(
        f"train, rule 'none', after 2 epochs: {message} (You have {valid[2]:.2f}, it should be "
        f"{truth:.2f}.)"
    )


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
    if far(none[1], dropout[1]) < SAME:
        raise Mistake("train: rule 'dropout' gives what 'none' gives. Is the model in train mode?")
    if far(none[1], nothing[1]) > NEAR:
        raise Mistake(
            "train: with both strengths 0 nothing is left but the clean loss, and yet the result "
            "is not that of 'none'. Do the strengths reach the objective, and is its gradient "
            "clipped?"
        )
    explicit, noise = (curves(train, rule, seed, 1)[0][1] for rule in ([20.0, 0.0], [0.0, 20.0]))
    if noise < explicit:
        raise Mistake(
            "train: a noise 20 times as strong throws the training off, a regularizer 20 times as "
            "strong does not. Here it is the other way round: the order is [explicit, implicit]."
        )


@check
def chosen(choose: Answer, n: Numbers) -> None:
    """`choose` never looks at the test text to choose."""
    dip = n.integer(3, 5)
    valid = [40.0 + abs(epoch - dip) + n.uniform(0, 0.4) for epoch in range(10)]
    test = [42.0 + abs(epoch - dip - 2) + n.uniform(0, 0.4) for epoch in range(10)]
    best = min(range(10), key=lambda epoch: valid[epoch])
    expect(
        "the test perplexity to report",
        choose(valid, test),
        test[best],
        mistakes={
            "it is the best test perplexity: then the test text has chosen the epoch. Choose by "
            "the validation text.": min(test),
            "it is the validation perplexity of the epoch.": min(valid),
            "it is that of the last epoch. Choose by the validation text.": test[-1],
        },
    )


@check
def paired(compare: Answer, n: Numbers) -> None:
    """`compare` pairs the seeds, and gives Student's interval."""
    seeds = n.integer(3, 6)
    level = 3.5 + 0.1 * n.normal(seeds)  # what two runs of a seed share
    first, second = (level + 0.02 * n.normal(2, seeds) + torch.tensor([[-0.1], [0.0]])).exp()
    ratio = (first / second).log()
    sd = float(ratio.std())
    t = student(seeds - 1)
    mean, half = ratio.mean(), t * sd / seeds**0.5
    value = as_numbers("compare", compare(first.tolist(), second.tolist()))
    if value.shape != (2,):
        raise Mistake("compare: two numbers are expected, [mean, half-width].")
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


@check
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
    for mean, half, truth, why in cases:
        said = verdict(mean, half, margin)
        if said != truth:
            raise Mistake(
                f"verdict({mean:.3f}, {half:.3f}, margin {margin:.3f}): you say {said!r}, it "
                f"should be {truth!r}: {why}"
            )
