r"""The loss as a function of the noise, :math:`\ell(\theta;\, \varepsilon\,\eta)`.

Every site computes :math:`h + \varepsilon\,\eta \odot h`. At :math:`\varepsilon = 0` the network is
clean, at :math:`\varepsilon = 1` with Bernoulli noise it is under dropout. The slope of the loss at
0 is the implicit noise, and the mean curvature in logit space is the explicit regularizer.
"""

from __future__ import annotations

import copy
import math
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from dropreg import losses
from dropreg.control.audit import audited
from dropreg.control.kernels import float32_precision
from dropreg.control.passes import (
    Arguments,
    Output,
    call_arguments,
    find_logits,
    forward,
    require_sites,
)
from dropreg.errors import InputError, PrecisionError, values_are_checked
from dropreg.noise import Law, Sampler, sampler_of
from dropreg.probes import Noise, OnRows, Probe, clean, require_all_met
from dropreg.sites import Site, Sites

_COMPARED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models whose own loss has been held against the one that is trained."""


class NoisyLoss:
    r"""A model's mean loss on one batch, :math:`\ell(\theta;\, \eta)`, for any noise at its sites.

    Attributes:
        inputs: As they were given.
        arguments: What they are for the model; see `dropreg.control.passes.call_arguments`.
        output: What the model returned in the last pass.
        pick: Picks the logits out of it.

    >>> model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))
    >>> loss = NoisyLoss(model, torch.randn(3, 4), "cross_entropy", torch.tensor([0, 1, 0]))
    >>> probe = Probe("rademacher")
    >>> at_full_strength, mirrored = loss(probe.at(1.0)), loss(probe.at(-1.0))
    >>> clean_loss = loss(lambda site: None)
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        loss: losses.AnyLoss,
        targets: Tensor | None = None,
        output: Output | None = None,
        strengths: Mapping[str, float] | None = None,
    ) -> None:
        """Bind model and batch.

        Args:
            model: The model, in train mode.
            inputs: A tensor, a tuple of positional or a dict of keyword arguments for it.
            loss: Name of the loss, a `dropreg.Loss`, PyTorch's own loss module, or a function.
            targets: Labels; without them only the logits can be asked for.
            output: Picks the logits out of what the model returns, e.g.
                ``lambda o: o.start_logits``; if None, see `dropreg.control.passes.find_logits`.
            strengths: Factors on the variance of the noise, by patterns of sites' names as in
                `fnmatch`, e.g. ``{"encoder.*": 0.5, "*.attention.*": 0.0}``; the last that fits
                counts, and where none does it is 1.

        Raises:
            InputError: If the loss is unknown.
            NoSitesError: If the model has no active dropout.
            UnsupportedError: If the model draws noise that cannot be controlled.
        """
        if torch.is_inference_mode_enabled():
            raise InputError("torch.inference_mode() forbids derivatives; use torch.no_grad().")
        if not isinstance(targets, Tensor | None):
            raise InputError(f"targets are a {type(targets).__name__}; they must be a tensor.")
        self.criterion = losses.resolve(loss)
        self.model, self.targets = model, targets
        self.output: Any = None
        self.inputs, self.arguments = inputs, call_arguments(inputs)
        self.pick = output or find_logits
        self._audit = audited(model, self.arguments, self.pick)
        self._strengths = dict(strengths or {})
        self._check_strengths()

    def _check_strengths(self) -> None:
        names = [site.name for site in self.sites]
        for pattern, strength in self._strengths.items():
            if not (isinstance(strength, (int, float)) and 0 <= strength < math.inf):
                raise InputError(
                    f"the strength of {pattern!r} is {strength!r}; it must be a number, at least 0."
                )
            if names and not any(fnmatchcase(name, pattern) for name in names):
                raise InputError(
                    f"strengths name {pattern!r}, which fits none of the sites: {', '.join(names)}."
                )

    def _with_strengths(self, noise: Noise) -> Noise:
        """A noise, times the root of each site's strength."""

        def scaled(site: Site) -> Tensor | OnRows | None:
            eta = noise(site)
            fitting = [s for p, s in self._strengths.items() if fnmatchcase(site.name, p)]
            return eta if eta is None or not fitting else fitting[-1] ** 0.5 * eta

        return scaled if self._strengths else noise

    def on(self, arguments: Arguments) -> NoisyLoss:
        """The same model on other inputs, without targets.

        Args:
            arguments: Its arguments; see `dropreg.control.passes.call_arguments`.

        Returns:
            A loss that can be asked for logits.
        """
        other = copy.copy(self)
        other.arguments, other.targets, other.output = arguments, None, None
        return other

    @property
    def sites(self) -> Sites:
        """The sites that an audit has found; none if every probability is 0."""
        return self._audit.sites

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters, but at least float32: that of scales and slopes."""
        types = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return torch.promote_types(next(types, torch.float32), torch.float32)

    def zero_scale(self) -> Tensor:
        """A scale of 0 to differentiate in, on the model's device, so that nothing waits."""
        first = next(self.model.parameters(), torch.zeros(()))
        return torch.zeros((), dtype=self.dtype, device=first.device, requires_grad=True)

    def logits(self, noise: Noise, *, update_buffers: bool = False) -> tuple[Tensor, list[Site]]:
        """One forward pass.

        Args:
            noise: The noise of each site.
            update_buffers: Whether batch-norm statistics and the like may change.

        Returns:
            The logits (..., C), and the sites that the pass met, which carry no names. `output`
            keeps all that the model returned.

        Raises:
            NoSitesError: If no site is met, or its subclass where the reason is known.
        """
        audit, control = self._audit, self._audit.control(self._with_strengths(noise))
        control.sites, control.inactive_p = [], []
        self.output = None  # of the pass before: there may be no room for both
        attributes = audit.changes_attributes
        scratch = (attributes or self.sites.changes_buffers) and not update_buffers
        self.output = forward(
            self.model, self.arguments, control, scratch=scratch, attributes=attributes
        )
        if noise is not clean or self.sites:
            require_sites(self.model, control)
        require_all_met(noise)
        if not audit.has_met(control.sites):  # a schedule, or another way through the model
            self._audit = audited(self.model, self.arguments, self.pick, again=True)
        logits = find_logits(self.pick(self.output))
        self.compare_losses(logits)
        return logits, control.sites

    def compare_losses(self, logits: Tensor) -> None:
        """Say so, once a model, if the model returns a loss of its own and it is another one.

        Args:
            logits: Those of the last pass.
        """
        own = getattr(self.output, "loss", None)
        if self.targets is None or not isinstance(own, Tensor) or own.numel() != 1:
            return
        if self.model in _COMPARED or not values_are_checked():
            return
        _COMPARED.add(self.model)
        ours, theirs = float(self.mean(logits).detach()), float(own.detach())
        if abs(ours - theirs) > 1e-2 * max(abs(ours), abs(theirs)):
            warnings.warn(
                f"the model returned a loss of its own, {theirs:.4g}, and the loss that is "
                f"trained here is {ours:.4g} at the same logits. Causal language models shift "
                "their labels: CrossEntropy(shift=True) does so. If the difference is meant, pass "
                "no labels to the model.",
                stacklevel=2,
            )

    def __call__(self, noise: Noise, *, update_buffers: bool = False) -> Tensor:
        """The mean loss under a noise.

        Args:
            noise: The noise of each site.
            update_buffers: Whether batch-norm statistics and the like may change.

        Returns:
            A scalar.
        """
        logits, _ = self.logits(noise, update_buffers=update_buffers)
        return self.mean(logits)

    def mean(self, logits: Tensor) -> Tensor:
        """The mean loss of given logits.

        Args:
            logits: Logits of this batch, (..., C).

        Returns:
            A scalar.

        Raises:
            InputError: If there are no targets, or they do not fit.
        """
        return self.criterion.mean(logits, self.require_targets())

    def require_targets(self) -> Tensor:
        """The targets.

        Returns:
            The labels.

        Raises:
            InputError: If there are none.
        """
        if self.targets is None:
            raise InputError("the loss needs targets.")
        return self.targets


DEFAULT_STEP = 0.2
"""Scale of a central difference's probe, where dropout itself has scale 1.

Smaller is not better. Where a network has kinks (ReLU), a kink between the two ends throws a sample
of the gradient off by the order of 1/step, with a probability of the order of step: the mean is
right, and the variance grows as 1/step. Larger steps let the third order in. The book's table of
methods shows both ends.
"""


def require_count(name: str, value: object) -> None:
    """Raise an `InputError` if an argument is no whole number, or less than 1; True is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be a whole number, at least 1.")


@dataclass(frozen=True)
class Sampling:
    """What an estimator draws.

    Attributes:
        samples: How many probes, labels or masks are averaged.
        law: Law of the noise; the method's own if None. See `dropreg.noise.sampler_of`.
        step: Scale of the probe in a central difference; see `DEFAULT_STEP`.
        generator: Source of randomness; the default generator if None.

    Raises:
        InputError: If one of them cannot be, whether the method uses it or not.
    """

    samples: int = 1
    law: Law | str | Sampler | None = None
    step: float = DEFAULT_STEP
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        require_count("mc_samples", self.samples)
        if self.law is not None:
            sampler_of(self.law)
        step = self.step
        if not isinstance(step, Real) or isinstance(step, bool) or not 0 < step <= 1:
            raise InputError(
                f"step is {step!r}; it must be a number, positive and at most 1, the scale of "
                f"dropout itself. The default is {DEFAULT_STEP}."
            )
        if not isinstance(self.generator, torch.Generator | None):
            raise InputError(
                f"generator is {self.generator!r}; it must be a torch.Generator, for instance "
                "torch.Generator().manual_seed(42), or None."
            )

    def probe(self, default: Law = Law.RADEMACHER) -> Probe:
        """A new probe, of the default law unless another is asked for."""
        return Probe(self.law or default, self.generator)

    def probes(self, default: Law = Law.RADEMACHER) -> Iterator[Probe]:
        """As many new probes as there are samples."""
        return (self.probe(default) for _ in range(self.samples))


def central_logits(
    noisy: NoisyLoss, probe: Probe, step: float, *, update_buffers: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Logits at both ends of a short antithetic pair.

    Args:
        noisy: Model and batch.
        probe: The noise.
        step: The scale :math:`\varepsilon`.
        update_buffers: Whether one of the two passes may change buffers.

    Returns:
        :math:`F(+\varepsilon\eta)` and :math:`F(-\varepsilon\eta)`.

    Raises:
        InputError: If the step is so small that the difference of the two drowns in rounding.
        PrecisionError: If the forward pass runs below float32.
    """
    with float32_precision():
        down, sites = noisy.logits(probe.at(-step))
        require_precise(noisy, down, sites, step)
        # Last: a pass may depend on the buffers (spectral norm), and both must start from the same.
        up, _ = noisy.logits(probe.at(step), update_buffers=update_buffers)
    return up, down


def require_precise(noisy: NoisyLoss, logits: Tensor, sites: Sequence[Site], step: float) -> None:
    """Refuse a central difference that would drown in rounding.

    Args:
        noisy: Model and batch.
        logits: What a pass gave.
        sites: The sites that it met.
        step: The scale of the probe.

    Raises:
        InputError: If the step is so small.
        PrecisionError: If the forward pass runs below float32.
    """
    low = any(site.dtype.itemsize < 4 for site in sites) or logits.dtype.itemsize < 4
    if low or noisy.sites.uses_half_precision:
        raise PrecisionError(
            "central differences need a float32 forward pass: half precision has too few bits "
            "for the difference of two nearby outputs. Leave autocast for this call, or use "
            "method='sampled_labels' or, in replace_dropout, 'even_odd'."
        )
    eps = max(torch.finfo(dtype).eps for dtype in (logits.dtype, *(s.dtype for s in sites)))
    # The logits are right up to eps times their size, so their derivative up to eps / step of
    # it. From eps^(1/3) on a smaller step loses; here a tenth of the logits would be lost.
    if step < 10 * eps:
        raise InputError(
            f"step is {step:g}, too small for this model's precision: rounding would err by "
            f"{eps / step:.0e} of the logits. Take the default, {DEFAULT_STEP}, or "
            f"something near {eps ** (1 / 3):.1g}."
        )


def half_quadratic(
    criterion: losses.Loss, up: Tensor, down: Tensor, step: float, targets: Tensor | None
) -> Tensor:
    r"""One sample of R_approx from an antithetic pair of logits.

    Args:
        criterion: The loss.
        up: Logits at :math:`+\varepsilon`.
        down: Logits at :math:`-\varepsilon`.
        step: The scale :math:`\varepsilon`.
        targets: See `dropreg.losses.Loss`.

    Returns:
        :math:`\tfrac12\, t^\top H_{out}\, t` with :math:`t = (F_+ - F_-) / 2\varepsilon` and
        :math:`H_{out}` at the mean of the two, per example.
    """
    t = (up - down) / (2 * step)
    return 0.5 * criterion.quadratic((up + down) / 2, t, targets)
