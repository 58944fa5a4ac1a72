r"""The implicit effect: the noise that dropout adds to the gradient, without changing its mean.

One training step sees a single mask, so its gradient is that of the expected loss plus the
mean-zero :math:`\xi_{drop} = \nabla_\theta \ell(F(x, \eta)) - \nabla_\theta\, E_\eta\, \ell(F(x,
\eta))` (Wei, Kakade and Ma 2020, Section 3.1). Noises with its covariance, or with the leading term
of it, are returned here as scalars: their gradient in the parameters is the noise, so that adding
one to a loss and calling ``backward`` adds the noise to the update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dropreg.control.kernels import (
    differentiable_kernels,
    refuse_static_graph,
    require_differentiable,
)
from dropreg.control.passes import Output
from dropreg.errors import Choice
from dropreg.losses import AnyLoss
from dropreg.noise import Law, Sampler
from dropreg.noisy_loss import DEFAULT_STEP, NoisyLoss, Sampling, central_logits


class ImplicitMethod(Choice):
    """How to draw the gradient noise."""

    ANALYTIC = "analytic"
    """xi_approx: the slope of the loss along a random probe, by a double backward."""
    CENTRAL = "central"
    """xi_approx up to O(step^2): the same slope by a central difference, no double backward."""
    EVEN_ODD = "even_odd"
    """The odd part of the noisy loss, (l(+eta) - l(-eta))/2: the noise with all its odd orders."""
    DROPOUT_PAIR = "dropout_pair"
    """The noise of dropout itself: the difference of two masks' losses, over the root of 2."""


def implicit_noise(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    loss: AnyLoss = "cross_entropy",
    output: Output | None = None,
    strengths: Mapping[str, float] | None = None,
    method: ImplicitMethod | str = "analytic",
    distribution: Law | str | Sampler | None = None,
    step: float = DEFAULT_STEP,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A scalar whose gradient in the parameters is one draw of dropout's gradient noise.

    "analytic" and "central" give the slope of the loss along the noise,

    .. math:: \xi_{approx} = \nabla_\theta \sum_i \langle
              \partial\ell/\partial h_i,\ \eta_i \odot h_i \rangle ,

    and "dropout_pair" gives

    .. math:: \tilde\xi_{drop} = \tfrac{1}{\sqrt 2}
              (\nabla\ell(F(x,\eta^1)) - \nabla\ell(F(x,\eta^2))) ,

    which has the covariance of dropout's own noise (Section 3.1). With Dropout_k, add it times
    :math:`\sqrt{1 - 1/k}`.

    Args:
        model: Any model with dropout, in train mode; it is not changed.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments for the model.
        targets: Labels.
        loss: Name of the loss, a `dropreg.Loss`, PyTorch's own loss module, or a function.
        output: Picks the logits out of what the model returns, e.g. ``lambda o: o.start_logits``;
            if None, see `dropreg.control.passes.find_logits`.
        strengths: Factors on the variance of the noise by patterns of sites' names, for instance
            ``{"encoder.*": 0.5}``: on their explicit effect and on the covariance of their noise;
            see `dropreg.NoisyLoss`.
        method: See `ImplicitMethod`.
        distribution: Law of the noise; Bernoulli for "dropout_pair", else Rademacher, if None.
        step: Scale of the probe in "central"; see `dropreg.noisy_loss.DEFAULT_STEP`.
        generator: Source of randomness; the default generator if None.

    Returns:
        A scalar with mean zero over the draws. Its value means nothing in itself; its gradient is
        the noise, in the unit of the gradient of the mean loss.

    Raises:
        InputError: If an argument is wrong, or the targets do not fit.
        NoSitesError: If the model has no active dropout.
        PrecisionError: If "central" is asked for in half precision or under autocast.
        UnsupportedError: If the model draws noise that cannot be controlled.
        LogitsError: If the output is not floating-point logits, or holds NaN.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    >>> implicit_noise(model, torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 0])).backward()
    """
    noisy = NoisyLoss(model, inputs, loss, targets, output, strengths)
    return noise_term(noisy, method, Sampling(1, distribution, step, generator))


def noise_term(noisy: NoisyLoss, method: ImplicitMethod | str, sampling: Sampling) -> Tensor:
    """A scalar whose gradient is a draw of the gradient noise on a batch; see `implicit_noise`."""
    method = ImplicitMethod(method)
    if method is ImplicitMethod.ANALYTIC:
        noisy.sites.require_reached(str(method))
    return _METHODS[method](noisy, sampling)


def _slope(noisy: NoisyLoss, sampling: Sampling) -> Tensor:
    refuse_static_graph(noisy.model)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), differentiable_kernels():
        scale = noisy.zero_scale()
        loss = noisy(sampling.probe().at(scale))
        (slope,) = torch.autograd.grad(
            loss, scale, create_graph=create_graph, materialize_grads=True
        )
        if create_graph and not slope.requires_grad:  # of sites that reach no logit
            slope = slope + 0.0 * loss
    require_differentiable(slope)
    return slope.to(loss)


def _central(noisy: NoisyLoss, sampling: Sampling) -> Tensor:
    up, down = central_logits(noisy, sampling.probe(), sampling.step)
    return (noisy.mean(up) - noisy.mean(down)) / (2 * sampling.step)


def _odd(noisy: NoisyLoss, sampling: Sampling) -> Tensor:
    probe = sampling.probe()
    return (noisy(probe.at(1.0)) - noisy(probe.at(-1.0))) / 2


def _pair(noisy: NoisyLoss, sampling: Sampling) -> Tensor:
    first, second = (noisy(sampling.probe(Law.BERNOULLI).at(1.0)) for _ in range(2))
    return (first - second) / 2**0.5


_METHODS: dict[ImplicitMethod, Callable[[NoisyLoss, Sampling], Tensor]] = {
    ImplicitMethod.ANALYTIC: _slope,
    ImplicitMethod.CENTRAL: _central,
    ImplicitMethod.EVEN_ODD: _odd,
    ImplicitMethod.DROPOUT_PAIR: _pair,
}
