r"""Sites: the places of a model where dropout multiplies, :math:`h + \eta \odot h`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch

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
    """

    sites: tuple[Site, ...]
    changes_buffers: bool = False
    uses_half_precision: bool = False

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
