"""The steps that are timed: forward and backward pass of one training step, no optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.workloads import WeightMLP, Workload
from dropreg import NoisyLoss, dropout_k_loss, explicit_regularizer, implicit_noise, replace_dropout
from dropreg.control.passes import find_logits
from dropreg.probes import clean

Step = Callable[[], object]
"""One step: it leaves gradients in the parameters' ``.grad``, which were None before."""


def _plain(workload: Workload, device: torch.device, *, noisy: bool) -> Step:
    model, inputs, targets = workload.build(device, noisy=noisy)

    def step() -> None:
        logits = find_logits(model(inputs))
        F.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()

    return _fresh(model, step)


def r_drop(one: Tensor, other: Tensor, targets: Tensor) -> Tensor:
    r"""R-Drop (Liang et al. 2021, equation 4) of the logits, (N, C), under two masks.

    Both losses and :math:`\alpha/2` times both Kullback-Leibler divergences, per example. Its
    factor :math:`\alpha` is 1: which it is makes no difference to what a step costs.
    """
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    both_ways = F.kl_div(p, q, reduction="batchmean", log_target=True)
    both_ways = both_ways + F.kl_div(q, p, reduction="batchmean", log_target=True)
    return F.nll_loss(p, targets) + F.nll_loss(q, targets) + both_ways / 2


def _two_masks(workload: Workload, device: torch.device) -> Step:
    model, inputs, targets = workload.build(device)

    def step() -> None:
        one, other = (find_logits(model(inputs)).flatten(0, -2) for _ in range(2))
        r_drop(one, other, targets.flatten()).backward()

    return _fresh(model, step)


def _of_loss(make: Callable[[nn.Module, Any, Tensor], Callable[[], Tensor]]) -> Any:
    """The step of a loss that is made from model, inputs and targets."""

    def build(workload: Workload, device: torch.device) -> Step:
        built = workload.build(device)
        loss = make(*built)
        return _fresh(built[0], lambda: loss().backward())

    return build


def _fresh(model: nn.Module, step: Callable[[], None]) -> Step:
    def fresh() -> None:
        model.zero_grad(set_to_none=True)
        step()

    return fresh


def _masks(k: int, chunk: int | None) -> Any:
    return _of_loss(lambda m, x, y: lambda: dropout_k_loss(m, x, y, k, chunk=chunk))


def _replaced(**options: Any) -> Any:
    def make(model: nn.Module, inputs: Any, targets: Tensor) -> Callable[[], Tensor]:
        replacement = replace_dropout(model, **options)
        return lambda: replacement.loss(inputs, targets)

    return _of_loss(make)


def _controlled(model: nn.Module, inputs: Any, targets: Tensor) -> Callable[[], Tensor]:
    """The clean loss of a model under control: what finding and controlling sites costs."""
    return lambda: NoisyLoss(model, inputs, "cross_entropy", targets)(clean)


def _pair_of_masks(model: nn.Module, inputs: Any, targets: Tensor) -> Callable[[], Tensor]:
    """The clean loss, and noise from a pair of masks."""

    def loss() -> Tensor:
        noise = implicit_noise(model, inputs, targets, method="dropout_pair")
        return NoisyLoss(model, inputs, "cross_entropy", targets)(clean) + noise

    return loss


METHODS: Mapping[str, Callable[[Workload, torch.device], Step]] = {
    "none": lambda workload, device: _plain(workload, device, noisy=False),
    "dropout": lambda workload, device: _plain(workload, device, noisy=True),
    "controlled": _of_loss(_controlled),
    "dropout_2": _masks(2, None),
    "dropout_4": _masks(4, None),
    "dropout_8": _masks(8, None),
    "dropout_32": _masks(32, 4),
    "explicit/exact": _replaced(implicit=0, method="exact"),
    "explicit/sampled_labels": _replaced(implicit=0, method="sampled_labels"),
    "explicit/jvp": _replaced(implicit=0, method="jvp"),
    "explicit/central": _replaced(implicit=0, share=1),
    "explicit/even_odd": _replaced(implicit=0, method="even_odd", share=1),
    "implicit/analytic": _replaced(explicit=0, method="sampled_labels"),
    "implicit/central": _replaced(explicit=0, share=1),
    "implicit/even_odd": _replaced(explicit=0, method="even_odd", share=1),
    "implicit/dropout_pair": _of_loss(_pair_of_masks),
    "both/central": _replaced(share=1),
    "both/even_odd": _replaced(method="even_odd", share=1),
    "both/jvp": _replaced(method="jvp"),
    "both/published": _replaced(method="sampled_labels"),
    "both/exact": _replaced(method="exact"),
    **{
        f"share-{n}/{method}": _replaced(method=method, share=1 / n)
        for method in ("central", "even_odd")
        for n in (2, 4, 8)
    },
    "rdrop": _two_masks,
}
"""Makes the step of each method. "published" is the published way: sampled labels, and both effects
by double backward."""


def _value(model: nn.Module, inputs: Any, targets: Tensor, **options: Any) -> Step:
    def step() -> Tensor:
        with torch.no_grad():
            return explicit_regularizer(model, inputs, **options)

    return step


def _r_approx(model: WeightMLP, diagonals: Iterable[Tensor]) -> Tensor:
    """R_approx from the diagonal of the GGN of each of the weights, all of them dropped alike."""
    pairs = zip(diagonals, model.weights(), strict=True)
    of_weights = sum((diagonal * weight.detach().square()).sum() for diagonal, weight in pairs)
    return 0.5 * model.p / (1 - model.p) * of_weights


def _backpack(workload: Workload, device: torch.device, name: str) -> Step:
    from backpack import backpack, extend, extensions

    model, inputs, targets = workload.build(device)
    layers, criterion = extend(model.layers), extend(nn.CrossEntropyLoss())
    extension = getattr(extensions, name)()

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        with backpack(extension):
            criterion(layers(inputs), targets).backward()
        return _r_approx(model, (getattr(w, extension.savefield) for w in model.weights()))

    return step


def _curvlinops(workload: Workload, device: torch.device) -> Step:
    from curvlinops import GGNLinearOperator, hutchinson_diag

    model, inputs, targets = workload.build(device)
    weights = model.weights()

    def step() -> Tensor:
        matrix = GGNLinearOperator(
            model.layers, nn.CrossEntropyLoss(), weights, [(inputs, targets)],
            check_deterministic=False,
        )  # fmt: skip
        diagonal = hutchinson_diag(matrix, 1).split([w.numel() for w in weights])
        return _r_approx(model, (d.view_as(w) for d, w in zip(diagonal, weights, strict=True)))

    return step


def _value_by(method: str) -> Callable[[Workload, torch.device], Step]:
    return lambda workload, device: _value(*workload.build(device), method=method)


VALUES: Mapping[str, Callable[[Workload, torch.device], Step]] = {
    "value/exact": _value_by("exact"),
    "value/sampled_labels": _value_by("sampled_labels"),
    "value/central": _value_by("central"),
    "backpack/exact": lambda w, d: _backpack(w, d, "DiagGGNExact"),
    "backpack/mc": lambda w, d: _backpack(w, d, "DiagGGNMC"),
    "curvlinops/hutchinson": _curvlinops,
}
"""Values of R_approx with dropout on weights, where the two libraries' diagonals give it, too.
These steps return it."""

SLOW = {"dropout_8", "dropout_32"}
"""What averages over enough passes by itself to be timed once."""


def methods_of(name: str) -> Mapping[str, Callable[[Workload, torch.device], Step]]:
    """The methods that apply to a workload."""
    # "exact" takes a backward pass for each class; in language models also for each word.
    few = name in ("mlp", "weight-mlp", "cnn")
    steps = {k: v for k, v in METHODS.items() if few or not k.endswith("/exact")}
    return {**steps, **(VALUES if name == "weight-mlp" else {})}
