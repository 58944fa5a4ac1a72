r"""Ground truth by Monte Carlo: the explicit effect of dropout, and the covariance of its noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dropreg.control.kernels import without_gradients
from dropreg.control.passes import Output
from dropreg.errors import InputError
from dropreg.implicit import noise_term
from dropreg.losses import AnyLoss
from dropreg.noise import Law, Sampler
from dropreg.noisy_loss import DEFAULT_STEP, NoisyLoss, Sampling, require_count
from dropreg.probes import clean


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo mean with its standard error.

    Attributes:
        mean: The mean of the samples.
        standard_error: Their standard deviation over the root of their number.
        samples: Their number.
    """

    mean: float
    standard_error: float
    samples: int

    def __str__(self) -> str:
        """Mean and standard error, e.g. ``0.1560 ± 0.0020``."""
        return f"{self.mean:.4f} ± {self.standard_error:.4f}"


def measure_explicit(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    loss: AnyLoss = "cross_entropy",
    output: Output | None = None,
    mc_samples: int = 1000,
    distribution: Law | str | Sampler = "bernoulli",
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""The explicit regularizer of dropout itself, :math:`R_{drop} = E_\eta\ell - \ell`, measured.

    Args:
        model: Any model with dropout, in train mode; it is not changed.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments for the model.
        targets: Labels.
        loss: Name of the loss, a `dropreg.Loss`, PyTorch's own loss module, or a function.
        output: Picks the logits out of what the model returns, e.g. ``lambda o: o.start_logits``;
            if None, see `dropreg.control.passes.find_logits`.
        mc_samples: Number of masks, at least 2.
        distribution: Law of the noise.
        generator: Source of randomness; the default generator if None.

    Returns:
        Mean and standard error over the masks, in the loss's unit. The batch is taken as given: the
        error does not include that of sampling the data.

    Raises:
        InputError: If there are fewer than 2 samples, or another argument is wrong.
        NoSitesError: If the model has no active dropout.
        UnsupportedError: If the model draws noise that cannot be controlled.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    >>> r = measure_explicit(model, torch.randn(2, 4), torch.tensor([0, 1]), mc_samples=50)
    >>> r.samples
    50
    """
    _require_two(mc_samples)
    noisy = NoisyLoss(model, inputs, loss, targets, output)
    sampling = Sampling(mc_samples, distribution, generator=generator)
    with without_gradients():
        base = noisy(clean)
        draws = [noisy(probe.at(1.0)) for probe in sampling.probes()]
        effect = torch.stack(draws).double() - base.double()
    return Estimate(effect.mean().item(), (effect.std() / mc_samples**0.5).item(), mc_samples)


def gradient_noise(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    loss: AnyLoss = "cross_entropy",
    output: Output | None = None,
    method: str = "dropout",
    distribution: Law | str | Sampler | None = None,
    step: float = DEFAULT_STEP,
    mc_samples: int = 1000,
    projections: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws of the gradient, or of its noise: their covariance is the implicit effect.

    ``gradient_noise(...).T.cov()`` is the covariance matrix: full on a tiny model, and with
    `projections` its image :math:`P\,\Sigma\,P^\top` under a random matrix with orthonormal rows on
    a large one. Two calls with the same number of projections use the same matrix.

    Args:
        model: Any model with dropout, in train mode; it and its ``.grad`` are not changed.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments for the model.
        targets: Labels.
        loss: Name of the loss, a `dropreg.Loss`, PyTorch's own loss module, or a function.
        output: Picks the logits out of what the model returns, e.g. ``lambda o: o.start_logits``;
            if None, see `dropreg.control.passes.find_logits`.
        method: "dropout" for the gradient under one random mask, or an `ImplicitMethod`.
        distribution: Law of the noise; the method's own default if None.
        step: Scale of the probe in "central"; see `dropreg.noisy_loss.DEFAULT_STEP`.
        mc_samples: Number of draws, at least 2.
        projections: Number of random directions to project on; None keeps all parameters.
        generator: Source of randomness of the noise; the default generator if None.

    Returns:
        A tensor (mc_samples, parameters), or (mc_samples, projections). Its mean over the draws is
        the gradient of the expected loss for "dropout", and zero for the others.

    Raises:
        InputError: If there are fewer than 2 samples, or another argument is wrong.
        NoSitesError: If the model has no active dropout.
        UnsupportedError: If the model draws noise that cannot be controlled.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))
    >>> x, y = torch.randn(2, 3), torch.tensor([0, 1])
    >>> gradient_noise(model, x, y, mc_samples=10).T.cov().shape
    torch.Size([8, 8])
    """
    _require_two(mc_samples)
    params = [p for p in model.parameters() if p.requires_grad]
    noisy = NoisyLoss(model, inputs, loss, targets, output)
    sampling = Sampling(1, distribution, step, generator)
    basis = None if projections is None else _orthonormal_rows(projections, params)
    rows = []
    for _ in range(mc_samples):
        if method == "dropout":
            value = noisy(sampling.probe(Law.BERNOULLI).at(1.0))
        else:
            value = noise_term(noisy, method, sampling)
        grads = torch.autograd.grad(value, params, materialize_grads=True)
        row = torch.cat([g.flatten() for g in grads])
        rows.append(row if basis is None else basis @ row)
    return torch.stack(rows)


def _orthonormal_rows(projections: int, params: Sequence[Tensor]) -> Tensor:
    size = sum(p.numel() for p in params)
    require_count("projections", projections)
    if projections > size:
        raise InputError(f"projections is {projections}; the model has {size} parameters.")
    random = torch.randn(size, projections, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(random)[0].T.to(params[0])


def _require_two(mc_samples: int) -> None:
    require_count("mc_samples", mc_samples)
    if mc_samples < 2:
        raise InputError(f"mc_samples is {mc_samples}; a spread needs at least 2.")
