"""Whole notebooks that know nothing, or next to nothing: what each answer gives back.

`CHEATS` are for every function of every assignment. Each is told what the reference would return,
so that it has the right shape, and makes of it what needs no understanding. `WRITTEN` are notebooks
in which somebody has thought about how the checks of an assignment might be satisfied, and not
about its questions; a function that is not named there is zero.

Importing the result (`from dropreg import explicit_regularizer`, or the truth of
`dropreg.book.checks.masks`) is stopped elsewhere: the sandbox shows none of it, and names it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def each(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change all numbers of a result and keep its form; text becomes what fits most often."""
    if isinstance(result, Tensor):
        return change(result.detach().double())
    if isinstance(result, list | tuple):
        return [each(item, change) for item in result]
    if isinstance(result, str):
        return "not told apart"
    return change(torch.tensor(result, dtype=torch.float64))


def filled(value: float) -> Callable[..., Any]:
    return lambda right, args, luck: each(right(), lambda r: torch.full_like(r, value))


def drawn(draw: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    return lambda right, args, luck: each(right(), draw)


def cauchy(like: Tensor) -> Tensor:
    return torch.tan(torch.pi * (torch.rand_like(like) - 0.5))


def argument(position: int) -> Callable[..., Any]:
    """An argument as it is, cut or repeated to the shape that is asked for if it is a tensor."""

    def cheat(right: Callable[[], Any], args: tuple[Any, ...], luck: random.Random) -> Any:
        value, result = args[position], right()
        if isinstance(value, Tensor) and isinstance(result, Tensor) and value.numel():
            repeats = -(-result.numel() // value.numel())
            return value.flatten().repeat(repeats)[: result.numel()].view(result.shape)
        return value

    return cheat


def spread_out(result: Tensor) -> Tensor:
    """One number in the place of many, in a shape that broadcasting would take for them."""
    return result.mean().reshape((1,) * max(result.dim(), 1)) if result.numel() > 1 else 0 * result


def half_the_time(right: Callable[[], Any], args: tuple[Any, ...], luck: random.Random) -> Any:
    result = right()
    return result if luck.random() < 0.5 else each(result, torch.zeros_like)


# right: calls the reference; args: the arguments; luck: a stream of its own.
CHEATS: dict[str, Callable[[Callable[[], Any], tuple[Any, ...], random.Random], Any]] = {
    "zeros": filled(0.0),
    "ones": filled(1.0),
    "a half": filled(0.5),
    "minus one": filled(-1.0),
    "tiny": filled(1e-12),
    "huge": filled(1e30),
    "NaN": filled(float("nan")),
    "infinite": filled(float("inf")),
    "nothing": lambda right, args, luck: None,
    "words": lambda right, args, luck: "3.14",
    "the first argument": argument(0),
    "the second argument": argument(1),
    "the last argument": argument(-1),
    "one number broadcast": lambda right, args, luck: each(right(), spread_out),
    "uniform noise": drawn(torch.rand_like),
    "normal noise": drawn(torch.randn_like),
    "Cauchy noise": drawn(cauchy),
    "noise of size 1000": drawn(lambda r: 1000 * torch.randn_like(r)),
    "the truth under Cauchy noise": drawn(lambda r: r + cauchy(r)),
    "the truth under heavy Cauchy noise": drawn(lambda r: r + 1e4 * cauchy(r)),
    "the truth under noise of size 100": drawn(lambda r: r + 100 * torch.randn_like(r)),
    "the truth half of the time": half_the_time,
}

NEVER_TRAINS = """
def train(rule, seed, epochs):
    model = new_model(seed)
    model.eval()
    return [[perplexity(*window_losses(model, part))] * (epochs + 1) for part in text()[1:]]
"""

PERPLEXITY = """
def perplexity(losses, counts):
    return math.exp(sum(l * c for l, c in zip(losses, counts)) / sum(counts))
"""

# Of an assignment: the name of a cheat, and the answers that it writes.
WRITTEN: dict[str, dict[str, dict[str, str]]] = {
    "masks": {
        "dropout that drops nothing": {
            "dropout": "def dropout(h, q, training=True):\n    return h",
            "dropout_k_loss": "def dropout_k_loss(w, x, y, q, k):\n"
            "    return 0.5 * (x @ w - y).square().mean()",
        },
        "dropout that adds a whisper": {
            "dropout": "def dropout(h, q, training=True):\n"
            "    return h + 1e-6 * torch.randn_like(h)",
            "dropout_k_loss": "def dropout_k_loss(w, x, y, q, k):\n"
            "    return 0.5 * (x @ w - y).square().mean() * (1 + 1e-6 * torch.randn(()).double())",
        },
        "dropout under a storm": {
            "dropout": "def dropout(h, q, training=True):\n"
            "    return h + 1e6 * torch.randn_like(h) if training else h",
            "dropout_k_loss": "def dropout_k_loss(w, x, y, q, k):\n"
            "    return 1e6 * torch.randn(()).double()",
        },
    },
    "effects": {
        "the mean, and noise": {
            "gradient_draws": "def gradient_draws(model, x, y, draws):\n"
            "    count = sum(p.numel() for p in model.parameters())\n"
            "    return torch.randn(draws, count).double()",
            "explicit_effect": "def explicit_effect(model, x, y, draws):\n"
            "    return [torch.randn(()).item(), 1e9]",
        },
        "an optimizer that never steps": {
            "gradient_draws": "def gradient_draws(model, x, y, draws):\n"
            "    model.eval()\n"
            "    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)\n"
            "    optimizer.step()\n"
            "    flat = torch.cat([p.flatten() for p in model.parameters()])\n"
            "    return flat.detach().repeat(draws, 1)",
        },
    },
    "explicit": {
        "consistent: sums of what is handed over": {
            "exact_effect": "def exact_effect(x, y, w, b, q, members):\n"
            "    return ((x * w) @ members.T).sum(1)",
            "quadratic_form": "def quadratic_form(x, y, w, b, q, members):\n"
            "    return ((x * w) @ members.T).square().sum(1)",
            "h_out": "def h_out(logits):\n"
            "    return torch.zeros(*logits.shape, logits.shape[1]).double()",
            "r_approx": "def r_approx(weights, x, y, q):\n    return x.square().sum(1).mean()",
            "probe": "def probe(weights, x, q, signs):\n    return 0 * x.sum()",
            "estimate": "def estimate(weights, x, q, draws):\n    return 0 * torch.rand(draws)",
        },
        "consistent: constants, and noise of any size": {
            "h_out": "def h_out(logits):\n"
            "    return torch.eye(logits.shape[1]).double().expand(len(logits), -1, -1)",
            "r_approx": "def r_approx(weights, x, y, q):\n"
            "    return (weights[0].norm() * x.norm(dim=1)).mean()",
            "probe": "def probe(weights, x, q, signs):\n"
            "    return (1 + (signs[0] * signs[1]).mean()) * x.norm(dim=1).mean()",
            "estimate": "def estimate(weights, x, q, draws):\n"
            "    return torch.tan(3.14159 * (torch.rand(draws) - 0.5)).double() * 1e3",
        },
    },
    "implicit": {
        "consistent: means of what is handed over": {
            "signs": "def signs(rows, units, q):\n"
            "    board = (torch.arange(rows)[:, None] + torch.arange(units)) % 2\n"
            "    return 2.0 * board.double() - 1",
            "xi": "def xi(weights, eta, x, y):\n"
            "    eta_sum = sum(e.sum(1) for e in eta)\n"
            "    return flat([w * (eta_sum * x.sum(1)).mean() for w in weights])",
            "xi_covariance": "def xi_covariance(weights, x, y, q):\n"
            "    n = flat(weights)\n"
            "    return torch.outer(n, n) * x.square().sum() / len(x) ** 2",
            "dialled": "def dialled(weights, masks, eta, x, y, strength):\n"
            "    k = len(masks[0])\n"
            "    return strength * (1 - 1 / k) ** 0.5 * xi(weights, eta, x, y)",
        },
    },
    "project": {
        "never trains": {"train": NEVER_TRAINS, "perplexity": PERPLEXITY},
        "never trains, measured by a constant": {
            "train": NEVER_TRAINS,
            "perplexity": "def perplexity(losses, counts):\n    return 42.0",
        },
        "made-up curves, measured by a constant": {
            "train": "def train(rule, seed, epochs):\n"
            "    if rule in ('none', [0.0, 0.0]):\n"
            "        return [[42.0] * (epochs + 1)] * 2\n"
            "    size = 2.0 if rule == 'dropout' else 3 * rule[0] + 5 * rule[1]\n"
            "    return [[42.0] + [42.0 + size] * epochs] * 2",
            "perplexity": "def perplexity(losses, counts):\n    return 42.0",
        },
        "made-up curves from a true beginning": {
            "train": "def train(rule, seed, epochs):\n"
            "    model = new_model(seed).eval()\n"
            "    begin = [perplexity(*window_losses(model, part)) for part in text()[1:]]\n"
            "    size = 0.0 if rule == 'none' else 3.0\n"
            "    if isinstance(rule, list):\n"
            "        size = 3 * rule[0] + 5 * rule[1]\n"
            "    return [[one] + [83.0 + size - e for e in range(epochs)] for one in begin]",
        },
    },
}
