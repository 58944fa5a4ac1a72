r"""The explicit regularizer: how dropout changes the expected objective.

.. math:: R_{approx} = \tfrac12 \sum_i \frac{q_i}{1-q_i}
          \langle J_i^\top H_{out} J_i,\ \mathrm{diag}(h_i^2) \rangle

(Wei, Kakade and Ma 2020, Section 3.2), averaged over the examples. In the noise coordinates
:math:`\eta_i` of site :math:`i` it is a plain sum of squares, since :math:`\partial F / \partial
\eta_i = J_i\, \mathrm{diag}(h_i)`. So nothing here needs to know what the sites are; and where
entries share one mask value, autograd adds them up before anything is squared.

Two families compute it. From the *outside*, a vector :math:`u` in logit space with
:math:`E\,uu^\top = H_{out}` is pulled back to all sites at once, and the squares of what arrives
are summed. From the *inside*, a probe :math:`\eta` moves all sites at once, and with
:math:`t = dF/d\varepsilon` the answer is :math:`\tfrac12\, t^\top H_{out}\, t`.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dropreg.errors import Choice, InputError
from dropreg.kernels import differentiable_kernels
from dropreg.losses import Loss, half_quadratic
from dropreg.noise import Law, Probe, require_grad_mode, sample
from dropreg.objective import DEFAULT_STEP, NoisyLoss, central_logits, clean
from dropreg.sites import Site


class ExplicitMethod(Choice):
    """How to compute the explicit regularizer, or what to compute in its place."""

    EXACT = "exact"
    """R_approx with no sampling, by one backward pass for each class; for small outputs."""
    SAMPLED_LABELS = "sampled_labels"
    """R_approx, unbiased: labels sampled from the prediction, the way of the paper's authors."""
    JVP = "jvp"
    """R_approx, unbiased: the forward-mode derivative along a random probe."""
    CENTRAL = "central"
    """R_approx, unbiased up to O(step^2): a probe and its mirror image, no double backward."""
    EVEN_ODD = "even_odd"
    """The even part of the noisy loss, (l(+eta) + l(-eta))/2, less the clean loss: the effect with
    all its even orders, from a probe and its mirror image at full strength; needs targets."""
    FULL_HESSIAN = "full_hessian"
    """The full second-order term, with the part that Gauss-Newton drops; needs targets."""
    MONTE_CARLO = "monte_carlo"
    """R_drop itself: the mean loss over random masks, less the clean loss; needs targets."""
    IDENTITY = "identity"
    """Ablation (Section 5.2): the identity in place of H_out."""
    LOSS_JACOBIAN = "loss_jacobian"
    """Ablation (Table 1): the gradient of the true loss in place of H_out; needs targets."""

    @property
    def needs_targets(self) -> bool:
        """Whether the true labels enter."""
        return self in (self.EVEN_ODD, self.FULL_HESSIAN, self.MONTE_CARLO, self.LOSS_JACOBIAN)


def explicit_regularizer(
    model: nn.Module,
    inputs: Any,
    *,
    loss: str | Loss = "cross_entropy",
    targets: Tensor | None = None,
    method: ExplicitMethod | str = "exact",
    mc_samples: int = 1,
    distribution: Law | str | None = None,
    step: float = DEFAULT_STEP,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The explicit regularizer of a model's own dropout, at its own probabilities.

    Args:
        model: Any model with dropout, in train mode; it is not changed.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments for the model, which
            may return logits (..., C), an object with `.logits`, or a tuple that begins with them.
        loss: Name of the loss, or a `dropreg.losses.Loss`.
        targets: Labels. Needed by "even_odd", "full_hessian", "monte_carlo" and "loss_jacobian";
            elsewhere they only serve to leave out positions that do not count.
        method: See `ExplicitMethod`.
        mc_samples: Number of samples (labels, probes or masks) to average; "exact" and
            "loss_jacobian" have nothing to sample.
        distribution: Law of the probes; Rademacher if None, Bernoulli for "monte_carlo".
        step: Strength of the probe in "central"; see `dropreg.objective.DEFAULT_STEP`.
        generator: Source of randomness; the default generator if None.

    Returns:
        A scalar in the loss's unit (nats): a mean over examples (positions), to be added to a mean
        loss. It is differentiable in the parameters.

    Raises:
        InputError: If an argument is wrong, or targets are missing or do not fit.
        NoSitesError: If the model has no active dropout.
        PrecisionError: If "central" is asked for in half precision or under autocast.
        UnsupportedError: If the model draws noise that cannot be controlled.
        LogitsError: If the output is not floating-point logits, or holds NaN.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    >>> r = explicit_regularizer(model, torch.randn(5, 4))
    >>> r.backward()
    """
    method = ExplicitMethod(method)
    objective = NoisyLoss(model, inputs, loss, targets)
    if mc_samples < 1:
        raise InputError(f"mc_samples is {mc_samples}; at least one sample is needed.")
    if targets is None and method.needs_targets:
        raise InputError(f"method={str(method)!r} needs targets: it depends on the true labels.")
    if method in _FROM_OUTSIDE:
        return _from_outside(objective, method, mc_samples, generator)
    law = Law.BERNOULLI if method is ExplicitMethod.MONTE_CARLO else Law.RADEMACHER
    probes = (Probe(distribution or law, generator) for _ in range(mc_samples))
    if method in (ExplicitMethod.MONTE_CARLO, ExplicitMethod.EVEN_ODD):
        strengths = (1.0, -1.0) if method is ExplicitMethod.EVEN_ODD else (1.0,)
        noisy = torch.stack([objective(probe.at(s)) for probe in probes for s in strengths])
        return noisy.mean() - objective(clean)
    if method is ExplicitMethod.CENTRAL:
        samples = [central(objective, probe, step) for probe in probes]
    elif method is ExplicitMethod.JVP:
        samples = [_jvp(objective, probe) for probe in probes]
    else:
        samples = [_full_hessian(objective, probe) for probe in probes]
    return torch.stack(samples).mean()


def central(objective: NoisyLoss, probe: Probe, step: float) -> Tensor:
    """One sample of R_approx by a central difference; see `dropreg.losses.half_quadratic`."""
    up, down = central_logits(objective, probe, step)
    return half_quadratic(objective.criterion, up, down, step, objective.targets)


def _jvp(objective: NoisyLoss, probe: Probe) -> Tensor:
    """One sample of R_approx: t is the forward-mode derivative of the logits along the probe."""
    strength, direction = torch.zeros(()), torch.ones(())
    with differentiable_kernels(forward_mode=True):
        logits_and_t: tuple[Tensor, Tensor] = torch.func.jvp(  # type: ignore[assignment]
            lambda s: objective.logits(probe.at(s))[0], (strength,), (direction,)
        )
    return 0.5 * objective.criterion.quadratic(*logits_and_t, objective.targets)


def _full_hessian(objective: NoisyLoss, probe: Probe) -> Tensor:
    """One sample of the full second-order term: the second derivative of the loss along a probe."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), differentiable_kernels(third_order=True):
        s = objective.zero_strength()
        loss = objective(probe.at(s))
        (slope,) = torch.autograd.grad(loss, s, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, s, create_graph=create_graph)
    return 0.5 * curvature.to(loss)


class NoiseLeaves:
    """Noise that is zero and asks for its gradient: the coordinates in which sites are squared."""

    def __init__(self) -> None:
        """Start with no site met."""
        self.etas: list[Tensor] = []

    def __call__(self, site: Site) -> Tensor:
        """A zero tensor of the site's mask shape that requires a gradient."""
        require_grad_mode(site)
        eta = torch.zeros(
            site.mask_shape, dtype=site.noise_dtype, device=site.device, requires_grad=True
        )
        self.etas.append(eta)
        return eta


_FROM_OUTSIDE = {
    ExplicitMethod.EXACT,
    ExplicitMethod.SAMPLED_LABELS,
    ExplicitMethod.IDENTITY,
    ExplicitMethod.LOSS_JACOBIAN,
}


def _from_outside(
    objective: NoisyLoss,
    method: ExplicitMethod,
    mc_samples: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Pull vectors of logit space back to all sites, and sum the squares of what arrives."""
    create_graph = torch.is_grad_enabled()
    criterion, targets = objective.criterion, objective.targets
    leaves = NoiseLeaves()
    with torch.enable_grad(), differentiable_kernels():
        logits, sites = objective.logits(leaves)
        count = criterion.count(logits, targets)  # first: it refuses targets that do not fit

        def pull_back(u: Tensor, create_graph: bool = create_graph) -> tuple[Tensor, ...]:
            return torch.autograd.grad(
                logits,
                leaves.etas,
                u.to(logits.dtype),
                retain_graph=True,
                create_graph=create_graph,
                materialize_grads=True,
            )

        if method is ExplicitMethod.EXACT:
            vectors = _exact_vectors(objective, logits, lambda u: pull_back(u, create_graph=False))
        elif method is ExplicitMethod.LOSS_JACOBIAN:
            total_loss = objective.mean(logits) * count
            vectors = iter(torch.autograd.grad(total_loss, logits, create_graph=True))
        elif method is ExplicitMethod.SAMPLED_LABELS:
            vectors = (
                criterion.sampled_score(logits, targets, generator) / mc_samples**0.5
                for _ in range(mc_samples)
            )
        else:
            vectors = (
                criterion.weighted(_signs(logits, generator), targets) / mc_samples**0.5
                for _ in range(mc_samples)
            )
        total = torch.zeros((), device=logits.device)
        for u in vectors:
            for site, g in zip(sites, pull_back(u), strict=True):
                total = total + site.variance * g.square().sum().to(logits.device)
    return 0.5 * total / count


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """A random sign for each entry: the noise of dropout with p = 1/2 has variance 1."""
    return sample(Law.RADEMACHER, like.shape, 0.5, generator=generator, device=like.device)


def _exact_vectors(
    objective: NoisyLoss, logits: Tensor, pull_back: Callable[[Tensor], tuple[Tensor, ...]]
) -> Iterator[Tensor]:
    """Vectors u such that the squares of their pull-backs sum to R_approx, as few as possible."""
    # One would be needed for each column of the root of H_out and each term of the loss. But terms
    # with no noise coordinate in common, such as the examples of a batch, can share one: their
    # pull-backs do not overlap, so their squares do not mix.
    term_dims = logits.shape[:-1] if objective.criterion.classes_last else logits.shape
    loops: list[Sequence[int | slice]] = [
        range(size) if _coupled(logits, dim, pull_back) else [slice(None)]
        for dim, size in enumerate(term_dims)
    ]
    passes = math.prod(map(len, loops)) * (
        logits.shape[-1] if objective.criterion.classes_last else 1
    )
    if passes > 10_000:
        warnings.warn(
            f"method='exact' takes {passes:,} backward passes for logits of shape "
            f"{tuple(logits.shape)}; 'sampled_labels', 'jvp' and 'central' estimate the same value "
            "without bias from one or two.",
            stacklevel=4,
        )
    for root in objective.criterion.roots(logits, objective.targets):
        for index in itertools.product(*loops):
            chosen = torch.zeros_like(root)
            chosen[index] = 1.0
            yield root * chosen


def _coupled(logits: Tensor, dim: int, pull_back: Callable[[Tensor], tuple[Tensor, ...]]) -> bool:
    """Whether some noise coordinate acts on two different indices of this dimension."""
    # Any two indices differ in a binary digit. So for each digit the indices where it is 0 are set
    # against those where it is 1: log2(n) tests of two backward passes cover all pairs. What is
    # pulled back is NaN, which spreads along every path, also where a derivative is 0 by chance
    # (identity weights, one-hot inputs): its own derivative need not be 0.
    index = torch.arange(logits.shape[dim], device=logits.device)
    index = index.reshape([-1 if d == dim else 1 for d in range(logits.ndim)])
    nothing = torch.zeros_like(logits)
    for digit in range((logits.shape[dim] - 1).bit_length()):
        is_one = ((index >> digit) & 1).bool().expand(logits.shape)
        with torch.autograd.set_detect_anomaly(False):
            zeros = pull_back(nothing.masked_fill(~is_one, torch.nan))
            ones = pull_back(nothing.masked_fill(is_one, torch.nan))
        if any((a.isnan() & b.isnan()).any() for a, b in zip(zeros, ones, strict=True)):
            return True
    return False
