"""Finding the sites of a model, and making sure that nothing else in it is random.

A model is audited once, before its noise is first controlled. What cannot be controlled is refused
by name; it is never left to run on with its own random masks.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from dropreg.errors import InputError, NeverSupportedError, NotYetSupportedError
from dropreg.kernels import without_gradients
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
        InputError: If the model has parameters that a first pass has yet to create.
        NeverSupportedError: If the model has `nn.AlphaDropout`, scripted dropout, or draws random
            numbers elsewhere.
        NotYetSupportedError: If dropout lies inside an activation checkpoint or a compiled module.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    >>> find_sites(model, torch.randn(5, 4))
    site  kind     shape   p    mask shared
    2     dropout  (5, 8)  0.3  none
    """
    return Sites(_audit(model, args, kwargs).sites)


@dataclass(frozen=True)
class Audit:
    """What the audit of a model found out about its forward pass.

    Attributes:
        sites: The sites, in call order.
        changes_buffers: Whether the pass writes to buffers, as batch norm does.
        uses_half_precision: Whether anything after the first site is computed below float32.
    """

    sites: list[Site]
    changes_buffers: bool
    uses_half_precision: bool


_AUDITS: weakref.WeakKeyDictionary[nn.Module, tuple[object, Audit]] = weakref.WeakKeyDictionary()


def audited(model: nn.Module, inputs: Any) -> Audit:
    """Audit a model, once, and again when its modules, their modes or autocast have changed.

    Args:
        model: The model.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments for it.

    Returns:
        What was found.

    Raises:
        NoSitesError: As `find_sites` does.
        UnsupportedError: As `find_sites` does.
    """
    autocast = tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    state = (autocast, *((id(m), m.training) for m in model.modules()))
    known = _AUDITS.get(model)
    if known is None or known[0] != state:
        args, kwargs = call_arguments(inputs)
        known = _AUDITS[model] = (state, _audit(model, args, kwargs))
    return known[1]


def _audit(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Audit:
    """Run the model with every site off, and see that nothing else in it is random."""
    _refuse_opaque(model)
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    tracker = Tracker(model)

    def forward(seed: int, control: Control) -> Tensor:
        # Not torch.manual_seed: that would also seed a CUDA that the user has yet to start.
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        with control:
            return find_logits(model(*args, **kwargs)).clone()  # the next pass may write to it

    with without_gradients(), torch.random.fork_rng(devices=cuda):
        control = Control(lambda site: None, tracker=tracker)
        operations = _Operations(control, tracker)
        with scratch_buffers(model) as changed, tracker.tracking(), operations:
            first = forward(0, control)
            changes_buffers = changed()
        # Random numbers may be drawn and have no effect, or a rare one (layers skipped at random).
        for seed in range(1, 9 if operations.random else 2):
            with scratch_buffers(model):
                again = forward(seed, Control(lambda site: None))
            if not _agree(first, again):
                raise _hidden_randomness(operations)
        if control.any_inplace:
            _require_inplace_result_is_used(model, args, kwargs)
    require_sites(model, control)
    return Audit(control.sites, changes_buffers, operations.any_half_precision)


def _hidden_randomness(operations: _Operations) -> NeverSupportedError:
    if operations.random:
        source = f"Operations that drew random numbers: {', '.join(operations.random)}"
    else:
        source = (
            "No PyTorch operation drew random numbers, so look for numpy, a custom kernel, or a "
            "pass that changes its own inputs or state"
        )
    return NeverSupportedError(
        "with every dropout site off, two forward passes still differ, so something else is "
        f"random. {source}. Write that noise with torch.nn.functional.dropout or "
        "dropreg.shared_dropout, or switch it off."
    )


def _agree(first: Tensor, second: Tensor) -> bool:
    """Whether two outputs are the same up to the order of summation in the kernels."""
    if first.shape != second.shape:
        return False
    # Only what differs sets the scale: a class masked by -1e9 or -inf must not hide the others.
    differs = first != second
    a, b = first[differs].double(), second[differs].double()
    exact = first.device.type == "cpu" and first.dtype in (torch.float32, torch.float64)
    tolerance = 1e-5 if exact else 1e-2
    return not a.numel() or bool((a - b).abs().max() < tolerance * a.abs().max())


def _require_inplace_result_is_used(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    # Sites are computed out of place. That is the same thing only if the model goes on with what
    # the in-place dropout returns, and not with the tensor that it was given.
    probe = Probe("rademacher", torch.Generator().manual_seed(0))
    outputs = []
    for write_back in (False, True):
        control = Control(probe.at(1.0))
        control.write_back = write_back
        # The tensor that is written to may be the user's own input.
        copies = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, dict(kwargs)))
        with scratch_buffers(model), control:
            outputs.append(find_logits(model(*copies[0], **copies[1])))
    if not _agree(*outputs):
        raise NotYetSupportedError(
            "an in-place dropout whose result is not used, or whose input is used elsewhere: write "
            "x = F.dropout(x, ...) in place of F.dropout(x, ..., inplace=True)."
        )


def _refuse_opaque(model: nn.Module) -> None:
    """Refuse modules whose dropout runs where no Python function is called."""
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise InputError(
            "the model has lazy modules whose parameters do not exist yet: run it once on a batch."
        )
    for path, module in model.named_modules():
        where = path or "the model itself"
        if isinstance(module, torch.jit.ScriptModule):
            graph: Any = module.inlined_graph if hasattr(module, "forward") else None
            if graph is not None and any(map(graph.findAllNodes, _SCRIPTED_DROPOUT)):
                raise NeverSupportedError(
                    f"{where} is a scripted module with dropout in it; nothing inside TorchScript "
                    "can be seen or changed. Use the original Python module."
                )
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None):
            raise NotYetSupportedError(
                f"{where} is compiled by torch.compile, which fixes its dropout before it can be "
                "controlled. Pass the module as it was before (for torch.compile(m): m._orig_mod)."
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


class _Operations(TorchDispatchMode):
    """Looks at every operation of a pass, however deep inside a fused function.

    Attributes:
        random: The operations that drew random numbers, and where they ran.
        any_half_precision: Whether one after the first site gave less than float32. Before it there
            is no noise yet, and so no small difference to drown.
    """

    def __init__(self, control: Control, tracker: Tracker) -> None:
        super().__init__()
        self.random: dict[str, None] = {}
        self.any_half_precision = False
        self._control, self._tracker = control, tracker

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # PyTorch tags attention kernels as random even when nothing is dropped in them.
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in str(func):
            self.random[f"{func} (in {self._tracker.current()})"] = None
        result = func(*args, **(kwargs or {}))
        if self._control.sites and isinstance(result, Tensor) and result.is_floating_point():
            self.any_half_precision |= result.itemsize < 4
        return result
