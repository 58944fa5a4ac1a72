"""How faithful each method is on trained networks, and what it takes.

The yardstick for one draw is the derivative along the *same* noise: "jvp" for the regularizer and
the double backward for the noise. So what a central difference is off by shows beside the spread of
the draws. The yardstick for the mean is the mean of all jvp draws, and of as many again.

The length of a mean of draws holds their sampling noise, too: it is above zero even where nothing
is biased. So a bias is given by its square, estimated from products of *different* draws, which
has the right mean, and with a standard error.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.measure import write
from dropreg import NoisyLoss, explicit_regularizer, implicit_noise
from dropreg.book.data import load_corpus, load_digits, windows
from dropreg.book.models import MLP, LSTMLanguageModel, TransformerLanguageModel, detach
from dropreg.noise import variance
from dropreg.noisy_loss import DEFAULT_STEP, half_quadratic
from dropreg.probes import Noise, Probe, clean
from dropreg.sites import Site

STEPS = (0.02, 0.05, 0.1, 0.2, 0.4)
EXPLICIT = ("jvp", "sampled_labels", "central", "even_odd", "monte_carlo")
DRAWS = {"tiny": 3, "small": 100, "full": 300}
EPOCHS = {"tiny": 1, "small": 20, "full": 20}


def _batches(model: nn.Module, size: str) -> Iterator[tuple[Any, Tensor]]:
    """Training batches: text for language models, digits for the rest."""
    if isinstance(model, MLP):
        digits, generator = load_digits(), torch.Generator().manual_seed(0)
        for _ in range(5 if size == "tiny" else 300):
            rows = torch.randint(len(digits.train_y), (64,), generator=generator)
            yield digits.train_x[rows], digits.train_y[rows]
        return
    words = 600 if size == "tiny" else 20_000
    text = load_corpus("kjv", max_train_tokens=words, vocab_size=_words(size)).train
    for _ in range(EPOCHS[size]):
        yield from windows(text, batch_size=10, length=35)


def _words(size: str) -> int:
    return 50 if size == "tiny" else 1000


def _models(size: str) -> dict[str, nn.Module]:
    """The networks, not yet trained: two smooth ones, and one with kinks."""
    torch.manual_seed(0)
    width = 8 if size == "tiny" else 128
    ps = dict.fromkeys(("embedding_p", "hidden_p", "output_p", "weight_p"), 0.4)
    sizes = {"embedding_size": width, "hidden_size": width, "depth": 2}
    return {
        "lstm": LSTMLanguageModel(_words(size), **sizes, **ps),
        "transformer": TransformerLanguageModel(
            _words(size), width=width // 2, heads=4, inner=2 * width, depth=3, p=0.2,
            attention_p=0.2,
        ),
        "relu-mlp": MLP(64, 10, width=width, input_p=0.2, hidden_p=0.4),
    }  # fmt: skip


def _train(model: nn.Module, size: str) -> tuple[Any, Tensor]:
    """Train with dropout; returns a batch of training data to measure on."""
    lstm = isinstance(model, LSTMLanguageModel)
    parameters = model.parameters()
    optimizer: torch.optim.Optimizer
    optimizer = torch.optim.SGD(parameters, 10.0) if lstm else torch.optim.Adam(parameters, 1e-3)
    state: Any = None
    for x, y in _batches(model, size):
        optimizer.zero_grad()
        if isinstance(model, MLP):
            logits = model(x)
        else:
            logits, state = model(x, detach(state))
        F.cross_entropy(logits.flatten(0, -2), y.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
    x, y = next(_batches(model, size))
    return (x[:4, :20], y[:4, :20]) if y.ndim > 1 else (x, y)


class _LastLinear(TorchFunctionMode):
    """Keeps input and weight of the last linear map that runs."""

    input: Tensor
    weight: Tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            self.input, self.weight = args[:2]
        return func(*args, **(kwargs or {}))


def last_layer(model: nn.Module, x: Any) -> Tensor:
    """R_approx of the last site alone, without sampling, if its output goes to the last linear map.

    With h at the site, W the map and p the softmax it is q / (1 - q) / 2 times the sum over j of
    h_j^2 and the variance of W's column j under p: two products with W in place of a second pass.
    """
    with _LastLinear() as last:
        logits, sites = NoisyLoss(model, x, "cross_entropy").logits(clean)
    h, weight, p = last.input, last.weight, logits.softmax(-1)
    spread = p @ weight.square() - (p @ weight).square()
    return 0.5 * variance(sites[-1].p) * (h.square() * spread).sum(-1).mean()


def with_last_layer(model: nn.Module, x: Any, generator: torch.Generator) -> Tensor:
    """The last site by its closed form, and the others by a central difference."""
    count = len(NoisyLoss(model, x, "cross_entropy").sites)
    probe, objective = Probe("rademacher", generator), NoisyLoss(model, x, "cross_entropy")

    def at(strength: float) -> Noise:
        noise, met = probe.at(strength), iter(range(count))

        def of(site: Site) -> Tensor | None:
            eta = noise(site)
            return None if next(met) == count - 1 else eta

        return of

    up, down = (objective.logits(at(s))[0] for s in (DEFAULT_STEP, -DEFAULT_STEP))
    others = half_quadratic(objective.criterion, up, down, DEFAULT_STEP, None)
    return others + last_layer(model, x)


def fidelity(size: str, device: torch.device, folder: Path) -> None:
    """Measure all methods on all networks."""
    rows: list[dict[str, Any]] = []
    for name, model in _models(size).items():
        inputs, targets = _train(model, size)
        rows += _rows(name, model.to(device), inputs.to(device), targets.to(device), DRAWS[size])
    write(folder / "fidelity.json", device, {"what": "fidelity", "size": size, "rows": rows})


def _rows(
    name: str, model: nn.Module, x: Tensor, y: Tensor, draws: int
) -> Iterator[dict[str, Any]]:
    parameters = list(model.parameters())

    def draw(make: Callable[..., Tensor], seed: int, **options: Any) -> tuple[float, Tensor, float]:
        """Value and gradient of one draw, and the processor time that it took."""
        options["generator"] = torch.Generator().manual_seed(seed)
        begun = time.process_time()
        value = make(**options)
        grads = torch.autograd.grad(value, parameters, materialize_grads=True)
        taken = time.process_time() - begun
        return value.item(), torch.cat([g.flatten() for g in grads]).double(), taken

    def explicit(**options: Any) -> Tensor:
        return explicit_regularizer(model, x, targets=y, **options)

    def implicit(**options: Any) -> Tensor:
        return implicit_noise(model, x, y, **options)

    def part(share: float, generator: torch.Generator) -> Tensor:
        """R_approx on some of the examples."""
        rows = torch.randperm(len(x), generator=generator)[: max(1, int(share * len(x)))]
        return explicit_regularizer(model, x[rows], method="central", generator=generator)

    methods: list[tuple[str, float | None, Any]] = [(m, None, {"method": m}) for m in EXPLICIT]
    methods += [("central", s, {"method": "central", "step": s}) for s in STEPS]
    reference, again = (
        [draw(explicit, seed, method="jvp") for seed in range(first, first + draws)]
        for first in (0, draws)
    )
    exacts = torch.stack([g for _, g, _ in reference + again])
    yardstick, (exact, _) = exacts.mean(0), squared_mean(exacts)
    del exacts
    value = statistics.fmean(v for v, _, _ in reference + again)
    for method, step, options in methods:
        found = [draw(explicit, seed, **options) for seed in range(draws)]
        mean = torch.stack([g for _, g, _ in found]).mean(0)
        pairs = list(zip(found, reference, strict=True))
        squared, error = squared_mean(torch.stack([a[1] - b[1] for a, b in pairs]))
        yield {
            "model": name, "effect": "explicit", "method": method, "step": step, "draws": draws,
            "value": statistics.fmean(v for v, _, _ in found), "reference": value,
            "value_spread": statistics.pstdev(v for v, _, _ in found) / abs(value),
            "squared_bias_on_same_noise": squared / exact,
            "squared_bias_error": error / exact,
            "value_bias_on_same_noise": statistics.fmean(a[0] - b[0] for a, b in pairs) / value,
            "cosine_of_mean": _cosine(mean, yardstick),
            "cosine_of_one": statistics.median(_cosine(g, yardstick) for _, g, _ in found),
            "length": _length(found) / _length(reference),
            "seconds": statistics.median(s for _, _, s in found),
        }  # fmt: skip
    # No noise is the same for these: only their values and directions are compared.
    cheaper: dict[str, Callable[[torch.Generator], Tensor]]
    cheaper = {"half": functools.partial(part, 0.5), "quarter": functools.partial(part, 0.25)}
    if not isinstance(model, TransformerLanguageModel):  # there a norm follows the last site
        cheaper["last_layer"] = lambda generator: last_layer(model, x)
        cheaper["last_layer+central"] = functools.partial(with_last_layer, model, x)
    for method, make in cheaper.items():
        found = [draw(make, seed) for seed in range(draws)]
        mean = torch.stack([g for _, g, _ in found]).mean(0)
        yield {
            "model": name, "effect": "explicit", "method": method, "step": None, "draws": draws,
            "value": statistics.fmean(v for v, _, _ in found), "reference": value,
            "value_spread": statistics.pstdev(v for v, _, _ in found) / abs(value),
            "cosine_of_mean": _cosine(mean, yardstick),
            "cosine_of_one": statistics.median(_cosine(g, yardstick) for _, g, _ in found),
            "length": _length(found) / _length(reference),
            "seconds": statistics.median(s for _, _, s in found),
        }  # fmt: skip
    reference = [draw(implicit, seed, method="analytic") for seed in range(draws)]
    methods = [(m, None, {"method": m}) for m in ("analytic", "central", "even_odd")]
    methods += [("central", s, {"method": "central", "step": s}) for s in STEPS]
    for method, step, options in methods:
        found = [draw(implicit, seed, **options) for seed in range(draws)]
        pairs = list(zip(found, reference, strict=True))
        yield {
            "model": name, "effect": "implicit", "method": method, "step": step, "draws": draws,
            "cosine_on_same_noise": statistics.median(_cosine(a[1], b[1]) for a, b in pairs),
            "length": _length(found) / _length(reference),
            "seconds": statistics.median(s for _, _, s in found),
        }  # fmt: skip


def squared_mean(draws: Tensor) -> tuple[float, float]:
    """Estimate the squared length of the mean that draws scatter about, and its standard error.

    The mean of the products of all pairs of different draws: without bias, and so below zero now
    and then where the truth is zero. The error is the jackknife's: where the truth is zero, it is
    too large by a factor of up to the root of two.
    """
    products, count = draws @ draws.T, len(draws)
    products.fill_diagonal_(0)
    total, rows = products.sum(), products.sum(1)
    without = (total - 2 * rows) / ((count - 1) * (count - 2))
    error = ((count - 1) / count * (without - without.mean()).square().sum()).sqrt()
    return (total / (count * (count - 1))).item(), error.item()


def _cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a, b, dim=0).item()


def _length(found: list[tuple[float, Tensor, float]]) -> float:
    """Root of the mean square of the gradients' lengths: their mean and spread together."""
    return statistics.fmean(g.square().sum().item() for _, g, _ in found) ** 0.5
