r"""The default step's loss in one sweep over the logits, with its gradient.

With :math:`u, d` the logits at :math:`\pm\varepsilon`, :math:`m = (u + d)/2`,
:math:`t = (u - d)/2\varepsilon`, :math:`p = \mathrm{softmax}(m)` and :math:`c = t - p^\top t`, one
term (an example or a token) of cross-entropy has the regularizer :math:`R = \tfrac12\, p^\top c^2`,
with

.. math:: \partial R/\partial t = p \odot c, \qquad
          \partial R/\partial m = \tfrac12\, p \odot (c^2 - 2R) .

Autograd would keep about ten tensors of the logits' size for it. Here a few rows are finished,
value and gradient, while they are in the processor's cache; only the two gradients are kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

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
    if type(criterion) is CrossEntropy:  # not a subclass, which may change any part of it
        count = criterion.count(up, targets)
        options = (criterion.ignore_index, criterion.label_smoothing)
        return Pair(
            *CrossEntropyPair.apply(up, down, targets, count, step, explicit, implicit, *options)
        )
    regularizer = half_quadratic(criterion, up, down, step, targets)
    loss_up, loss_down = criterion.mean(up, targets), criterion.mean(down, targets)
    clean = (loss_up + loss_down) / 2 - step**2 * regularizer
    noise = (loss_up - loss_down) / (2 * step)
    total = clean + explicit * regularizer + implicit * noise
    return Pair(total, clean.detach(), regularizer.detach(), noise.detach())


class CrossEntropyPair(torch.autograd.Function):
    """Clean loss, explicit and implicit effect of cross-entropy from a short pair's logits."""

    @staticmethod
    def forward(
        ctx: Any,
        up: Tensor,
        down: Tensor,
        targets: Tensor,
        count: int | Tensor,
        step: float,
        explicit: float,
        implicit: float,
        ignore_index: int,
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the parts, and the gradient of their sum.

        Args:
            ctx: Keeps the gradient.
            up: Logits at plus the step, (..., C), at least float32.
            down: Logits at minus the step.
            targets: Class indices, (...).
            count: Number of terms that count.
            step: The scale of the pair.
            explicit: Strength of the explicit effect.
            implicit: Strength of the implicit effect.
            ignore_index: Label of the terms that do not count.
            label_smoothing: Share of the label that is spread over all classes.

        Returns:
            The total, and the clean loss, the explicit and the implicit effect before strengths.
        """
        classes = up.shape[-1]
        u, d, y = up.reshape(-1, classes), down.reshape(-1, classes), targets.reshape(-1, 1)
        counts = (y != ignore_index).to(up.dtype) / count  # 0 where a term does not count
        y = y.clamp(0, classes - 1)
        # total = sum of the weights times the three: the mean of the losses holds step^2 R, too.
        weights = (0.5 + implicit / (2 * step), 0.5 - implicit / (2 * step))
        weight_r = (explicit - step**2) / (4 * step**2)  # as t is taken without its 1 / 2 step
        wants_grad = any(ctx.needs_input_grad)
        grads = [torch.empty_like(u), torch.empty_like(d)] if wants_grad else []
        sums = torch.zeros(3, dtype=torch.float64, device=up.device)
        rows = max(1, (_CHUNK if up.device.type == "cpu" else 1 << 24) // classes)
        # Made once: to get new memory for each operation would take longer than the operations.
        scratch = [u.new_empty(min(rows, len(u)), classes) for _ in range(4)]
        for start in range(0, len(u), rows):
            here = slice(start, start + rows)
            ends, y_n, share = (u[here], d[here]), y[here], counts[here]
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
            for x, grad, weight, sign in zip(ends, grads or ends, weights, (1, -1), strict=True):
                log_p = torch.log_softmax(x, -1, out=t)
                loss = -log_p.gather(-1, y_n)
                if label_smoothing:
                    flat = -log_p.mean(-1, keepdim=True)
                    loss = (1 - label_smoothing) * loss + label_smoothing * flat
                values.append(torch.where(share > 0, loss * share, 0.0).sum())
                if wants_grad:
                    scale, of_r = weight * share, torch.add(even, odd, alpha=sign, out=p)
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
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient that is known already.

        Args:
            ctx: Holds the gradient.
            grad_total: Gradient of what follows in the total.

        Returns:
            The gradients in the two tensors of logits, and None for the rest.
        """
        grads = ctx.saved_tensors
        if not grad_total.is_cpu or grad_total != 1:
            grads = tuple(grad_total * grad for grad in grads)
        return *grads, *(None,) * 7
