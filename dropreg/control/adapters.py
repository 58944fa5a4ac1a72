"""How each PyTorch function that drops becomes a site, or several.

Every dropout module ends in one of a dozen functions, so adapters are keyed by function: a
subclass, a module called twice and a plain functional call all arrive here. An adapter computes
what the function computes, but asks `control` for the noise. Fused functions are opened up just as
far as their dropout lies inside: a recurrent stack into its layers (each still one fused kernel),
attention into its weights.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dropreg.control.control import Adapter, Control, register_adapter
from dropreg.control.draws import Uniform, refusal
from dropreg.errors import NeverSupportedError
from dropreg.layers import shared_dropout, shared_mask_shape


def _dropout(
    control: Control, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    return control.perturb("dropout", input, p, training, inplace=inplace)


def _channel_dropout(unbatched_ndim: int | None) -> Callable[..., Tensor]:
    """One mask value a channel; an input of `unbatched_ndim` dimensions has no batch dimension."""

    def adapter(
        control: Control,
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        channel = 0 if input.ndim == unbatched_ndim else 1
        mask_shape = (*input.shape[: channel + 1], *(1,) * (input.ndim - channel - 1))
        return control.perturb("channel dropout", input, p, training, mask_shape, inplace=inplace)

    return adapter


def _native(adapter: Callable[..., Tensor], *, inplace: bool = False) -> Callable[..., Tensor]:
    """The adapter for `torch.dropout` and its kin, which call `training` ``train``."""

    def native(control: Control, input: Tensor, p: float, train: bool) -> Tensor:
        return adapter(control, input, p, train, inplace)

    return native


def _shared_dropout(
    control: Control, input: Tensor, p: float, training: bool, shared_dims: tuple[int, ...]
) -> Tensor:
    mask_shape = shared_mask_shape(input, shared_dims)
    return control.perturb("shared dropout", input, p, training, mask_shape)


def _recurrent(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A multi-layer LSTM, GRU or RNN, run a layer at a time with a site between two layers."""

    def adapter(control: Control, *args: Any) -> Any:
        # PyTorch calls these in two forms: (input, hx, params, has_biases, layers, ...) for tensors
        # and (data, batch_sizes, hx, params, has_biases, layers, ...) for packed sequences.
        first = 2 if isinstance(args[3], bool) else 3
        data, (hx, params) = args[: first - 1], args[first - 1 : first + 1]
        has_biases, layers, p, training, bidirectional, *batch_first = args[first + 1 :]
        if layers == 1 or p == 0.0 or not training:
            if layers > 1:
                control.skip(p, training)
            return function(*args)
        is_lstm = not isinstance(hx, Tensor)
        directions = 2 if bidirectional else 1
        per_layer = len(params) // layers
        states: list[tuple[Tensor, ...]] = []
        output = data[0]
        for layer in range(layers):
            if layer > 0:
                output = control.perturb(f"between {name} layers", output, p, training)
            rows = slice(layer * directions, (layer + 1) * directions)
            output, *state = function(
                output,
                *data[1:],
                tuple(h[rows].contiguous() for h in hx) if is_lstm else hx[rows].contiguous(),
                params[layer * per_layer : (layer + 1) * per_layer],
                has_biases,
                1,
                0.0,
                training,
                bidirectional,
                *batch_first,
            )
            states.append(tuple(state))
        return output, *(torch.cat(parts) for parts in zip(*states, strict=True))

    return adapter


def _attention(
    control: Control,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention; the site is the attention weights, after the softmax."""
    kwargs: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    if dropout_p == 0.0:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, is_causal=is_causal, **kwargs
        )
    if enable_gqa:
        heads = query.shape[-3]
        key, value = (t.repeat_interleave(heads // t.shape[-3], -3) for t in (key, value))
        kwargs["enable_gqa"] = False
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    weights_shape = (*batch, query.shape[-2], key.shape[-2])
    eta = control.some_noise("attention weights", query, weights_shape, dropout_p, training=True)
    if eta is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, is_causal=is_causal, **kwargs
        )
    if scale is None:
        scale = 1.0 / math.sqrt(query.shape[-1])
    scores = (query * scale) @ key.transpose(-2, -1)
    if attn_mask is not None and type(attn_mask) is not Tensor:
        from torch.nn.attention.bias import CausalBias  # here, as it brings all of torch.compile

        if isinstance(attn_mask, CausalBias):
            attn_mask = attn_mask._materialize(query.device)
    if is_causal:
        later = scores.new_full(weights_shape[-2:], -math.inf).triu(1)
        scores = scores + later
    if attn_mask is None:  # each query may look somewhere
        return control.apply(scores.softmax(-1), eta) @ value
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(
            ~attn_mask, -math.inf
        )
    scores = scores + attn_mask
    # A query that may look nowhere attends to nothing, as in PyTorch, where a softmax gives NaN.
    nowhere = scores.isneginf().all(-1, keepdim=True)
    weights = scores.masked_fill(nowhere, 0.0).softmax(-1).masked_fill(nowhere, 0.0)
    return control.apply(weights, eta) @ value


def _multi_head_attention(control: Control, *args: Any, **kwargs: Any) -> Any:
    """PyTorch's own multi-head attention, with our dropout inside."""
    # `F.multi_head_attention_forward` reaches its dropout by the global names `dropout` and
    # `scaled_dot_product_attention`. We run its code with these names bound to our adapters in a
    # private copy of its globals: every option stays PyTorch's, and no global state is touched.
    original = F.multi_head_attention_forward
    names = {
        **original.__globals__,
        "has_torch_function": lambda *_: False,
        "dropout": lambda *a, **k: _dropout(control, *a, **k),
        "scaled_dot_product_attention": lambda *a, **k: _attention(control, *a, **k),
    }
    ours = types.FunctionType(original.__code__, names, None, original.__defaults__)
    return ours(*args, **kwargs)


def _logcumsumexp(control: Control, input: Tensor, dim: int, **kwargs: Any) -> Tensor:
    """`torch.logcumsumexp`, whose gradient PyTorch cannot rightly differentiate again."""
    if not control.differentiates or kwargs:
        return torch.logcumsumexp(input, dim, **kwargs)
    sums = input.movedim(dim, 0)
    reach = 1  # each entry is the sum of so many before it; then of twice as many
    while reach < len(sums):
        sums = torch.cat([sums[:reach], torch.logaddexp(sums[reach:], sums[:-reach])])
        reach *= 2
    return sums.movedim(0, dim)


def _refuse_affine(name: str) -> Callable[..., Tensor]:
    def adapter(
        control: Control,
        input: Tensor,
        p: float = 0.5,
        training: bool = False,
        inplace: bool = False,
    ) -> Tensor:
        if p > 0.0 and training:
            raise NeverSupportedError(
                f"{name} (in {control.where()}) is affine noise, not multiplicative: it sets units "
                "to a constant and shifts the rest, so the regularizers do not describe it. "
                "Replace it with nn.Dropout, or put that module in eval mode."
            )
        return input

    return adapter


def _rand(control: Control, *args: Any, **kwargs: Any) -> Any:
    """`torch.rand`, of which a mask may be made; see `dropreg.control.draws.Uniform`."""
    if kwargs.get("generator") is not None or kwargs.get("out") is not None:
        raise refusal([f"torch.rand (in {control.where()})"])
    kwargs.pop("generator", None)
    return Uniform(control, torch.empty(*args, **kwargs))


def _rand_like(control: Control, input: Tensor, **kwargs: Any) -> Any:
    return Uniform(control, torch.empty_like(input, **kwargs))


def _bernoulli(*, inplace: bool) -> Callable[..., Tensor]:
    """Masks of zeros and ones that are multiplied by hand, as in DropPath."""

    def adapter(control: Control, input: Tensor, p: Any = None, **kwargs: Any) -> Tensor:
        p = 0.5 if p is None and inplace else p
        of_one_number = isinstance(p, (int, float)) and input.is_floating_point()
        if kwargs.get("generator") is not None or not of_one_number:
            raise refusal([f"bernoulli (in {control.where()})"])
        mask = control.mask(input, float(p))
        return control.marked(input.copy_(mask)) if inplace else mask

    return adapter


_ADAPTERS: dict[Callable[..., Any], Adapter] = {
    torch.rand: _rand,
    torch.rand_like: _rand_like,
    torch.bernoulli: _bernoulli(inplace=False),
    Tensor.bernoulli: _bernoulli(inplace=False),
    Tensor.bernoulli_: _bernoulli(inplace=True),
    F.dropout: _dropout,
    torch.dropout: _native(_dropout),
    torch.dropout_: _native(_dropout, inplace=True),
    F.dropout1d: _channel_dropout(unbatched_ndim=2),
    F.dropout2d: _channel_dropout(unbatched_ndim=None),
    F.dropout3d: _channel_dropout(unbatched_ndim=4),
    torch.feature_dropout: _native(_channel_dropout(unbatched_ndim=None)),
    torch.feature_dropout_: _native(_channel_dropout(unbatched_ndim=None), inplace=True),
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    torch.lstm: _recurrent(torch.lstm, "LSTM"),
    torch.gru: _recurrent(torch.gru, "GRU"),
    torch.rnn_tanh: _recurrent(torch.rnn_tanh, "RNN"),
    torch.rnn_relu: _recurrent(torch.rnn_relu, "RNN"),
    torch.logcumsumexp: _logcumsumexp,
    Tensor.logcumsumexp: _logcumsumexp,
    F.alpha_dropout: _refuse_affine("AlphaDropout"),
    F.feature_alpha_dropout: _refuse_affine("FeatureAlphaDropout"),
    torch.alpha_dropout: _native(_refuse_affine("torch.alpha_dropout")),
    torch.alpha_dropout_: _native(_refuse_affine("torch.alpha_dropout_")),
    torch.feature_alpha_dropout: _native(_refuse_affine("torch.feature_alpha_dropout")),
    torch.feature_alpha_dropout_: _native(_refuse_affine("torch.feature_alpha_dropout_")),
    shared_dropout: _shared_dropout,
}
for _function, _adapter in _ADAPTERS.items():
    register_adapter(_function, _adapter)
