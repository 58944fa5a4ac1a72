"""Finding the sites of a model, and making sure that nothing else in it is random.

A model is audited once, before its noise is first controlled. What cannot be controlled is refused
by name; it is never left to run on with its own random masks.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from dropreg.control.buffers import scratch_buffers
from dropreg.control.control import ADAPTERS, Control, Tracker
from dropreg.control.kernels import without_gradients
from dropreg.control.passes import Arguments, find_logits, forward, require_sites
from dropreg.errors import InputError, NeverSupportedError, NotYetSupportedError
from dropreg.probes import Probe, clean
from dropreg.sites import Sites


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
    return _audit(model, (args, kwargs))


_AUDITS: weakref.WeakKeyDictionary[nn.Module, tuple[object, Sites]] = weakref.WeakKeyDictionary()


def audited(model: nn.Module, arguments: Arguments) -> Sites:
    """Audit a model, once, and again when its modules, their modes or autocast have changed.

    Args:
        model: The model.
        arguments: Its arguments; see `dropreg.control.passes.call_arguments`.

    Returns:
        The sites, in call order.

    Raises:
        NoSitesError: As `find_sites` does.
        UnsupportedError: As `find_sites` does.
    """
    autocast = tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    modes = ((id(m), m.training) for m in model.modules())
    state = (autocast, tuple(ADAPTERS.values()), *modes)
    known = _AUDITS.get(model)
    if known is None or known[0] != state:
        known = _AUDITS[model] = (state, _audit(model, arguments))
    return known[1]


def _audit(model: nn.Module, arguments: Arguments) -> Sites:
    """Run the model with every site off, and see that nothing else in it is random."""
    _refuse_opaque(model)
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    tracker = Tracker(model)

    def logits(seed: int, control: Control, *, scratch: bool = True) -> Tensor:
        # Not torch.manual_seed: that would also seed a CUDA that the user has yet to start.
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        output = forward(model, arguments, control, scratch=scratch)
        return find_logits(output).clone()  # the next pass may write to it

    with without_gradients(), torch.random.fork_rng(devices=cuda):
        control = Control(clean, tracker=tracker)
        operations = _Operations(control, tracker)
        with scratch_buffers(model) as changed, tracker.tracking(), operations:
            first = logits(0, control, scratch=False)
            changes_buffers = changed()
        # Random numbers may be drawn and have no effect, or a rare one (layers skipped at random).
        for seed in range(1, 9 if operations.random else 2):
            if not _agree(first, logits(seed, Control(clean))):
                raise _hidden_randomness(operations)
        if control.any_inplace:
            _require_inplace_result_is_used(model, arguments)
    require_sites(model, control)
    return Sites(tuple(control.sites), changes_buffers, operations.any_half_precision)


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


def _require_inplace_result_is_used(model: nn.Module, arguments: Arguments) -> None:
    # Sites are computed out of place. That is the same thing only if the model goes on with what
    # the in-place dropout returns, and not with the tensor that it was given.
    probe = Probe("rademacher", torch.Generator().manual_seed(0))
    outputs = []
    for write_back in (False, True):
        control = Control(probe.at(1.0))
        control.write_back = write_back
        # The tensor that is written to may be the user's own input.
        copies = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, arguments)
        outputs.append(find_logits(forward(model, copies, control, scratch=True)))
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
