r"""Losses, with what the regularizers need of them: the Hessian :math:`H_{out}` in the logits.

A loss here is a mean over terms: examples, or the positions of sequences, for cross-entropy, and
single entries for the other two, as in PyTorch. It is in nats where it is a log-likelihood.
:math:`H_{out} = \partial^2 \ell / \partial F^2` is the Hessian of one term in its logits :math:`F`.
For these losses it does not depend on the label.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dropreg.errors import InputError, values_are_checked


class Loss:
    r"""A mean over terms, each a function of its logits and its label.

    For a loss of your own write `per_term`, and `draw` if it is a log-likelihood; what a
    regularizer needs is derived from them by automatic differentiation. Its Hessian must not depend
    on the label, as that of an exponential family in its natural parameters does not.

    In all methods `logits` are the model's output, (..., C), `t` and `u` are tensors of that shape.
    `targets` are the labels, whose form depends on the loss; an `InputError` is raised where they
    do not fit the logits. Where only :math:`H_{out}` is asked for they are optional, and serve to
    leave out the terms that do not count (padding). `generator` is the source of randomness, the
    default generator of the logits' device if None.

    >>> class Poisson(Elementwise):
    ...     def per_term(self, logits, targets):
    ...         return logits.exp() - targets * logits
    ...     def draw(self, logits, generator=None):
    ...         return torch.poisson(logits.exp(), generator)
    >>> Poisson().quadratic(torch.zeros(3), torch.ones(3))
    tensor(1.)
    """

    classes_last: bool = True
    """Whether the last dimension of the logits belongs to one term (classes), or is one more
    dimension of independent terms."""

    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each term, (...) if `classes_last`, else (..., C), for logits in float32."""
        raise InputError(f"{type(self).__name__} needs a method `per_term`; see dropreg.Loss.")

    def draw(self, logits: Tensor, generator: Generator | None = None) -> Tensor:
        """Labels sampled from the prediction, in the form of targets, for logits in float32."""
        raise InputError(
            f"{type(self).__name__} does not say how to draw a label, which 'sampled_labels' "
            "needs: write its method `draw`, or choose another method."
        )

    def counted(self, targets: Tensor) -> Tensor | None:
        """Which terms count, as a mask of the terms' shape; None if all do."""
        return None

    def count(self, logits: Tensor, targets: Tensor | None = None) -> int | Tensor:
        """The number of terms over which `mean` averages; without targets every term counts.

        Returns:
            The number, to turn a mean into a sum. Within `dropreg.errors.values_unchecked` it may
            be a scalar tensor, which has not been looked at.

        Raises:
            InputError: If the targets do not fit the logits.
        """
        terms = logits[..., 0] if self.classes_last else logits
        if targets is None:
            return terms.numel()
        if targets.shape != terms.shape or targets.is_floating_point() == self.classes_last:
            kind = "integer class labels" if self.classes_last else "floating-point targets"
            raise InputError(
                f"{type(self).__name__} needs {kind} of shape {tuple(terms.shape)} for logits of "
                f"shape {tuple(logits.shape)}, got {targets.dtype} of shape {tuple(targets.shape)}."
            )
        counted = self.counted(targets)
        return terms.numel() if counted is None else counted.sum()

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The training loss, a scalar: the mean over all terms that count."""
        count = self.count(logits, targets)
        return self._total(_at_least_float32(logits), targets) / count

    def quadratic(self, logits: Tensor, t: Tensor, targets: Tensor | None = None) -> Tensor:
        r"""Curvature along a direction: :math:`\frac1N \sum_n t_n^\top H_{out,n}\, t_n`.

        Returns:
            A scalar, differentiable in the logits and in the direction `t`, of the same shape.
        """
        t = _at_least_float32(t)
        return (t * self._curved(logits, t, targets)).sum() / self.count(logits, targets)

    def roots(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        r"""The columns :math:`s_j` of a square root, :math:`H_{out} = \sum_j s_j s_j^\top`.

        Yields:
            One tensor of the shape of the logits for each column, zero where a term does not count.
        """
        units = torch.eye(logits.shape[-1], device=logits.device).unbind()
        columns = [self._curved(logits, unit.expand_as(logits), targets) for unit in units]
        h = torch.stack(columns, -1)
        # Where an eigenvalue is 0 its root has no derivative. So the root is a constant, plus what
        # makes s s' follow h to first order; only s s' is ever used.
        eigenvalues, vectors = torch.linalg.eigh(h.detach())
        least = eigenvalues[..., -1:] * torch.finfo(h.dtype).eps * len(units)
        scale = eigenvalues.where(eigenvalues > least, 0.0).sqrt()[..., None, :]
        inverse = vectors * scale.reciprocal().where(scale > 0, 0.0)
        yield from (vectors * scale + 0.5 * (h - h.detach()) @ inverse).unbind(-1)

    def sampled_score(
        self, logits: Tensor, targets: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        r"""The gradient :math:`u = \nabla_F\,\ell_{y'}` at labels sampled from the prediction.

        :math:`E\,u = 0` and :math:`E\,u u^\top = H_{out}`: Fisher and Gauss-Newton agree here.
        The law of :math:`y'` depends on the parameters too, which plain differentiation of a sample
        forgets. So :math:`u` carries the factor :math:`\sqrt{p_{y'} / \bar p_{y'}}`, where the bar
        stops gradients: its value is 1, and with it :math:`\nabla_\theta\, u u^\top` is an unbiased
        estimate of :math:`\nabla_\theta H_{out}` as well.

        Returns:
            A tensor of the shape of the logits, zero where a term does not count.
        """
        point = _point(logits)
        label = self.draw(point.detach(), generator)
        with torch.enable_grad():
            per_term = self.per_term(point, label)
            (score,) = torch.autograd.grad(per_term.sum(), point, create_graph=True)
            factor = ((per_term.detach() - per_term) / 2).exp()
            score = score * (factor[..., None] if self.classes_last else factor)
        differentiable = torch.is_grad_enabled() and logits.requires_grad
        return self.weighted(score if differentiable else score.detach(), targets)

    def weighted(self, u: Tensor, targets: Tensor | None) -> Tensor:
        """A tensor of the logits' shape, set to zero at terms that do not count."""
        counted = None if targets is None else self.counted(targets)
        if counted is None:
            return u
        return u * (counted.unsqueeze(-1) if self.classes_last else counted)

    def _total(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum over the terms that count."""
        per_term, counted = self.per_term(logits, targets), self.counted(targets)
        return (per_term if counted is None else per_term.where(counted, 0.0)).sum()

    def _curved(self, logits: Tensor, t: Tensor, targets: Tensor | None) -> Tensor:
        """H_out t of each term, differentiable in both tensors."""
        point = _point(logits)
        with torch.enable_grad():
            if targets is None:  # any label will do
                terms = point[..., 0].long() if self.classes_last else point
                total = self.per_term(point, torch.zeros_like(terms)).sum()
            else:
                total = self._total(point, targets)
            (score,) = torch.autograd.grad(total, point, create_graph=True)
            if not score.requires_grad:  # a linear loss
                return torch.zeros_like(score)
            (curved,) = torch.autograd.grad((score * t).sum(), point, create_graph=True)
        differentiable = torch.is_grad_enabled() and (logits.requires_grad or t.requires_grad)
        return curved if differentiable else curved.detach()


class CrossEntropy(Loss):
    r"""Softmax cross-entropy, in nats, for logits (..., C) and class indices (...).

    :math:`H_{out} = \mathrm{diag}(p) - p p^\top` with :math:`p = \mathrm{softmax}(F)`, so that
    :math:`t^\top H_{out}\, t` is the variance of :math:`t` under the model's prediction. Label
    smoothing changes the loss and not this Hessian, as the loss is linear in the label.

    >>> loss = CrossEntropy()
    >>> logits, t = torch.zeros(1, 2), torch.tensor([[1.0, -1.0]])
    >>> loss.quadratic(logits, t)
    tensor(1.)
    """

    classes_last = True

    def __init__(self, ignore_index: int = -100, label_smoothing: float = 0.0) -> None:
        """Set up the loss, with the options of `torch.nn.CrossEntropyLoss`.

        Args:
            ignore_index: Positions with this label count neither in the loss nor in a regularizer.
            label_smoothing: Share of the label that is spread over all classes, in [0, 1].
        """
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each position; see `Loss.per_term`."""
        return self._cross_entropy(logits, targets, "none").view_as(targets)

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy; see `Loss.mean`."""
        self.count(logits, targets)
        return self._cross_entropy(_at_least_float32(logits), targets, "mean")

    def _cross_entropy(self, logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
        return F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            targets.flatten(),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=reduction,
        )

    def counted(self, targets: Tensor) -> Tensor:
        """False at `ignore_index`; see `Loss.counted`."""
        return targets != self.ignore_index

    def draw(self, logits: Tensor, generator: Generator | None = None) -> Tensor:
        """A class from the softmax; see `Loss.draw`."""
        # Inverse distribution function of a uniform variable: the same labels on every device.
        cdf = logits.log_softmax(-1).exp().cumsum(-1)
        u = _uniform(cdf.shape[:-1], generator, cdf)
        label = torch.searchsorted(cdf, (u * cdf[..., -1])[..., None], right=True)
        return label.clamp(max=cdf.shape[-1] - 1)[..., 0]

    def count(self, logits: Tensor, targets: Tensor | None = None) -> int | Tensor:
        """Number of positions that count; see `Loss.count`."""
        if logits.ndim == 0 or logits.shape[-1] < 2:
            raise InputError(
                f"cross_entropy needs logits (..., C) with C >= 2 classes, got "
                f"{tuple(logits.shape)}. For one logit per example use 'binary_cross_entropy'."
            )
        count = super().count(logits, targets)
        if targets is None or not values_are_checked():
            return count
        if targets.numel():
            low, high = (int(end) for end in targets.aminmax())
            if low >= 0 and high < logits.shape[-1] and not low <= self.ignore_index <= high:
                return targets.numel()
        labels = targets[self.counted(targets)]
        if not labels.numel():
            raise InputError("every target is ignore_index: the mean of no position is undefined.")
        if labels.min() < 0 or labels.max() >= logits.shape[-1]:
            raise InputError(
                f"targets lie between {int(labels.min())} and {int(labels.max())}, but the logits "
                f"have {logits.shape[-1]} classes (ignore_index is {self.ignore_index})."
            )
        return labels.numel()

    def quadratic(self, logits: Tensor, t: Tensor, targets: Tensor | None = None) -> Tensor:
        """Mean variance of `t` under the prediction; see `Loss.quadratic`."""
        count = self.count(logits, targets)
        # A logit of -inf (a class ruled out) stays there whatever the noise: its t is 0, not NaN.
        t = _at_least_float32(t).masked_fill(logits.isneginf(), 0.0)
        p = _at_least_float32(logits).softmax(-1)
        centred = t - (p * t).sum(-1, keepdim=True)
        per_term = (p * centred.square()).sum(-1)
        if targets is not None:
            per_term = per_term * self.counted(targets)
        return per_term.sum() / count

    def roots(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        r"""The C columns :math:`\sqrt{p_j}\,(e_j - p)`; see `Loss.roots`."""
        log_p = _at_least_float32(logits).log_softmax(-1)
        p, root_p = log_p.exp(), (log_p / 2).exp()  # a square root of 0 would have no gradient
        for j in range(logits.shape[-1]):
            e_j = F.one_hot(torch.tensor(j, device=p.device), p.shape[-1])
            yield self.weighted(root_p[..., j : j + 1] * (e_j - p), targets)

    def sampled_score(
        self, logits: Tensor, targets: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """The gradient p - e_y' for a sampled class y'; see `Loss.sampled_score`."""
        logits = _at_least_float32(logits)
        label = self.draw(logits.detach(), generator)[..., None]
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        log_ratio = log_p.gather(-1, label)
        factor = ((log_ratio - log_ratio.detach()) / 2).exp()
        score = (p - torch.zeros_like(p).scatter(-1, label, 1.0)) * factor
        return self.weighted(score, targets)


class Elementwise(Loss):
    """A loss that is a mean over all entries, each with a scalar Hessian."""

    classes_last = False

    def hessian(self, logits: Tensor) -> Tensor:
        """The second derivative of each entry's loss, for logits in float32."""
        return self._curved(logits, torch.ones_like(logits), None)

    def quadratic(self, logits: Tensor, t: Tensor, targets: Tensor | None = None) -> Tensor:
        """Mean of the Hessian times t squared; see `Loss.quadratic`."""
        per_term = self.hessian(_at_least_float32(logits)) * _at_least_float32(t).square()
        return self.weighted(per_term, targets).sum() / self.count(logits, targets)

    def roots(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        """One column, the square root of each entry's Hessian; see `Loss.roots`."""
        h = self.hessian(_at_least_float32(logits))
        root = h.detach().sqrt()  # follows h to first order, as in `Loss.roots`
        inverse = root.reciprocal().where(root > 0, 0.0)
        yield self.weighted(root + 0.5 * (h - h.detach()) * inverse, targets)


class BinaryCrossEntropy(Elementwise):
    r"""Binary cross-entropy with logits, in nats, averaged over all entries.

    :math:`H_{out} = p (1 - p)` with :math:`p = \sigma(F)`. Targets have the logits' shape and lie
    in [0, 1].

    >>> BinaryCrossEntropy().quadratic(torch.zeros(3), torch.ones(3))
    tensor(0.2500)
    """

    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy of each entry; see `Loss.per_term`."""
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="none")

    def draw(self, logits: Tensor, generator: Generator | None = None) -> Tensor:
        """1 with the predicted probability; see `Loss.draw`."""
        p = logits.sigmoid()
        return (_uniform(p.shape, generator, p) < p).to(p)

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy; see `Loss.mean`."""
        count = self.count(logits, targets)
        if count and values_are_checked() and (targets.min() < 0 or targets.max() > 1):
            raise InputError("binary_cross_entropy needs targets between 0 and 1.")
        return super().mean(logits, targets)

    def hessian(self, logits: Tensor) -> Tensor:
        """The variance p (1 - p) of the label; see `Elementwise.hessian`."""
        return logits.sigmoid() * (-logits).sigmoid()


class SquaredError(Elementwise):
    r"""Squared error :math:`(F - y)^2`, averaged over all entries as `torch.nn.MSELoss` does.

    :math:`H_{out} = 2`. It is the log-likelihood of a Gaussian of variance 1/2, up to a constant.

    >>> SquaredError().quadratic(torch.zeros(3), torch.ones(3))
    tensor(2.)
    """

    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Squared error of each entry; see `Loss.per_term`."""
        return (logits - targets.to(logits)).square()

    def draw(self, logits: Tensor, generator: Generator | None = None) -> Tensor:
        """A normal variable around the prediction, of variance 1/2; see `Loss.draw`."""
        return logits - self.sampled_score(logits, generator=generator) / 2

    def hessian(self, logits: Tensor) -> Tensor:
        """2, wherever; see `Elementwise.hessian`."""
        return torch.full_like(logits, 2.0)

    def sampled_score(
        self, logits: Tensor, targets: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """The gradient 2 (F - y'), which has the same law wherever; see `Loss.sampled_score`."""
        device = logits.device if generator is None else generator.device
        z = torch.randn(logits.shape, generator=generator, device=device)
        return math.sqrt(2.0) * z.to(logits.device, _at_least_float32(logits).dtype)


_NAMED: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "binary_cross_entropy": BinaryCrossEntropy(),
    "squared_error": SquaredError(),
}


def resolve(loss: str | Loss) -> Loss:
    """The loss of a name, or the loss itself, for instance `CrossEntropy(ignore_index=0)`."""
    if isinstance(loss, Loss):
        return loss
    if loss not in _NAMED:
        names = ", ".join(map(repr, _NAMED))
        raise InputError(f"loss {loss!r} is unknown. Choose one of {names}, or pass a Loss.")
    return _NAMED[loss]


def _at_least_float32(x: Tensor) -> Tensor:
    # Half precision loses small squares and the tails of a softmax, also inside autocast.
    return x.to(torch.promote_types(x.dtype, torch.float32))


@torch.enable_grad()
def _point(logits: Tensor) -> Tensor:
    """The logits as a variable of its own, on which nothing else depends."""
    point = _at_least_float32(logits)
    return point.view_as(point) if point.requires_grad else point.detach().requires_grad_()


def _uniform(shape: torch.Size, generator: Generator | None, like: Tensor) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device).to(like)
