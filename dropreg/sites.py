r"""Sites: the places of a model where dropout multiplies, :math:`h + \eta \odot h`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch

from dropreg.errors import NotYetSupportedError
from dropreg.noise import variance


@dataclass(frozen=True)
class Site:
    r"""One place where dropout multiplies a tensor, in one forward pass.

    Attributes:
        name: Path of the module that called the dropout, with ``#2``, ... for its further calls.
        kind: What is dropped, e.g. ``"dropout"`` or ``"attention weights"``.
        p: Dropout probability :math:`q`.
        shape: Shape of the tensor that is multiplied.
        mask_shape: Shape of the mask; it is 1 where a mask value is shared.
        dtype: Type of the tensor that is multiplied.
        device: Its device.
    """

    name: str
    kind: str
    p: float
    shape: tuple[int, ...]
    mask_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def variance(self) -> float:
        """Variance q/(1-q) of the noise."""
        return variance(self.p)

    @property
    def noise_dtype(self) -> torch.dtype:
        """Type in which the noise is kept: at least float32, so that squares do not underflow."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def sharing(self) -> str:
        """Which dimensions share a mask value, in words."""
        dims = [
            str(d)
            for d, (full, mask) in enumerate(zip(self.shape, self.mask_shape, strict=True))
            if mask != full
        ]
        return f"over dim {', '.join(dims)}" if dims else "none"


@dataclass(frozen=True, repr=False)
class Sites(Sequence[Site]):
    """The sites of a model in the order in which a forward pass meets them; prints as a table.

    Attributes:
        sites: The sites, in call order.
        changes_buffers: Whether the pass writes to buffers, as batch norm does.
        uses_half_precision: Whether anything after the first site is computed below float32.
        unreached: Why no derivative in the noise can be had from a backward pass, for a site or the
            whole; empty if it can. Methods that take such derivatives refuse then.
        unreached_forward: The same for forward-mode derivatives.
    """

    sites: tuple[Site, ...]
    changes_buffers: bool = False
    uses_half_precision: bool = False
    unreached: str = ""
    unreached_forward: str = ""

    def require_reached(self, method: str, *, forward: bool = False) -> None:
        """Refuse a method that differentiates in the noise, where a derivative is cut or wrong.

        Args:
            method: The method.
            forward: Whether it takes forward-mode derivatives.

        Raises:
            NotYetSupportedError: If a derivative cannot be had; it names other methods.
        """
        why = self.unreached_forward if forward else self.unreached
        if why:
            others = "'jvp', " if not (forward or self.unreached_forward) else ""
            raise NotYetSupportedError(
                f"method={method!r} differentiates in the noise, but {why}. Use method='central' "
                f"(for explicit_regularizer, {others}'even_odd' or 'monte_carlo' too), or put that "
                "part in eval mode."
            )

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> Sites: ...
    def __getitem__(self, index: int | slice) -> Site | Sites:
        """One site, or a slice of them."""
        one_or_more = self.sites[index]
        return one_or_more if isinstance(one_or_more, Site) else replace(self, sites=one_or_more)

    def __len__(self) -> int:
        """How many sites one forward pass meets."""
        return len(self.sites)

    def __repr__(self) -> str:
        """The table: name, kind, shape, probability and mask sharing of each site."""
        rows = [("site", "kind", "shape", "p", "mask shared")]
        rows += [(s.name, s.kind, str(s.shape), f"{s.p:g}", s.sharing) for s in self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join(lines)
