r"""The laws of the multiplicative noise :math:`\eta`, and how masks are drawn.

Dropout with probability :math:`q` multiplies a tensor :math:`h` by :math:`1+\eta`, where each
coordinate of :math:`\eta` is :math:`-1` with probability :math:`q` and :math:`q/(1-q)` otherwise.
So :math:`E\,\eta = 0` and :math:`\mathrm{Var}\,\eta = q/(1-q)` (Wei, Kakade and Ma 2020, Section 2,
where the variance is printed as :math:`q/(q-1)`, a slip of sign). Every law below has these two
moments, and the second-order theory of the book depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from dropreg.errors import Choice, InputError, NotYetSupportedError, ProbabilityError

if TYPE_CHECKING:
    from dropreg.sites import Site


class Law(Choice):
    """The law of one coordinate of the noise; each has mean 0 and variance q/(1-q)."""

    BERNOULLI = "bernoulli"
    """Dropout itself: -1 with probability q, and q/(1-q) with probability 1-q."""
    RADEMACHER = "rademacher"
    """A fair sign times the standard deviation. No law has a smaller fourth moment."""
    GAUSSIAN = "gaussian"
    """A normal variable: Gaussian dropout."""


def check_probability(p: float) -> None:
    """Refuse what is no dropout probability.

    Args:
        p: Dropout probability :math:`q`, the probability of a zero.

    Raises:
        ProbabilityError: If `p` is outside [0, 1).
    """
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


def sample(
    law: Law | str,
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
        law: Law of each coordinate.
        shape: Shape of the result.
        p: Dropout probability :math:`q`.
        generator: Source of randomness; the default generator of `device` if None.
        device: Device of the result; the generator's, or the CPU, if None.
        dtype: Floating-point type of the result; float32 if None.

    Returns:
        A tensor of the given shape, without unit, with mean 0 and variance :math:`q/(1-q)`.

    Raises:
        ProbabilityError: If `p` is outside [0, 1).
        InputError: If `law` is unknown.

    >>> eta = sample("bernoulli", (4,), 0.5, generator=torch.Generator().manual_seed(0))
    >>> eta
    tensor([-1.,  1., -1., -1.])
    """
    law, var = Law(law), variance(p)
    draw = torch.randn if law is Law.GAUSSIAN else torch.rand
    source = generator.device if generator is not None else torch.device(device or "cpu")
    x = draw(tuple(shape), generator=generator, device=source, dtype=torch.float32)
    if law is Law.BERNOULLI:
        eta = torch.where(x < p, -1.0, var)
    elif law is Law.RADEMACHER:
        # Quicker than a choice of two: a mask is as large as the site.
        eta = x.new_full((), var**0.5).copysign(x.sub_(0.5))
    else:
        eta = x * var**0.5
    return eta.to(device=device, dtype=dtype)


class Probe:
    r"""One draw of the noise of every site, which can be replayed at any strength.

    A probe gives site :math:`i` the noise :math:`\varepsilon\,\eta_i`. The :math:`\eta_i` are drawn
    when the sites are first met and kept, so that the same probe at :math:`+\varepsilon` and at
    :math:`-\varepsilon` is an antithetic pair.

    >>> from dropreg.sites import run
    >>> model = nn.Sequential(nn.Dropout(0.5))
    >>> probe = Probe("bernoulli", torch.Generator().manual_seed(0))
    >>> up, down = (run(model, torch.ones(1, 4), probe.at(sign))[0] for sign in (+1, -1))
    >>> up, down
    (tensor([[0., 2., 0., 0.]]), tensor([[2., 0., 2., 2.]]))
    """

    def __init__(self, law: Law | str, generator: torch.Generator | None = None) -> None:
        """Start with nothing drawn.

        Args:
            law: Law of the noise.
            generator: Source of randomness; the default generator of each site's device if None.
        """
        self.law, self.generator = Law(law), generator
        self._etas: list[Tensor] = []

    def at(self, strength: float | Tensor) -> ScaledProbe:
        """Noise for one forward pass.

        Args:
            strength: The factor on every site's noise; a scalar tensor may carry a gradient.

        Returns:
            A function from site to noise, to be given to `dropreg.sites.run` once.
        """
        return ScaledProbe(self, strength)


class ScaledProbe:
    """A probe at one strength, for one forward pass: it hands out the noise site by site."""

    def __init__(self, probe: Probe, strength: float | Tensor) -> None:
        """Begin a pass over the sites; see `Probe.at`."""
        self._probe, self._strength, self._visited = probe, strength, 0

    def __call__(self, site: Site) -> Tensor:
        """The noise of the next site, of the shape of its mask."""
        etas, index = self._probe._etas, self._visited
        self._visited += 1
        if index == len(etas):
            etas.append(
                sample(
                    self._probe.law,
                    site.mask_shape,
                    site.p,
                    generator=self._probe.generator,
                    device=site.device,
                    dtype=site.noise_dtype,
                )
            )
        if etas[index].shape != site.mask_shape:
            raise NotYetSupportedError(
                f"two passes with the same noise met different dropouts: a mask of shape "
                f"{tuple(etas[index].shape)}, then one of {site.mask_shape}. The noise changes the "
                "way through the model (routing to experts, early exit); keep that way fixed."
            )
        strength = self._strength
        if isinstance(strength, Tensor):
            if strength.requires_grad:
                require_grad_mode(site)
            strength = strength.to(site.device)  # a model may lie on several
        return strength * etas[index]


def require_grad_mode(site: Site) -> None:
    """Refuse a site that no backward pass reaches, as its effect would be taken for zero.

    Args:
        site: The site that the forward pass is at.

    Raises:
        NotYetSupportedError: If the model has switched gradients off around it.
    """
    if not torch.is_grad_enabled():
        raise NotYetSupportedError(
            f"{site.kind} on a tensor of shape {site.shape} lies in a torch.no_grad() block of the "
            "model. Its noise reaches the loss, but no backward pass reaches its noise. Use "
            "method='central' (for explicit_regularizer, 'jvp' too), or put that part in eval mode."
        )


def shared_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, shared_dims: Sequence[int] = ()
) -> Tensor:
    r"""Dropout whose mask is shared along some dimensions (locked dropout, weight rows, ...).

    Outside this package's control it is ordinary inverted dropout: zero with probability `p`, else
    the input over :math:`1-p`. Under it, it is a site like `torch.nn.functional.dropout`.

    Args:
        input: Tensor of any shape: an activation, a weight or an embedding table.
        p: Dropout probability.
        training: Whether to drop at all.
        shared_dims: Dimensions along which one mask value is used for all entries. Locked
            (variational) dropout of a sequence of shape (batch, time, features) shares dimension 1.

    Returns:
        A tensor of the shape of `input`.

    Raises:
        ProbabilityError: If `p` is outside [0, 1).
        InputError: If a dimension in `shared_dims` does not exist.

    >>> _ = torch.manual_seed(0)
    >>> shared_dropout(torch.ones(1, 2, 4), p=0.5, shared_dims=[1])
    tensor([[[0., 2., 0., 0.],
             [0., 2., 0., 0.]]])
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            shared_dropout, (input,), input, p=p, training=training, shared_dims=shared_dims
        )
    mask_shape = shared_mask_shape(input, shared_dims)
    if not training or p == 0.0:
        return input
    eta = sample(Law.BERNOULLI, mask_shape, p, device=input.device, dtype=input.dtype)
    return input + eta * input


def shared_mask_shape(input: Tensor, shared_dims: Sequence[int]) -> tuple[int, ...]:
    """Shape of a mask with one value along each of `shared_dims`."""
    shape = list(input.shape)
    for dim in shared_dims:
        if not -input.ndim <= dim < input.ndim:
            raise InputError(
                f"shared_dims names dimension {dim}, but the input has {input.ndim} dimensions."
            )
        shape[dim] = 1
    return tuple(shape)


class LockedDropout(nn.Module):
    """Dropout with one mask per sequence, used at every time step.

    >>> LockedDropout(0.5, shared_dims=(1,)).eval()(torch.ones(1, 2, 2))
    tensor([[[1., 1.],
             [1., 1.]]])
    """

    def __init__(self, p: float = 0.5, shared_dims: Sequence[int] = (1,)) -> None:
        """Set up the layer.

        Args:
            p: Dropout probability, in [0, 1).
            shared_dims: Dimensions that share a mask; (1,) is time in (batch, time, features).

        Raises:
            ProbabilityError: If `p` is outside [0, 1).
        """
        super().__init__()
        variance(p)
        self.p, self.shared_dims = p, tuple(shared_dims)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the mask; see `shared_dropout`."""
        return shared_dropout(input, self.p, self.training, self.shared_dims)

    def extra_repr(self) -> str:
        """Show the settings in the module's printed form."""
        return f"p={self.p}, shared_dims={self.shared_dims}"
