"""The two effects computed the slow and obvious way, in float64, knowing nothing of `dropreg`.

On the CPU, all of PyTorch's dropout draws its mask by one operation, be it called from Python or
from inside a fused LSTM or attention: `mask.bernoulli_(keep)`, which is then divided by `keep` and
multiplied with `h`. Hand-written dropout does the same. So in the place of that operation stands
here `mask = keep (1 + eta)`, for an eta of our choice that autograd sees: every dropout of any
model computes h (1 + eta).

The rest is the definition spelt out: the Jacobian of all logits in all eta by one backward pass for
each logit, an explicit H_out for each term, and what the parameters do to any of it by central
differences of its value.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PARAMETER_STEP = 1e-6
"""Of the central differences in the parameters: rounding leaves 1e-16 / 1e-6, and the chance that a
kink (ReLU) lies between both ends is of the order of the step times the number of units."""
NOISE_STEP = 1e-6
"""Of the central difference in the noise that autograd is checked by."""


class NotDescribed(Exception):
    """The reference does not describe this model: only a refusal is right."""


class NoDerivative(NotDescribed):
    """Nothing else is random, but the noise acts where autograd does not see it."""


@dataclass(frozen=True)
class Drawn:
    """A mask that a pass drew.

    Attributes:
        shape: Its shape.
        p: The dropout probability.
    """

    shape: tuple[int, ...]
    p: float


@contextmanager
def dropout_by_hand(noise: Callable[[int, Drawn], Tensor]) -> Iterator[list[Drawn]]:
    """Within this context dropout computes h (1 + eta).

    Args:
        noise: From the number of a mask and the mask to its eta.

    Yields:
        What was drawn so far, in call order.
    """
    drawn: list[Drawn] = []

    def bernoulli_(mask: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
        keep = p
        drawn.append(Drawn(tuple(mask.shape), 1 - keep))
        return mask.copy_(keep * (1 + noise(len(drawn) - 1, drawn[-1])))

    with warnings.catch_warnings(), torch.library._scoped_library("aten", "IMPL") as library:
        warnings.filterwarnings("ignore", r"(?s).*verriding a previously registered kernel")
        library.impl("bernoulli_.float", bernoulli_, "AutogradCPU")
        yield drawn


def no_noise(index: int, mask: Drawn) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64)


def call(model: nn.Module, inputs: Any) -> Tensor:
    """The logits of a model in any of the forms in which models return them."""
    if isinstance(inputs, Mapping):
        output = model(**inputs)
    else:
        output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


class Reference:
    """A model on a batch, under cross-entropy, as a function of its parameters and all its noise.

    Attributes:
        drawn: The masks of a pass, in call order.
        targets: A label for each position of the logits.
        parameters: Those that are trained.
    """

    def __init__(self, model: nn.Module, inputs: Any, targets: Tensor | None = None) -> None:
        """Look at the masks, and make sure that they are all that is random.

        Args:
            model: The model, in train mode; its buffers change as in training.
            inputs: A tensor, a tuple of positional or a dict of keyword arguments.
            targets: Labels; random ones if None.

        Raises:
            NotDescribed: If something else is random; `NoDerivative` if the noise is hidden from
                autograd.
        """
        self.model, self.inputs = model, inputs
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        torch.manual_seed(0)
        with torch.no_grad(), dropout_by_hand(no_noise) as self.drawn:
            logits = self._run()
        if targets is None:
            generator = torch.Generator().manual_seed(3)
            targets = torch.randint(logits.shape[-1], logits.shape[:-1], generator=generator)
        self.targets = targets
        self._require_complete(logits)

    def _run(self) -> Tensor:
        for name, buffer in self.model.named_buffers():
            buffer.data.copy_(self._buffers[name])
        return call(self.model, self.inputs)

    def _require_complete(self, logits: Tensor) -> None:
        # Hidden randomness need not show at one noise or one seed, and a gate can hide it.
        for seed in range(1, 9):
            torch.manual_seed(seed)
            with torch.no_grad(), dropout_by_hand(no_noise) as drawn:
                again = self._run()
            if drawn != self.drawn or not torch.equal(again, logits):
                raise NotDescribed("something other than dropout is random")
        if not self.drawn:
            raise NotDescribed("nothing is dropped")
        eta = self.rademacher(0)
        with torch.no_grad():
            up, down = (
                self.logits([sign * NOISE_STEP * e for e in eta]).double() for sign in (1, -1)
            )
        t = self.jacobian() @ torch.cat([e.flatten() for e in eta])
        difference = (up - down).flatten() / (2 * NOISE_STEP)
        if (difference - t).abs().max() > 1e-5 * max(float(t.abs().max()), 1e-6):
            raise NoDerivative("autograd does not see what the noise does")

    def rademacher(self, seed: int) -> list[Tensor]:
        """A random sign times the standard deviation, for each mask value."""
        generator = torch.Generator().manual_seed(seed)
        return [
            (torch.randint(2, each.shape, generator=generator).double() * 2 - 1)
            * math.sqrt(each.p / (1 - each.p))
            for each in self.drawn
        ]

    def logits(self, etas: Sequence[Tensor]) -> Tensor:
        """The logits under a noise.

        Raises:
            NotDescribed: If the noise changes which masks are drawn, as routing to experts does.
        """

        def noise(index: int, mask: Drawn) -> Tensor:
            if mask not in self.drawn[index : index + 1]:
                raise NotDescribed("at full strength the noise changes the way through the model")
            return etas[index]

        with dropout_by_hand(noise):
            return self._run()

    def loss(self, etas: Sequence[Tensor]) -> Tensor:
        """The mean loss under a noise."""
        logits = self.logits(etas)
        return F.cross_entropy(logits.flatten(0, -2), self.targets.flatten())

    def _zeros(self) -> list[Tensor]:
        return [
            torch.zeros(each.shape, dtype=torch.float64, requires_grad=True) for each in self.drawn
        ]

    def jacobian(self) -> Tensor:
        """d logits / d eta at 0: (flat logits, noise coordinates)."""
        etas = self._zeros()
        rows = []
        for logit in (logits := self.logits(etas).flatten()):
            row = torch.autograd.grad(
                logit, etas, retain_graph=logits.numel() > 1, materialize_grads=True
            )
            rows.append(torch.cat([part.flatten() for part in row]))
        return torch.stack(rows)

    def _h_out(self) -> Tensor:
        """The Hessian of each term's loss in its logits: (terms, classes, classes)."""
        with torch.no_grad():
            p = self.logits(self._zeros()).flatten(0, -2).softmax(-1)
        return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]

    def explicit(self) -> Tensor:
        """R_approx = 1/2 mean_n sum_j v_j (J_n' H_n J_n)_jj."""
        variances = torch.cat(
            [torch.full((math.prod(d.shape),), d.p / (1 - d.p)).double() for d in self.drawn]
        )
        h_out = self._h_out()
        j = self.jacobian().view(*h_out.shape[:2], -1)
        return 0.5 * torch.einsum("ncj,ncd,ndj,j->", j, h_out, j, variances) / len(h_out)

    def explicit_along(self, etas: Sequence[Tensor]) -> Tensor:
        """1/2 mean_n t_n' H_n t_n with t = J eta: what a probe makes of R_approx."""
        h_out = self._h_out()
        t = self.jacobian() @ torch.cat([eta.flatten() for eta in etas])
        t = t.view(h_out.shape[:2])
        return 0.5 * torch.einsum("nc,ncd,nd->", t, h_out, t) / len(h_out)

    def slope(self, etas: Sequence[Tensor]) -> Tensor:
        """sum_j d loss / d eta_j at 0 times eta_j, whose gradient is the implicit noise."""
        zeros = self._zeros()
        slopes = torch.autograd.grad(self.loss(zeros), zeros, materialize_grads=True)
        return sum((s * eta).sum() for s, eta in zip(slopes, etas, strict=True))

    def direction(self, seed: int = 0) -> list[Tensor]:
        """A direction in the space of all trained parameters that leaves none of them out."""
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in self.parameters
        ]

    def along(self, direction: Sequence[Tensor], value: Callable[[], Tensor]) -> float:
        """The derivative of a value along a direction of the parameters, by central differences."""
        ends = []
        before = [p.detach().clone() for p in self.parameters]
        for sign in (1, -1):
            with torch.no_grad():
                for p, b, d in zip(self.parameters, before, direction, strict=True):
                    p.copy_(b + sign * PARAMETER_STEP * d)
            ends.append(float(value().detach()))
        with torch.no_grad():
            for p, b in zip(self.parameters, before, strict=True):
                p.copy_(b)
        return (ends[0] - ends[1]) / (2 * PARAMETER_STEP)
