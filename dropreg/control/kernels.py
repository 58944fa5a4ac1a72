"""Which of PyTorch's kernels a computation may use, where its fastest would be wrong or fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


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
        chosen = _set(owners, "fp32_precision", "tf32" if tf32 else "ieee")
    else:
        chosen = _set([matmul, cudnn], "allow_tf32", tf32)
    with chosen:
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
    norms = _PlainNorms() if forward_mode or third_order else nullcontext()
    # Not by the flags() contexts of the backends: those reset every other option as well.
    with sdpa_kernel(SDPBackend.MATH), _set(backends, "enabled", False), norms:
        yield


@contextmanager
def _set(owners: Sequence[Any], name: str, value: object) -> Iterator[None]:
    """Set an attribute of several objects, and set it back afterwards, whatever happens."""
    before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, value)
        yield
    finally:
        for owner, old in zip(owners, before, strict=True):
            setattr(owner, name, old)


class _PlainNorms(TorchFunctionMode):
    """Layer, batch and instance norm by their definitions.

    PyTorch's own take the saved mean and deviation for constants in the third derivative, and in
    the gradient of a forward-mode derivative, and are silently wrong there (pytorch/pytorch#175754
    and #186256). Running statistics are not updated.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run our form of a norm, and any other function as it is."""
        return _PLAIN_NORMS.get(func, func)(*args, **(kwargs or {}))


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


_PLAIN_NORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
}
