"""Which of PyTorch's kernels and derivatives may be used, where its own would be wrong or fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from dropreg.errors import NotYetSupportedError

_LOCK = threading.RLock()


@contextmanager
def exclusive() -> Iterator[None]:
    """One thread at a time: PyTorch's settings, and a model's buffers, belong to all threads.

    A backward pass may run a model's code in threads of its own, for which the thread that holds
    the lock waits: inside one nobody waits.
    """
    inside_backward = torch._C._current_graph_task_id() != -1
    with nullcontext() if inside_backward else _LOCK:
        yield


@contextmanager
def without_gradients() -> Iterator[None]:
    """`torch.no_grad` that leaves nothing behind.

    Autocast keeps its casts of the weights for the passes to come. PyTorch 2.6 keeps those made
    without gradients too, and then no gradient reaches the weights.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextmanager
def float32_precision(*, tf32: bool = False) -> Iterator[None]:
    """Switch TF32 off: its 10 bits of mantissa would drown a small difference.

    Args:
        tf32: Switch it on instead, to see what it is worth.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # PyTorch 2.9 and later
        owners = [matmul, cudnn.conv, cudnn.rnn]  # type: ignore[attr-defined]
        chosen = temporarily(owners, "fp32_precision", "tf32" if tf32 else "ieee")
    else:
        chosen = temporarily([matmul, cudnn], "allow_tf32", tf32)
    with exclusive(), chosen:
        yield


@contextmanager
def differentiable_kernels(
    *, forward_mode: bool = False, third_order: bool = False
) -> Iterator[None]:
    """Use kernels that can be differentiated twice, where PyTorch's fused ones cannot.

    Args:
        forward_mode: Whether they must support forward-mode differentiation as well.
        third_order: Whether they must be right when differentiated three times.
    """
    backends: list[Any] = [torch.backends.cudnn] if torch.backends.cudnn.is_available() else []
    if forward_mode and torch.backends.mkldnn.is_available():
        backends.append(torch.backends.mkldnn)
    plain = _Plain() if forward_mode or third_order else nullcontext()
    # Not by the flags() contexts of the backends: those reset every other option as well.
    with exclusive(), sdpa_kernel(SDPBackend.MATH), temporarily(backends, "enabled", False), plain:
        yield


def derivative_at_zero(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    r"""Value and derivative of a function of one scalar, at 0, by forward-mode differentiation.

    Args:
        function: Takes a scalar tensor. What it computes from other tensors may need gradients;
            those tensors stay as they are.

    Returns:
        :math:`f(0)` and :math:`f'(0)`, both differentiable in the tensors that `function` uses.

    Raises:
        NotYetSupportedError: If an operation has no forward-mode derivative, or one that cannot be
            differentiated again; or within another forward-mode derivative, or `torch.vmap`.
    """
    # Not torch.func.jvp: its wrapped tensors end up in the modules to which a forward assigns.
    with differentiable_kernels(forward_mode=True), _all_kept(), _dual_level(), _OutOfPlace():
        with _naming_what_is_missing():
            result = function(forward_ad.make_dual(torch.zeros(()), torch.ones(())))
        if torch._C._functorch.is_batchedtensor(result):
            raise NotYetSupportedError(_otherwise("PyTorch has no forward mode inside torch.vmap"))
        value, derivative = forward_ad.unpack_dual(result)
    if derivative is None:
        raise NotYetSupportedError(
            "no derivative reaches the logits from any dropout: the model detaches what it drops "
            "(.detach(), .data), or does not use it. method='even_odd' or 'monte_carlo' compute "
            "what such noise does; or put that dropout in eval mode."
        )
    require_differentiable(derivative)
    return value, derivative


@contextmanager
def _dual_level() -> Iterator[None]:
    try:
        level = forward_ad.dual_level()
        level.__enter__()
    except RuntimeError as error:
        reason = "PyTorch cannot nest forward-mode derivatives"
        raise NotYetSupportedError(_otherwise(reason)) from error
    try:
        yield
    finally:
        level.__exit__(None, None, None)


@contextmanager
def _all_kept() -> Iterator[None]:
    """Have activation checkpoints keep what they would compute again, there without tangents."""
    names = {"_checkpoint_hook": lambda _frame: nullcontext(), "CheckpointFunction": _RunAtOnce}
    with ExitStack() as stack:
        for name, instead in names.items():
            stack.enter_context(temporarily([torch.utils.checkpoint], name, instead))
        yield


class _RunAtOnce:
    @staticmethod
    def apply(function: Callable[..., Any], _preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


class _OutOfPlace(TorchDispatchMode):
    """Has PyTorch compute forward-mode derivatives out of place, as it does under any such mode.

    Else those of softmax, logsumexp and norms overwrite what their own backward pass needs.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunction():  # here all modes of functions have had their turn
            return func(*args, **(kwargs or {}))


@contextmanager
def _naming_what_is_missing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # NotImplementedError is one
        name = _without_forward_mode(error)
        if name is None:
            raise
        reason = f"{name} has no forward-mode derivative"
        raise NotYetSupportedError(_otherwise(reason)) from error


def _without_forward_mode(error: BaseException) -> str | None:
    """What lacks a forward-mode derivative, if that is what an error of PyTorch's says."""
    message = str(error)
    before, found, after = message.partition("Trying to use forward AD with ")
    if found and not before:
        return after.split(" ", 1)[0]
    if "jvp is not implemented for the c++ API" in message:
        return "an operation of an extension in C++"
    if not message.startswith("You must implement the jvp function for custom autograd.Function"):
        return None
    name, trace = "an autograd.Function", error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("cls")
        if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
            name = f"the autograd.Function {owner.__name__}"
        trace = trace.tb_next
    return name


def _otherwise(reason: str) -> str:
    return (
        f"{reason}. method='central' or 'even_odd' take forward passes alone; for "
        "explicit_regularizer, 'exact' and 'sampled_labels' differentiate in reverse mode."
    )


def require_differentiable(result: Tensor) -> None:
    """Refuse a result whose own backward pass would meet an operation without a derivative.

    Args:
        result: A derivative.

    Raises:
        NotYetSupportedError: If its graph holds such an operation.
    """
    seen, ahead = set[Any](), [result.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().endswith("NotImplemented"):
            raise NotYetSupportedError(_otherwise(f"{_words_of(node)}, and this method needs it"))
        ahead.extend(following for following, _ in node.next_functions)


def _words_of(node: Any) -> str:
    """What a node that stands for a missing derivative says when it is run."""
    try:
        node(torch.zeros(()))
    except RuntimeError as error:
        return str(error)
    return "a derivative is missing"


def refuse_static_graph(model: nn.Module) -> None:
    """Refuse DistributedDataParallel's static graph around a loss that differentiates inside.

    It counts the first backward pass, which is then not the user's, and never averages gradients.

    Args:
        model: The model.

    Raises:
        NotYetSupportedError: If the model or a part of it has a static graph.
    """
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel) and module.static_graph:
            raise NotYetSupportedError(
                "DistributedDataParallel(static_graph=True) does not average the gradients of a "
                "loss that differentiates inside. Use static_graph=False, or a method of forward "
                "passes alone: 'central' or 'even_odd'."
            )


@contextmanager
def temporarily(owners: Sequence[Any], name: str, value: object) -> Iterator[None]:
    """Set an attribute of several objects, and set it back afterwards, whatever happens."""
    before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, value)
        yield
    finally:
        for owner, old in zip(owners, before, strict=True):
            setattr(owner, name, old)


class _Plain(TorchFunctionMode):
    """Functions whose derivatives PyTorch has wrong, by definitions that it has right.

    PyTorch's layer, batch and instance norm take the saved mean and deviation for constants in the
    third derivative, and in the gradient of a forward-mode derivative, and are silently wrong there
    (pytorch/pytorch#175754 and #186256); running statistics are not updated. The derivatives of
    `_WRONG_FORWARD` are wrong, or missing, in forward mode only.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run our form of a function, and any other as it is."""
        kwargs = kwargs or {}
        func = _packet(func)
        if func in _WRONG and any(map(_is_moved, tree_leaves((args, kwargs)))):
            raise NotYetSupportedError(_otherwise(f"PyTorch's derivatives of {func} are wrong"))
        if func in _WRONG_FORWARD and any(map(_is_dual, tree_leaves((args, kwargs)))):
            return _by_double_backward(func, args, kwargs)
        result = _PLAIN.get(func, func)(*args, **kwargs)
        if isinstance(func, _OPERATIONS) and not str(func).startswith(("aten.", "prims.")):
            _refuse_lost_derivative(func, args, kwargs, result)
        return result


def _refuse_lost_derivative(func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Refuse an operation of an extension that has no derivative: PyTorch takes it for 0."""
    outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.is_floating_point()]
    lost = any(map(_is_dual, tree_leaves((args, kwargs)))) and not all(map(_is_dual, outputs))
    if lost:
        raise NotYetSupportedError(_otherwise(f"{func} has no forward-mode derivative"))


def _packet(function: Any) -> Any:
    """The function of `torch` that an operation of `torch.ops.aten` is, where it has one."""
    name = str(function) if isinstance(function, _OPERATIONS) else ""
    return getattr(torch, name.split(".")[1], function) if name.startswith("aten.") else function


_OPERATIONS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)


def _is_dual(x: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and x.is_floating_point()
        and forward_ad.unpack_dual(x).tangent is not None
    )


def _is_moved(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.requires_grad or _is_dual(x))


def _by_double_backward(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A function of dual tensors, its derivative by reverse mode alone."""
    # The pull-back J'u is linear in u, so its own pull-back of a tangent v is J v.
    create_graph = torch.is_grad_enabled()
    leaves, form = tree_flatten((args, kwargs))
    inputs, tangents = [], []
    with torch.enable_grad():
        for index, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                continue
            leaf, tangent = forward_ad.unpack_dual(leaf)
            if tangent is not None:
                # A tensor of its own: one argument may have been computed from another.
                leaf = leaf.view_as(leaf) if leaf.requires_grad else leaf.detach().requires_grad_()
                inputs.append(leaf)
                tangents.append(tangent)
            leaves[index] = leaf
        args, kwargs = tree_unflatten(leaves, form)
        results, form = tree_flatten(function(*args, **kwargs))
        moved = [i for i, y in enumerate(results) if isinstance(y, Tensor) and y.requires_grad]
        us = [torch.zeros_like(results[i], requires_grad=True) for i in moved]
        back = torch.autograd.grad(
            [results[i] for i in moved], inputs, us, create_graph=True, materialize_grads=True
        )
        forth = torch.autograd.grad(
            back, us, tangents, create_graph=create_graph, materialize_grads=True
        )
    for i, tangent in zip(moved, forth, strict=True):
        value = results[i] if create_graph else results[i].detach()
        results[i] = forward_ad.make_dual(value, tangent)
    return tree_unflatten(results, form)


def _standardized(
    x: Tensor, dims: list[int], eps: float, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = exact - exact.mean(dims, keepdim=True)
    x = (centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()).to(x.dtype)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dims = list(range(-len(normalized_shape), 0))
    return _standardized(input, dims, eps, weight, bias)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:  # the statistics are constants: nothing to put right
        return F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    return _channel_norm(input, [0, *range(2, input.ndim)], eps, weight, bias)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    return _channel_norm(input, list(range(2, input.ndim)), eps, weight, bias)


def _channel_norm(
    x: Tensor, dims: list[int], eps: float, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    a_channel = (-1, *(1,) * (x.ndim - 2))
    weight, bias = (None if w is None else w.reshape(a_channel) for w in (weight, bias))
    return _standardized(x, dims, eps, weight, bias)


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    exact = input.to(torch.promote_types(input.dtype, torch.float32))
    eps = torch.finfo(exact.dtype).eps if eps is None else eps
    dims = list(range(-len(normalized_shape), 0))
    x = (exact * (exact.square().mean(dims, keepdim=True) + eps).rsqrt()).to(input.dtype)
    return x if weight is None else x * weight


def _torch_layer_norm(*args: Any, cudnn_enable: bool = True, **kwargs: Any) -> Tensor:
    return _layer_norm(*args[:5], **kwargs)


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _torch_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    statistics = (running_mean, running_var)
    return _instance_norm(input, *statistics, weight, bias, use_input_stats, momentum, eps)


def _native_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(-len(normalized_shape), 0))
    statistics = _statistics(input, dims, eps, keepdim=True)
    return _standardized(input, dims, eps, weight, bias), *statistics


def _native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if not training:
        statistics = (running_mean, running_var)
        return torch.native_batch_norm(input, weight, bias, *statistics, False, momentum, eps)
    dims = [0, *range(2, input.ndim)]
    return _channel_norm(input, dims, eps, weight, bias), *_statistics(input, dims, eps)


def _statistics(
    x: Tensor, dims: list[int], eps: float, *, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal deviation."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    variance = x.var(dims, correction=0, keepdim=keepdim)
    return x.mean(dims, keepdim=keepdim), (variance + eps).rsqrt()


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6


_PLAIN: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _torch_layer_norm,
    torch.native_layer_norm: _native_layer_norm,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _torch_batch_norm,
    torch.native_batch_norm: _native_batch_norm,
    F.instance_norm: _instance_norm,
    torch.instance_norm: _torch_instance_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.hardsigmoid: _hardsigmoid,
}

_WRONG_FORWARD: frozenset[Callable[..., Any]] = frozenset(
    {
        torch.det,
        torch.linalg.det,
        Tensor.det,
        torch.logdet,
        Tensor.logdet,
        torch.slogdet,
        torch.linalg.slogdet,
        Tensor.slogdet,
        torch.linalg.solve,
        torch.linalg.solve_ex,
        torch.linalg.tensorsolve,
        torch.linalg.householder_product,
        torch.orgqr,
        Tensor.orgqr,
        torch.scatter_reduce,
        Tensor.scatter_reduce,
        F.glu,
    }
)
"""Where a sweep of PyTorch 2.13 finds the forward-mode derivative, or its gradient, wrong."""

_WRONG: frozenset[Callable[..., Any]] = frozenset(
    getattr(owner, name)
    for owner, name in (
        (torch, "_native_batch_norm_legit"),
        (torch, "_batch_norm_with_update"),
        (torch.special, "i1"),
        (torch.special, "i1e"),
    )
    if hasattr(owner, name)
)
"""Where it also finds the third derivative wrong, and nothing simple to put in its place."""
