r"""The default step's loss in one sweep over the logits, with its gradient.

With :math:`u, d` the logits at :math:`\pm\varepsilon`, :math:`m = (u + d)/2`,
:math:`t = (u - d)/2\varepsilon`, :math:`p = \mathrm{softmax}(m)` and :math:`c = t - p^\top t`, one
term (an example or a token) of cross-entropy has the regularizer :math:`R = \tfrac12\, p^\top c^2`,
times its weight, with

.. math:: \partial R/\partial t = p \odot c, \qquad
          \partial R/\partial m = \tfrac12\, p \odot (c^2 - 2R) .

Autograd would keep about ten tensors of the logits' size for it. Here a few rows are finished,
value and gradient, while they are in the processor's cache; only the two gradients are kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dropreg.errors import InputError
from dropreg.losses import CrossEntropy, Loss
from dropreg.noisy_loss import half_quadratic

_CHUNK = 1 << 16
"""Logits that are finished at a time: few enough for the cache, enough to outweigh the calls."""


class Pair(NamedTuple):
    """The loss of an antithetic pair and its parts; only `total` has a gradient."""

    total: Tensor
    clean: Tensor
    explicit: Tensor
    implicit: Tensor


def pair(
    criterion: Loss,
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
        criterion: The loss.
        up: Logits at :math:`+\varepsilon`, (..., C).
        down: Logits at :math:`-\varepsilon`.
        targets: Labels.
        step: The scale :math:`\varepsilon`.
        explicit: Strength of the explicit effect.
        implicit: Strength of the implicit effect.

    Returns:
        The total, differentiable, and its parts before their strengths.
    """
    # A subclass may change any part of it.
    if type(criterion) is CrossEntropy and _can_be_fused(criterion, targets):
        count, weights = criterion.count(up, targets), criterion.weights(up, targets)
        ends = map(criterion.classes_to_last, (up, down))
        options = (count, step, explicit, implicit, criterion.label_smoothing)
        return Pair(*CrossEntropyPair.apply(*ends, criterion.labels(targets), weights, *options))
    regularizer = half_quadratic(criterion, up, down, step, targets)
    loss_up, loss_down = criterion.mean(up, targets), criterion.mean(down, targets)
    clean = (loss_up + loss_down) / 2 - step**2 * regularizer
    noise = (loss_up - loss_down) / (2 * step)
    total = clean + explicit * regularizer + implicit * noise
    return Pair(total, clean.detach(), regularizer.detach(), noise.detach())


def _can_be_fused(criterion: CrossEntropy, targets: Tensor) -> bool:
    both = criterion.label_smoothing and criterion.weight is not None
    return criterion.fused and not both and not targets.is_floating_point()


class CrossEntropyPair(torch.autograd.Function):
    """Clean loss, explicit and implicit effect of cross-entropy from a short pair's logits."""

    @staticmethod
    def forward(
        ctx: Any,
        up: Tensor,
        down: Tensor,
        labels: Tensor,
        weights: Tensor,
        count: float | Tensor,
        step: float,
        explicit: float,
        implicit: float,
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the parts, and the gradient of their sum.

        Args:
            ctx: Keeps the gradient.
            up: Logits at plus the step, (..., C), at least float32.
            down: Logits at minus the step.
            labels: Class indices, (...).
            weights: Weight of each term, (...); 0 or False where it does not count.
            count: What the sum of the terms is divided by.
            step: The scale of the pair.
            explicit: Strength of the explicit effect.
            implicit: Strength of the implicit effect.
            label_smoothing: Share of the label that is spread over all classes.

        Returns:
            The total, and the clean loss, the explicit and the implicit effect before strengths.
        """
        classes = up.shape[-1]
        u, d, y = up.reshape(-1, classes), down.reshape(-1, classes), labels.reshape(-1, 1)
        weights = weights.reshape(-1, 1).to(up.dtype)
        shares = torch.where(weights > 0, weights / count, 0.0)  # also where nothing counts
        y = y.clamp(0, classes - 1)
        # total = sum of the factors times the three: the mean of the losses holds step^2 R, too.
        factors = (0.5 + implicit / (2 * step), 0.5 - implicit / (2 * step))
        weight_r = (explicit - step**2) / (4 * step**2)  # as t is taken without its 1 / 2 step
        wants_grad = any(ctx.needs_input_grad)
        grads = [torch.empty_like(u), torch.empty_like(d)] if wants_grad else []
        sums = torch.zeros(3, dtype=torch.float64, device=up.device)
        if isinstance(count, Tensor) or not count:
            sums = sums / count  # NaN where nothing counts, as in PyTorch, with a gradient of 0
        rows = max(1, (_CHUNK if up.device.type == "cpu" else 1 << 24) // classes)
        # Made once: to get new memory for each operation would take longer than the operations.
        scratch = [u.new_empty(min(rows, len(u)), classes) for _ in range(4)]
        for start in range(0, len(u), rows):
            here = slice(start, start + rows)
            ends, y_n, share = (u[here], d[here]), y[here], shares[here]
            a, t, p, b = (buffer[: len(y_n)] for buffer in scratch)
            torch.add(*ends, out=a).mul_(0.5)
            torch.softmax(a, -1, out=p)
            torch.sub(*ends, out=t)
            mean = torch.mul(p, t, out=a).sum(-1, keepdim=True)
            if not mean.is_cpu or mean.isnan().any():
                # A logit of -inf (a class ruled out) stays there whatever the noise: its t is 0.
                t.masked_fill_(ends[0].isneginf(), 0.0)
                mean = torch.mul(p, t, out=a).sum(-1, keepdim=True)
            c = t.sub_(mean)
            pc = torch.mul(p, c, out=a)
            pcc = torch.mul(pc, c, out=b)
            r = 0.5 * pcc.sum(-1, keepdim=True)
            values = [(r * share).sum() / (4 * step**2)]
            if wants_grad:
                # Half of dR/dm goes to each end, and dR/dt with a sign.
                even = pcc.mul_(0.25 * weight_r * share)
                even.addcmul_(p, r * share, value=-0.5 * weight_r)
                odd = pc.mul_(weight_r * share)
            for x, grad, factor, sign in zip(ends, grads or ends, factors, (1, -1), strict=True):
                log_p = torch.log_softmax(x, -1, out=t)
                loss = -log_p.gather(-1, y_n)
                if label_smoothing:
                    flat = -log_p.mean(-1, keepdim=True)
                    loss = (1 - label_smoothing) * loss + label_smoothing * flat
                values.append(torch.where(share > 0, loss * share, 0.0).sum())
                if wants_grad:
                    scale, of_r = factor * share, torch.add(even, odd, alpha=sign, out=p)
                    torch.addcmul(of_r, log_p.exp_(), scale, out=grad[here])
                    grad[here].scatter_add_(-1, y_n, (label_smoothing - 1) * scale)
                    if label_smoothing:
                        grad[here] -= label_smoothing / classes * scale
            sums += torch.stack(values).double()
        r, loss_up, loss_down = sums.unbind()
        clean = (loss_up + loss_down) / 2 - step**2 * r
        noise = (loss_up - loss_down) / (2 * step)
        total = clean + explicit * r + implicit * noise
        if wants_grad:
            ctx.save_for_backward(*(g.view_as(up) for g in grads))
        result = tuple(x.to(up.dtype) for x in (total, clean, r, noise))
        ctx.mark_non_differentiable(*result[1:])
        return result  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient that is known already.

        Args:
            ctx: Holds the gradient.
            grad_total: Gradient of what follows in the total.

        Returns:
            The gradients in the two tensors of logits, and None for the rest.

        Raises:
            InputError: If a second derivative is wanted, for which nothing has been kept.
        """
        if torch.is_grad_enabled():  # that is, create_graph=True
            raise InputError(
                "the loss of the default method is computed in one sweep, which can be "
                "differentiated once. For create_graph=True pass loss=CrossEntropy(fused=False), "
                "with your options."
            )
        grads = ctx.saved_tensors
        if not grad_total.is_cpu or grad_total != 1:
            grads = tuple(grad_total * grad for grad in grads)
        return *grads, *(None,) * 7
