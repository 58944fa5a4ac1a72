r"""Losses, with what the regularizers need of them: the Hessian :math:`H_{out}` in the logits.

A loss here is a mean over terms: examples, or the positions of sequences, for cross-entropy, and
single entries for the other two, as in PyTorch. It is in nats where it is a log-likelihood.
:math:`H_{out} = \partial^2 \ell / \partial F^2` is the Hessian of one term in its logits :math:`F`.
For these losses it does not depend on the label.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dropreg.errors import InputError, values_are_checked
from dropreg.fused import CrossEntropyPair, Pair


class Loss(ABC):
    r"""A loss whose Hessian in the logits is known in closed form; derive from it for your own.

    `targets` is optional where only :math:`H_{out}` is asked for: it then serves to leave out the
    positions that do not count (padding).
    """

    classes_last: bool
    """Whether the last dimension of the logits belongs to one term (classes), or is one more
    dimension of independent terms."""

    @abstractmethod
    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The training loss.

        Args:
            logits: Model output, (..., C).
            targets: Labels; their form depends on the loss.

        Returns:
            A scalar: the mean over all terms that count.

        Raises:
            InputError: If the targets do not fit the logits.
        """

    @abstractmethod
    def count(self, logits: Tensor, targets: Tensor | None = None) -> int | Tensor:
        """The number of terms over which `mean` averages.

        Args:
            logits: Model output, (..., C).
            targets: Labels; without them every term counts.

        Returns:
            The number, to turn a mean into a sum. Within `dropreg.errors.values_unchecked` it may
            be a scalar tensor, which has not been looked at.

        Raises:
            InputError: If the targets do not fit the logits.
        """

    @abstractmethod
    def quadratic(self, logits: Tensor, t: Tensor, targets: Tensor | None = None) -> Tensor:
        r"""Curvature along a direction: :math:`\frac1N \sum_n t_n^\top H_{out,n}\, t_n`.

        Args:
            logits: Where the Hessian is taken, (..., C).
            t: The direction in logit space, of the same shape.
            targets: See the class.

        Returns:
            A scalar, differentiable in both tensors.
        """

    def pair(
        self,
        up: Tensor,
        down: Tensor,
        targets: Tensor,
        *,
        step: float,
        explicit: float,
        implicit: float,
    ) -> Pair:
        r"""The training loss of the two effects from the logits at :math:`\pm\varepsilon`.

        The mean of the two losses is the clean loss and :math:`\varepsilon^2` times the explicit
        effect :math:`R`, and half their difference is :math:`\varepsilon` times the noise.

        Args:
            up: Logits at :math:`+\varepsilon`, (..., C).
            down: Logits at :math:`-\varepsilon`.
            targets: Labels.
            step: The strength :math:`\varepsilon`.
            explicit: Strength of the explicit effect.
            implicit: Strength of the implicit effect.

        Returns:
            The total, differentiable, and its parts before their strengths.
        """
        regularizer = half_quadratic(self, up, down, step, targets)
        loss_up, loss_down = self.mean(up, targets), self.mean(down, targets)
        clean = (loss_up + loss_down) / 2 - step**2 * regularizer
        noise = (loss_up - loss_down) / (2 * step)
        total = clean + explicit * regularizer + implicit * noise
        return Pair(total, clean.detach(), regularizer.detach(), noise.detach())

    @abstractmethod
    def roots(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        r"""The columns :math:`s_j` of a square root, :math:`H_{out} = \sum_j s_j s_j^\top`.

        Args:
            logits: Where the Hessian is taken, (..., C).
            targets: See the class.

        Yields:
            One tensor of the shape of the logits for each column, zero where a term does not count.
        """

    @abstractmethod
    def sampled_score(
        self,
        logits: Tensor,
        targets: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""The gradient :math:`u = \nabla_F\,\ell_{y'}` at labels sampled from the prediction.

        :math:`E\,u = 0` and :math:`E\,u u^\top = H_{out}`: Fisher and Gauss-Newton agree here.
        The law of :math:`y'` depends on the parameters too, which plain differentiation of a sample
        forgets. So :math:`u` carries the factor :math:`\sqrt{p_{y'} / \bar p_{y'}}`, where the bar
        stops gradients: its value is 1, and with it :math:`\nabla_\theta\, u u^\top` is an unbiased
        estimate of :math:`\nabla_\theta H_{out}` as well.

        Args:
            logits: Model output, (..., C).
            targets: See the class.
            generator: Source of randomness; the default generator of the device if None.

        Returns:
            A tensor of the shape of the logits, zero where a term does not count.
        """

    def weighted(self, u: Tensor, targets: Tensor | None) -> Tensor:
        """Set to zero what belongs to terms that do not count.

        Args:
            u: A tensor of the shape of the logits.
            targets: See the class.

        Returns:
            A tensor of the same shape.
        """
        return u


def half_quadratic(
    criterion: Loss, up: Tensor, down: Tensor, step: float, targets: Tensor | None
) -> Tensor:
    r"""One sample of R_approx from an antithetic pair of logits.

    Args:
        criterion: The loss.
        up: Logits at :math:`+\varepsilon`.
        down: Logits at :math:`-\varepsilon`.
        step: The strength :math:`\varepsilon`.
        targets: See `Loss`.

    Returns:
        :math:`\tfrac12\, t^\top H_{out}\, t` with :math:`t = (F_+ - F_-) / 2\varepsilon` and
        :math:`H_{out}` at the mean of the two, per example.
    """
    t = (up - down) / (2 * step)
    return 0.5 * criterion.quadratic((up + down) / 2, t, targets)


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

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy; see `Loss.mean`."""
        self.count(logits, targets)
        return F.cross_entropy(
            _at_least_float32(logits).reshape(-1, logits.shape[-1]),
            targets.flatten(),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )

    def count(self, logits: Tensor, targets: Tensor | None = None) -> int | Tensor:
        """Number of positions that count; see `Loss.count`."""
        if logits.ndim == 0 or logits.shape[-1] < 2:
            raise InputError(
                f"cross_entropy needs logits (..., C) with C >= 2 classes, got "
                f"{tuple(logits.shape)}. For one logit per example use 'binary_cross_entropy'."
            )
        if targets is None:
            return logits[..., 0].numel()
        if targets.is_floating_point() or targets.shape != logits.shape[:-1]:
            raise InputError(
                f"cross_entropy needs integer class labels of shape {tuple(logits.shape[:-1])} for "
                f"logits of shape {tuple(logits.shape)} (classes in the last dimension), got "
                f"{targets.dtype} of shape {tuple(targets.shape)}."
            )
        if not values_are_checked():
            return (targets != self.ignore_index).sum()
        if targets.numel():
            low, high = (int(end) for end in targets.aminmax())
            if low >= 0 and high < logits.shape[-1] and not low <= self.ignore_index <= high:
                return targets.numel()
        labels = targets[targets != self.ignore_index]
        if labels.numel() == 0:
            raise InputError(
                "every target is ignore_index: the mean over no position is undefined."
            )
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
            per_term = per_term * (targets != self.ignore_index)
        return per_term.sum() / count

    def pair(
        self,
        up: Tensor,
        down: Tensor,
        targets: Tensor,
        *,
        step: float,
        explicit: float,
        implicit: float,
    ) -> Pair:
        """The same in one sweep over the logits; see `Loss.pair` and `dropreg.fused`."""
        count = self.count(up, targets)
        options = (self.ignore_index, self.label_smoothing)
        return Pair(
            *CrossEntropyPair.apply(up, down, targets, count, step, explicit, implicit, *options)
        )

    def roots(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        r"""The C columns :math:`\sqrt{p_j}\,(e_j - p)`; see `Loss.roots`."""
        log_p = _at_least_float32(logits).log_softmax(-1)
        p, root_p = log_p.exp(), (log_p / 2).exp()  # a square root of 0 would have no gradient
        for j in range(logits.shape[-1]):
            e_j = F.one_hot(torch.tensor(j, device=p.device), p.shape[-1])
            yield self.weighted(root_p[..., j : j + 1] * (e_j - p), targets)

    def sampled_score(
        self,
        logits: Tensor,
        targets: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The gradient p - e_y' for a sampled class y'; see `Loss.sampled_score`."""
        log_p = _at_least_float32(logits).log_softmax(-1)
        p = log_p.exp()
        # Inverse distribution function of a uniform variable: the same labels on every device.
        u = _uniform(p.shape[:-1], generator, p)
        cdf = p.detach().cumsum(-1)
        label = torch.searchsorted(cdf, (u * cdf[..., -1])[..., None], right=True)
        label = label.clamp(max=p.shape[-1] - 1)
        log_ratio = log_p.gather(-1, label)
        factor = ((log_ratio - log_ratio.detach()) / 2).exp()
        score = (p - torch.zeros_like(p).scatter(-1, label, 1.0)) * factor
        return self.weighted(score, targets)

    def weighted(self, u: Tensor, targets: Tensor | None) -> Tensor:
        """Zero at `ignore_index`; see `Loss.weighted`."""
        return u if targets is None else u * (targets != self.ignore_index).unsqueeze(-1)


class _Elementwise(Loss):
    """A loss that is a mean over all entries, each with a scalar Hessian."""

    classes_last = False

    def count(self, logits: Tensor, targets: Tensor | None = None) -> int:
        """Number of entries; see `Loss.count`."""
        if targets is not None and (
            targets.shape != logits.shape or not targets.is_floating_point()
        ):
            raise InputError(
                f"{type(self).__name__} needs floating-point targets of the logits' shape "
                f"{tuple(logits.shape)}, got {targets.dtype} of shape {tuple(targets.shape)}."
            )
        return logits.numel()

    def quadratic(self, logits: Tensor, t: Tensor, targets: Tensor | None = None) -> Tensor:
        """Mean of the Hessian times t squared; see `Loss.quadratic`."""
        per_term = self._hessian(_at_least_float32(logits)) * _at_least_float32(t).square()
        return per_term.sum() / self.count(logits, targets)

    def roots(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        """One column, the square root of each entry's Hessian; see `Loss.roots`."""
        yield self._hessian(_at_least_float32(logits)).sqrt()

    @abstractmethod
    def _hessian(self, logits: Tensor) -> Tensor:
        """The second derivative of each entry's loss."""


class BinaryCrossEntropy(_Elementwise):
    r"""Binary cross-entropy with logits, in nats, averaged over all entries.

    :math:`H_{out} = p (1 - p)` with :math:`p = \sigma(F)`. Targets have the logits' shape and lie
    in [0, 1].

    >>> BinaryCrossEntropy().quadratic(torch.zeros(3), torch.ones(3))
    tensor(0.2500)
    """

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy; see `Loss.mean`."""
        self.count(logits, targets)
        if values_are_checked() and (targets.min() < 0 or targets.max() > 1):
            raise InputError("binary_cross_entropy needs targets between 0 and 1.")
        return F.binary_cross_entropy_with_logits(
            _at_least_float32(logits), _at_least_float32(targets)
        )

    def _hessian(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() * (-logits).sigmoid()

    def roots(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        """One column, written so that its gradient exists for saturated logits too."""
        logits = _at_least_float32(logits)
        yield ((F.logsigmoid(logits) + F.logsigmoid(-logits)) / 2).exp()

    def sampled_score(
        self,
        logits: Tensor,
        targets: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The gradient p - y' for a sampled label y' in {0, 1}; see `Loss.sampled_score`."""
        logits = _at_least_float32(logits)
        p = logits.sigmoid()
        label = _uniform(p.shape, generator, p) < p
        log_ratio = F.logsigmoid(torch.where(label, logits, -logits))
        return (p - label.to(p.dtype)) * ((log_ratio - log_ratio.detach()) / 2).exp()


class SquaredError(_Elementwise):
    r"""Squared error :math:`(F - y)^2`, averaged over all entries as `torch.nn.MSELoss` does.

    :math:`H_{out} = 2`. It is the log-likelihood of a Gaussian of variance 1/2, up to a constant.

    >>> SquaredError().quadratic(torch.zeros(3), torch.ones(3))
    tensor(2.)
    """

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error; see `Loss.mean`."""
        self.count(logits, targets)
        return F.mse_loss(_at_least_float32(logits), _at_least_float32(targets))

    def _hessian(self, logits: Tensor) -> Tensor:
        return torch.full_like(logits, 2.0)

    def sampled_score(
        self,
        logits: Tensor,
        targets: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The gradient 2 (F - y') for y' normal around F with variance 1/2."""
        device = logits.device if generator is None else generator.device
        z = torch.randn(logits.shape, generator=generator, device=device)
        return math.sqrt(2.0) * z.to(logits.device, _at_least_float32(logits).dtype)


_NAMED: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "binary_cross_entropy": BinaryCrossEntropy(),
    "squared_error": SquaredError(),
}


def resolve(loss: str | Loss) -> Loss:
    """The loss of a name, or the loss itself.

    Args:
        loss: ``"cross_entropy"``, ``"binary_cross_entropy"`` (with logits), ``"squared_error"``, or
            a `Loss`, for instance ``CrossEntropy(ignore_index=0)``.

    Returns:
        The loss.

    Raises:
        InputError: If the name is unknown.
    """
    if isinstance(loss, Loss):
        return loss
    if loss not in _NAMED:
        names = ", ".join(map(repr, _NAMED))
        raise InputError(f"loss {loss!r} is unknown. Choose one of {names}, or pass a Loss.")
    return _NAMED[loss]


def _at_least_float32(x: Tensor) -> Tensor:
    # Half precision loses small squares and the tails of a softmax, also inside autocast.
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _uniform(shape: torch.Size, generator: torch.Generator | None, like: Tensor) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device).to(like)
