"""Finding the sites of a model, and making sure that nothing else in it is random.

A model is audited once, before its noise is first controlled. What cannot be controlled is refused
by name; it is never left to run on with its own random masks. What an audit cannot foresee, noise
that is switched on later, each pass sees for itself (`dropreg.control.draws`).
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from dropreg.control import draws
from dropreg.control.buffers import scratch_attributes, scratch_buffers
from dropreg.control.control import ADAPTERS, Adapter, Control, module_adapters
from dropreg.control.kernels import (
    exclusive,
    float32_precision,
    temporarily,
    without_gradients,
)
from dropreg.control.passes import (
    Arguments,
    Output,
    everything,
    find_logits,
    forward,
    require_sites,
)
from dropreg.errors import InputError, LogitsError, NeverSupportedError, NotYetSupportedError
from dropreg.noise import Law, sample
from dropreg.probes import Noise, Probe, clean
from dropreg.sites import Site, Sites


def find_sites(model: nn.Module, *args: Any, **kwargs: Any) -> Sites:
    """Find every place where dropout acts in ``model(*args, **kwargs)``.

    The model is run some ten times, forth and back, on copies of its buffers and of the random
    state, and audited: with every site off it must draw no random number, its output must stay the
    same, and its backward pass must reach the noise and draw nothing either.

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
        InputError: If the model is no `nn.Module`, or has parameters that a first pass has yet to
            create.
        NeverSupportedError: If the model has `nn.AlphaDropout`, scripted dropout, draws random
            numbers elsewhere, or uses a dropout's result as a choice only.
        NotYetSupportedError: If dropout lies inside a compiled module, a backward pass draws masks
            of its own, or a forward pass writes to parameters.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    >>> find_sites(model, torch.randn(5, 4))
    site  kind     shape   p    mask shared
    2     dropout  (5, 8)  0.3  none
    """

    def pick(output: Any) -> Tensor:
        try:
            return find_logits(output)
        except LogitsError:
            return everything(output)

    audit = _audit(_require_module(model), (args, kwargs), pick)
    require_sites(model, audit.control())
    return audit.sites


@dataclass
class Audit:
    """What is known of a model.

    Attributes:
        sites: The sites, in call order.
        inactive_p: See `Control`.
        changes_attributes: Whether a pass sets attributes of the modules.
        paths: The path of each module by its `id`.
        adapted: See `Control`.
        private: See `Control`.
        known: The names of all sites met by now, without their count.
        without_gradients: The sites that lie where the model has switched gradients off.
    """

    sites: Sites = field(default_factory=lambda: Sites(()))
    inactive_p: list[float] = field(default_factory=list)
    changes_attributes: bool = False
    paths: dict[int, str] = field(default_factory=dict)
    adapted: Sequence[tuple[nn.Module, Adapter]] = ()
    private: Sequence[tuple[str, draws.Reader]] = ()
    known: set[str] = field(default_factory=set)
    without_gradients: Sequence[Site] = ()

    def control(self, noise: Noise = clean) -> Control:
        """Control of one pass of the model; before it, as if it had met what the audit met."""
        control = Control(noise, paths=self.paths, adapted=self.adapted, private=self.private)
        control.inactive_p = list(self.inactive_p)
        control.sites = list(self.sites) if noise is clean else []
        return control

    def has_met(self, sites: Sequence[Site]) -> bool:
        """Whether a pass met only sites where the audit has seen one."""
        return all(_place(site) in self.known for site in sites)


def _place(site: Site) -> str:
    return site.name.partition("#")[0]


_AUDITS: weakref.WeakKeyDictionary[nn.Module, tuple[object, Audit]] = weakref.WeakKeyDictionary()


def audited(
    model: nn.Module, arguments: Arguments, pick: Output = find_logits, *, again: bool = False
) -> Audit:
    """Audit a model, once, and again when its modules, their modes or autocast have changed.

    Args:
        model: The model.
        arguments: Its arguments; see `dropreg.control.passes.call_arguments`.
        pick: Picks the logits out of what the model returns.
        again: Whether a pass has met a site that no audit has seen.

    Returns:
        What was found.

    Raises:
        InputError: If the model is no `nn.Module`.
        NoSitesError: As `find_sites` does, but not for a probability of 0.
        UnsupportedError: As `find_sites` does.
    """
    autocast = tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    modes = ((id(m), m.training) for m in _require_module(model).modules())
    dtype = next((p.dtype for p in model.parameters()), None)
    state = (autocast, dtype, getattr(pick, "__code__", pick), tuple(ADAPTERS.values()), *modes)
    before = _AUDITS.get(model)
    if before is not None and before[0] == state and not again:
        return before[1]
    audit = _audit(model, arguments, pick)
    if before is not None and before[0] == state:
        audit.known |= before[1].known
    if audit.sites:  # while every probability is 0 it is looked at each time: that may change
        _AUDITS[model] = (state, audit)
    return audit


def _require_module(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model is a {type(model).__name__}; it must be a torch.nn.Module. Put a function "
            "into the forward of one."
        )
    return model


def looked_at(model: nn.Module, arguments: Arguments) -> Audit:
    """What is known of a model before it is run: enough for a pass that nobody differentiates.

    Args:
        model: The model.
        arguments: Its arguments; see `dropreg.control.passes.call_arguments`.

    Returns:
        The paths of its modules, and what it holds; no sites.

    Raises:
        InputError: If the model is no `nn.Module`, or does not take these arguments.
        UnsupportedError: If it has modules whose dropout runs where nobody can see it.
    """
    _refuse_opaque(_require_module(model))
    _require_that_inputs_fit(model, arguments)
    return Audit(
        paths={id(module): path for path, module in model.named_modules()},
        adapted=module_adapters(model),
        private=draws.private_generators(model),
    )


def _audit(model: nn.Module, arguments: Arguments, pick: Output) -> Audit:
    """Run the model with every site off, and see that nothing else in it is random."""
    audit = looked_at(model, arguments)

    def logits(noise: Noise = clean) -> Tensor:
        control = audit.control(noise)
        control.sites = []
        output = forward(model, arguments, control, scratch=True, attributes=True)
        return find_logits(pick(output)).clone()  # the next pass may write to it

    def watched(noise: Noise) -> tuple[Tensor, Control, Watch, bool, bool]:
        control = audit.control(noise)
        control.sites = []
        watch = Watch(control, model)
        with (
            scratch_buffers(model) as buffers_changed,
            scratch_attributes(model) as attributes_changed,
            watch.unwritten(),
            watch,
        ):
            output = forward(model, arguments, control, scratch=False)
            changed = buffers_changed(), attributes_changed()
        return find_logits(pick(output)).clone(), control, watch, *changed

    with exclusive(), draws.restored(), without_gradients():
        first, control, watch, changes_buffers, audit.changes_attributes = watched(clean)
        watched(_Around(0.3, {}))  # what is written may be what was dropped
        if not agree(first, logits()):
            raise NeverSupportedError(
                "with every dropout site off, two forward passes still differ, though no random "
                "generator was used: look for a custom kernel, or a pass that changes its own "
                "inputs or state (which should be a buffer)."
            )
        if control.any_inplace:
            _require_inplace_result_is_used(model, arguments, audit, pick)
    audit.inactive_p = control.inactive_p
    if not (control.inactive_p and not any(control.inactive_p)):
        require_sites(model, control)
    audit.known = {_place(site) for site in control.sites}
    audit.sites = Sites(tuple(control.sites), changes_buffers, watch.any_half_precision)
    inside_torch_func = torch._C._functorch.peek_interpreter_stack() is not None
    if audit.sites and not (torch.is_inference_mode_enabled() or inside_torch_func):
        with exclusive(), draws.restored():
            backward, forward_mode = _why_unreached(model, arguments, audit, pick, first, logits)
        audit.sites = replace(audit.sites, unreached=backward, unreached_forward=forward_mode)
    return audit


def _require_that_inputs_fit(model: nn.Module, arguments: Arguments) -> None:
    args, kwargs = arguments
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # TorchScript has none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the model's forward does not take these inputs: {error}. A tuple gives positional "
            "arguments and a dict keyword arguments; to a model that takes one dict pass (batch,)."
        ) from error


def agree(first: Tensor, second: Tensor) -> bool:
    """Whether two outputs are the same up to the order of summation in the kernels.

    Args:
        first: Any numbers.
        second: Others.

    Returns:
        Whether they are.
    """
    if first.shape != second.shape:
        return False
    # Only what differs sets the scale: a class masked by -1e9 or -inf must not hide the others.
    differs = first != second
    a, b = first[differs].double(), second[differs].double()
    exact = first.device.type == "cpu" and first.dtype in (torch.float32, torch.float64)
    tolerance = 1e-5 if exact else 1e-2
    return not a.numel() or bool((a - b).abs().max() < tolerance * a.abs().max())


def _require_inplace_result_is_used(
    model: nn.Module, arguments: Arguments, audit: Audit, pick: Output
) -> None:
    # Sites are computed out of place. That is the same thing only if the model goes on with what
    # the in-place dropout returns, and not with the tensor that it was given.
    probe = Probe("rademacher", torch.Generator().manual_seed(0))
    outputs = []
    for write_back in (False, True):
        control = audit.control(probe.at(1.0))
        control.write_back = write_back
        # The tensor that is written to may be the user's own input.
        copies = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, arguments)
        output = forward(model, copies, control, scratch=True, attributes=True)
        outputs.append(pick(output))
    if not agree(*outputs):
        raise NotYetSupportedError(
            "an in-place dropout whose result is not used, or whose input is used elsewhere: write "
            "x = F.dropout(x, ...) in place of F.dropout(x, ..., inplace=True)."
        )


# ------------------------------------------------------------------------- does a gradient arrive?


class _Around:
    """The noise of one pass around a base, with its steps; counts the sites."""

    def __init__(self, base: float, steps: Mapping[int, Tensor], scale: float = 0.0) -> None:
        self._base, self._steps, self._scale, self._visited = base, steps, scale, 0

    def __call__(self, site: Site) -> Tensor:
        index, self._visited = self._visited, self._visited + 1
        # Of a law with a density: two entries of a max-pool that are equal are so no longer.
        eta = _draw(site, Law.GAUSSIAN, self._base, int(1000 * self._base) + index)
        if index not in self._steps:
            return eta
        if self._steps[index].shape != eta.shape:
            raise _OtherWay
        return eta + self._scale * self._steps[index]


class _Leaves(_Around):
    """The same as leaves to differentiate in, at every site that a backward pass may reach."""

    def __init__(self, base: float) -> None:
        super().__init__(base, {})
        self.etas: list[Tensor] = []

    def __call__(self, site: Site) -> Tensor:
        self.etas.append(super().__call__(site).requires_grad_(torch.is_grad_enabled()))
        return self.etas[-1]


def _why_unreached(
    model: nn.Module,
    arguments: Arguments,
    audit: Audit,
    pick: Output,
    first: Tensor,
    logits: Callable[..., Tensor],
) -> tuple[str, str]:
    """Pull a vector of logit space back to the noise, and compare with what the noise does.

    A site whose noise moves the logits, and to which no gradient comes back, would be taken for one
    without effect. The same vector is pulled back to everything else too, so that whatever is
    computed again in the backward pass is seen to draw. What lies behind a gate that is closed as
    training begins (ReZero, LayerScale, LoRA) is looked at with the gate open.

    Returns:
        What is wrong with derivatives in reverse mode and in forward mode; nothing if all is well.

    Raises:
        NotYetSupportedError: If the backward pass draws.
    """
    # What lies before the model, an encoder or a prompt, is not ours: nor are its hooks.
    arguments = tree_map(_cut_off, arguments)

    def pulled_back(base: float, first: Tensor) -> tuple[list[Tensor | None], list[Site], str]:
        return _pull_back(model, arguments, audit, pick, first, base)

    found = _compare(pulled_back, audit, first, logits)
    gates = [] if found[0] else _closed(model)
    if gates:
        with _opened(gates):
            with without_gradients():
                first = logits()
            if first.isfinite().any():
                found = _compare(pulled_back, audit, first, logits)
    return found


def _compare(
    pulled_back: Callable[[float, Tensor], tuple[list[Tensor | None], list[Site], str]],
    audit: Audit,
    first: Tensor,
    logits: Callable[..., Tensor],
) -> tuple[str, str]:
    """What is wrong with derivatives in reverse mode and in forward mode, for some weights."""
    gradients, sites, why = pulled_back(0.0, first)
    if why:
        return why, ""
    forward_mode = ""
    with without_gradients():
        for index, (site, gradient) in enumerate(zip(sites, gradients, strict=True)):
            if gradient is None and (cut := _why_no_gradient(site, index, first, logits)):
                if site in audit.without_gradients:  # forward mode goes on there
                    cut = f"{site.kind} ({site.name}) lies in a torch.no_grad() block of the model"
                else:
                    forward_mode = cut
                why = cut
    if why or audit.sites.uses_half_precision:
        return why, forward_mode
    # A kink looks like a wrong gradient, and the noise of a small part is a small part of all: so
    # it takes two places that are right, or three that are wrong. None is the clean network, where
    # ties are (dead units, a max-pool).
    right, wrong = 0, 0
    for base in (0.2, 0.3, 0.4, 0.5):
        gradients, sites, why = pulled_back(base, first)
        with without_gradients():
            why = why or _why_wrong_gradient(gradients, sites, first, base, logits)
        right, wrong = right + (not why), wrong + bool(why)
        if right == 2:
            return "", ""
        if wrong == 3:
            break
    return why, why


def _pull_back(
    model: nn.Module,
    arguments: Arguments,
    audit: Audit,
    pick: Output,
    first: Tensor,
    base: float,
) -> tuple[list[Tensor | None], list[Site], str]:
    """The gradient at each site of the logits times `_direction`, the sites, and what failed."""
    leaves = _Leaves(base)
    with torch.enable_grad(), _own_gradients(model), _uncounted(model), warnings.catch_warnings():
        control = audit.control(leaves)
        found = pick(forward(model, arguments, control, scratch=True, attributes=True))
        found = find_logits(found)
        wanted = [i for i, eta in enumerate(leaves.etas) if eta.requires_grad]
        audit.without_gradients = [
            site
            for site, eta in zip(control.sites, leaves.etas, strict=True)
            if not eta.requires_grad
        ]
        others = _leaf_variables(found, {id(eta) for eta in leaves.etas})
        gradients: list[Tensor | None] = [None] * len(leaves.etas)
        before = draws.states()
        why = ""
        if found.requires_grad:
            try:
                warnings.simplefilter("ignore")  # of missing derivatives: they are looked for here
                pulled = torch.autograd.grad(
                    found,
                    [*(leaves.etas[i] for i in wanted), *others],
                    _direction(first).to(found.dtype),
                    retain_graph=True,  # a tensor that the model holds may have a past of its own
                    allow_unused=True,
                )
            except RuntimeError as error:
                why = f"the backward pass fails: {str(error).splitlines()[0]}"
            else:
                for i, gradient in zip(wanted, pulled, strict=False):
                    gradients[i] = gradient
        if drawn := draws.changed(before, draws.states()):
            raise NotYetSupportedError(
                f"the backward pass draws random numbers ({', '.join(drawn)}): it computes a part "
                "of the model again, as a checkpoint of its own does, and with other masks. Use "
                "torch.utils.checkpoint.checkpoint, or put that part in eval mode."
            )
    return gradients, control.sites, why


def _direction(logits: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return sample(Law.RADEMACHER, logits.shape, 0.5, generator=generator, device=logits.device)


_CLOSED = 1e-3
"""The largest entry of a parameter that shuts off what it multiplies."""


def _closed(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that are all but zero, as gates are when training begins, and biases."""
    return [
        p
        for p in model.parameters()
        if type(p) is nn.Parameter
        and p.is_floating_point()
        and p.numel()
        and not p.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(p)
        and p.detach().abs().max() < _CLOSED
    ]


@contextmanager
def _opened(gates: Sequence[nn.Parameter]) -> Iterator[None]:
    """Put other values in the place of parameters that are all but zero."""
    before = [(p, p.detach()) for p in gates]
    generator = torch.Generator().manual_seed(0)
    try:
        for p, value in before:
            size = 0.5 / value.shape[-1] ** 0.5 if value.ndim > 1 else 0.5
            signs = sample(Law.RADEMACHER, value.shape, 0.5, generator=generator)
            p.data = (size * signs).to(value)
        yield
    finally:
        for p, value in before:
            p.data = value


@contextmanager
def _own_gradients(model: nn.Module) -> Iterator[None]:
    """Set the parameters' gradients back: a recomputation in a backward pass may add to them."""
    before = [(p, p.grad) for p in model.parameters()]
    try:
        for p, _ in before:
            p.grad = None
        yield
    finally:
        for p, grad in before:
            p.grad = grad


@contextmanager
def _uncounted(model: nn.Module) -> Iterator[None]:
    """Keep DistributedDataParallel from taking a backward pass for the user's first one."""
    wrappers = [m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)]
    with (
        temporarily(wrappers, "static_graph", False),
        temporarily(wrappers, "require_backward_grad_sync", False),
    ):
        yield


def _cut_off(x: Any) -> Any:
    return x.detach().requires_grad_() if isinstance(x, Tensor) and x.requires_grad else x


def _leaf_variables(output: Tensor, known: set[int]) -> list[Tensor]:
    """The tensors that a backward pass would end in, but for those known or with hooks."""
    found: dict[int, Tensor] = {}
    seen, todo = set(), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if not isinstance(variable, Tensor) or id(variable) in known:
            variable = None
        if variable is not None and not variable._backward_hooks:
            found[id(variable)] = variable
        todo += [following for following, _ in node.next_functions]
    return list(found.values())


def _only(index: int, noise: Callable[[Site], Tensor]) -> Noise:
    """The noise of one site, and none elsewhere."""
    visited = 0

    def of_site(site: Site) -> Tensor | None:
        nonlocal visited
        visited += 1
        return noise(site) if visited == index + 1 else None

    return of_site


class _OtherWay(Exception):
    """The noise sends the pass another way, as routing to experts does."""


def _draw(site: Site, law: Law, scale: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"device": site.device, "dtype": site.noise_dtype}
    return scale * sample(law, site.mask_shape, site.p, generator=generator, **options)


def _why_no_gradient(site: Site, index: int, first: Tensor, logits: Callable[..., Tensor]) -> str:
    """What is wrong with a site to which no gradient came back; nothing if it has no effect."""
    # Masks of a small probability may leave all as it is: some more are tried.
    masks = [partial(_draw, law=Law.BERNOULLI, scale=1.0, seed=seed) for seed in range(4)]
    if all(agree(first, logits(_only(index, mask))) for mask in masks):
        return ""
    small = logits(_only(index, partial(_draw, law=Law.RADEMACHER, scale=0.05, seed=0)))
    if torch.equal(small, first):
        raise NeverSupportedError(
            f"the result of a dropout ({site.name}, {site.kind}) is used as a choice only, in a "
            "comparison or an index: its noise has no derivative, and no regularizer follows from "
            "it. Multiply by the mask instead, or switch it off."
        )
    return (
        f"{site.kind} ({site.name}) moves the logits and no derivative reaches its noise: its "
        "result goes through .detach(), .data, nn.Parameter(...) or an operation that has no "
        "derivative"
    )


def _why_wrong_gradient(
    gradients: Sequence[Tensor | None],
    sites: Sequence[Site],
    first: Tensor,
    base: float,
    logits: Callable[..., Tensor],
) -> str:
    """What is wrong if the noise moves the logits otherwise than the gradients say."""
    reached = {i: g for i, g in enumerate(gradients) if g is not None}
    etas = {i: _draw(sites[i], Law.RADEMACHER, 1.0, int(-1000 * base) - i) for i in reached}
    slope = sum(float((g.double() * etas[i]).sum()) for i, g in reached.items())
    rounding = 3 * torch.finfo(first.dtype).eps * float(_finite(first).norm())
    u, before, any_moved = _direction(first), None, False
    with float32_precision():
        # A kink between the two ends goes away with the step, and rounding comes with it: only
        # where two steps give the same is a difference that is not the slope the derivative.
        for step in (1e-2, 1e-3, 1e-4):
            try:
                ends = [logits(_Around(base, etas, s)) for s in (step, -step)]
            except _OtherWay:  # nothing can be compared
                return ""
            moved = _finite(ends[0].double() - ends[1].double())
            any_moved = bool(moved.count_nonzero())
            difference = float((u * moved).sum()) / (2 * step)
            error = abs(difference - slope)
            if error <= 0.005 * max(abs(slope), abs(difference)) + rounding / step:
                return ""
            if before is not None and abs(difference - before) < 0.2 * error:
                break
            before = difference
        else:
            if error <= 30 * rounding / step:
                return ""
    if not any_moved:
        raise NeverSupportedError(
            "small noise does not move the logits at all, though a gradient comes back: between "
            "the two lies a rounding or another choice with a made-up gradient (a straight-through "
            "estimator). No regularizer follows from such noise. Drop behind the rounding, or "
            "switch the dropout off."
        )
    return (
        f"the derivative of the logits along the noise is {slope:.4g} by the backward pass and "
        f"{difference:.4g} by differences: somewhere a gradient is cut (.detach(), .data, a "
        "straight-through estimator) or wrong (the backward of an autograd.Function)"
    )


def _finite(x: Tensor) -> Tensor:
    return x.double().nan_to_num(0.0, 0.0, 0.0)


# ----------------------------------------------------------------- what cannot be seen, or written


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
        if hasattr(module, "autograd_grad_sample_hooks"):
            raise NotYetSupportedError(
                f"{where} counts one forward pass a backward pass (Opacus' GradSampleModule), and "
                "the passes that an effect takes would mix up its gradients of examples. Use "
                "the module inside it, ._module."
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


class Watch(draws.Operations):
    """Looks at every operation of a pass, and at what it writes to.

    Attributes:
        any_half_precision: Whether one after the first site gave less than float32, or computed in
            integers. Before it there is no noise yet, and so no small difference to drown.
    """

    def __init__(self, control: Control, model: nn.Module) -> None:
        super().__init__(control.where)
        self.any_half_precision = False
        self._control = control
        self._parameters = {
            _storage(p): (name, p) for name, p in model.named_parameters() if _storage(p)
        }
        self._saved: dict[str, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func._schema.is_mutable:
            given = {**dict(enumerate(args)), **(kwargs or {})}
            for index, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._save(given.get(index, given.get(argument.name)))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self._control.sites and isinstance(result, Tensor) and result.is_floating_point():
            self.any_half_precision |= result.itemsize < 4 or func.namespace == "quantized"
        return result

    def _save(self, written: Any) -> None:
        for tensor in written if isinstance(written, (list, tuple)) else [written]:
            if not isinstance(tensor, Tensor) or not self._parameters:
                continue
            name, parameter = self._parameters.get(_storage(tensor), (None, tensor))
            if name is not None and name not in self._saved:
                self._saved[name] = (parameter, parameter.detach().clone())

    @contextmanager
    def unwritten(self) -> Iterator[None]:
        """Set parameters back that the pass wrote to, and refuse a pass that changed one."""
        before = [(name, p, p.detach()) for name, p in self._parameters.values()]
        changed: list[str] = []
        try:
            yield
        finally:
            for name, parameter, value in before:
                if _storage(parameter) != _storage(value):
                    if not _equal(parameter, value):
                        changed.append(name)
                    parameter.data = value
            for name, (written, copy) in self._saved.items():
                if not _equal(written, copy):
                    changed.append(name)
                    with torch.no_grad():
                        written.copy_(copy)
        if changed:
            raise NotYetSupportedError(
                f"the forward pass writes to parameters of the model ({', '.join(changed)}), so "
                "that two passes of one step would see different weights. Make them buffers "
                "(register_buffer), or compute the dropped weight into a tensor of its own. The "
                "model is as it was."
            )


def _storage(tensor: Tensor) -> int:
    """The address of what a tensor holds; 0 where it has none (meta, inside torch.func)."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return 0
    return tensor.untyped_storage().data_ptr()


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
