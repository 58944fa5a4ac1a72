"""The library's methods on one model, each held to the reference: a row of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from reference import NoDerivative, NotDescribed, Reference
from reference import call as logits_of
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dropreg import NoisyLoss, explicit_regularizer, find_sites, implicit_noise, replace_dropout
from dropreg.errors import DropregError
from dropreg.share import layout, size, take

EXACT = 1e-6
"""Relative: float64, where what is left is rounding in the reference's central differences."""
STEP = 1e-6
"""Of the library's central methods. Their own error is of the order of its square for a smooth
network, and of the step itself where a kink (ReLU) lies between both ends."""
CENTRAL = 1e-5
DRAWS = 40
STANDARD_ERRORS = 4


@dataclass(frozen=True)
class Case:
    """A model and a batch.

    Attributes:
        model: The model, in train mode and float64.
        inputs: What the library takes as inputs.
        plain: The same network for the reference, where that needs another form of it (without
            activation checkpoints, which change nothing); the model itself if None.
        float64: Whether the model turns parts of its pass into float32, which is then kept from it.
    """

    model: nn.Module
    inputs: Any
    plain: nn.Module | None = None
    float64: bool = False


@dataclass
class Row:
    """What came out for one family.

    Attributes:
        sites: How many sites the library found, if it did not refuse the model.
        errors: For each method that was compared, its error over its tolerance's unit: relative,
            or for "sampled_labels" in standard errors.
        refused: For each method that was refused, the error's name and words.
        not_compared: For each method that the reference does not describe here, the reason.
        wrong: What does not agree, in words.
        crashed: Errors that are not the library's own, in words.
    """

    sites: int | None = None
    errors: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    not_compared: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """What the page says in a word; the last two must not be."""
        if self.crashed:
            return "CRASH"
        if self.wrong:
            return "WRONG"
        if not self.refused:
            return "agrees"
        return "refused" if not self.errors else "agrees, in part refused"


class InFloat64(TorchFunctionMode):
    """Keeps a pass in float64 that casts parts of itself to float32, as T5's norm does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            if kwargs.get("dtype") == torch.float32:
                kwargs = kwargs | {"dtype": torch.float64}
            if func is Tensor.to:
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return func(*args, **kwargs)


class OtherMasks(Exception):
    """The library met other masks than a pass draws."""


class _Given:
    """A law that hands out given noise, mask by mask, again and again."""

    def __init__(self, etas: Sequence[Tensor]) -> None:
        self._etas, self._index = etas, 0

    def __call__(self, shape: tuple[int, ...], p: float, **source: Any) -> Tensor:
        eta = self._etas[self._index % len(self._etas)]
        self._index += 1
        if eta.shape != shape:
            raise OtherMasks(f"a mask of shape {shape}, where {tuple(eta.shape)} is drawn")
        return eta


def compare(case: Case) -> Iterator[Row]:
    """Hold every method to the reference.

    Args:
        case: The model and the batch.

    Yields:
        What has come out so far, after each method: the next may end the process.
    """
    with InFloat64() if case.float64 else nullcontext():
        yield from _compare(case)


def _compare(case: Case) -> Iterator[Row]:
    row = Row()
    try:
        reference = Reference(case.plain or case.model, case.inputs)
    except NotDescribed as reason:
        _require_refusal(case, reason, row)
        yield row
        return
    state = _state(case.model)
    _attempt("find_sites", lambda: _find(case, reference, row), row)
    for name, check in _checks(case, reference):
        yield row
        outcome = _attempt(name, check, row)
        if outcome is None:
            continue
        error, tolerance = outcome
        row.errors[name] = error
        if not error <= tolerance:
            row.wrong.append(f"{name}: {error:.1e}, where {tolerance:.0e} is allowed")
    if not _same(state, _state(case.model)):
        row.wrong.append("the model's parameters or their names are no longer what they were")
    yield row


def _attempt(name: str, call: Callable[[], Any], row: Row) -> Any:
    """What a call returns; None, and a note in the row, where it raises."""
    try:
        return call()
    except DropregError as error:
        row.refused[name] = f"{type(error).__name__}: {error}"
    except NotDescribed as reason:
        row.not_compared[name] = str(reason)
    except OtherMasks as error:
        row.wrong.append(f"{name}: {error}")
    except Exception as error:
        row.crashed.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
    return None


def _find(case: Case, reference: Reference, row: Row) -> None:
    """Hold the table of sites to the masks that are drawn."""
    positional, named = _as_call(case.inputs)
    sites = find_sites(case.model, *positional, **named)
    row.sites = len(sites)
    theirs = [(site.mask_shape, round(site.p, 6)) for site in sites]
    drawn = [(each.shape, round(each.p, 6)) for each in reference.drawn]
    if theirs != drawn:
        row.wrong.append(f"find_sites found {theirs}; the masks are {drawn}")


def _require_refusal(case: Case, reason: NotDescribed, row: Row) -> None:
    """Where the reference does not describe the model, each method has to refuse it.

    Where only derivatives lack, it is each that differentiates in the noise.
    """
    x, (positional, named) = case.inputs, _as_call(case.inputs)
    with torch.no_grad():
        logits = logits_of(case.model, x)
    y = torch.zeros(logits.shape[:-1], dtype=torch.long)
    calls: dict[str, Callable[[], Any]] = {
        "find_sites": lambda: find_sites(case.model, *positional, **named),
        "exact": lambda: explicit_regularizer(case.model, x),
        "analytic noise": lambda: implicit_noise(case.model, x, y),
        "replace_dropout": lambda: replace_dropout(case.model, share=1).loss(x, y),
    }
    if isinstance(reason, NoDerivative):
        calls = {name: calls[name] for name in ("exact", "analytic noise")}
    for name, call in calls.items():
        if _attempt(name, call, row) is not None:
            row.wrong.append(f"{name}: not refused, and {reason}")


def _checks(
    case: Case, reference: Reference
) -> Iterator[tuple[str, Callable[[], tuple[float, float]]]]:
    """Each method's name, and what gives its error and the tolerance."""
    model, x, y = case.model, case.inputs, reference.targets
    weights = [p for p in model.parameters() if p.requires_grad]
    direction = reference.direction()
    etas = reference.rademacher(1)
    zeros = [torch.zeros_like(eta) for eta in etas]

    def against(
        ours: Callable[[], Tensor], value: Callable[[], Tensor], tolerance: float
    ) -> Callable[[], tuple[float, float]]:
        """Compare the value, and the gradient along a direction of all the parameters."""

        def check() -> tuple[float, float]:
            expected = float(value().detach())
            model.zero_grad()
            got = ours()
            got.backward()  # as in training: some activation checkpoints allow nothing else
            pairs = zip(weights, direction, strict=True)
            along = sum(float((w.grad * d).sum()) for w, d in pairs if w.grad is not None)
            errors = (
                _relative(float(got.detach()), expected),
                _relative(along, reference.along(direction, value)),
            )
            return max(errors), tolerance

        return check

    def given(step: float = STEP) -> dict[str, Any]:
        return {"distribution": _Given(etas), "step": step}

    def total() -> Tensor:
        return reference.loss(zeros) + reference.explicit_along(etas) + reference.slope(etas)

    yield (
        "exact",
        against(lambda: explicit_regularizer(model, x), reference.explicit, EXACT),
    )
    for method, tolerance in (("jvp", EXACT), ("central", CENTRAL)):
        yield (
            method,
            against(
                lambda method=method: explicit_regularizer(model, x, method=method, **given()),
                lambda: reference.explicit_along(etas),
                tolerance,
            ),
        )
    yield "sampled_labels", lambda: (_standard_errors(case, reference), STANDARD_ERRORS)
    for method, tolerance in (("analytic", EXACT), ("central", CENTRAL)):
        yield (
            f"{method} noise",
            against(
                lambda method=method: implicit_noise(model, x, y, method=method, **given()),
                lambda: reference.slope(etas),
                tolerance,
            ),
        )
    yield (
        "replace_dropout",
        against(lambda: replace_dropout(model, share=1, **given()).loss(x, y), total, CENTRAL),
    )
    yield (
        "even_odd",
        against(
            lambda: replace_dropout(model, method="even_odd", share=1, **given()).loss(x, y),
            lambda: reference.loss(etas),  # the even part and the odd part: the loss at +eta
            EXACT,
        ),
    )
    yield "share", lambda: _half_of_the_batch(case, reference, etas, against)()


def _half_of_the_batch(
    case: Case, reference: Reference, etas: Sequence[Tensor], against: Callable[..., Any]
) -> Callable[[], tuple[float, float]]:
    """Both effects on half of the examples, where each has noise of its own."""
    found = layout(NoisyLoss(case.model, case.inputs, "cross_entropy", reference.targets))
    if found.kinds[1]:
        raise NotDescribed("examples share noise, of which no share has the covariance")
    if found.normalizes:
        raise NotDescribed("examples meet in batch norm, whose statistics a share changes")
    n, some = found.examples, size(found, 0.5)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    noisy = torch.zeros(n, dtype=torch.bool)
    noisy[order[:some]] = True
    of_some, zeroed = [], []
    for eta, dim in zip(etas, found.sites.values(), strict=True):
        of_some.append(take(eta, dim, order[:some], n))
        counts = noisy.repeat_interleave(eta.shape[dim] // n)
        zeroed.append(eta * counts.view([-1 if d == dim else 1 for d in range(eta.ndim)]))
    nothing = [torch.zeros_like(eta) for eta in etas]

    def ours() -> Tensor:
        law, source = _Given(of_some), torch.Generator().manual_seed(0)
        objective = replace_dropout(
            case.model, share=0.5, step=STEP, distribution=law, generator=source
        )
        return objective.loss(case.inputs, reference.targets)

    def expected() -> Tensor:
        effects = n / some * reference.explicit_along(zeroed)
        noise = (n / some) ** 0.5 * reference.slope(zeroed)
        return reference.loss(nothing) + effects + noise

    return against(ours, expected, CENTRAL)


def _standard_errors(case: Case, reference: Reference) -> float:
    """How far the mean over sampled labels lies from R_approx."""
    draws = torch.stack(
        [
            explicit_regularizer(
                case.model,
                case.inputs,
                method="sampled_labels",
                generator=torch.Generator().manual_seed(seed),
            ).detach()
            for seed in range(DRAWS)
        ]
    )
    return float((draws.mean() - reference.explicit()).abs() / (draws.std() / DRAWS**0.5))


def _relative(got: float, expected: float) -> float:
    return abs(got - expected) / max(abs(expected), 1e-9)


def _as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if type(inputs) is tuple else (inputs,)), {}


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return list(before) == list(after) and all(
        torch.equal(tensor, after[name]) for name, tensor in before.items()
    )
