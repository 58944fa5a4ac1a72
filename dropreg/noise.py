r"""The laws of the multiplicative noise :math:`\eta`, and how it is drawn.

Dropout with probability :math:`q` multiplies a tensor :math:`h` by :math:`1+\eta`, where each
coordinate of :math:`\eta` is :math:`-1` with probability :math:`q` and :math:`q/(1-q)` otherwise.
So :math:`E\,\eta = 0` and :math:`\mathrm{Var}\,\eta = q/(1-q)` (Wei, Kakade and Ma 2020, Section 2,
where the variance is printed as :math:`q/(q-1)`, a slip of sign). Every law below has these two
moments, and the second-order theory of the book depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dropreg.errors import Choice, InputError, ProbabilityError


class Law(Choice):
    """The law of one coordinate of the noise; each has mean 0 and variance q/(1-q)."""

    BERNOULLI = "bernoulli"
    """Dropout itself: -1 with probability q, and q/(1-q) with probability 1-q."""
    RADEMACHER = "rademacher"
    """A fair sign times the standard deviation. No law has a smaller fourth moment."""
    GAUSSIAN = "gaussian"
    """A normal variable: Gaussian dropout."""


Sampler = Callable[..., Tensor]
"""Draws a law: (shape, p, generator=…, device=…, dtype=float32) to noise of that shape."""


def check_probability(p: float) -> None:
    """Raise a `ProbabilityError` if the dropout probability `p` is outside [0, 1)."""
    if not 0.0 <= p < 1.0:
        raise ProbabilityError(
            f"dropout probability {p} is outside [0, 1): only there does its noise have a finite "
            "variance, p/(1-p). Change the probability, or remove the layer."
        )


def variance(p: float) -> float:
    r"""Variance :math:`q/(1-q)` of the noise of dropout with probability `p`.

    Args:
        p: Dropout probability :math:`q`, the probability of a zero.

    Returns:
        The variance, without unit.

    Raises:
        ProbabilityError: If `p` is outside [0, 1).

    >>> variance(0.5)
    1.0
    """
    check_probability(p)
    return p / (1.0 - p)


def _bernoulli(shape: tuple[int, ...], p: float, **source: Any) -> Tensor:
    return torch.where(torch.rand(shape, **source) < p, -1.0, variance(p))


def _rademacher(shape: tuple[int, ...], p: float, **source: Any) -> Tensor:
    x = torch.rand(shape, **source)
    # Quicker than a choice of two: a mask is as large as the site.
    return x.new_full((), variance(p) ** 0.5).copysign(x.sub_(0.5))


def _gaussian(shape: tuple[int, ...], p: float, **source: Any) -> Tensor:
    return torch.randn(shape, **source) * variance(p) ** 0.5


SAMPLERS: dict[Law, Sampler] = {
    Law.BERNOULLI: _bernoulli,
    Law.RADEMACHER: _rademacher,
    Law.GAUSSIAN: _gaussian,
}
"""How each law is drawn."""


def sampler_of(law: Law | str | Sampler) -> Sampler:
    """The sampler of a `Law`, or of its name, or one of your own, of the same two moments."""
    return SAMPLERS[Law(law)] if isinstance(law, str) or not callable(law) else law


def sample(
    law: Law | str | Sampler,
    shape: Sequence[int],
    p: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Draw the noise :math:`\eta` of dropout with probability `p`.

    The random numbers are always drawn in float32 on the generator's own device and converted
    afterwards. So one seed gives the same mask in every precision, and a CPU generator gives the
    same mask on every device (PyTorch's own dropout kernels do neither). It costs time on a GPU: at
    the paper's size a pass takes 11 million numbers, which one core needs some 50 ms for, and
    then they are copied. A generator of the GPU's own does without.

    Args:
        law: Law of each coordinate; see `sampler_of`.
        shape: Shape of the result.
        p: Dropout probability :math:`q`.
        generator: Source of randomness; the default generator of `device` if None.
        device: Device of the result; the generator's, or the CPU, if None.
        dtype: Floating-point type of the result; float32 if None.

    Returns:
        A tensor of the given shape, without unit, with mean 0 and variance :math:`q/(1-q)`.

    Raises:
        ProbabilityError: If `p` is outside [0, 1).
        InputError: If `law` is unknown, or draws another shape.

    >>> eta = sample("bernoulli", (4,), 0.5, generator=torch.Generator().manual_seed(0))
    >>> eta
    tensor([-1.,  1., -1., -1.])
    """
    draw = sampler_of(law)
    check_probability(p)
    source = generator.device if generator is not None else torch.device(device or "cpu")
    eta = draw(tuple(shape), p, generator=generator, device=source, dtype=torch.float32)
    if eta.shape != tuple(shape):
        raise InputError(f"the law drew noise of shape {tuple(eta.shape)}, not {tuple(shape)}.")
    return eta.to(device=device, dtype=dtype)
