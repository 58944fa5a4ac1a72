"""Finding the sites of a model, and making sure that nothing else in it is random.

A model is audited once, before its noise is first controlled. What cannot be controlled is refused
by name; it is never left to run on with its own random masks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dropreg.errors import NeverSupportedError, NotYetSupportedError
from dropreg.noise import Probe
from dropreg.sites import (
    Control,
    Site,
    Sites,
    call_arguments,
    find_logits,
    require_sites,
    scratch_buffers,
)


def find_sites(model: nn.Module, *args: Any, **kwargs: Any) -> Sites:
    """Find every place where dropout acts in ``model(*args, **kwargs)``.

    The model is run a few times without gradients, on copies of its buffers and of the random
    state, and audited: with every site off, its output must not depend on random numbers.

    Args:
        model: Any model in train mode. It is not changed.
        *args: Positional arguments of its forward pass.
        **kwargs: Keyword arguments of its forward pass.

    Returns:
        The sites in call order; print them for a table.

    Raises:
        NoSitesError: If there is no dropout; `EvalModeError` if it is switched off,
            `ZeroProbabilityError` if every probability is 0.
        ProbabilityError: If a probability is 1.
        NeverSupportedError: If the model has `nn.AlphaDropout`, scripted dropout, or draws random
            numbers elsewhere.
        NotYetSupportedError: If dropout lies inside an activation checkpoint or a compiled module.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    >>> find_sites(model, torch.randn(5, 4))
    site  kind     shape   p    mask shared
    2     dropout  (5, 8)  0.3  none
    """
    return Sites(_audit(model, args, kwargs)[0])


_AUDITED: weakref.WeakKeyDictionary[nn.Module, tuple[object, bool]] = weakref.WeakKeyDictionary()


def audited(model: nn.Module, inputs: Any) -> bool:
    """Audit a model, once, and again when its modules or their modes have changed.

    Args:
        model: The model.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments for it.

    Returns:
        Whether its forward pass changes buffers.

    Raises:
        NoSitesError: As `find_sites` does.
        UnsupportedError: As `find_sites` does.
    """
    state = tuple((id(m), m.training) for m in model.modules())
    known = _AUDITED.get(model)
    if known is None or known[0] != state:
        args, kwargs = call_arguments(inputs)
        known = (state, _audit(model, args, kwargs)[1])
        _AUDITED[model] = known
    return known[1]


def _audit(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Site], bool]:
    """The sites, and whether the pass changes buffers; nothing but the sites may be random."""
    _refuse_opaque(model)
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    tracker = Tracker(model)
    random_ops = _RandomOps(tracker)

    def forward(seed: int, control: Control) -> Tensor:
        torch.manual_seed(seed)
        with control:
            return find_logits(model(*args, **kwargs))

    with torch.no_grad(), torch.random.fork_rng(devices=cuda):
        control = Control(lambda site: None, tracker=tracker)
        with scratch_buffers(model) as changed, tracker.tracking(), random_ops:
            first = forward(0, control)
            mutates = changed()
        with scratch_buffers(model):
            second = forward(1, Control(lambda site: None))
        if not _agree(first, second):
            seen = ", ".join(random_ops.seen) or "none seen (numpy, or a custom kernel)"
            raise NeverSupportedError(
                "with every dropout site off, two forward passes still differ, so something else "
                f"is random. Operations that drew random numbers: {seen}. Write that noise with "
                "torch.nn.functional.dropout or dropreg.shared_dropout, or switch it off."
            )
        if control.any_inplace:
            _require_inplace_result_is_used(model, forward)
    require_sites(model, control)
    return control.sites, mutates


def _agree(first: Tensor, second: Tensor) -> bool:
    """Whether two outputs are the same up to the order of summation in the kernels."""
    exact = first.device.type == "cpu" and first.dtype in (torch.float32, torch.float64)
    finite = first[first.isfinite()]
    scale = finite.abs().max().item() if finite.numel() else 1.0
    tolerance = (1e-5 if exact else 1e-2) * scale
    return first.shape == second.shape and torch.allclose(first, second, rtol=0.0, atol=tolerance)


def _require_inplace_result_is_used(
    model: nn.Module, forward: Callable[[int, Control], Tensor]
) -> None:
    # Sites are computed out of place. That is the same thing only if the model goes on with what
    # the in-place dropout returns, and not with the tensor that it was given.
    probe = Probe("rademacher", torch.Generator().manual_seed(0))
    outputs = []
    for write_back in (False, True):
        control = Control(probe.at(1.0))
        control.write_back = write_back
        with scratch_buffers(model):
            outputs.append(forward(0, control))
    if not _agree(*outputs):
        raise NotYetSupportedError(
            "an in-place dropout whose result is not used: write x = F.dropout(x, ...) in place of "
            "F.dropout(x, ..., inplace=True)."
        )


def _refuse_opaque(model: nn.Module) -> None:
    """Refuse modules whose dropout runs where no Python function is called."""
    for path, module in model.named_modules():
        where = path or "the model itself"
        if isinstance(module, torch.jit.ScriptModule):
            graph: Any = module.inlined_graph if hasattr(module, "forward") else None
            if graph is not None and any(map(graph.findAllNodes, _SCRIPTED_DROPOUT)):
                raise NeverSupportedError(
                    f"{where} is a scripted module with dropout in it; nothing inside TorchScript "
                    "can be seen or changed. Use the original Python module."
                )
        if hasattr(module, "_orig_mod"):
            raise NotYetSupportedError(
                f"{where} is compiled by torch.compile, which fixes its dropout before it can be "
                "controlled. Pass the original module (._orig_mod)."
            )


_SCRIPTED_DROPOUT = (
    "aten::dropout",
    "aten::dropout_",
    "aten::feature_dropout",
    "aten::feature_dropout_",
    "aten::alpha_dropout",
    "aten::feature_alpha_dropout",
    "aten::native_dropout",
    "aten::bernoulli",
    "aten::bernoulli_",
)


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


class _RandomOps(TorchDispatchMode):
    """Collects the names of the operations that draw random numbers, and where they ran."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.seen: dict[str, None] = {}
        self._tracker = tracker

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # PyTorch tags attention kernels as random even when nothing is dropped in them.
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in str(func):
            self.seen[f"{func} (in {self._tracker.current()})"] = None
        return func(*args, **(kwargs or {}))
