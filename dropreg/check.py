r"""Do the methods agree on a model: with one another, and with what needs no derivative?

Each quantity has a reference that shares as little as possible with the methods that are held
against it:

- :math:`R_{approx}`: the divergence of the noisy from the clean prediction,
  :math:`D = \ell(F_s) - \ell(F_0) - \langle \nabla_F \ell(F_0), F_s - F_0 \rangle`, at noise of a
  small scale :math:`s`. Its mean over the noise is :math:`s^2 R_{approx} + O(s^4)` for a symmetric
  law: for cross-entropy it is a Kullback-Leibler divergence. It takes forward passes alone, and the
  loss's own slope in the logits.
- dropout's full effect, and the covariance of its noise: the model as it is, under PyTorch's own
  dropout.
- the gradient of the noisy loss in the parameters, and its slope along the noise: finite
  differences of forward passes.
- the gradients of :math:`R_{approx}` and of that slope: those of "central", which takes one
  backward pass, while the others take a second derivative.

What has the same noise on both sides is compared draw by draw, where chance plays no part, and the
rest by means and standard errors. R_approx itself is a
second-order approximation of the full effect, so their ratio is shown without a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dropreg.control.buffers import scratch_buffers
from dropreg.control.kernels import float32_precision, without_gradients
from dropreg.control.passes import Output, call_arguments
from dropreg.errors import Choice, DropregError, InputError, ZeroProbabilityError
from dropreg.explicit import ExplicitMethod, regularizer
from dropreg.implicit import ImplicitMethod, noise_term
from dropreg.losses import AnyLoss
from dropreg.measure import Estimate
from dropreg.noise import Law
from dropreg.noisy_loss import NoisyLoss, Sampling, require_count
from dropreg.probes import Probe, clean

_STANDARD_ERRORS = 5.0
"""How far apart two means may be. There are up to some 20 comparisons: beyond five standard errors
one of them is by chance with probability 1e-5 (normal), or 2e-3 (Student's law of 20 draws), and
the rest of the one percent is left to skewed samples."""
_LEAST_SAMPLES = 20
_FLOOR = 0.05
"""The relative difference that is not looked at: rounding, and a unit that has a kink just here."""
_MARGIN = 5.0
"""How much of what halving a finite difference changes, it may still err by. It is 1/3 for a smooth
model and about 1 where a kink (ReLU) lies between the ends."""
_SCALE = 3e-3
"""The scale of the small noise. Twice that tells what a finite difference leaves out. It is small,
so that few kinks lie between the ends, and what rounding adds is still far below the floor."""
_SHIFT = 7e-4
"""The same for the parameters, as a share of each tensor's root mean square: some two roots of
float32's epsilon."""
_DIRECTIONS = 3
_EXACT_UP_TO = 256
"""Logits up to which "exact" is asked: it may need a backward pass for each."""


class Verdict(Choice):
    """What a comparison says."""

    REFERENCE = "reference"
    """What the rows below, of the same quantity, are held against."""
    AGREES = "agrees"
    """The same as the reference up to chance and what a finite difference errs by."""
    DIFFERS = "differs"
    """It is not."""
    REFUSED = "refused"
    """The method refuses this model; the note has its words."""
    SHOWN = "shown"
    """Another quantity, an approximation, or left out: no verdict."""


@dataclass(frozen=True)
class Row:
    """One method's value of one quantity.

    Attributes:
        quantity: What is estimated.
        method: By which method.
        verdict: Whether it agrees with the reference.
        estimate: Mean and standard error; None if the method refused. Of several directions in
            parameter space, the one with the largest difference.
        note: What else there is to say: the difference and its tolerance, or the refusal.
    """

    quantity: str
    method: str
    verdict: Verdict
    estimate: Estimate | None = None
    note: str = ""


@dataclass(frozen=True, repr=False)
class Report:
    """What `check` has found; prints as a table.

    Attributes:
        rows: One for each quantity and method.
    """

    rows: tuple[Row, ...]

    @property
    def agrees(self) -> bool:
        """Whether nothing differs; a method that refuses does not."""
        return not self.differing

    @property
    def differing(self) -> tuple[Row, ...]:
        """The rows that differ from their reference."""
        return tuple(row for row in self.rows if row.verdict is Verdict.DIFFERS)

    def __repr__(self) -> str:
        """The table, and a last line that says what to do."""
        table = [("quantity", "method", "mean ± standard error", "verdict", "note")]
        for row in self.rows:
            e = row.estimate
            value = "" if e is None else f"{e.mean:.4g} ± {e.standard_error:.2g}"
            table.append((row.quantity, row.method, value, str(row.verdict), row.note))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        if self.agrees:
            lines.append("Everything that was computed agrees.")
        else:
            names = ", ".join(f"{row.method} ({row.quantity})" for row in self.differing)
            lines.append(
                f"DIFFERS: {names}. Look for .detach(), .data, torch.no_grad() and a custom "
                "autograd.Function in the model; a stop-gradient on purpose shows here, too."
            )
        return "\n".join(lines)


def check(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    loss: AnyLoss = "cross_entropy",
    output: Output | None = None,
    mc_samples: int = 64,
    generator: torch.Generator | None = None,
) -> Report:
    r"""Run the methods against each other and against Monte Carlo, on your model and a batch of it.

    Before a long training: does each method give on this model what it promises? A site behind
    ``.detach()``, or a wrong ``backward`` of a custom `torch.autograd.Function`, is seen here. Take
    a small batch; the call makes some 30 forward and 10 backward passes a sample.

    Two means agree if they lie within five standard errors of their difference, plus what a finite
    difference errs by (told by halving it) and 5 % of the value: a right model is told to differ in
    fewer than one of a hundred calls, all comparisons together. What has the same noise on both
    sides agrees draw by draw, without those errors.

    Args:
        model: Any model with dropout, in train mode. Its parameters are moved a little for the
            finite differences, and are as they were afterwards, to the last bit.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments for the model.
        targets: Labels.
        loss: Name of the loss, a `dropreg.Loss`, PyTorch's own loss module, or a function.
        output: Picks the logits out of what the model returns, e.g. ``lambda o: o.start_logits``;
            if None, see `dropreg.control.passes.find_logits`.
        mc_samples: Number of draws of each estimate, at least 20.
        generator: Source of randomness; the default generator if None. The model's own dropout
            draws from PyTorch's generators, whose states are set back.

    Returns:
        The report: print it, and ask `agrees`.

    Raises:
        InputError: If an argument is wrong, or the targets do not fit.
        NoSitesError: If the model has no active dropout.
        ZeroProbabilityError: If every probability is 0.
        UnsupportedError: If the model draws noise that cannot be controlled.
        LogitsError: If the output is not floating-point logits, or holds NaN.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 2))
    >>> check(model, torch.randn(2, 4), torch.tensor([0, 1]), mc_samples=20).agrees
    True
    """
    require_count("mc_samples", mc_samples)
    if mc_samples < _LEAST_SAMPLES:
        raise InputError(
            f"mc_samples is {mc_samples}; standard errors to judge by need at least "
            f"{_LEAST_SAMPLES}."
        )
    sampling = Sampling(mc_samples, generator=generator)  # looks at the generator
    noisy = NoisyLoss(model, inputs, loss, targets, output)
    if not noisy.sites:
        raise ZeroProbabilityError(
            "every dropout of the model has probability 0: nothing to check."
        )
    noisy(clean)  # whether the targets fit is told before anything else
    device = torch.device("cpu") if generator is None else generator.device
    seeds = torch.randint(2**62, (mc_samples,), generator=generator, device=device).tolist()
    with torch.enable_grad(), float32_precision():
        return Report(tuple(_Check(noisy, inputs, seeds, sampling.samples).rows()))


@dataclass(frozen=True)
class _Draws:
    """Draws of a quantity, (samples, components), and the same with twice the difference."""

    fine: Tensor
    coarse: Tensor | None = None

    @property
    def doubt(self) -> Tensor:
        """What halving the finite difference changes, draw by draw."""
        return torch.zeros_like(self.fine) if self.coarse is None else self.fine - self.coarse


def _refusal(quantity: str, method: str, error: Exception) -> Row:
    words = " ".join(str(error).split())
    return Row(quantity, method, Verdict.REFUSED, note=f"{type(error).__name__}: {words}")


_REFUSALS = (DropregError, RuntimeError)
"""PyTorch's own, where it lacks a derivative, are of the second kind."""


def _estimate(x: Tensor) -> Estimate:
    return Estimate(x.mean().item(), (x.std() / len(x) ** 0.5).item(), len(x))


class _Check:
    """The comparisons on one model and batch."""

    def __init__(self, noisy: NoisyLoss, inputs: Any, seeds: list[int], samples: int) -> None:
        self.noisy, self.inputs, self.seeds, self.samples = noisy, inputs, seeds, samples
        self.params = [p for p in noisy.model.parameters() if p.requires_grad]
        self.directions = self._random_directions()
        self.low = noisy.sites.uses_half_precision or any(
            site.dtype.itemsize < 4 for site in noisy.sites
        )

    def rows(self) -> Iterator[Row]:
        """One quantity after the other."""
        yield from self._gradient_of_the_loss()
        yield from self._regularizer()
        yield from self._full_effect()
        yield from self._noise()

    # ------------------------------------------------------------------------------ what is drawn

    def _random_directions(self) -> list[list[Tensor]]:
        """Directions in parameter space, each entry of the order of its tensor's size."""
        if not self.params:
            return []
        generator = torch.Generator().manual_seed(self.seeds[0])
        with torch.no_grad():
            sizes = [p.double().square().mean().sqrt().item() for p in self.params]
        least = max(sizes) / 10  # a tensor that starts at zero is moved, too
        return [
            [
                max(size, least) * torch.randn(p.shape, generator=generator).to(p)
                for p, size in zip(self.params, sizes, strict=True)
            ]
            for _ in range(_DIRECTIONS)
        ]

    def _along(self, value: Tensor) -> Tensor:
        """A scalar and the slopes of it along the directions, by a backward pass."""
        slopes = [value.detach().double().cpu()]
        grads = (
            torch.autograd.grad(value, self.params, allow_unused=True)
            if value.requires_grad and self.params
            else [None] * len(self.params)
        )
        for direction in self.directions:
            terms = [
                (g.to_dense().double() * d.double()).sum().cpu()
                for g, d in zip(grads, direction, strict=True)
                if g is not None
            ]
            slopes.append(torch.stack(terms).sum() if terms else torch.zeros(()).double())
        return torch.stack(slopes)

    def _explicit(self, method: str, scale: float = _SCALE, law: Law | None = None) -> Tensor:
        """Draws of an explicit effect and its slopes; draw by draw the same noise in all."""
        once = method == ExplicitMethod.EXACT
        rows = []
        for seed in self.seeds[:1] if once else self.seeds:
            sampling = Sampling(1, law, scale, torch.Generator().manual_seed(seed))
            rows.append(self._along(regularizer(self.noisy, method, sampling)))
        return torch.stack(rows).expand(self.samples, -1) if once else torch.stack(rows)

    def _implicit(self, method: str, scale: float = _SCALE) -> Tensor:
        """Draws of a gradient noise: its value and its slopes."""
        rows = []
        for seed in self.seeds:
            sampling = Sampling(1, None, scale, torch.Generator().manual_seed(seed))
            rows.append(self._along(noise_term(self.noisy, method, sampling)))
        return torch.stack(rows)

    def _small(self, scale: float) -> tuple[Tensor, Tensor]:
        """Draws of the divergence over scale^2, and of the slope of the loss along the noise."""
        noisy, targets = self.noisy, self.noisy.require_targets()
        with without_gradients():
            base = noisy.logits(clean)[0].detach().double()
        base.requires_grad_()
        loss = noisy.criterion.mean(base, targets)
        (score,) = torch.autograd.grad(loss, base)
        divergences, slopes = [], []
        with without_gradients():
            for seed in self.seeds:
                probe = Probe(Law.RADEMACHER, torch.Generator().manual_seed(seed))
                ends = [noisy.logits(probe.at(sign * scale))[0].double() for sign in (-1, 1)]
                down, up = (noisy.criterion.mean(end, targets) for end in ends)
                # A class that is ruled out stays at -inf whatever the noise.
                moved = sum((end - base).nan_to_num(0.0) for end in ends)
                first_order = (score * moved).sum()
                divergences.append(((up + down) / 2 - loss - first_order / 2) / scale**2)
                slopes.append((up - down) / (2 * scale))
        return torch.stack(divergences).cpu()[:, None], torch.stack(slopes).cpu()[:, None]

    def _of_the_model_itself(self) -> Tensor:
        """The loss and its slopes under PyTorch's own dropout, which nothing of ours controls."""
        args, kwargs = call_arguments(self.inputs)
        cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        rows = []
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(self.seeds[0])
            if cuda:
                torch.cuda.manual_seed_all(self.seeds[0])
            for _ in self.seeds:
                with scratch_buffers(self.noisy.model):
                    logits = self.noisy.pick(self.noisy.model(*args, **kwargs))
                rows.append(self._along(self.noisy.mean(logits)))
        return torch.stack(rows)

    @contextmanager
    def _moved(self, direction: Sequence[Tensor], share: float) -> Iterator[None]:
        """The parameters moved along a direction, and back to the last bit."""
        before = [p.detach().clone() for p in self.params]
        try:
            with torch.no_grad():
                for p, d in zip(self.params, direction, strict=True):
                    p.add_(d, alpha=share)
            yield
        finally:
            with torch.no_grad():
                for p, old in zip(self.params, before, strict=True):
                    p.copy_(old)

    # --------------------------------------------------------------------------- the comparisons

    def _compared(
        self,
        quantity: str,
        reference: tuple[str, _Draws],
        methods: Mapping[str, Callable[[], _Draws]],
        paired: Sequence[str] = (),
    ) -> Iterator[Row]:
        """A row for the reference, and one for each method that is held against it."""
        name, of_reference = reference
        expected = of_reference.fine
        shown = int(expected.mean(0).abs().argmax())
        yield Row(quantity, name, Verdict.REFERENCE, _estimate(expected[:, shown]))
        for method, draw in methods.items():
            try:
                draws = draw()
            except _REFUSALS as error:
                yield _refusal(quantity, method, error)
                continue
            gap = draws.fine - expected
            if method in paired:

                def typical(x: Tensor) -> Tensor:
                    return x.abs().median(0).values  # a kink throws off a few draws, and far

                off, size, chance = typical(gap), expected.abs().mean(0).max(), 0.0 * gap[0]
            else:

                def typical(x: Tensor) -> Tensor:
                    return x.mean(0).abs()

                off, size = typical(gap), typical(expected).max()
                chance = _STANDARD_ERRORS * gap.std(0) / len(gap) ** 0.5
            doubt = typical(of_reference.doubt) + typical(draws.doubt)
            tolerance = chance + _MARGIN * doubt + _FLOOR * size
            outside = ~(off <= tolerance)  # a NaN is
            # A kink lies on one of several directions at most, what is wrong shows along them all.
            differs = outside.sum() >= min(2, len(outside))
            worst = int((off - tolerance).nan_to_num(torch.inf).argmax())
            note = f"off by {off[worst]:.2g}, tolerance {tolerance[worst]:.2g}"
            verdict = Verdict.DIFFERS if differs else Verdict.AGREES
            yield Row(quantity, method, verdict, _estimate(draws.fine[:, shown]), note)

    def _gradient_of_the_loss(self) -> Iterator[Row]:
        """Backward passes under noise, against finite differences in the parameters."""
        if not self.directions or self.low:
            return

        def probe(seed: int) -> Any:
            return Probe(Law.RADEMACHER, torch.Generator().manual_seed(seed)).at(1.0)

        def differences(share: float) -> Tensor:
            columns = []
            for direction in self.directions:
                ends = []
                for sign in (1, -1):
                    with self._moved(direction, sign * share), without_gradients():
                        logits = [self.noisy.logits(probe(seed))[0].double() for seed in seeds]
                        ends.append(torch.stack([self.noisy.mean(x) for x in logits]).cpu())
                columns.append((ends[0] - ends[1]) / (2 * share))
            return torch.stack(columns, 1)

        seeds = self.seeds[:_LEAST_SAMPLES]  # draw by draw, so that few suffice
        finite = _Draws(differences(_SHIFT), differences(2 * _SHIFT))

        def backward() -> _Draws:
            rows = [self._along(self.noisy(probe(seed)))[1:] for seed in seeds]
            return _Draws(torch.stack(rows))

        yield from self._compared(
            "gradient of the noisy loss",
            ("finite differences", finite),
            {"backward": backward},
            ["backward"],
        )

    def _regularizer(self) -> Iterator[Row]:
        """R_approx: its value, its gradient, and the slope of the loss along the noise."""
        logits = self.noisy.logits(clean)[0]
        drawn: dict[str, Tensor | Exception] = {}

        def values(method: str, scale: float = _SCALE) -> Tensor:
            key = f"{method} {scale}"
            if key not in drawn:
                try:
                    drawn[key] = self._explicit(method, scale)
                except _REFUSALS as error:
                    drawn[key] = error
            result = drawn[key]
            if isinstance(result, Exception):
                raise result
            return result

        def part(method: str, columns: slice) -> _Draws:
            fine = values(method)[:, columns]
            central = method == ExplicitMethod.CENTRAL
            return _Draws(fine, values(method, 2 * _SCALE)[:, columns] if central else None)

        names = ["exact", "sampled_labels", "jvp", "central"]
        if logits.numel() > _EXACT_UP_TO:
            names.remove("exact")
            note = f"left out: up to {logits.numel()} backward passes"
            yield Row("R_approx", "exact", Verdict.SHOWN, note=note)
        value, slopes = slice(0, 1), slice(1, None)
        methods: dict[str, Callable[[], _Draws]]
        methods = {name: partial(part, name, value) for name in names}
        if self.low:
            try:
                reference = "sampled_labels", part("sampled_labels", value)
            except _REFUSALS as error:
                yield _refusal("R_approx", "sampled_labels", error)
                return
            del methods["sampled_labels"]
            yield from self._compared("R_approx", reference, methods)
            return
        fine, coarse = self._small(_SCALE), self._small(2 * _SCALE)
        divergence = _Draws(fine[0], coarse[0])
        yield from self._compared(
            "R_approx", ("divergence", divergence), methods, ["jvp", "central"]
        )
        self.r_approx = fine[0].mean()
        if self.directions:
            others = [name for name in names if name != "central"]
            methods = {name: partial(part, name, slopes) for name in others}
            reference = "central", part("central", slopes)
            yield from self._compared("gradient of R_approx", reference, methods, ["jvp"])
        reference = "finite differences", _Draws(fine[1], coarse[1])
        methods = {"analytic": lambda: _Draws(self._implicit("analytic")[:, value])}
        yield from self._compared("slope along the noise", reference, methods, ["analytic"])
        if self.directions:
            ends = (self._implicit("central", scale)[:, slopes] for scale in (_SCALE, 2 * _SCALE))
            methods = {"analytic": lambda: _Draws(self._implicit("analytic")[:, slopes])}
            reference = "central", _Draws(*ends)
            yield from self._compared("gradient of that slope", reference, methods, ["analytic"])

    def _full_effect(self) -> Iterator[Row]:
        """R_drop, measured on the model itself and by masks under control."""
        self.own = self._of_the_model_itself()
        with without_gradients():
            base = self.noisy(clean).double().cpu()
        effect = self.own[:, :1] - base
        masks = {"monte_carlo": lambda: _Draws(self._explicit("monte_carlo")[:, :1])}
        yield from self._compared("R_drop", ("the model itself", _Draws(effect)), masks)
        even = _estimate(self._explicit("even_odd")[:, 0])
        yield Row("R_drop", "even_odd", Verdict.SHOWN, even, "up to fourth moments of the noise")
        if not self.low:
            share = self.r_approx / effect.mean()  # of tensors: zero is no error
            note = f"R_approx / R_drop = {share:.2f}: what second order leaves out"
            yield Row("R_drop", "R_approx", Verdict.SHOWN, note=note)

    def _noise(self) -> Iterator[Row]:
        """The variance of the gradient noise, summed over the directions."""
        if not self.directions:
            return
        own = self.own[:, 1:]
        share = len(own) / (len(own) - 1)  # of the variance, for the mean that was estimated
        variance = share * (own - own.mean(0)).square().sum(1, keepdim=True)

        def of(method: str) -> _Draws:
            return _Draws(self._implicit(method)[:, 1:].square().sum(1, keepdim=True))

        quantity = "variance of the gradient noise"
        yield from self._compared(
            quantity,
            ("the model itself", _Draws(variance)),
            {"dropout_pair": lambda: of(ImplicitMethod.DROPOUT_PAIR)},
        )
        for method in (ImplicitMethod.ANALYTIC, ImplicitMethod.CENTRAL, ImplicitMethod.EVEN_ODD):
            try:
                estimate = _estimate(of(method).fine[:, 0])
            except _REFUSALS as error:
                yield _refusal(quantity, method, error)
                continue
            ratio = f"{estimate.mean / variance.mean():.2f} times the model's own"
            yield Row(quantity, method, Verdict.SHOWN, estimate, ratio)
