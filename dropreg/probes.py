"""Every noise that a forward pass can be given: none, a probe's, or leaves to differentiate in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dropreg.errors import NotYetSupportedError
from dropreg.noise import SAMPLERS, Law, Sampler, sample, sampler_of
from dropreg.sites import Site


@dataclass(frozen=True)
class OnRows:
    r"""Noise on rows of a site: none on the first ones, then :math:`+\eta`, then :math:`-\eta`.

    Attributes:
        eta: The noise of the rows in the middle.
        dim: The dimension that counts rows.
        rows: How many entries of it each of the three has.
    """

    eta: Tensor
    dim: int
    rows: tuple[int, int, int]

    def __rmul__(self, factor: float) -> OnRows:
        """The same noise at another strength."""
        return replace(self, eta=factor * self.eta)

    def whole(self) -> Tensor:
        """The noise of all rows, of the site's mask shape."""
        shape = list(self.eta.shape)
        shape[self.dim] = self.rows[0]
        return torch.cat([self.eta.new_zeros(shape), self.eta, -self.eta], self.dim)

    def apply(self, h: Tensor, one: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The site's computation, which keeps nothing for the rows without noise.

        Args:
            h: The tensor.
            one: The computation where all rows have noise.

        Returns:
            The tensor with its noise.
        """
        without, plus, minus = h.split(self.rows, self.dim)
        return torch.cat([without, one(plus, self.eta), one(minus, -self.eta)], self.dim)


Noise = Callable[[Site], Tensor | OnRows | None]
"""The noise of a site: a tensor of its mask shape, or of some rows of it, or None for no noise."""


def clean(site: Site) -> None:
    """The noise of the clean network: none."""


class Probe:
    r"""One draw of the noise of every site, which can be replayed at any scale.

    A probe gives site :math:`i` the noise :math:`\varepsilon\,\eta_i`. The :math:`\eta_i` are drawn
    when the sites are first met and kept, so that the same probe at :math:`+\varepsilon` and at
    :math:`-\varepsilon` is an antithetic pair.

    >>> from dropreg import NoisyLoss
    >>> loss = NoisyLoss(torch.nn.Dropout(0.5), torch.ones(1, 4), "cross_entropy")
    >>> probe = Probe("bernoulli", torch.Generator().manual_seed(0))
    >>> up, down = (loss.logits(probe.at(scale))[0] for scale in (+1, -1))
    >>> up, down
    (tensor([[0., 2., 0., 0.]]), tensor([[2., 0., 2., 2.]]))
    """

    def __init__(self, law: Law | str | Sampler, generator: torch.Generator | None = None) -> None:
        """Start with nothing drawn.

        Args:
            law: Law of the noise; see `dropreg.noise.sampler_of`.
            generator: Source of randomness; the default generator of each site's device if None.
        """
        self._draw, self._generator = sampler_of(law), generator
        self._etas: list[Tensor] = []
        self._sites: list[tuple[object, ...]] = []

    def at(self, scale: float | Tensor) -> Noise:
        r"""Noise for one forward pass.

        Args:
            scale: The factor :math:`\varepsilon` on every site's noise; a scalar tensor may carry a
                gradient.

        Returns:
            A noise, for one pass: it counts the sites.
        """
        return _Scaled(self, scale)

    def _eta(self, index: int, site: Site) -> Tensor:
        """The noise of the site that a pass meets as number `index`."""
        known = (site.name, site.kind, site.p, site.mask_shape)
        if index == len(self._etas):
            self._sites.append(known)
            eta = sample(
                self._draw,
                site.mask_shape,
                site.p,
                generator=self._generator,
                device=site.device,
                dtype=site.noise_dtype,
            )
            self._etas.append(eta)
        if self._sites[index] != known:
            raise _other_dropouts(*(" ".join(map(str, s)) for s in (self._sites[index], known)))
        return self._etas[index]


class _Scaled:
    """A probe's noise at a scale, for one pass."""

    def __init__(self, probe: Probe, scale: float | Tensor) -> None:
        self._probe, self._scale, self._visited = probe, scale, 0

    def __call__(self, site: Site) -> Tensor:
        scale, eta = self._scale, self._probe._eta(self._visited, site)
        self._visited += 1
        if not isinstance(scale, Tensor):
            return scale * eta
        if scale.requires_grad:
            require_grad_mode(site)
        return scale.to(site.device) * eta  # a model may lie on several

    @property
    def draws_globally(self) -> bool:
        """Whether the next site's noise is drawn from a generator that is not ours alone."""
        probe = self._probe
        is_ours = probe._generator is not None and probe._draw in SAMPLERS.values()
        return self._visited == len(probe._etas) and not is_ours

    def require_all_met(self) -> None:
        """Refuse a pass that met fewer sites than the one before it."""
        met, wanted = self._visited, len(self._probe._etas)
        if met != wanted:
            raise _other_dropouts(f"{wanted} of them", f"only {met}")


def _other_dropouts(first: str, second: str) -> NotYetSupportedError:
    return NotYetSupportedError(
        f"two passes with the same noise met different dropouts: {first}, then {second}. The noise "
        "changes the way through the model (routing to experts, early exit); keep that way fixed."
    )


def require_all_met(noise: Noise) -> None:
    """Refuse a pass that met fewer sites than an earlier one with the same probe.

    Args:
        noise: What the pass was given; all but a probe's is fine.

    Raises:
        NotYetSupportedError: If sites are missing.
    """
    if require := getattr(noise, "require_all_met", None):
        require()


class NoiseLeaves:
    """Noise that is zero and asks for its gradient: the coordinates in which sites are squared.

    Attributes:
        etas: The zeros of the sites met, in call order.
    """

    def __init__(self) -> None:
        """Start with no site met."""
        self.etas: list[Tensor] = []

    def __call__(self, site: Site) -> Tensor:
        """A zero tensor of the site's mask shape that requires a gradient."""
        require_grad_mode(site)
        eta = torch.zeros(
            site.mask_shape, dtype=site.noise_dtype, device=site.device, requires_grad=True
        )
        self.etas.append(eta)
        return eta


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
