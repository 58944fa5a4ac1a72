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

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from dropreg.control.kernels import (
    derivative_at_zero,
    differentiable_kernels,
    refuse_static_graph,
    require_differentiable,
)
from dropreg.control.passes import Output
from dropreg.coupling import PullBack, uncoupled
from dropreg.errors import Choice, InputError
from dropreg.losses import AnyLoss, Loss, ratio
from dropreg.noise import Law, Sampler, sample
from dropreg.noisy_loss import DEFAULT_STEP, NoisyLoss, Sampling, central_logits, half_quadratic
from dropreg.probes import NoiseLeaves, Probe, clean


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
    """The even part of the noisy loss, (l(+eta) + l(-eta))/2, minus the clean loss: the effect with
    all its even orders, from a probe and its mirror image at full strength; needs targets."""
    FULL_HESSIAN = "full_hessian"
    """The full second-order term, with the part that Gauss-Newton drops; needs targets."""
    MONTE_CARLO = "monte_carlo"
    """R_drop itself: the mean loss over random masks, minus the clean loss; needs targets."""
    IDENTITY = "identity"
    """Ablation (Section 5.2): the identity in place of H_out."""
    LOSS_JACOBIAN = "loss_jacobian"
    """Ablation (Table 1): the gradient of the true loss in place of H_out; needs targets. Where
    terms of the loss share a mask value, as the words of a sequence do, it is the square of their
    sum: of the loss of that sequence."""
    CENTRAL_IDENTITY = "central_identity"
    """The ablation "identity" by the two passes of "central"."""
    CENTRAL_LOSS_JACOBIAN = "central_loss_jacobian"
    """The gradient of each term's true loss in place of that term's H_out, by the two passes of
    "central"; needs targets. Where terms share a mask value it is the sum of their squares, and so
    not "loss_jacobian"."""

    @property
    def needs_targets(self) -> bool:
        """Whether the true labels enter."""
        return self in (
            self.EVEN_ODD,
            self.FULL_HESSIAN,
            self.MONTE_CARLO,
            self.LOSS_JACOBIAN,
            self.CENTRAL_LOSS_JACOBIAN,
        )

    @property
    def is_central(self) -> bool:
        """Whether it takes two ordinary passes close to the clean network."""
        return self in QUADRATICS


def explicit_regularizer(
    model: nn.Module,
    inputs: Any,
    *,
    loss: AnyLoss = "cross_entropy",
    output: Output | None = None,
    strengths: Mapping[str, float] | None = None,
    targets: Tensor | None = None,
    method: ExplicitMethod | str = "exact",
    mc_samples: int = 1,
    distribution: Law | str | Sampler | None = None,
    step: float = DEFAULT_STEP,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The explicit regularizer of a model's own dropout, at its own probabilities.

    Args:
        model: Any model with dropout, in train mode; it is not changed.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments for the model, which
            may return logits (..., C), an object with `.logits`, or a tuple that begins with them.
        loss: Name of the loss, a `dropreg.Loss`, PyTorch's own loss module, or a function.
        output: Picks the logits out of what the model returns, e.g. ``lambda o: o.start_logits``;
            if None, see `dropreg.control.passes.find_logits`.
        strengths: Factors on the variance of the noise by patterns of sites' names, for instance
            ``{"encoder.*": 0.5}``: on their explicit effect and on the covariance of their noise;
            see `dropreg.NoisyLoss`.
        targets: Labels. Needed by "even_odd", "full_hessian", "monte_carlo" and both methods with
            the loss Jacobian; elsewhere they only serve to leave out positions that do not count.
        method: See `ExplicitMethod`.
        mc_samples: Number of samples (labels, probes or masks) to average; "exact" and
            "loss_jacobian" have nothing to sample.
        distribution: Law of the probes; Rademacher if None, Bernoulli for "monte_carlo".
        step: Scale of the probe in the "central" methods; see `dropreg.noisy_loss.DEFAULT_STEP`.
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
    noisy = NoisyLoss(model, inputs, loss, targets, output, strengths)
    return regularizer(noisy, method, Sampling(mc_samples, distribution, step, generator))


def regularizer(noisy: NoisyLoss, method: ExplicitMethod | str, sampling: Sampling) -> Tensor:
    """The explicit regularizer of a model on a batch; see `explicit_regularizer`."""
    method = ExplicitMethod(method)
    if noisy.targets is None and method.needs_targets:
        raise InputError(f"method={str(method)!r} needs targets: it depends on the true labels.")
    if method in _DIFFERENTIATE_IN_THE_NOISE:
        noisy.sites.require_reached(str(method), forward=method is ExplicitMethod.JVP)
    return _METHODS[method](noisy, sampling)


_DIFFERENTIATE_IN_THE_NOISE = (
    ExplicitMethod.EXACT,
    ExplicitMethod.SAMPLED_LABELS,
    ExplicitMethod.JVP,
    ExplicitMethod.FULL_HESSIAN,
    ExplicitMethod.IDENTITY,
    ExplicitMethod.LOSS_JACOBIAN,
)


def _mean_of(
    one: Callable[[NoisyLoss, Probe, float], Tensor], noisy: NoisyLoss, sampling: Sampling
) -> Tensor:
    """The mean of an estimate over probes."""
    return torch.stack([one(noisy, probe, sampling.step) for probe in sampling.probes()]).mean()


def _half_squares(
    criterion: Loss, up: Tensor, down: Tensor, step: float, targets: Tensor | None
) -> Tensor:
    """Half the mean over the terms of |t|^2; as `half_quadratic`, with the identity as H_out."""
    count = criterion.divisor(up, targets)  # refuses targets that do not fit
    t = criterion.weighted((up - down) / (2 * step), targets)
    return ratio(0.5 * t.square().sum(), count)


def _half_squared_slopes(
    criterion: Loss, up: Tensor, down: Tensor, step: float, targets: Tensor | None
) -> Tensor:
    """Half the mean over the terms of (dl/d epsilon)^2, with each term's own loss l."""
    assert targets is not None
    count = criterion.divisor(up, targets)  # refuses targets that do not fit
    ends = (criterion.per_term(logits, targets) for logits in (up, down))
    slopes = criterion.weighted(reduce(torch.sub, ends) / (2 * step), targets, -0.5)
    return ratio(0.5 * slopes.square().sum(), count)


QUADRATICS: dict[ExplicitMethod, Callable[[Loss, Tensor, Tensor, float, Tensor | None], Tensor]] = {
    ExplicitMethod.CENTRAL: half_quadratic,
    ExplicitMethod.CENTRAL_IDENTITY: _half_squares,
    ExplicitMethod.CENTRAL_LOSS_JACOBIAN: _half_squared_slopes,
}
"""What the methods by two short passes make of the logits at both ends; see `half_quadratic`."""


def _central(method: ExplicitMethod, noisy: NoisyLoss, probe: Probe, step: float) -> Tensor:
    """One sample by a central difference."""
    up, down = central_logits(noisy, probe, step)
    return QUADRATICS[method](noisy.criterion, up, down, step, noisy.targets)


def _jvp(noisy: NoisyLoss, probe: Probe, step: float) -> Tensor:
    """One sample of R_approx: t is the forward-mode derivative of the logits along the probe."""
    refuse_static_graph(noisy.model)
    logits, t = derivative_at_zero(lambda scale: noisy.logits(probe.at(scale))[0])
    return 0.5 * noisy.criterion.quadratic(logits, t, noisy.targets)


def _full_hessian(noisy: NoisyLoss, probe: Probe, step: float) -> Tensor:
    """One sample of the full second-order term: the second derivative of the loss along a probe."""
    refuse_static_graph(noisy.model)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), differentiable_kernels(third_order=True):
        s = noisy.zero_scale()
        loss = noisy(probe.at(s))
        (slope,) = torch.autograd.grad(loss, s, create_graph=True, materialize_grads=True)
        if not slope.requires_grad:  # of sites that reach no logit
            return 0.0 * loss
        (curvature,) = torch.autograd.grad(
            slope, s, create_graph=create_graph, materialize_grads=True
        )
    require_differentiable(curvature)
    return 0.5 * curvature.to(loss)


def _noisy_minus_clean(
    law: Law, scales: Sequence[float], noisy: NoisyLoss, sampling: Sampling
) -> Tensor:
    """The mean loss over probes, each at every scale, minus the clean loss."""
    losses = [noisy(probe.at(scale)) for probe in sampling.probes(law) for scale in scales]
    return torch.stack(losses).mean() - noisy(clean)


Vectors = Iterator[Tensor]


def _from_outside(
    vectors: Callable[[NoisyLoss, Sampling, Tensor, PullBack], Vectors],
    noisy: NoisyLoss,
    sampling: Sampling,
) -> Tensor:
    """Pull vectors of logit space back to all sites, and sum the squares of what arrives."""
    refuse_static_graph(noisy.model)
    create_graph = torch.is_grad_enabled()
    leaves = NoiseLeaves()
    with torch.enable_grad(), differentiable_kernels():
        logits, sites = noisy.logits(leaves)
        count = noisy.criterion.divisor(logits, noisy.targets)  # refuses targets that do not fit

        def pull_back(u: Tensor, create_graph: bool = create_graph) -> tuple[Tensor, ...]:
            return torch.autograd.grad(
                logits,
                leaves.etas,
                u.to(logits.dtype),
                retain_graph=True,
                create_graph=create_graph,
                materialize_grads=True,
            )

        total = torch.zeros((), device=logits.device)
        for u in vectors(noisy, sampling, logits, pull_back):
            for site, g in zip(sites, pull_back(u), strict=True):
                total = total + site.variance * g.square().sum().to(logits.device)
    return ratio(0.5 * total, count)


def _scores(noisy: NoisyLoss, sampling: Sampling, logits: Tensor, _: PullBack) -> Vectors:
    """Gradients of the loss at labels sampled from the prediction."""
    for _sample in range(sampling.samples):
        score = noisy.criterion.sampled_score(logits, noisy.targets, sampling.generator)
        yield score / sampling.samples**0.5


def _signs(noisy: NoisyLoss, sampling: Sampling, logits: Tensor, _: PullBack) -> Vectors:
    """A random sign for each entry: the noise of dropout with p = 1/2 has variance 1."""
    source: dict[str, Any] = {"generator": sampling.generator, "device": logits.device}
    for _sample in range(sampling.samples):
        signs = sample(Law.RADEMACHER, logits.shape, 0.5, **source)
        yield noisy.criterion.weighted(signs, noisy.targets) / sampling.samples**0.5


def _true_score(noisy: NoisyLoss, sampling: Sampling, logits: Tensor, _: PullBack) -> Vectors:
    """The gradient of the loss, summed over its terms, at the true labels."""
    total = noisy.mean(logits) * noisy.criterion.divisor(logits, noisy.targets)
    (score,) = torch.autograd.grad(total, logits, create_graph=True)
    yield noisy.criterion.weighted(score, noisy.targets, -0.5)


def _exact_vectors(
    noisy: NoisyLoss, sampling: Sampling, logits: Tensor, pull_back: PullBack
) -> Vectors:
    """Vectors u such that the squares of their pull-backs sum to R_approx, as few as possible."""
    # One would be needed for each column of the root of H_out and each term of the loss. But terms
    # with no noise coordinate in common, such as the examples of a batch, can share one: their
    # pull-backs do not overlap, so their squares do not mix.
    criterion = noisy.criterion
    by_term = criterion.classes_to_last(logits)
    classes = by_term.shape[-1] if criterion.classes_last else 1
    parameters = [p for p in noisy.model.parameters() if p.requires_grad]

    def pull_back_by_term(u: Tensor, **options: bool) -> tuple[Tensor, ...]:
        return pull_back(criterion.classes_back(u), **options)

    term_dims = by_term.ndim - criterion.classes_last
    groups = uncoupled(by_term, term_dims, pull_back_by_term, parameters)
    if (passes := classes * len(groups)) > 10_000:
        warnings.warn(
            f"method='exact' takes {passes:,} backward passes for logits of shape "
            f"{tuple(logits.shape)}; 'sampled_labels', 'jvp' and 'central' estimate the same value "
            "without bias from one or two.",
            stacklevel=5,
        )
    for root in criterion.roots(logits, noisy.targets):
        for group in groups:
            chosen = torch.zeros_like(root)
            criterion.classes_to_last(chosen)[group] = 1.0
            yield root * chosen


_METHODS: dict[ExplicitMethod, Callable[[NoisyLoss, Sampling], Tensor]] = {
    ExplicitMethod.EXACT: partial(_from_outside, _exact_vectors),
    ExplicitMethod.SAMPLED_LABELS: partial(_from_outside, _scores),
    ExplicitMethod.JVP: partial(_mean_of, _jvp),
    **{method: partial(_mean_of, partial(_central, method)) for method in QUADRATICS},
    ExplicitMethod.EVEN_ODD: partial(_noisy_minus_clean, Law.RADEMACHER, (1.0, -1.0)),
    ExplicitMethod.FULL_HESSIAN: partial(_mean_of, _full_hessian),
    ExplicitMethod.MONTE_CARLO: partial(_noisy_minus_clean, Law.BERNOULLI, (1.0,)),
    ExplicitMethod.IDENTITY: partial(_from_outside, _signs),
    ExplicitMethod.LOSS_JACOBIAN: partial(_from_outside, _true_score),
}
