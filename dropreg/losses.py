r"""Losses, with what the regularizers need of them: the Hessian :math:`H_{out}` in the logits.

A loss is a sum over terms, divided by one number. The terms are examples, or the positions of
sequences, for cross-entropy, and single entries for the other two, as in PyTorch. It is in nats
where it is a log-likelihood. :math:`H_{out} = \partial^2 \ell / \partial F^2` is the Hessian of one
term in its logits :math:`F`. For these losses the label enters it as a factor at most, which is 1
without class weights and the like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dropreg.errors import InputError, values_are_checked

Function = Callable[[Tensor, Tensor], Tensor]
"""A loss as a function of logits and targets."""


class Loss:
    r"""A sum over terms, each a function of its logits and its label, divided by one number.

    For a loss of your own write `per_term`, and `draw` if it is a log-likelihood; what a
    regularizer needs is derived from them by automatic differentiation. With targets,
    :math:`H_{out}` is the Hessian at the true label. Without them, and for "sampled_labels", it
    must not depend on the label, as that of an exponential family in its natural parameters does
    not: this is tried out once for each object, at random logits.

    In place of terms you can write `mean`, the training loss as it is. Then :math:`H_{out}` is its
    Hessian in the logits, and what needs single terms ("exact", "sampled_labels", the ablations) is
    refused. A subclass that overrides `per_term` or `mean` inherits no closed form.

    In all methods `logits` are the model's output, (..., C); `t` and `x` are tensors of that shape.
    `targets` are the labels, whose form depends on the loss; an `InputError` is raised where they
    do not fit the logits. Where only :math:`H_{out}` is asked for they are optional, if it does not
    depend on them, and serve to leave out the terms that do not count (padding). Where no term
    counts a mean is NaN, with a gradient of 0, as in PyTorch. `generator` is the source of
    randomness, the default generator of the logits' device if None.

    Attributes:
        reduction: "mean" divides the sum by the number of terms that count, "sum" by 1.

    >>> class Poisson(Elementwise):
    ...     def per_term(self, logits, targets):
    ...         return logits.exp() - targets * logits
    ...     def draw(self, logits, generator=None):
    ...         return torch.poisson(logits.exp(), generator)
    >>> Poisson().quadratic(torch.zeros(3), torch.ones(3))
    tensor(1.)
    """

    classes_last: bool = True
    """Whether one dimension of the logits belongs to one term (classes), the last unless the loss
    says otherwise, or all are dimensions of independent terms."""
    reduction: str = "mean"
    _normalizer: float | Tensor | None = None
    _has_terms: ClassVar[bool] = True
    _label_enters: bool | None = None
    _draws_fit: bool | None = None

    def __init__(
        self, *, reduction: str = "mean", normalizer: float | Tensor | None = None
    ) -> None:
        """Set how the terms become one number.

        Args:
            reduction: "mean" or "sum".
            normalizer: See `normalizer`.

        Raises:
            InputError: If an option is wrong.
        """
        if reduction == "none":
            raise InputError("reduction='none' is no loss to train on. Choose 'mean' or 'sum'.")
        if reduction not in ("mean", "sum"):
            raise InputError(f"reduction is {reduction!r}; choose 'mean' or 'sum'.")
        self.reduction = reduction
        self.normalizer = normalizer

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give up what is inherited and belongs to another loss."""
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if "mean" in own:
            cls._has_terms = "count" in own
            for name in ("quadratic", "roots", "sampled_score"):
                if name not in own:
                    setattr(cls, name, vars(_OfMean)[name])
        elif cls._has_terms and own.keys() & {"per_term", "counted", "count"}:
            general = Elementwise if issubclass(cls, Elementwise) else Loss
            changed = ("mean", "hessian", "quadratic", "roots", "sampled_score")
            for name in changed if "per_term" in own else changed[:1]:
                if name not in own and hasattr(general, name):
                    setattr(cls, name, getattr(general, name))

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a method of one object, which closed forms would not follow."""
        if callable(getattr(type(self), name, None)):
            raise InputError(f"write `{name}` as a method of a subclass of {type(self).__name__}.")
        super().__setattr__(name, value)

    @property
    def normalizer(self) -> float | Tensor | None:
        """A positive number or scalar by which the sum of the terms is divided, whatever the
        reduction, for instance `num_items_in_batch` where gradients are accumulated; None leaves it
        to the reduction. It may be set anew for each step.
        """  # noqa: D205
        return self._normalizer

    @normalizer.setter
    def normalizer(self, value: float | Tensor | None) -> None:
        wrong = not (value is None or isinstance(value, Tensor) or _is_a(Real, value))
        if isinstance(value, Tensor):
            wrong = value.numel() != 1 or value.is_complex() or value.dtype is torch.bool
        if isinstance(value, Tensor) and not wrong:
            value = value.detach().reshape(())
        if not wrong and value is not None and _can_look_at(value):
            wrong = not 0 < value < math.inf
        if wrong:
            raise InputError(f"normalizer is {value!r}; it must be a positive number or scalar.")
        self._normalizer = value

    @property
    def _name(self) -> str:
        return type(self).__name__

    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each term, (...) if `classes_last`, else (..., C), for logits in float32."""
        raise InputError(f"{self._name} needs a method `per_term`; see dropreg.Loss.")

    def draw(self, logits: Tensor, generator: Generator | None = None) -> Tensor:
        """Labels sampled from the prediction, in the form of targets, for logits in float32."""
        raise InputError(
            f"{self._name} does not say how to draw a label, which 'sampled_labels' "
            "needs: write its method `draw`, or choose another method."
        )

    def counted(self, targets: Tensor) -> Tensor | None:
        """Which terms count, as a mask of the terms' shape; None if all do."""
        return None

    def weights(self, logits: Tensor, targets: Tensor | None) -> Tensor | None:
        """The factor of each term's Hessian: 0 where the term does not count; None if all are 1."""
        return None if targets is None else self.counted(targets)

    def count(self, logits: Tensor, targets: Tensor | None = None) -> float | Tensor:
        """What the sum of the terms is divided by; without targets every term counts.

        Returns:
            For a mean the number of terms that count, otherwise the normalizer, or 1. It may be a
            scalar tensor that has not been looked at.

        Raises:
            InputError: If the targets do not fit the logits, or the batch is empty.
        """
        self._require_fitting(logits, targets)
        if self._fixed is not None:
            return self._fixed
        counted = None if targets is None else self.counted(targets)
        return self._terms_of(logits).numel() if counted is None else counted.sum()

    def divisor(self, logits: Tensor, targets: Tensor | None = None) -> float | Tensor:
        """`count`, for what is made of single terms: a loss that is one number is refused."""
        if self._has_terms:
            return self.count(logits, targets)
        raise _needs_terms(self._name)

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The training loss, a scalar: the terms that count, by `reduction` and `normalizer`."""
        count = self.count(logits, targets)
        return ratio(self._total(_at_least_float32(logits), targets), count)

    def quadratic(self, logits: Tensor, t: Tensor, targets: Tensor | None = None) -> Tensor:
        r"""Curvature along a direction: :math:`\frac1N \sum_n t_n^\top H_{out,n}\, t_n`.

        Returns:
            A scalar, differentiable in the logits and in the direction `t`, of the same shape. Here
            and in the loss, :math:`N` is `count`.
        """
        count = self.count(logits, targets)
        t = _at_least_float32(t)
        return ratio((t * self._curved(logits, t, targets)).sum(), count)

    def roots(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        r"""The columns :math:`s_j` of a square root, :math:`H_{out} = \sum_j s_j s_j^\top`.

        Yields:
            One tensor of the shape of the logits for each column, zero where a term does not count.

        Raises:
            InputError: If an eigenvalue of :math:`H_{out}` is negative.
        """
        self._require_separate_terms(logits, targets)
        by_term = self.classes_to_last(logits)
        units = torch.eye(by_term.shape[-1], device=logits.device).unbind()
        columns = [
            self.classes_to_last(
                self._curved(logits, self.classes_back(unit.expand_as(by_term)), targets)
            )
            for unit in units
        ]
        h = torch.stack(columns, -1)
        # Where an eigenvalue is 0 its root has no derivative. So the root is a constant, plus what
        # makes s s' follow h to first order; only s s' is ever used.
        eigenvalues, vectors = torch.linalg.eigh(h.detach())
        self._require_positive(eigenvalues)
        least = eigenvalues[..., -1:] * torch.finfo(h.dtype).eps * len(units)
        scale = eigenvalues.where(eigenvalues > least, 0.0).sqrt()[..., None, :]
        inverse = vectors * scale.reciprocal().where(scale > 0, 0.0)
        roots = vectors * scale + 0.5 * (h - h.detach()) @ inverse
        yield from (self.classes_back(root) for root in roots.unbind(-1))

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

        Raises:
            InputError: If the loss and its `draw` are seen not to agree in this way.
        """
        self._require_draws_that_fit(logits)
        score = self._score(logits, generator)
        differentiable = torch.is_grad_enabled() and logits.requires_grad
        return self.weighted(score if differentiable else score.detach(), targets)

    def weighted(self, x: Tensor, targets: Tensor | None, power: float = 0.5) -> Tensor:
        """A tensor that will be squared, times the root of each term's weight.

        Args:
            x: A tensor of the logits' shape, or of the terms'.
            targets: Labels.
            power: The power of the weights; -1/2 where `x` has the weight in it already.

        Returns:
            A tensor of that shape, zero where a term does not count.
        """
        weights = self.weights(x, targets)
        if weights is None:
            return x
        if weights.dtype is not torch.bool:
            weights = (weights**power).where(weights > 0, 0.0)
        return x * (self.classes_back(weights[..., None]) if x.ndim > weights.ndim else weights)

    def classes_to_last(self, x: Tensor) -> Tensor:
        """A view of a tensor `x` of the logits' shape with the classes last."""
        return x

    def classes_back(self, x: Tensor) -> Tensor:
        """The inverse of `classes_to_last`, of a tensor `x`."""
        return x

    def _terms_of(self, logits: Tensor) -> Tensor:
        """A tensor of the terms' shape."""
        return self.classes_to_last(logits)[..., 0] if self.classes_last else logits

    def _require_fitting(self, logits: Tensor, targets: Tensor | None) -> None:
        shape = self._terms_of(logits).shape
        if targets is not None and (targets.shape != shape or not self._is_label(targets)):
            kind = "integer class labels" if self.classes_last else "floating-point targets"
            raise InputError(
                f"{self._name} needs {kind} of shape {tuple(shape)} for logits of "
                f"shape {tuple(logits.shape)}, got {targets.dtype} of shape {tuple(targets.shape)}."
                + self._hint(logits, targets)
            )
        if not shape.numel():
            raise InputError(f"the batch is empty: the logits have shape {tuple(logits.shape)}.")

    def _hint(self, logits: Tensor, targets: Tensor) -> str:
        """What may be meant by targets that do not fit."""
        return ""

    def _is_label(self, targets: Tensor) -> bool:
        if targets.is_floating_point() or targets.is_complex() or targets.dtype is torch.bool:
            return targets.is_floating_point() and not self.classes_last
        return self.classes_last

    @property
    def _fixed(self) -> float | Tensor | None:
        """What the sum is divided by, whatever the batch; None for a mean."""
        return 1 if self.normalizer is None and self.reduction == "sum" else self.normalizer

    def _total(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum over the terms that count."""
        per_term, counted = self.per_term(logits, targets), self.counted(targets)
        return (per_term if counted is None else per_term.where(counted, 0.0)).sum()

    def _curved(self, logits: Tensor, t: Tensor, targets: Tensor | None) -> Tensor:
        """H_out t of each term, differentiable in both tensors."""
        if targets is not None:
            return _curvature(lambda point: self._total(point, targets), logits, t)
        if self._depends_on_label(logits):
            raise InputError(
                f"the Hessian of {self._name} depends on the label: give targets, at which it is "
                "taken."
            )
        return self._curved_at(logits, t, 0)

    def _curved_at(self, logits: Tensor, t: Tensor, label: int) -> Tensor:
        """H_out t at one label, or, of classes, at labels that begin with it."""
        label_of = torch.full_like(self._terms_of(logits), label)
        if self.classes_last:
            classes = self.classes_to_last(logits).shape[-1]
            index = torch.arange(label_of.numel(), device=logits.device).view(label_of.shape)
            label_of = (index * (label > 0) + label) % classes
        return _curvature(lambda point: self.per_term(point, label_of).sum(), logits, t)

    def _depends_on_label(self, logits: Tensor) -> bool:
        """Whether it does at random logits, for some labels."""
        if self._label_enters is None and _can_look_at(logits):
            point, t = (_like(logits, seed) for seed in range(2))
            labels = min(self.classes_to_last(logits).shape[-1], 8) if self.classes_last else 3
            first, *others = (self._curved_at(point, t, label) for label in range(labels))
            scale = 1e-4 * first.nan_to_num().abs().max().item()
            close = (first.allclose(h, 1e-3, scale, equal_nan=True) for h in others)
            self._label_enters = not all(close)
        return bool(self._label_enters)

    def _score(self, logits: Tensor, generator: Generator | None) -> Tensor:
        point = _point(logits)
        label = self.draw(point.detach(), generator)
        with torch.enable_grad():
            per_term = self.per_term(point, label)
            (score,) = torch.autograd.grad(per_term.sum(), point, create_graph=True)
            factor = ((per_term.detach() - per_term) / 2).exp()
            return score * (self.classes_back(factor[..., None]) if self.classes_last else factor)

    def _require_draws_that_fit(self, logits: Tensor) -> None:
        """Refuse a loss that is not the log-likelihood of the labels that it draws."""
        if self._draws_fit is None and _can_look_at(logits):
            self._draws_fit = not self._depends_on_label(logits) and self._moments_fit(logits)
        if self._draws_fit is False:
            raise InputError(
                f"labels sampled by {self._name} do not make its Hessian, because it depends on "
                "the label, or the loss is not minus the log-likelihood of what `draw` draws. "
                "Choose another method, such as 'central', 'jvp' or 'exact'."
            )

    def _moments_fit(self, logits: Tensor) -> bool:
        """Whether E u = 0 and E u u' = H_out along the logits, within 6 standard errors."""
        generator = torch.Generator(logits.device).manual_seed(0)
        moments = []
        for seed in range(min(512, -(-4096 // self._terms_of(logits).numel()))):
            point = _like(logits, seed)
            along = point * self._score(point, generator).detach()
            curved = point * self._curved_at(point, point, 0)
            if self.classes_last:
                along, curved = (self.classes_to_last(x).sum(-1) for x in (along, curved))
            moments.append(torch.stack([along, along.square() - curved]).flatten(1))
        moment = torch.cat(moments, 1).double()
        moment = moment[:, moment.isfinite().all(0)]
        error = moment.std(1) / moment.shape[1] ** 0.5
        return bool((moment.mean(1).abs() <= 6 * error + 1e-6).all())

    def _require_separate_terms(self, logits: Tensor, targets: Tensor | None) -> None:
        """Refuse terms that depend on each other's logits."""
        if targets is None or not _can_look_at(logits):
            return
        point = _point(logits.detach())
        with torch.enable_grad():
            first = self.per_term(point, targets).flatten()[0]
        if not first.requires_grad:
            return
        (grad,) = torch.autograd.grad(first, point)
        grad = self.classes_to_last(grad)
        if grad.reshape(-1, grad.shape[-1] if self.classes_last else 1)[1:].any():
            raise InputError(
                f"the terms of {self._name} depend on each other's logits, so H_out has no root "
                "term by term. Choose 'central' or 'jvp'."
            )

    def _require_positive(self, eigenvalues: Tensor) -> None:
        if not _can_look_at(eigenvalues):
            return
        least = -1e3 * torch.finfo(eigenvalues.dtype).eps * eigenvalues.abs().max()
        if eigenvalues.min() < least:
            raise InputError(
                f"the Hessian of {self._name} has a negative eigenvalue, and so no square root. "
                "Choose 'central' or 'jvp', which need none."
            )


class _OfMean:
    """What is derived from `mean`, where it is all that is known of a loss."""

    def quadratic(self: Any, logits: Tensor, t: Tensor, targets: Tensor | None = None) -> Tensor:
        """Curvature of the mean along a direction; see `Loss.quadratic`."""
        if targets is None:
            raise InputError(f"{self._name} needs targets: its Hessian is taken at them.")
        t = _at_least_float32(t)
        return (t * _curvature(lambda point: self.mean(point, targets), logits, t)).sum()

    def roots(self: Any, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        """Refused: there are no terms."""
        raise _needs_terms(self._name)

    def sampled_score(
        self: Any,
        logits: Tensor,
        targets: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Refused: there are no terms."""
        raise _needs_terms(self._name)


class CrossEntropy(Loss):
    r"""Softmax cross-entropy, in nats, for logits (..., C).

    Targets are class indices (...), or probabilities of the classes in the shape of the logits. A
    term is :math:`-\sum_c a_c \log p_c` with :math:`p = \mathrm{softmax}(F)` and :math:`a_c = w_c
    ((1 - s)\, y_c + s/C)` for class weights :math:`w`, label smoothing :math:`s` and a label
    :math:`y`, which is one-hot for an index.

    :math:`H_{out} = (\sum_c a_c)\,(\mathrm{diag}(p) - p p^\top)`, so that without class weights
    :math:`t^\top H_{out}\, t` is the variance of :math:`t` under the model's prediction. A mean
    divides by the number of positions that count, or by the sum of their labels' weights.

    >>> loss = CrossEntropy()
    >>> logits, t = torch.zeros(1, 2), torch.tensor([[1.0, -1.0]])
    >>> loss.quadratic(logits, t)
    tensor(1.)
    """

    classes_last = True

    def __init__(
        self,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        *,
        weight: Tensor | None = None,
        reduction: str = "mean",
        normalizer: float | Tensor | None = None,
        class_dim: int | None = None,
        shift: bool = False,
        fused: bool = True,
    ) -> None:
        """Set up the loss, with the options of `torch.nn.CrossEntropyLoss` and some more.

        Args:
            ignore_index: Positions with this label count neither in the loss nor in a regularizer.
            label_smoothing: Share of the label that is spread over all classes, in [0, 1].
            weight: Weights of the classes, (C,).
            reduction: "mean" or "sum".
            normalizer: What the sum is divided by instead; see `Loss.normalizer`.
            class_dim: Which dimension of the logits has the classes: 1 for (N, C, L) as in
                `torch.nn.CrossEntropyLoss`. The last if None.
            shift: Whether position t predicts label t + 1, as in causal language models whose
                labels are their inputs; for logits (B, T, C) and labels (B, T).
            fused: Whether the default method takes the loss in one sweep, which is faster, needs a
                fifth of the memory, and can be differentiated once. False leaves it to autograd,
                for a gradient penalty and whatever else has `create_graph=True`.

        Raises:
            InputError: If an option is wrong.
        """
        super().__init__(reduction=reduction, normalizer=normalizer)
        if not _is_a(Integral, ignore_index):
            raise InputError(f"ignore_index is {ignore_index!r}; it must be a whole number.")
        if not _is_a(Real, label_smoothing):
            raise InputError(f"label_smoothing is {label_smoothing!r}; it must be a number.")
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1].")
        if class_dim is not None and (isinstance(class_dim, bool) or class_dim not in (-1, 1)):
            raise InputError(f"class_dim is {class_dim!r}; choose 1 or -1 (the last).")
        if shift and class_dim == 1:
            raise InputError("shift=True is for logits (B, T, C), with the classes last.")
        _require_weights("weight", weight)
        if weight is not None and weight.ndim != 1:
            raise InputError(f"weight has shape {tuple(weight.shape)}; it must be (C,).")
        self.ignore_index, self.label_smoothing = int(ignore_index), float(label_smoothing)
        self.weight, self.class_dim, self.shift, self.fused = weight, class_dim, shift, fused

    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each position; see `Loss.per_term`."""
        return self._cross_entropy(logits, targets, "none").view_as(self._terms_of(logits))

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the batch; see `Loss.mean`."""
        count = self.count(logits, targets)
        logits = _at_least_float32(logits)
        if self.reduction == "mean" and self.normalizer is None:
            return self._cross_entropy(logits, targets, "mean")
        return ratio(self._cross_entropy(logits, targets, "sum"), count)

    def _cross_entropy(self, logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
        logits, labels = self.classes_to_last(logits), self.labels(targets)
        soft = labels.is_floating_point()
        labels = self.classes_to_last(labels).to(logits) if soft else labels
        return F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            labels.reshape(-1, logits.shape[-1]) if soft else labels.flatten(),
            weight=None if self.weight is None else self.weight.to(logits),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=reduction,
        )

    def labels(self, targets: Tensor) -> Tensor:
        """The label of each position, as int64, or class probabilities as they are."""
        if targets.is_floating_point():
            return targets
        labels = targets.long()
        return F.pad(labels[..., 1:], (0, 1), value=self.ignore_index) if self.shift else labels

    def counted(self, targets: Tensor) -> Tensor | None:
        """False at `ignore_index`; see `Loss.counted`."""
        labels = self.labels(targets)
        return None if labels.is_floating_point() else labels != self.ignore_index

    def weights(self, logits: Tensor, targets: Tensor | None) -> Tensor | None:
        """The sum of a position's `a`; see `Loss.weights`."""
        if targets is None:
            if self.weight is not None:
                raise InputError("class weights need targets: H_out is that of the true label.")
            if not self.shift:
                return None
            has_label = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
            has_label[..., -1] = False
            return has_label
        counted, labels = self.counted(targets), self.labels(targets)
        soft = labels.is_floating_point()
        if self.weight is None and not soft:
            return counted
        weight = _to_type_of(logits, torch.ones(1) if self.weight is None else self.weight)
        if soft:
            own = (self.classes_to_last(_to_type_of(logits, labels)) * weight).sum(-1)
        else:
            own = self._weight_of(labels, logits)
        a = (1 - self.label_smoothing) * own + self.label_smoothing * weight.mean()
        return a if counted is None else a * counted

    def draw(self, logits: Tensor, generator: Generator | None = None) -> Tensor:
        """A class from the softmax; see `Loss.draw`."""
        label = self._draw(self.classes_to_last(logits), generator)
        return label.roll(1, -1) if self.shift else label

    def _draw(self, logits: Tensor, generator: Generator | None) -> Tensor:
        # Inverse distribution function of a uniform variable: the same labels on every device.
        cdf = logits.log_softmax(-1).exp().cumsum(-1)
        u = _uniform(cdf.shape[:-1], generator, cdf)
        label = torch.searchsorted(cdf, (u * cdf[..., -1])[..., None], right=True)
        return label.clamp(max=cdf.shape[-1] - 1)[..., 0]

    def classes_to_last(self, x: Tensor) -> Tensor:
        """See `Loss.classes_to_last`; a single position (C,) is left as it is."""
        return x.movedim(1, -1) if self.class_dim == 1 and x.ndim > 1 else x

    def classes_back(self, x: Tensor) -> Tensor:
        """See `Loss.classes_back`."""
        return x.movedim(-1, 1) if self.class_dim == 1 and x.ndim > 1 else x

    def count(self, logits: Tensor, targets: Tensor | None = None) -> float | Tensor:
        """Number of positions that count, or the sum of their weights; see `Loss.count`."""
        self._require_fitting(logits, targets)
        labels = None if targets is None else self.labels(targets)
        known = None if labels is None else self._look_at(labels, logits)
        if self._fixed is not None:
            return self._fixed
        terms = self._terms_of(logits)
        if targets is None or labels is None:
            return (terms[..., :-1] if self.shift else terms).numel()
        if self.weight is None and known is not None:
            return known
        counted = self.counted(targets)
        if self.weight is None or labels.is_floating_point():
            return terms.numel() if counted is None else counted.sum()
        own = self._weight_of(labels, logits)
        return (own if counted is None else own * counted).sum()

    def _require_fitting(self, logits: Tensor, targets: Tensor | None) -> None:
        shape = logits.shape
        classes = self.classes_to_last(logits).shape[-1] if shape else 0
        if classes < 2:
            raise InputError(
                f"cross_entropy needs logits (..., C) with C >= 2 classes, got {tuple(shape)}. "
                "For one logit per example use 'binary_cross_entropy'."
            )
        if self.weight is not None and len(self.weight) != classes:
            raise InputError(f"weight has {len(self.weight)} classes, the logits have {classes}.")
        if self.shift and (len(shape) < 2 or shape[-2] < 2):
            raise InputError(f"shift=True needs logits (..., T >= 2, C), got {tuple(shape)}.")
        soft = targets is not None and targets.is_floating_point() and targets.shape == shape
        if soft and self.shift:
            raise InputError("shift=True needs integer class labels, not class probabilities.")
        unsaid = self.class_dim is None and not self.shift and len(shape) > 2
        if unsaid and shape[1:-1] == shape[2:]:
            raise InputError(
                f"logits of shape {tuple(shape)} may have their classes last or in dimension 1. "
                "Say which: CrossEntropy(class_dim=-1), or class_dim=1 as in PyTorch."
            )
        super()._require_fitting(logits, None if soft else targets)

    def _hint(self, logits: Tensor, targets: Tensor) -> str:
        shape = logits.shape
        if self.class_dim == 1 and targets.shape == shape[:-1]:
            return " Its classes are in dimension 1; with the classes last, pass class_dim=-1."
        if self.class_dim != 1 and len(shape) > 2 and targets.shape == shape[:1] + shape[2:]:
            return " If the classes are in dimension 1, pass CrossEntropy(class_dim=1)."
        return ""

    def _look_at(self, labels: Tensor, logits: Tensor) -> int | None:
        """Refuse labels that cannot be; return the number of positions if all count."""
        if not _can_look_at(labels):
            return None
        if labels.is_floating_point():
            unsaid = self.class_dim is None and labels.ndim > 2
            if labels.min() < 0:
                raise InputError("class probabilities must not be negative.")
            if unsaid and not labels.sum(-1).allclose(labels.new_ones(()), atol=1e-2):
                raise InputError(
                    "class probabilities do not add up to 1 over the last dimension. If the "
                    "classes are in dimension 1, pass CrossEntropy(class_dim=1)."
                )
            return None
        classes = self.classes_to_last(logits).shape[-1]
        low, high = (int(end) for end in labels.aminmax())
        if low >= 0 and high < classes and not low <= self.ignore_index <= high:
            return labels.numel() if type(self).counted is CrossEntropy.counted else None
        counting = labels[labels != self.ignore_index]
        if counting.numel() and (counting.min() < 0 or counting.max() >= classes):
            raise InputError(
                f"targets lie between {int(counting.min())} and {int(counting.max())}, but the "
                f"logits have {classes} classes (ignore_index is {self.ignore_index})."
            )
        return None

    def _weight_of(self, labels: Tensor, logits: Tensor) -> Tensor:
        """The class weight of each label, whatever where it is ignored."""
        assert self.weight is not None
        weight = _to_type_of(logits, self.weight)
        return weight[labels.clamp(0, len(weight) - 1)]

    def quadratic(self, logits: Tensor, t: Tensor, targets: Tensor | None = None) -> Tensor:
        """Mean variance of `t` under the prediction, weighted; see `Loss.quadratic`."""
        count = self.count(logits, targets)
        logits, t = (self.classes_to_last(_at_least_float32(x)) for x in (logits, t))
        # A logit of -inf (a class ruled out) stays there whatever the noise: its t is 0, not NaN.
        t = t.masked_fill(logits.isneginf(), 0.0)
        p = logits.softmax(-1)
        centred = t - (p * t).sum(-1, keepdim=True)
        per_term = (p * centred.square()).sum(-1)
        weights = self.weights(self.classes_back(logits), targets)
        return ratio((per_term if weights is None else per_term * weights).sum(), count)

    def roots(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        r"""The C columns :math:`\sqrt{p_j}\,(e_j - p)`, weighted; see `Loss.roots`."""
        log_p = self.classes_to_last(_at_least_float32(logits)).log_softmax(-1)
        p, root_p = log_p.exp(), (log_p / 2).exp()  # a square root of 0 would have no gradient
        for j in range(p.shape[-1]):
            e_j = F.one_hot(torch.tensor(j, device=p.device), p.shape[-1])
            yield self.weighted(self.classes_back(root_p[..., j : j + 1] * (e_j - p)), targets)

    def sampled_score(
        self, logits: Tensor, targets: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """The gradient p - e_y' for a sampled class y'; see `Loss.sampled_score`."""
        logits = self.classes_to_last(_at_least_float32(logits))
        label = self._draw(logits.detach(), generator)[..., None]
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        log_ratio = log_p.gather(-1, label)
        factor = ((log_ratio - log_ratio.detach()) / 2).exp()
        score = (p - torch.zeros_like(p).scatter(-1, label, 1.0)) * factor
        return self.weighted(self.classes_back(score), targets)


class Elementwise(Loss):
    """A loss whose terms are single entries, each with a scalar Hessian."""

    classes_last = False

    def hessian(self, logits: Tensor) -> Tensor:
        """The second derivative of each entry's loss, for logits in float32."""
        return self._curved(logits, torch.ones_like(logits), None)

    def quadratic(self, logits: Tensor, t: Tensor, targets: Tensor | None = None) -> Tensor:
        """The Hessian times t squared; see `Loss.quadratic`."""
        if self._is_derived:
            return super().quadratic(logits, t, targets)
        count = self.count(logits, targets)
        return ratio((self._diagonal(logits, targets) * _at_least_float32(t).square()).sum(), count)

    def roots(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        """One column, the square root of each entry's Hessian; see `Loss.roots`."""
        if self._is_derived:
            self._require_separate_terms(logits, targets)
        h = self._diagonal(logits, targets)
        self._require_positive(h.detach())
        root = h.detach().clamp(min=0.0).sqrt()  # follows h to first order, as in `Loss.roots`
        inverse = root.reciprocal().where(root > 0, 0.0)
        yield root + 0.5 * (h - h.detach()) * inverse

    @property
    def _is_derived(self) -> bool:
        return type(self).hessian is Elementwise.hessian

    def _diagonal(self, logits: Tensor, targets: Tensor | None) -> Tensor:
        """The Hessian of each entry, 0 where it does not count."""
        logits = _at_least_float32(logits)
        if self._is_derived:
            return self._curved(logits, torch.ones_like(logits), targets)
        h, weights = self.hessian(logits), self.weights(logits, targets)
        return h if weights is None else h * weights


class BinaryCrossEntropy(Elementwise):
    r"""Binary cross-entropy with logits, in nats, for targets in [0, 1] of the logits' shape.

    :math:`H_{out} = w\,(w_+ y + 1 - y)\,p (1 - p)` with :math:`p = \sigma(F)`, the weight :math:`w`
    and the weight :math:`w_+` of positive targets. A mean is over all entries, as in PyTorch.

    >>> BinaryCrossEntropy().quadratic(torch.zeros(3), torch.ones(3))
    tensor(0.2500)
    """

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        reduction: str = "mean",
        normalizer: float | Tensor | None = None,
    ) -> None:
        """Set up the loss, with the options of `torch.nn.BCEWithLogitsLoss`.

        Args:
            weight: Weight of each entry, in a shape that broadcasts to the logits'.
            pos_weight: Weight of positive targets, in such a shape: one for each class.
            reduction: "mean" or "sum".
            normalizer: What the sum is divided by instead; see `Loss.normalizer`.

        Raises:
            InputError: If an option is wrong.
        """
        super().__init__(reduction=reduction, normalizer=normalizer)
        _require_weights("weight", weight)
        _require_weights("pos_weight", pos_weight)
        self.weight, self.pos_weight = weight, pos_weight

    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy of each entry; see `Loss.per_term`."""
        weight, pos_weight = (None if w is None else w.to(logits) for w in self._weights)
        return F.binary_cross_entropy_with_logits(
            logits, targets.to(logits), weight, reduction="none", pos_weight=pos_weight
        )

    @property
    def _weights(self) -> tuple[Tensor | None, Tensor | None]:
        return self.weight, self.pos_weight

    def weights(self, logits: Tensor, targets: Tensor | None) -> Tensor | None:
        """The factor of each entry's Hessian; see `Loss.weights`."""
        result = super().weights(logits, targets)
        weight, pos_weight = (None if w is None else _to_type_of(logits, w) for w in self._weights)
        if pos_weight is not None:
            if targets is None:
                raise InputError("pos_weight needs targets: H_out is that of the true label.")
            y = _to_type_of(logits, targets)
            of_label = pos_weight * y + 1 - y
            weight = of_label if weight is None else weight * of_label
        if weight is None:
            return result
        return weight.expand_as(logits) if result is None else weight * result

    def draw(self, logits: Tensor, generator: Generator | None = None) -> Tensor:
        """1 with the predicted probability; see `Loss.draw`."""
        p = logits.sigmoid()
        return (_uniform(p.shape, generator, p) < p).to(p)

    def _require_fitting(self, logits: Tensor, targets: Tensor | None) -> None:
        super()._require_fitting(logits, targets)
        for name, weight in zip(("weight", "pos_weight"), self._weights, strict=True):
            if weight is not None and not _broadcasts(weight.shape, logits.shape):
                raise InputError(
                    f"{name} has shape {tuple(weight.shape)}, which does not broadcast to the "
                    f"logits' {tuple(logits.shape)}."
                )
        if targets is not None and _can_look_at(targets):
            low, high = targets.aminmax()
            if low < 0 or high > 1:
                raise InputError("binary_cross_entropy needs targets between 0 and 1.")

    def hessian(self, logits: Tensor) -> Tensor:
        """The variance p (1 - p) of the label; see `Elementwise.hessian`."""
        return logits.sigmoid() * (-logits).sigmoid()

    def sampled_score(
        self, logits: Tensor, targets: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """The gradient p - y' for a sampled label y'; see `Loss.sampled_score`."""
        logits = _at_least_float32(logits)
        label = self.draw(logits.detach(), generator)
        minus_log_p = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
        factor = ((minus_log_p.detach() - minus_log_p) / 2).exp()
        return self.weighted((logits.sigmoid() - label) * factor, targets)


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
        return logits - _normal(logits, generator) / math.sqrt(2.0)

    def hessian(self, logits: Tensor) -> Tensor:
        """2, wherever; see `Elementwise.hessian`."""
        return torch.full_like(logits, 2.0)

    def sampled_score(
        self, logits: Tensor, targets: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """The gradient 2 (F - y'), which has the same law wherever; see `Loss.sampled_score`."""
        return self.weighted(math.sqrt(2.0) * _normal(logits, generator), targets)


class FunctionLoss(Elementwise):
    """A loss that is given as a function of logits and targets; made by `resolve`.

    It returns the training loss as it is, a scalar, or the loss of each term, (...) or (..., C), of
    which the training loss is the mean. Its Hessian is taken at the targets. From a scalar nothing
    can be made that needs single terms.
    """

    def __init__(self, function: Function) -> None:
        """Keep the function."""
        super().__init__()
        self._function = function

    @property
    def _name(self) -> str:
        function = self._function
        return getattr(function, "__name__", type(function).__name__)

    def _value(self, logits: Tensor, targets: Tensor) -> Tensor:
        value = self._function(_at_least_float32(logits), targets)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"the loss {self._name} returned {kind}; it must return a tensor.")
        if not value.numel():
            raise InputError(f"the loss {self._name} returned an empty tensor: the batch is empty.")
        return value

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The scalar, or the mean of the terms; see `Loss.mean`."""
        return self._value(logits, targets).mean()

    def per_term(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each term; see `Loss.per_term`."""
        terms, shape = self._value(logits, targets), logits.shape
        if terms.ndim == 0 and len(shape) > 0:
            raise _needs_terms(self._name)
        square = len(shape) > 2 and shape[1:-1] == shape[2:]
        if terms.shape not in (shape, shape[:-1]) or (terms.shape != shape and square):
            raise InputError(
                f"the loss {self._name} returned shape {tuple(terms.shape)} for logits of shape "
                f"{tuple(shape)}. For single terms it must be the logits' shape, with or without "
                "their last dimension, the classes, told apart from the others."
            )
        self.classes_last = terms.shape != shape
        return terms

    def count(self, logits: Tensor, targets: Tensor | None = None) -> float | Tensor:
        """The number of terms; see `Loss.count`."""
        if targets is None:
            raise InputError(f"the loss {self._name} needs targets: its Hessian is taken at them.")
        return self.per_term(_at_least_float32(logits), targets).numel()

    quadratic = _OfMean.quadratic

    def roots(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        """As derived from the terms; see `Loss.roots`."""
        self.count(logits, targets)
        return (Loss if self.classes_last else Elementwise).roots(self, logits, targets)

    def sampled_score(
        self, logits: Tensor, targets: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Refused: a function draws no labels."""
        return self.draw(logits, generator)


def ratio(total: Tensor, count: float | Tensor) -> Tensor:
    """The total over the count; NaN with a gradient of 0 where nothing counts, as in PyTorch."""
    if not isinstance(count, Tensor):
        return total / count if count else total + math.nan
    return total / count.where(count != 0, 1) + (0 / count).to(total.dtype)


def _needs_terms(name: str) -> InputError:
    return InputError(
        f"{name} gives one number, and this needs the loss of each term, with its count. Choose "
        "'central', 'jvp', 'even_odd', 'full_hessian' or 'monte_carlo', or write `per_term` in a "
        "subclass of dropreg.Loss."
    )


def _require_weights(name: str, weight: Any) -> None:
    if weight is None:
        return
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise InputError(f"{name} is {weight!r}; it must be a floating-point tensor.")
    if weight.requires_grad:
        raise InputError(f"{name} requires a gradient, and gets none: detach it.")
    if _can_look_at(weight) and not ((weight >= 0) & weight.isfinite()).all():
        raise InputError(f"{name} must be finite and not negative.")


def _is_a(kind: type, value: Any) -> bool:
    """Whether it is a number of a kind, numpy's too, and no truth value."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(a in (1, b) for a, b in pairs)


def _can_look_at(value: float | Tensor) -> bool:
    return values_are_checked() and not (isinstance(value, Tensor) and value.is_meta)


def _curvature(function: Callable[[Tensor], Tensor], logits: Tensor, t: Tensor) -> Tensor:
    """A function's Hessian in the logits times t, differentiable in both tensors."""
    point = _point(logits)
    with torch.enable_grad():
        total = function(point)
        if not total.requires_grad:
            raise InputError("the loss does not depend on the logits, for all that autograd sees.")
        (score,) = torch.autograd.grad(total, point, create_graph=True)
        if not score.requires_grad:
            _require_linear(function, point.detach(), score)
            return torch.zeros_like(score)
        try:
            (curved,) = torch.autograd.grad((score * t).sum(), point, create_graph=True)
        except RuntimeError as error:
            if "is not implemented" in str(error) or "once_differentiable" in str(error):
                raise _needs_two_derivatives() from error
            raise
    differentiable = torch.is_grad_enabled() and (logits.requires_grad or t.requires_grad)
    return curved if differentiable else curved.detach()


def _require_linear(function: Callable[[Tensor], Tensor], point: Tensor, score: Tensor) -> None:
    """Refuse a curved loss whose gradient autograd takes for a constant, as of a fused kernel."""
    if not _can_look_at(point):
        return
    near = (point * (1 + 1e-3) + 1e-3).requires_grad_()
    (there,) = torch.autograd.grad(function(near), near)
    slopes = (score != 0) | (there != 0)
    # Where a loss has kinks few entries change over a short way, where it is curved nearly all.
    if (score != there).sum() * 2 > slopes.sum():
        raise _needs_two_derivatives()


def _needs_two_derivatives() -> InputError:
    return InputError(
        "the loss cannot be differentiated twice, which H_out needs. Write it in PyTorch's plain "
        "operations, or choose 'even_odd' or 'monte_carlo'."
    )


def _at_least_float32(x: Tensor) -> Tensor:
    # Half precision loses small squares and the tails of a softmax, also inside autocast.
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _to_type_of(logits: Tensor, x: Tensor) -> Tensor:
    return x.to(logits.device, torch.promote_types(logits.dtype, torch.float32))


@torch.enable_grad()
def _point(logits: Tensor) -> Tensor:
    """The logits as a variable of its own, on which nothing else depends."""
    point = _at_least_float32(logits)
    return point.view_as(point) if point.requires_grad else point.detach().requires_grad_()


def _like(logits: Tensor, seed: int) -> Tensor:
    """Random logits."""
    z = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    return z.to(logits.device, _at_least_float32(logits).dtype)


def _normal(logits: Tensor, generator: Generator | None) -> Tensor:
    device = logits.device if generator is None else generator.device
    z = torch.randn(logits.shape, generator=generator, device=device)
    return z.to(logits.device, _at_least_float32(logits).dtype)


def _uniform(shape: torch.Size, generator: Generator | None, like: Tensor) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device).to(like)


_NAMED: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "binary_cross_entropy": BinaryCrossEntropy(),
    "squared_error": SquaredError(),
}
_ALSO_CALLED = {
    "cross_entropy": ("ce", "nll", "softmax", "crossentropy", "cross-entropy", "categorical"),
    "binary_cross_entropy": ("bce", "bce_with_logits", "binary", "logistic", "sigmoid"),
    "squared_error": ("mse", "mse_loss", "l2", "mean_squared_error", "squared"),
}


AnyLoss = str | Loss | nn.Module | Function
"""What `resolve` makes a `Loss` of: a name, a `Loss`, PyTorch's own module, or a function."""


def resolve(loss: AnyLoss) -> Loss:
    """The loss that is meant.

    Args:
        loss: A name; a `Loss`, for instance `CrossEntropy(ignore_index=0)`; an object of
            `torch.nn.CrossEntropyLoss` (with the classes in dimension 1, as there),
            `BCEWithLogitsLoss` or `MSELoss`, whose options are read now; or another function of
            logits and targets, see `FunctionLoss`.

    Returns:
        The loss.

    Raises:
        InputError: If there is no such loss, or none to train on.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str) and loss in _NAMED:
        return _NAMED[loss]
    of_probabilities = {F.nll_loss: 0, nn.NLLLoss: 0, F.binary_cross_entropy: 1, nn.BCELoss: 1}
    for known, index in of_probabilities.items():
        if loss is known or (isinstance(known, type) and isinstance(loss, known)):
            raise InputError(
                f"{getattr(known, '__name__', known)} is a loss of probabilities, and H_out is "
                f"that of a loss of logits. Return logits, and choose {list(_NAMED)[index]!r}."
            )
    if type(loss) is nn.CrossEntropyLoss:
        return CrossEntropy(
            loss.ignore_index,
            loss.label_smoothing,
            weight=loss.weight,
            reduction=loss.reduction,
            class_dim=1,
        )
    if type(loss) is nn.BCEWithLogitsLoss:
        return BinaryCrossEntropy(
            weight=loss.weight, pos_weight=loss.pos_weight, reduction=loss.reduction
        )
    if type(loss) is nn.MSELoss:
        return SquaredError(reduction=loss.reduction)
    if callable(loss) and not isinstance(loss, type):
        return FunctionLoss(loss)
    meant = [name for name, others in _ALSO_CALLED.items() if str(loss).lower() in others]
    names = ", ".join(map(repr, _NAMED))
    raise InputError(
        f"loss {loss!r} is unknown. Choose one of {names}, or pass a Loss, an object such as "
        "torch.nn.CrossEntropyLoss(), or a function of logits and targets."
        + "".join(f" Perhaps you mean {name!r}." for name in meant)
    )
