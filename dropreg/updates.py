r"""Training losses: Dropout_k, and dropout replaced by its two derived effects.

Each is a scalar for ``backward`` and any optimizer. Batch-norm statistics are updated once, as by
one ordinary training pass, however many passes are made: by the last, so that all of them start
from the same buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable, but brings no compiler

from dropreg.errors import InputError
from dropreg.explicit import ExplicitMethod, explicit_regularizer
from dropreg.implicit import implicit_noise
from dropreg.losses import Loss, resolve
from dropreg.noise import Law, Probe
from dropreg.objective import DEFAULT_STEP, NoisyLoss, central_logits, clean


# Control of a model is Python that runs around every operation, which torch.compile cannot trace.
# So in a compiled step it runs as it is, between two compiled parts, as PyTorch's optimizers do.
@_disable_dynamo
def dropout_k_loss(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    k: int,
    *,
    loss: str | Loss = "cross_entropy",
    chunk: int | None = None,
    distribution: Law | str = "bernoulli",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The loss averaged over `k` independent masks (Dropout_k, Algorithm 1).

    Its expectation is that of dropout for every `k`; the covariance of its gradient noise falls as
    :math:`1/k`.

    Args:
        model: Any model with dropout, in train mode.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments for the model.
        targets: Labels.
        k: Number of masks, at least 1.
        loss: Name of the loss, or a `dropreg.losses.Loss`.
        chunk: How many masks' activations to keep at a time. If None, all `k`. Otherwise gradients
            are taken chunk by chunk already in this call, which needs the memory of `chunk` masks
            only; the result can then be differentiated once, in the parameters.
        distribution: Law of the noise.
        generator: Source of randomness; the default generator if None.

    Returns:
        A scalar in the loss's unit.

    Raises:
        InputError: If an argument is wrong, or the targets do not fit.
        NoSitesError: If the model has no active dropout.
        UnsupportedError: If the model draws noise that cannot be controlled.
        LogitsError: If the output is not floating-point logits, or holds NaN.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    >>> dropout_k_loss(model, torch.randn(2, 4), torch.tensor([0, 1]), k=8, chunk=2).backward()
    """
    for name, value in (("k", k), ("chunk", k if chunk is None else chunk)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; it must be a whole number, at least 1.")
    objective = NoisyLoss(model, inputs, loss, targets)

    def masks(start: int, stop: int) -> Tensor:
        """The share of the masks from `start` to `stop` in the mean."""
        draws = [
            objective(Probe(distribution, generator).at(1.0), update_buffers=index == k - 1)
            for index in range(start, stop)
        ]
        return torch.stack(draws).sum() / k

    if chunk is None or not torch.is_grad_enabled():
        return masks(0, k)
    params = [p for p in model.parameters() if p.requires_grad]
    total, grads = torch.zeros(()), list[Tensor]()
    for start in range(0, k, chunk):
        share = masks(start, min(start + chunk, k))
        total = total.to(share) + share.detach()
        new = torch.autograd.grad(share, params, materialize_grads=True)
        grads = [*map(torch.Tensor.add_, grads, new)] if grads else list(new)
        del new
    return _WithGradients.apply(total, grads, *params)


class _WithGradients(torch.autograd.Function):
    """A value whose gradients in the parameters are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: Sequence[Tensor], *params: Tensor) -> Tensor:
        ctx.grads = grads
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None  # scaled in place: there may be no room for a copy
        if grads is None:
            raise RuntimeError("the loss of a chunked dropout_k_loss can be differentiated once.")
        return None, None, *(grad.mul_(grad_output) for grad in grads)


class DropoutReplacement:
    """A training loss without dropout and with its two effects; made by `replace_dropout`.

    Attributes:
        model: The model, as it was given.
        explicit: Strength of the explicit effect; may be changed during training.
        implicit: Strength of the implicit effect; may be changed during training.
        parts: What the last loss was made of, as detached scalars before their strengths: "clean",
            the loss without noise; "explicit"; "implicit". With "even_odd" at explicit strength 1
            there is "even", clean and explicit in one. What was not computed is absent.
        output: What the model returned in the last pass of the last loss, for instance logits and
            a recurrent state to carry on.
    """

    def __init__(
        self,
        model: nn.Module,
        explicit: float,
        implicit: float,
        *,
        method: ExplicitMethod | str,
        loss: str | Loss,
        distribution: Law | str | None,
        step: float,
        every: int,
        generator: torch.Generator | None,
    ) -> None:
        """Check and keep the settings; see `replace_dropout`."""
        if not isinstance(every, int) or every < 1:
            raise InputError(f"every is {every!r}; it must be a whole number, at least 1.")
        if every > 1 and ExplicitMethod(method) is ExplicitMethod.EVEN_ODD:
            raise InputError(
                f"every={every} with 'even_odd' would give the clean loss the weight {1 - every}, "
                "and training could run away. Use method='central'."
            )
        self.model, self.explicit, self.implicit = model, explicit, implicit
        self._every, self._losses = every, 0
        self.parts: dict[str, Tensor] = {}
        self.output: Any = None
        self._method, self._criterion, self._step = ExplicitMethod(method), resolve(loss), step
        self._law = None if distribution is None else Law(distribution)
        self._generator = generator

    @_disable_dynamo
    def loss(self, inputs: Any, targets: Tensor) -> Tensor:
        """The training loss of one batch.

        Args:
            inputs: A tensor, a tuple of positional or a dict of keyword arguments for the model.
            targets: Labels.

        Returns:
            A scalar in the loss's unit: the clean loss plus each effect times its strength; with
            `every` above 1, the clean loss alone in the steps between.

        Raises:
            InputError: If the targets do not fit.
            NoSitesError: If the model has no active dropout, for instance in eval mode.
            PrecisionError: If "central" runs in half precision or under autocast.
            UnsupportedError: If the model draws noise that cannot be controlled.
            LogitsError: If the output is not floating-point logits, or holds NaN.
        """
        objective = NoisyLoss(self.model, inputs, self._criterion, targets)
        # Independent draws: n terms of strength 1 and one of sqrt(n) have the same covariance.
        n = self._every if self._losses % self._every == 0 else 0
        strengths = {"explicit": n * self.explicit, "implicit": n**0.5 * self.implicit}
        total = self._total(objective, strengths)
        self._losses += 1
        return total

    def _total(self, objective: NoisyLoss, strengths: dict[str, float]) -> Tensor:
        """The clean loss plus each effect times its strength in this step."""
        if self._method is ExplicitMethod.CENTRAL and any(strengths.values()):
            return self._central(objective, strengths)
        if not any(strengths.values()):
            parts = {"clean": objective(clean, update_buffers=True)}
            self.output = objective.output
        elif self._method is ExplicitMethod.EVEN_ODD:
            parts = self._even_odd(objective)
        else:
            parts = self._separate(objective)
        total = sum(strengths.get(name, 1.0) * part for name, part in parts.items())
        assert isinstance(total, Tensor)
        self.parts = {name: part.detach() for name, part in parts.items()}
        return total

    def _probe(self) -> Probe:
        return Probe(self._law or Law.RADEMACHER, self._generator)

    def _central(self, objective: NoisyLoss, strengths: dict[str, float]) -> Tensor:
        """Both effects from a short antithetic pair."""
        step, targets = self._step, objective.require_targets()
        up, down = central_logits(objective, self._probe(), step, update_buffers=True)
        self.output = objective.output
        pair = self._criterion.pair(up, down, targets, step=step, **strengths)
        self.parts = {"clean": pair.clean}
        self.parts |= {name: getattr(pair, name) for name, s in strengths.items() if s != 0}
        return pair.total

    def _even_odd(self, objective: NoisyLoss) -> dict[str, Tensor]:
        """Both effects from an antithetic pair at full strength."""
        probe = self._probe()
        down = objective(probe.at(-1.0))
        base = None if self.explicit == 1 else objective(clean)
        up = objective(probe.at(1.0), update_buffers=True)
        self.output = objective.output
        even = (up + down) / 2
        parts = {"even": even} if base is None else {"clean": base, "explicit": even - base}
        if self.implicit != 0:
            parts["implicit"] = (up - down) / 2
        return parts

    def _separate(self, objective: NoisyLoss) -> dict[str, Tensor]:
        """The clean loss, and each effect by a computation of its own."""
        parts: dict[str, Tensor] = {}
        batch = (self.model, objective.inputs)
        options: dict[str, Any] = {
            "loss": self._criterion,
            "distribution": self._law,
            "generator": self._generator,
        }
        if self.explicit != 0:
            parts["explicit"] = explicit_regularizer(
                *batch, targets=objective.targets, method=self._method, step=self._step, **options
            )
        if self.implicit != 0:
            assert objective.targets is not None
            parts["implicit"] = implicit_noise(*batch, objective.targets, **options)
        clean_loss = objective(clean, update_buffers=True)
        self.output = objective.output
        return {"clean": clean_loss, **parts}


def replace_dropout(
    model: nn.Module,
    *,
    explicit: float = 1.0,
    implicit: float = 1.0,
    method: ExplicitMethod | str = "central",
    loss: str | Loss = "cross_entropy",
    distribution: Law | str | None = None,
    step: float = DEFAULT_STEP,
    every: int = 1,
    generator: torch.Generator | None = None,
) -> DropoutReplacement:
    r"""Train a model without dropout, with dropout's explicit and implicit effect in its place.

    The loss is :math:`\ell(F(x)) + \lambda_e R_{approx} + \lambda_i\, \xi_{approx}` (Algorithm 2
    with the analytic forms of Section 4). The model keeps its dropout layers, which say where and
    how much; nothing in it is changed, and in eval mode it is the plain network as ever.

    Args:
        model: Any model with dropout, in train mode.
        explicit: Strength :math:`\lambda_e` of the explicit effect; 1 is dropout's own.
        implicit: Strength :math:`\lambda_i` of the implicit effect; 1 is dropout's own.
        method: "central" takes both effects from two ordinary passes close to the clean network.
            "even_odd" takes them from two passes at full strength: then the even part of the noisy
            loss stands for loss plus explicit effect, with all its orders, and the odd part is the
            noise, with all its odd orders; it also works in half precision. Keep `explicit` between
            0 and 1 there: beyond 1 the clean loss has a negative weight, and training can run away.
            Any other `ExplicitMethod` computes the explicit effect by itself, and the noise by a
            double backward, as the paper does. The book's table of methods compares them.
        loss: Name of the loss, or a `dropreg.losses.Loss`.
        distribution: Law of the noise; Rademacher if None.
        step: Strength of the probe in "central". Half the default is closer to the derivative for
            a smooth network, and farther from it for one with kinks; see
            `dropreg.objective.DEFAULT_STEP`.
        every: Take the effects in every n-th loss only, n times the explicit and sqrt(n) times the
            implicit one, and the clean loss in between: the same mean and covariance over n steps,
            for 1 + 1/n passes a step in place of two. Gradients clipped tightly undo this, as the
            stronger ones are cut; the book's chapter "What it costs" shows both. Not for
            "even_odd", whose explicit strength must not exceed 1.
        generator: Source of randomness; the default generator if None.

    Returns:
        An object whose ``loss(inputs, targets)`` is the loss to train on, and whose ``parts`` are
        its parts, for logging.

    Raises:
        InputError: If the method, the loss or the law is unknown, or `every` cannot be.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    >>> objective = replace_dropout(model)
    >>> objective.loss(torch.randn(2, 4), torch.tensor([0, 1])).backward()
    >>> list(objective.parts)
    ['clean', 'explicit', 'implicit']
    """
    return DropoutReplacement(
        model,
        explicit,
        implicit,
        method=method,
        loss=loss,
        distribution=distribution,
        step=step,
        every=every,
        generator=generator,
    )
