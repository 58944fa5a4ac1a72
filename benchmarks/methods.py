"""The steps that are timed: forward and backward pass of one training step, no optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.workloads import Workload
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
}
"""Makes the step of each method. "published" is the published way: sampled labels, and both effects
by double backward."""


def _value(model: nn.Module, inputs: Any, targets: Tensor, **options: Any) -> Step:
    def step() -> None:
        with torch.no_grad():
            explicit_regularizer(model, inputs, **options)

    return step


def _backpack(workload: Workload, device: torch.device, extension: str) -> Step:
    from backpack import backpack, extend, extensions

    model, inputs, targets = workload.build(device)
    layers, criterion = extend(model.layers), extend(nn.CrossEntropyLoss())

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with backpack(getattr(extensions, extension)()):
            criterion(layers(inputs), targets).backward()

    return step


def _curvlinops(workload: Workload, device: torch.device) -> Step:
    from curvlinops import GGNLinearOperator, hutchinson_diag

    model, inputs, targets = workload.build(device)
    weights = list(model.layers.parameters())

    def step() -> None:
        matrix = GGNLinearOperator(
            model.layers, nn.CrossEntropyLoss(), weights, [(inputs, targets)],
            check_deterministic=False,
        )  # fmt: skip
        hutchinson_diag(matrix, 1)

    return step


def _value_by(method: str) -> Callable[[Workload, torch.device], Step]:
    return lambda workload, device: _value(*workload.build(device), method=method)


DIAGONALS: Mapping[str, Callable[[Workload, torch.device], Step]] = {
    "none": METHODS["none"],
    "dropout": METHODS["dropout"],
    "value/exact": _value_by("exact"),
    "value/sampled_labels": _value_by("sampled_labels"),
    "value/central": _value_by("central"),
    "backpack/exact": lambda w, d: _backpack(w, d, "DiagGGNExact"),
    "backpack/mc": lambda w, d: _backpack(w, d, "DiagGGNMC"),
    "curvlinops/hutchinson": _curvlinops,
}
"""Values of R_approx with dropout on weights, where the two libraries' diagonals give it, too."""

SLOW = {"dropout_8", "dropout_32"}
"""What averages over enough passes by itself to be timed once."""


def methods_of(name: str) -> Mapping[str, Callable[[Workload, torch.device], Step]]:
    """The methods that apply to a workload."""
    if name == "weight-mlp":
        return DIAGONALS
    # "exact" takes a backward pass for each class; in language models also for each word.
    return {k: v for k, v in METHODS.items() if name in ("mlp", "cnn") or not k.endswith("/exact")}
