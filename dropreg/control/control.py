r"""Control of one forward pass: every function that drops asks here for its noise.

At every site the model computes :math:`h + \eta \odot h`. `Control` runs anybody's model with a
noise of our choice in place of the random masks. The model itself is never changed: control is a
`TorchFunctionMode` around one forward pass, in which a function that drops is replaced by its
adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from types import CodeType, FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dropreg.control import draws
from dropreg.errors import InputError, NotYetSupportedError
from dropreg.noise import check_probability
from dropreg.probes import Noise, OnRows
from dropreg.sites import Site

Adapter = Callable[..., Any]
"""Runs in place of a function that drops, as adapter(control, *args, **kwargs)."""

ADAPTERS: dict[Callable[..., Any], Adapter] = {}
"""The functions and modules that drop, each with its adapter; `register_adapter` adds one."""


def register_adapter(function: Callable[..., Any], adapter: Adapter) -> None:
    """Make sites of what a function or a module drops, from now on.

    Args:
        function: A function that PyTorch hands to `__torch_function__`: one of PyTorch's own, or
            one of yours that begins as `dropreg.shared_dropout` does, with
            `torch.overrides.handle_torch_function`. Or a class of modules, whose `forward` then
            runs by the adapter.
        adapter: Runs in its place, as ``adapter(control, *args, **kwargs)``, for a class of modules
            as ``adapter(control, module, *args, **kwargs)``. It computes what the function
            computes, and takes the noise from `Control.perturb`, or where the tensor is not at hand
            from `Control.noise`.

    Raises:
        InputError: If one of the two cannot be called.

    >>> from torch.overrides import handle_torch_function, has_torch_function_unary
    >>> def row_dropout(x, p):
    ...     if has_torch_function_unary(x):
    ...         return handle_torch_function(row_dropout, (x,), x, p)
    ...     return x * torch.multinomial(torch.tensor([p, 1 - p]), len(x), True)[:, None] / (1 - p)
    >>> def rows(control, x, p):
    ...     return control.perturb("row dropout", x, p, training=True, mask_shape=(len(x), 1))
    >>> register_adapter(row_dropout, rows)
    """
    if not callable(function) or not callable(adapter):
        raise InputError("register_adapter takes a function that drops, and its adapter.")
    ADAPTERS[function] = adapter


def module_adapters(model: nn.Module) -> list[tuple[nn.Module, Adapter]]:
    """The modules of a model whose class has an adapter."""
    classes = {c: a for c, a in ADAPTERS.items() if isinstance(c, type)}
    found = (
        (m, next((classes[c] for c in type(m).__mro__ if c in classes), None))
        for m in model.modules()
    )
    return [(module, adapter) for module, adapter in found if adapter is not None]


class Control(TorchFunctionMode):
    """Within this context every site gets its noise from `source`.

    Attributes:
        sites: The sites met so far, in call order.
        inactive_p: The probability of each dropout that is not a site, 0 where it is in train mode.
        any_inplace: Whether a site was asked for in place.
        write_back: Whether such a site writes its result to its input, as PyTorch's own does.
        differentiates: Whether the noise of a site asks for its gradient.
        drawn: The random generators that the model itself has used.
        paths: The path of each of the model's modules, by its `id`.
        adapted: The modules that run by an adapter.
        private: The random generators that the model holds itself.
    """

    def __init__(
        self,
        source: Noise,
        *,
        paths: Mapping[int, str] | None = None,
        adapted: Sequence[tuple[nn.Module, Adapter]] = (),
        private: Sequence[tuple[str, draws.Reader]] = (),
    ) -> None:
        """Prepare control of one forward pass.

        Args:
            source: The noise of each site, asked in call order.
            paths: The path of each of the model's modules, by its `id`; without it sites carry no
                names.
            adapted: What `module_adapters` found.
            private: What `dropreg.control.draws.private_generators` found.
        """
        super().__init__()
        self.sites: list[Site] = []
        self.inactive_p: list[float] = []
        self.any_inplace = False
        self.write_back = False
        self.differentiates = False
        self.drawn: dict[str, None] = {}
        self._source, self.paths = source, paths or {}
        self.adapted, self.private = adapted, private
        self._calls: dict[str, int] = {}
        self._given: list[Tensor | OnRows | None] = []
        self._states: list[object] = []
        self._own: list[tuple[nn.Module, Any]] = []
        self._masks = 0
        self._outermost: FrameType | None = None

    def __enter__(self) -> Any:
        """Take control."""
        self._own = [(module, vars(module).get("forward")) for module, _ in self.adapted]
        for module, adapter in self.adapted:
            vars(module)["forward"] = _bound(adapter, self, module)
        self._states = draws.states(self.private)
        self._outermost = sys._getframe(1)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        """Give control back, and note what was drawn."""
        super().__exit__(*exception)
        self._outermost = None
        self._note_draws()
        for module, own in self._own:
            del vars(module)["forward"]
            if own is not None:
                vars(module)["forward"] = own

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
            if kwargs and kwargs.get("generator") is not None:
                name = getattr(func, "__name__", str(func))
                raise draws.refusal([f"{name} with a generator of its own (in {self.where()})"])
            if self._masks and _detaches_a_mask(func, args):
                return self.marked(args[0].view_as(args[0]))
            result = func(*args, **(kwargs or {}))
        else:
            result = adapter(self, *args, **(kwargs or {}))
        if self._masks:
            self._follow_masks(func, tree_leaves((args, kwargs)), result)
        return result

    def where(self) -> str:
        """Path of the module that is running."""
        for _, path in _callers(self.paths, self._outermost):
            return path or "the model itself"
        return "the model itself"

    def running(self) -> list[nn.Module]:
        """The modules of the model that are running, innermost first."""
        return [module for module, _ in _callers(self.paths, self._outermost)]

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
        eta = self.some_noise(kind, like, shape, p, training, mask_shape)
        return eta.whole() if isinstance(eta, OnRows) else eta

    def some_noise(
        self,
        kind: str,
        like: Tensor,
        shape: Sequence[int],
        p: float,
        training: bool,
        mask_shape: Sequence[int] | None = None,
    ) -> Tensor | OnRows | None:
        """As `noise`, for `apply`: if only some rows have noise, that of these rows."""
        if isinstance(p, Tensor) and p.requires_grad:
            raise InputError(
                f"the dropout probability in {self.where()} requires a gradient, but no effect is "
                "differentiable in it. Pass a number, for instance p.item()."
            )
        if not training or p == 0.0:
            self.skip(p, training)
            return None
        check_probability(p)
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
        is_computed_again = self._enter_checkpoints()
        site = Site(
            name=self._name(),
            kind=kind,
            p=float(p),
            shape=tuple(shape),
            mask_shape=tuple(shape if mask_shape is None else mask_shape),
            dtype=like.dtype,
            device=like.device,
        )
        self.sites.append(site)
        # A source that draws where the model could, too, is told from the model.
        draws_globally = getattr(self._source, "draws_globally", True)
        if draws_globally:
            self._note_draws(of_torch_alone=True)
        # The noise itself is not computed again: no checkpoint is to count what it keeps.
        own = saved_tensors_hooks(_same, _same) if is_computed_again else nullcontext()
        with own, torch._C.DisableTorchFunction():  # a module's adapter runs under control itself
            eta = self._source(site)
        if draws_globally:
            self._states = draws.states(self.private, self._states)
        self._given.append(eta if is_computed_again else None)  # else it only takes up memory
        self.differentiates |= isinstance(eta, Tensor) and eta.requires_grad
        return eta

    @staticmethod
    def apply(h: Tensor, eta: Tensor | OnRows) -> Tensor:
        """The site's computation, h + eta * h, in the precision of h."""
        if isinstance(eta, OnRows):
            return eta.apply(h, Control.apply)
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
        eta = self.some_noise(kind, h, h.shape, p, training, mask_shape)
        self.any_inplace |= inplace and len(self.sites) > before
        if eta is None:
            # A view: whoever sets an attribute to a dropped weight must not be given the parameter
            # itself, which a module would register.
            return h.view_as(h) if isinstance(h, nn.Parameter) else h
        noisy = self.apply(h, eta)
        return h.copy_(noisy) if inplace and self.write_back else noisy

    def mask(self, like: Tensor, keep: float) -> Tensor:
        """A mask of zeros and ones by hand: keep * (1 + eta), with the noise of 1 - keep."""
        eta = self.some_noise("mask", like, like.shape, 1.0 - keep, training=True)
        mask = torch.full_like(like, keep)
        mask = mask if eta is None else self.apply(mask, eta)
        return self.marked(mask)

    def marked(self, mask: Tensor, of: Tensor | None = None) -> Tensor:
        """Follow a mask by hand from here on: it may only be multiplied by, and once."""
        self._masks += of is None
        number = self._masks if of is None else of.is_mask_by_hand  # type: ignore[attr-defined]
        mask.is_mask_by_hand = number  # type: ignore[attr-defined]
        return mask

    def _follow_masks(self, func: Callable[..., Any], args: Sequence[Any], result: Any) -> None:
        """See to it that a mask by hand is only scaled, shaped, and multiplied by."""
        # At its mean it is the clean network's only where it acts as a factor.
        masks = [a for a in args if isinstance(a, Tensor) and hasattr(a, "is_mask_by_hand")]
        name = getattr(func, "__name__", str(func)).partition(".")[0].strip("_")
        if not masks or name in _LOOKS_AT_A_MASK:
            return
        first = next(i for i, a in enumerate(args) if a is masks[0])
        others = [a for i, a in enumerate(args) if isinstance(a, Tensor) and a.ndim and i != first]
        divides_by_it = name in _DIVIDES and args[0] is not masks[0]
        if name in _SHAPES_A_MASK or (name in _SCALES_A_MASK and not (others or divides_by_it)):
            if isinstance(result, Tensor):
                self.marked(result, masks[0])
            return
        number = getattr(masks[0], "is_mask_by_hand", 0)
        # A mask times itself has another mean: its square is the mask, the mean's is not the mean.
        twice = len(masks) > 1 and getattr(masks[1], "is_mask_by_hand", None) == number
        twice |= any(number in getattr(a, "has_masks", ()) for a in others)
        if name in _SCALES_A_MASK and not (divides_by_it or twice):
            if isinstance(result, Tensor):
                before = [n for a in others for n in getattr(a, "has_masks", ())]
                result.has_masks = {number, *before}  # type: ignore[attr-defined]
        else:
            raise NotYetSupportedError(
                f"a mask drawn by hand is used in `{name}` (in {self.where()}): it is a dropout "
                "only where it multiplies a tensor, once. Write it with "
                "torch.nn.functional.dropout or dropreg.shared_dropout, or switch it off."
            )

    def _name(self) -> str:
        for module, found in _callers(self.paths, self._outermost):
            path = found or type(module).__name__
            count = self._calls[path] = self._calls.get(path, 0) + 1
            return path if count == 1 else f"{path}#{count}"
        return ""

    def _note_draws(self, *, of_torch_alone: bool = False) -> None:
        now = draws.states(self.private, self._states if of_torch_alone else None)
        if now != self._states:
            self.drawn |= dict.fromkeys(draws.changed(self._states, now, self.private))
            self._states = now

    def _enter_checkpoints(self) -> bool:
        """See to it that a checkpoint's recomputation is controlled, with the same noise."""
        any_found = False
        frame: FrameType | None = sys._getframe(1)
        start = len(self.sites)
        while frame is not None and frame is not self._outermost:
            code = frame.f_code
            if code.co_filename == torch.utils.checkpoint.__file__:
                any_found = True
                if code.co_name == "checkpoint" and "gen" in frame.f_locals:
                    inner = frame.f_locals["gen"].gi_frame
                    _wrap(inner and inner.f_locals.get("new_frame"), "recompute_fn", self, start)
                elif code.co_name == "forward":
                    _wrap(frame.f_locals.get("ctx"), "run_function", self, start)
            elif code.co_name == "forward" and code not in _OF_MODULES:
                first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
                if isinstance(first, nn.Module):
                    _OF_MODULES.add(code)
                if isinstance(first, torch.autograd.function.FunctionCtx):
                    raise NotYetSupportedError(
                        f"dropout ({self.where()}) inside the forward of an autograd.Function "
                        f"({code.co_qualname}): its backward would use masks of its own. For "
                        "checkpointing use torch.utils.checkpoint.checkpoint, or put that part in "
                        "eval mode."
                    )
            frame = frame.f_back
        return any_found

    def _again(self, start: int) -> Control:
        """Control of a part of the pass that is computed again, from a site on, by its noise."""
        given = iter(self._given[start:])

        def noise(site: Site) -> Tensor | OnRows | None:
            try:
                return next(given)
            except StopIteration:
                raise NotYetSupportedError(
                    f"the recomputation of an activation checkpoint met a dropout ({site.name}) "
                    "that its forward pass did not. Switch checkpointing off around it, e.g. "
                    "model.gradient_checkpointing_disable()."
                ) from None

        return Control(noise, paths=self.paths, adapted=self.adapted)


# A function and its operator, method and in-place forms have one name up to underscores.
_DIVIDES = {"div", "truediv", "true_divide", "itruediv", "divide"}
_SCALES_A_MASK = {"mul", "rmul", "imul", "multiply", *_DIVIDES}
_SHAPES_A_MASK = {
    *("view", "view_as", "reshape", "reshape_as", "expand", "expand_as", "unsqueeze", "squeeze"),
    *("to", "type", "type_as", "float", "double", "half", "bfloat16", "contiguous", "clone"),
    *("copy", "bernoulli", "transpose", "permute", "repeat", "broadcast_to", "detach", "cuda"),
    *("requires_grad_", "requires_grad", "flatten", "unflatten", "t", "cpu", "as_subclass"),
}
_LOOKS_AT_A_MASK = {"get", "set", "size", "dim", "numel", "is_floating_point", "new_empty"}


def _detaches_a_mask(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether a mask by hand is detached: the user's own has no past, so nothing is meant by it."""
    is_detach = func in (Tensor.detach, torch.detach, torch.ops.aten.detach.default)
    return is_detach and hasattr(args[0], "is_mask_by_hand")


def _same(x: Tensor) -> Tensor:
    return x


def _bound(adapter: Adapter, control: Control, module: nn.Module) -> Callable[..., Any]:
    return lambda *args, **kwargs: adapter(control, module, *args, **kwargs)


def _callers(
    paths: Mapping[int, str], outermost: FrameType | None
) -> Iterator[tuple[nn.Module, str]]:
    """The modules of the model that are running now, innermost first, with their paths."""
    frame: FrameType | None = sys._getframe(1) if paths else None
    while frame is not None and frame is not outermost:
        code = frame.f_code
        if code not in _NO_METHODS and code.co_argcount:
            first = frame.f_locals.get(code.co_varnames[0])
            if isinstance(first, nn.Module):
                if id(first) in paths:
                    yield first, paths[id(first)]
            else:
                _NO_METHODS.add(code)
        frame = frame.f_back


_OF_MODULES: set[CodeType] = set()
"""The forward of modules, among all that are called so."""
_NO_METHODS: set[CodeType] = set()
"""Functions whose first argument is no module: to look at a frame's arguments takes time."""


def _wrap(holder: Any, attribute: str, control: Control, start: int) -> None:
    """Let a checkpoint run what it computes again under control."""
    original = getattr(holder, attribute, None)
    if original is None:
        raise NotYetSupportedError(
            "dropout inside an activation checkpoint that this version of PyTorch builds in "
            "another way. Switch checkpointing off around the dropout, e.g. "
            "model.gradient_checkpointing_disable()."
        )
    if getattr(original, "controlled", False):
        return

    def controlled(*args: Any) -> Any:
        with control._again(start):
            return original(*args)

    controlled.controlled = True  # type: ignore[attr-defined]
    setattr(holder, attribute, controlled)
