r"""Sites: the places of a model where dropout multiplies, and control over their noise.

At every site the model computes :math:`h + \eta \odot h`. This module runs anybody's model with a
noise of our choice in place of the random masks. The model itself is never changed: control is a
`TorchFunctionMode` around one forward pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dropreg.adapters import ADAPTERS
from dropreg.errors import (
    EvalModeError,
    LogitsError,
    NoSitesError,
    NotYetSupportedError,
    ZeroProbabilityError,
    values_are_checked,
)
from dropreg.noise import variance

if TYPE_CHECKING:
    from dropreg.audit import Tracker


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


class Sites(Sequence[Site]):
    """The sites of a model in the order in which a forward pass meets them; prints as a table."""

    def __init__(self, sites: Sequence[Site]) -> None:
        """Wrap the sites.

        Args:
            sites: The sites, in call order.
        """
        self._sites = tuple(sites)

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> Sites: ...
    def __getitem__(self, index: int | slice) -> Site | Sites:
        """One site, or a slice of them."""
        return Sites(self._sites[index]) if isinstance(index, slice) else self._sites[index]

    def __len__(self) -> int:
        """How many sites one forward pass meets."""
        return len(self._sites)

    def __repr__(self) -> str:
        """The table: name, kind, shape, probability and mask sharing of each site."""
        rows = [("site", "kind", "shape", "p", "mask shared")]
        rows += [(s.name, s.kind, str(s.shape), f"{s.p:g}", s.sharing) for s in self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join(lines)


Noise = Callable[[Site], Tensor | None]
"""The noise of a site: a tensor of the site's mask shape, or None for no noise."""


class Control(TorchFunctionMode):
    """Within this context every site gets its noise from `source`; the sites met are kept."""

    def __init__(self, source: Noise, *, tracker: Tracker | None = None) -> None:
        """Prepare control of one forward pass.

        Args:
            source: The noise of each site, asked in call order.
            tracker: Knows which module is running; without it sites carry no names.
        """
        super().__init__()
        self.sites: list[Site] = []
        self.inactive_p: list[float] = []
        self.any_inplace = False
        self.write_back = False
        self._source, self._tracker = source, tracker

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the adapter of a function that drops, and any other function as it is."""
        adapter = ADAPTERS.get(func)
        if adapter is None:
            return func(*args, **(kwargs or {}))
        return adapter(self, *args, **(kwargs or {}))

    def where(self) -> str:
        """Path of the module that is running."""
        return self._tracker.current() if self._tracker else ""

    def skip(self, p: float, training: bool) -> None:
        """Note a dropout that is not a site: it is in eval mode or its probability is 0."""
        self.inactive_p.append(0.0 if training else p)

    def noise(
        self,
        kind: str,
        like: Tensor,
        shape: Sequence[int],
        p: float,
        training: bool,
        mask_shape: Sequence[int] | None = None,
    ) -> Tensor | None:
        """Register a site for a tensor of the given shape, and get its noise (None: leave it)."""
        if not training or p == 0.0:
            self.skip(p, training)
            return None
        variance(p)  # refuses p outside [0, 1)
        if _inside_checkpoint():
            raise NotYetSupportedError(
                f"dropout inside an activation checkpoint ({self.where() or kind}): the backward "
                "pass would recompute it with other masks than the forward pass used. Switch "
                "checkpointing off around the dropout, e.g. model.gradient_checkpointing_disable()."
            )
        if like.is_nested:
            raise NotYetSupportedError(
                f"dropout of a nested tensor ({self.where() or kind}): its mask has no one shape. "
                "Pad the sequences, or pack them."
            )
        if torch._C._functorch.is_batchedtensor(like):
            raise NotYetSupportedError(
                f"dropout inside torch.vmap ({self.where() or kind}): a mask drawn there cannot be "
                "kept for another pass. Apply the dropout outside of vmap."
            )
        site = Site(
            name=self._tracker.name() if self._tracker else "",
            kind=kind,
            p=float(p),
            shape=tuple(shape),
            mask_shape=tuple(shape if mask_shape is None else mask_shape),
            dtype=like.dtype,
            device=like.device,
        )
        self.sites.append(site)
        return self._source(site)

    @staticmethod
    def apply(h: Tensor, eta: Tensor) -> Tensor:
        """The site's computation, h + eta * h, in the precision of h."""
        eta = eta.to(h.dtype)
        if h.dtype.itemsize < 4:  # there 1 + eta is rounded too far for a mean of 1
            return h + eta * h
        return h * (1 + eta)  # one operation on h, and one on the way back

    def perturb(
        self,
        kind: str,
        h: Tensor,
        p: float,
        training: bool,
        mask_shape: Sequence[int] | None = None,
        *,
        inplace: bool = False,
    ) -> Tensor:
        """Register the tensor `h` as a site and return it with its noise."""
        before = len(self.sites)
        eta = self.noise(kind, h, h.shape, p, training, mask_shape)
        self.any_inplace |= inplace and len(self.sites) > before
        if eta is None:
            return h
        noisy = self.apply(h, eta)
        return h.copy_(noisy) if inplace and self.write_back else noisy


def _inside_checkpoint() -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


@contextmanager
def scratch_buffers(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Let forward passes write to copies of the model's buffers, such as running means.

    Args:
        model: The model; it has its own buffers again afterwards, whatever happened.

    Yields:
        A function that tells whether any buffer has changed by now.
    """
    originals = [(m, dict(m._buffers.items())) for m in model.modules()]
    copies: dict[int, Tensor | None] = {}  # a buffer that two modules share stays shared

    def copy(b: Tensor | None) -> Tensor | None:
        return copies.setdefault(id(b), None if b is None else b.clone())

    def changed() -> bool:
        return any(
            dict(m._buffers.items()).keys() != original.keys()
            or any(_written(b, copies[id(b)], m._buffers[k]) for k, b in original.items())
            for m, original in originals
        )

    try:
        for module, original in originals:
            _set_buffers(module, {k: copy(b) for k, b in original.items()})
        yield changed
    finally:
        for module, original in originals:
            _set_buffers(module, original)


def _set_buffers(module: nn.Module, buffers: Mapping[str, Tensor | None]) -> None:
    if isinstance(module, torch.jit.ScriptModule):  # its table of buffers is a read-only view
        for name, buffer in buffers.items():
            setattr(module, name, buffer)
    else:
        module._buffers.clear()
        module._buffers.update(buffers)


def _written(original: Tensor | None, copy: Tensor | None, now: Tensor | None) -> bool:
    """Whether a pass has written to a buffer, be it the value that was there (a fixed point)."""
    if now is not copy:
        return True
    if original is None or copy is None:
        return False
    # Batch norm writes its statistics without counting the version up.
    return (not copy.is_inference() and copy._version > 0) or not torch.equal(original, copy)


def run(
    model: nn.Module, inputs: Any, noise: Noise, *, scratch: bool = True
) -> tuple[Any, list[Site]]:
    r"""One forward pass in which every site computes :math:`h + \eta \odot h` with our noise.

    Args:
        model: A model that `find_sites` accepts.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments for `model`.
        noise: The noise of each site, asked in call order.
        scratch: Whether the pass works on copies of the buffers (batch-norm statistics, ...), so
            that they stay as they are.

    Returns:
        What the model returns, and the sites that the pass met; here they carry no names.

    Raises:
        NoSitesError: If no site is met, or its subclass where the reason is known.
    """
    args, kwargs = call_arguments(inputs)
    control = Control(noise)
    with scratch_buffers(model) if scratch else nullcontext(), control:
        output = model(*args, **kwargs)
    require_sites(model, control)
    return output, control.sites


def require_sites(model: nn.Module, control: Control) -> None:
    """Say why, if a pass met no site.

    Args:
        model: The model that was run.
        control: What controlled it.

    Raises:
        EvalModeError: If dropout is there and switched off.
        ZeroProbabilityError: If its probability is 0 everywhere.
        NoSitesError: If there is none.
    """
    if control.sites:
        return
    if any(p > 0.0 for p in control.inactive_p):
        raise EvalModeError(
            "every dropout of the model is in eval mode, where it does nothing: call "
            "model.train() first."
        )
    if control.inactive_p:
        raise ZeroProbabilityError(
            "every dropout of the model has probability 0: its regularizer and its noise are zero. "
            "Set a probability between 0 and 1."
        )
    if not model.training:
        raise EvalModeError(
            "no dropout was met, and the model is in eval mode: call model.train() first."
        )
    raise NoSitesError(
        "no dropout was met in the forward pass. Add nn.Dropout, F.dropout, "
        "dropreg.shared_dropout or another dropout where the noise should act."
    )


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model from `inputs`."""
    if isinstance(inputs, Mapping):  # a dict, or for instance a tokenizer's BatchEncoding
        return (), dict(inputs)
    # Only plain tuples: a PackedSequence is a named tuple and one argument.
    return (inputs if type(inputs) is tuple else (inputs,)), {}


def find_logits(output: Any) -> Tensor:
    """The logits in what a model returned.

    Args:
        output: A tensor, an object with an attribute `logits`, a mapping with that key, or a tuple
            or list that begins with the logits.

    Returns:
        The logits.

    Raises:
        LogitsError: If none are found, they are not of a floating-point type, or hold NaN (unless
            within `dropreg.errors.values_unchecked`).
    """
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise LogitsError(
            f"the model returned {type(output).__name__}; expected logits as a tensor, as the "
            "attribute or key 'logits', or as the first item of a tuple."
        )
    if not output.is_floating_point():
        raise LogitsError(
            f"the model returned {output.dtype}; expected floating-point logits, not class labels."
        )
    # A sum is quicker than a mask of the NaNs; it is NaN, too, where infinities cancel.
    looks = values_are_checked()
    if looks and output.detach().sum().isnan() and torch.isnan(output).any():
        raise LogitsError(
            "the model's logits hold NaN: look at the inputs, the weights and the learning rate."
        )
    return output
