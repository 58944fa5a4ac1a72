r"""Control of one forward pass: every function that drops asks here for its noise.

At every site the model computes :math:`h + \eta \odot h`. `Control` runs anybody's model with a
noise of our choice in place of the random masks. The model itself is never changed: control is a
`TorchFunctionMode` around one forward pass, in which a function that drops is replaced by its
adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dropreg.errors import InputError, NotYetSupportedError
from dropreg.noise import check_probability
from dropreg.probes import Noise
from dropreg.sites import Site

Adapter = Callable[..., Any]
"""Runs in place of a function that drops, as adapter(control, *args, **kwargs)."""

ADAPTERS: dict[Callable[..., Any], Adapter] = {}
"""The functions that drop, each with its adapter; `register_adapter` adds one."""


def register_adapter(function: Callable[..., Any], adapter: Adapter) -> None:
    """Make sites of what a function drops, from now on.

    Args:
        function: A function that PyTorch hands to `__torch_function__`: one of PyTorch's own, or
            one of yours that begins as `dropreg.shared_dropout` does, with
            `torch.overrides.handle_torch_function`.
        adapter: Runs in its place, as ``adapter(control, *args, **kwargs)``. It computes what the
            function computes, and takes the noise from `Control.perturb`, or where the tensor is
            not at hand from `Control.noise`.

    Raises:
        InputError: If one of the two cannot be called.

    >>> from torch.overrides import handle_torch_function, has_torch_function_unary
    >>> def row_dropout(x, p):
    ...     if has_torch_function_unary(x):
    ...         return handle_torch_function(row_dropout, (x,), x, p)
    ...     return x * torch.empty(len(x), 1).bernoulli_(1 - p) / (1 - p)
    >>> def rows(control, x, p):
    ...     return control.perturb("row dropout", x, p, training=True, mask_shape=(len(x), 1))
    >>> register_adapter(row_dropout, rows)
    """
    if not callable(function) or not callable(adapter):
        raise InputError("register_adapter takes a function that drops, and its adapter.")
    ADAPTERS[function] = adapter


class Control(TorchFunctionMode):
    """Within this context every site gets its noise from `source`.

    Attributes:
        sites: The sites met so far, in call order.
        inactive_p: The probability of each dropout that is not a site, 0 where it is in train mode.
        any_inplace: Whether a site was asked for in place.
        write_back: Whether such a site writes its result to its input, as PyTorch's own does.
    """

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
        check_probability(p)
        if _inside_checkpoint():
            raise NotYetSupportedError(
                f"dropout inside an activation checkpoint ({self.where() or kind}): the backward "
                "pass would recompute it with other masks than the forward pass used. Switch "
                "checkpointing off around the dropout, e.g. model.gradient_checkpointing_disable()."
            )
        if like.is_nested:
            raise NotYetSupportedError(
                f"dropout of a nested tensor ({self.where() or kind}): its mask has no single "
                "shape. Pad the sequences, or pack them."
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


class Tracker:
    """Knows the path of the module that is running, by hooks that are there for one pass only."""

    def __init__(self, model: nn.Module) -> None:
        """Prepare for one pass.

        Args:
            model: The model whose modules are named.
        """
        self._model = model
        self._stack = [""]
        self._calls: dict[str, int] = {}

    def current(self) -> str:
        """Path of the module that is running."""
        return self._stack[-1] or "the model itself"

    def name(self) -> str:
        """Name of a site that the running module calls now."""
        path = self._stack[-1] or type(self._model).__name__
        count = self._calls[path] = self._calls.get(path, 0) + 1
        return path if count == 1 else f"{path}#{count}"

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """Follow the model's calls while the context lasts."""
        handles = []
        try:
            for path, module in self._model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue  # takes no hooks; nothing in it can be a site

                def enter(_module: nn.Module, _args: Any, path: str = path) -> None:
                    self._stack.append(path)

                def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
                    self._stack.pop()

                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
