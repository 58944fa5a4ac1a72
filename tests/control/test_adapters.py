"""Every function that drops, against a computation written out by hand with the same noise.

Each adapter is tested three ways: with given noise against an independent forward pass, with no
noise against the model in eval mode, and with Bernoulli noise against PyTorch's own dropout.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import run
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from dropreg import LockedDropout, Probe, Site, errors, find_sites, shared_dropout
from dropreg.probes import clean


class Given:
    """Noise that the test chooses: standard normal, kept in call order."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.etas: list[Tensor] = []

    def __call__(self, site: Site) -> Tensor:
        eta = torch.randn(site.mask_shape, generator=self.generator, dtype=site.noise_dtype)
        self.etas.append(eta)
        return eta


def drop(h: Tensor, eta: Tensor) -> Tensor:
    """The definition of a site, once more."""
    return h * (1 + eta)


class Calls(nn.Module):
    """A model that is one function of its inputs, with a parameter so that it is trainable."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Tensor:
        return self.function(*args)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Doubled(nn.Dropout):
    """A subclass with a forward pass of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * F.dropout(input, self.p, self.training)


class Renamed(nn.Dropout2d):
    pass


# ---------------------------------------------------------------------------- elementwise dropout

FLAT, CHANNEL, SHARED = "dropout", "channel dropout", "shared dropout"

ELEMENTWISE = {
    # name: model, input shape, mask shape, kind
    "Dropout": (nn.Dropout(0.3), (5, 4), (5, 4), FLAT),
    "Dropout inplace": (nn.Dropout(0.3, inplace=True), (5, 4), (5, 4), FLAT),
    "Dropout of a vector": (nn.Dropout(0.3), (4,), (4,), FLAT),
    "Dropout of a scalar": (nn.Dropout(0.3), (), (), FLAT),
    "Dropout of nothing": (nn.Dropout(0.3), (0, 4), (0, 4), FLAT),
    "Dropout1d": (nn.Dropout1d(0.3), (5, 4, 3), (5, 4, 1), CHANNEL),
    "Dropout1d unbatched": (nn.Dropout1d(0.3), (4, 3), (4, 1), CHANNEL),
    "Dropout2d": (nn.Dropout2d(0.3), (5, 4, 3, 2), (5, 4, 1, 1), CHANNEL),
    "Dropout2d inplace": (nn.Dropout2d(0.3, inplace=True), (5, 4, 3, 2), (5, 4, 1, 1), CHANNEL),
    "Dropout2d subclass": (Renamed(0.3), (5, 4, 3, 2), (5, 4, 1, 1), CHANNEL),
    "Dropout3d": (nn.Dropout3d(0.3), (5, 4, 2, 3, 2), (5, 4, 1, 1, 1), CHANNEL),
    "Dropout3d unbatched": (nn.Dropout3d(0.3), (4, 2, 3, 2), (4, 1, 1, 1), CHANNEL),
    "F.dropout": (Calls(lambda x: F.dropout(x, p=0.3)), (5, 4), (5, 4), FLAT),
    "F.dropout inplace": (
        Calls(lambda x: F.dropout(x.clone(), 0.3, True, True)),
        (5, 4),
        (5, 4),
        FLAT,
    ),
    "F.dropout1d": (Calls(lambda x: F.dropout1d(x, 0.3)), (5, 4, 3), (5, 4, 1), CHANNEL),
    "F.dropout2d": (Calls(lambda x: F.dropout2d(x, 0.3)), (5, 4, 3, 2), (5, 4, 1, 1), CHANNEL),
    "F.dropout3d": (Calls(lambda x: F.dropout3d(x, 0.3)), (4, 2, 3, 2), (4, 1, 1, 1), CHANNEL),
    "torch.dropout": (Calls(lambda x: torch.dropout(x, 0.3, True)), (5, 4), (5, 4), FLAT),
    "torch.dropout by keyword": (
        Calls(lambda x: torch.dropout(x, p=0.3, train=True)),
        (5, 4),
        (5, 4),
        FLAT,
    ),
    "torch.dropout_": (
        Calls(lambda x: torch.dropout_(x.clone(), 0.3, True)),
        (5, 4),
        (5, 4),
        FLAT,
    ),
    "torch.feature_dropout": (
        Calls(lambda x: torch.feature_dropout(x, p=0.3, train=True)),
        (5, 4, 3),
        (5, 4, 1),
        CHANNEL,
    ),
    "torch.feature_dropout_": (
        Calls(lambda x: torch.feature_dropout_(x.clone(), 0.3, True)),
        (5, 4, 3),
        (5, 4, 1),
        CHANNEL,
    ),
    "shared_dropout": (
        Calls(lambda x: shared_dropout(x, 0.3, shared_dims=(0, -1))),
        (5, 4, 3),
        (1, 4, 1),
        SHARED,
    ),
    "LockedDropout": (LockedDropout(0.3), (5, 4, 3), (5, 1, 3), SHARED),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name: str) -> None:
    model, shape, mask_shape, kind = ELEMENTWISE[name]
    x = randn(*shape)
    given = Given()
    output, (site,) = run(model, x.clone(), given)
    assert (site.kind, site.p, site.shape, site.mask_shape) == (kind, 0.3, shape, mask_shape)
    torch.testing.assert_close(output, drop(x, given.etas[0]))
    torch.testing.assert_close(run(model, x.clone(), clean)[0], x)


def test_subclass_with_its_own_forward() -> None:
    x, given = randn(5, 4), Given()
    output, _ = run(Doubled(0.3), x, given)
    torch.testing.assert_close(output, 2 * drop(x, given.etas[0]))


def test_probabilities_and_calls_are_kept_apart() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.few, self.many = nn.Dropout(0.1), nn.Dropout(0.6)

        def forward(self, x: Tensor) -> Tensor:
            return self.few(self.many(self.few(x).tanh()).tanh())

    model, x, given = Net(), randn(5, 4), Given()
    output, sites = run(model, x, given)
    first, second, third = given.etas
    assert [s.p for s in sites] == [0.1, 0.6, 0.1]
    torch.testing.assert_close(output, drop(drop(drop(x, first).tanh(), second).tanh(), third))
    model.many.p = 0.2  # read at each pass, not at the first
    assert [s.p for s in run(model, x, clean)[1]] == [0.1, 0.2, 0.1]
    model.few.eval()
    assert [s.p for s in run(model, x, clean)[1]] == [0.2]


def test_noise_is_applied_in_the_precision_of_the_activation() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        x, given = randn(5, 4).to(dtype), Given()
        output, (site,) = run(nn.Dropout(0.3), x, given)
        assert output.dtype == site.dtype == dtype
        # Noise is kept in float32 at least, so that the squares of its gradient do not underflow.
        assert site.noise_dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(output, x + given.etas[0].to(dtype) * x)


# ------------------------------------------------------------------------------ recurrent modules


def by_layers(model: nn.RNNBase, inputs: Any, hx: Any, etas: Sequence[Tensor]) -> Any:
    """A recurrent stack as single-layer modules with dropout in between."""
    directions = 2 if model.bidirectional else 1
    settings = {
        "bias": model.bias,
        "batch_first": model.batch_first,
        "bidirectional": model.bidirectional,
    }
    if isinstance(model, nn.LSTM):
        settings["proj_size"] = model.proj_size
    if isinstance(model, nn.RNN):
        settings["nonlinearity"] = model.nonlinearity
    output, states = inputs, []
    for layer in range(model.num_layers):
        if layer > 0 and isinstance(output, PackedSequence):
            output = output._replace(data=drop(output.data, etas[layer - 1]))
        elif layer > 0:
            output = drop(output, etas[layer - 1].reshape(output.shape))
        width = output.data.shape[-1] if isinstance(output, PackedSequence) else output.shape[-1]
        kind = next(c for c in (nn.LSTM, nn.GRU, nn.RNN) if isinstance(model, c))
        single = kind(width, model.hidden_size, **settings)
        own = {
            name.replace(f"_l{layer}", "_l0"): weight
            for name, weight in model.state_dict().items()
            if f"_l{layer}" in name
        }
        single.load_state_dict(own)
        rows = slice(layer * directions, (layer + 1) * directions)
        if hx is None:
            h = None
        else:
            h = tuple(each[rows] for each in hx) if isinstance(hx, tuple) else hx[rows]
        output, state = single(output, h)
        states.append(state)
    if isinstance(states[0], tuple):
        return output, tuple(torch.cat(parts) for parts in zip(*states, strict=True))
    return output, torch.cat(states)


class MyLSTM(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx)


SEQUENCE = randn(6, 3, 4)  # (time, batch, features)
PACKED = pack_sequence([randn(n, 4, seed=n) for n in (3, 6, 5)], enforce_sorted=False)

RECURRENT: dict[str, tuple[Callable[..., nn.RNNBase], dict[str, Any], Any, bool]] = {
    # name: class, its options, input, whether a first state is given
    "LSTM": (nn.LSTM, {}, SEQUENCE, False),
    "LSTM with a state": (nn.LSTM, {}, SEQUENCE, True),
    "LSTM both ways": (nn.LSTM, {"bidirectional": True}, SEQUENCE, True),
    "LSTM batch first": (nn.LSTM, {"batch_first": True}, SEQUENCE, True),
    "LSTM projected": (nn.LSTM, {"proj_size": 2, "bidirectional": True}, SEQUENCE, True),
    "LSTM without bias": (nn.LSTM, {"bias": False, "proj_size": 2}, SEQUENCE, False),
    "LSTM packed": (nn.LSTM, {"bidirectional": True}, PACKED, True),
    "LSTM packed, no state": (nn.LSTM, {}, PACKED, False),
    "LSTM unbatched": (nn.LSTM, {}, SEQUENCE[:, 0], False),
    "LSTM subclass": (MyLSTM, {}, SEQUENCE, False),
    "GRU": (nn.GRU, {}, SEQUENCE, False),
    "GRU both ways": (nn.GRU, {"bidirectional": True, "batch_first": True}, SEQUENCE, True),
    "GRU packed": (nn.GRU, {"bidirectional": True}, PACKED, True),
    "GRU unbatched": (nn.GRU, {"bias": False}, SEQUENCE[:, 0], False),
    "RNN tanh": (nn.RNN, {"bidirectional": True}, SEQUENCE, True),
    "RNN relu": (nn.RNN, {"nonlinearity": "relu"}, SEQUENCE, True),
    "RNN relu packed": (nn.RNN, {"nonlinearity": "relu"}, PACKED, False),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent(name: str) -> None:
    kind, options, inputs, with_state = RECURRENT[name]
    torch.manual_seed(0)
    model = kind(4, 5, num_layers=3, dropout=0.3, **options)
    hx: Any = None
    if with_state:
        first = model.batch_first and not isinstance(inputs, PackedSequence)
        batch = inputs.shape[0 if first else 1] if isinstance(inputs, Tensor) else 3
        rows = 3 * (2 if model.bidirectional else 1)
        hx = randn(rows, batch, model.proj_size or 5, seed=2)
        if isinstance(model, nn.LSTM):
            hx = (hx, randn(rows, batch, 5, seed=3))
    args = (inputs,) if hx is None else (inputs, hx)

    given = Given()
    output, sites = run(model, args, given)
    assert len(sites) == 2
    assert {s.kind for s in sites} == {f"between {name.split()[0]} layers"}
    torch.testing.assert_close(output, by_layers(model, inputs, hx, given.etas))

    without, _ = run(model, args, clean)
    torch.testing.assert_close(without, copy.deepcopy(model).eval()(*args))


def test_recurrent_gradients_reach_every_weight() -> None:
    torch.manual_seed(0)
    model, given = nn.LSTM(4, 5, num_layers=3, dropout=0.3, bidirectional=True), Given()
    ours = torch.autograd.grad(run(model, SEQUENCE, given)[0][0].square().sum(), model.parameters())
    single = copy.deepcopy(model).eval()
    run_by_hand = torch.func.functional_call(
        _ByLayers(single, given.etas),
        {f"stack.{k}": v for k, v in model.named_parameters()},
        SEQUENCE,
    )
    theirs = torch.autograd.grad(run_by_hand.square().sum(), model.parameters())
    torch.testing.assert_close(ours, theirs)


class _ByLayers(nn.Module):
    """The stack by hand, through functional calls, so that gradients reach its weights."""

    def __init__(self, stack: nn.LSTM, etas: Sequence[Tensor]) -> None:
        super().__init__()
        self.stack, self.etas = stack, etas

    def forward(self, output: Tensor) -> Tensor:
        weights = dict(self.stack.named_parameters())
        for layer in range(self.stack.num_layers):
            if layer > 0:
                output = drop(output, self.etas[layer - 1])
            own = {
                name.replace(f"_l{layer}", "_l0"): weight
                for name, weight in weights.items()
                if f"_l{layer}" in name
            }
            single = nn.LSTM(output.shape[-1], self.stack.hidden_size, bidirectional=True)
            output = torch.func.functional_call(single, own, (output,))[0]
        return output


def test_recurrent_without_dropout_is_left_alone() -> None:
    stack = nn.LSTM(4, 5, num_layers=2, dropout=0.3)
    model = nn.Sequential(stack, Calls(lambda out_and_state: F.dropout(out_and_state[0], 0.1)))
    stack.eval()
    expected = stack(SEQUENCE)[0]
    output, sites = run(model, SEQUENCE, clean)
    assert [s.kind for s in sites] == ["dropout"]
    torch.testing.assert_close(output, expected)


def test_single_recurrent_layer_is_no_site() -> None:
    single = nn.GRU(4, 5)
    model = nn.Sequential(single, Calls(lambda out_and_state: F.dropout(out_and_state[0], 0.1)))
    output, sites = run(model, SEQUENCE, clean)
    assert [s.kind for s in sites] == ["dropout"]
    torch.testing.assert_close(output, single(SEQUENCE)[0])


# -------------------------------------------------------------------------------------- attention

Q, K, V = randn(2, 4, 5, 6), randn(2, 4, 7, 6, seed=2), randn(2, 4, 7, 3, seed=3)
SEEN = randn(5, 7, seed=4) > -0.5
NOWHERE = SEEN.clone()
NOWHERE[2] = False  # this query may look at nothing


def attention_by_hand(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    scores = torch.einsum("...ld,...sd->...ls", q, k) * scale
    weights = torch.softmax(scores if bias is None else scores + bias, -1)
    weights = torch.where(weights.isnan(), 0.0, weights)  # a row of -inf attends to nothing
    return torch.einsum("...ls,...sd->...ld", drop(weights, eta), v)


def as_bias(mask: Tensor) -> Tensor:
    return torch.where(mask, 0.0, -math.inf)


SDPA: dict[str, tuple[tuple[Tensor, ...], dict[str, Any], Tensor | None, float]] = {
    # name: q, k, v; options; the bias by hand; the scale by hand
    "plain": ((Q, K, V), {}, None, 6**-0.5),
    "scale": ((Q, K, V), {"scale": 0.7}, None, 0.7),
    "scale zero": ((Q, K, V), {"scale": 0.0}, None, 0.0),
    "bool mask": ((Q, K, V), {"attn_mask": SEEN}, as_bias(SEEN), 6**-0.5),
    "mask by head": (
        (Q, K, V),
        {"attn_mask": randn(2, 4, 5, 7, seed=5)},
        randn(2, 4, 5, 7, seed=5),
        6**-0.5,
    ),
    "row masked out": ((Q, K, V), {"attn_mask": NOWHERE}, as_bias(NOWHERE), 6**-0.5),
    "row masked out by floats": (
        (Q, K, V),
        {"attn_mask": as_bias(NOWHERE)},
        as_bias(NOWHERE),
        6**-0.5,
    ),
    "causal, L < S": (
        (Q, K, V),
        {"is_causal": True},
        as_bias(torch.ones(5, 7, dtype=torch.bool).tril()),
        6**-0.5,
    ),
    "causal, L > S": (
        (Q, K[..., :3, :], V[..., :3, :]),
        {"is_causal": True},
        as_bias(torch.ones(5, 3, dtype=torch.bool).tril()),
        6**-0.5,
    ),
    "lower right": (
        (Q, K, V),
        {"attn_mask": causal_lower_right(5, 7)},
        as_bias(torch.ones(5, 7, dtype=torch.bool).tril(2)),
        6**-0.5,
    ),
    "upper left": (
        (Q, K, V),
        {"attn_mask": causal_upper_left(5, 7)},
        as_bias(torch.ones(5, 7, dtype=torch.bool).tril()),
        6**-0.5,
    ),
    "keys broadcast over the batch": ((Q, K[:1], V[:1]), {}, None, 6**-0.5),
    "no heads": ((Q[:, 0], K[:, 0], V[:, 0]), {}, None, 6**-0.5),
    "matrices": ((Q[0, 0], K[0, 0], V[0, 0]), {}, None, 6**-0.5),
    "float64": ((Q.double(), K.double(), V.double()), {}, None, 6**-0.5),
}


@pytest.mark.parametrize("name", SDPA)
def test_scaled_dot_product_attention(name: str) -> None:
    (q, k, v), options, bias, scale = SDPA[name]
    model = Calls(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.3, **options))
    given = Given()
    output, (site,) = run(model, (q, k, v), given)
    assert site.kind == "attention weights"
    assert site.shape == site.mask_shape == (*q.shape[:-1], k.shape[-2])
    torch.testing.assert_close(output, attention_by_hand(q, k, v, given.etas[0], bias, scale))
    torch.testing.assert_close(
        run(model, (q, k, v), clean)[0], F.scaled_dot_product_attention(q, k, v, **options)
    )


def test_attention_with_grouped_queries() -> None:
    k, v = K[:, :2], V[:, :2]  # two heads for four queries
    model = Calls(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.3, enable_gqa=True)
    )
    given = Given()
    output, (site,) = run(model, (Q, k, v), given)
    assert site.shape == (2, 4, 5, 7)
    heads = [0, 0, 1, 1]
    by_hand = attention_by_hand(Q, k[:, heads], v[:, heads], given.etas[0], None, 6**-0.5)
    torch.testing.assert_close(output, by_hand)
    torch.testing.assert_close(
        run(model, (Q, k, v), clean)[0],
        F.scaled_dot_product_attention(Q, k, v, enable_gqa=True),
    )


def test_attention_without_dropout_is_no_site() -> None:
    model = Calls(lambda x: F.dropout(F.scaled_dot_product_attention(x, x, x), 0.5))
    output, sites = run(model, Q, clean)
    assert [s.kind for s in sites] == ["dropout"]
    torch.testing.assert_close(output, F.scaled_dot_product_attention(Q, Q, Q))


def heads_by_hand(
    m: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, eta: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Multi-head attention in (batch, time, features); returns output and weights by head."""
    if m.in_proj_weight is not None:
        w_q, w_k, w_v = m.in_proj_weight.chunk(3)
    else:
        w_q, w_k, w_v = m.q_proj_weight, m.k_proj_weight, m.v_proj_weight
    b_q, b_k, b_v = (0, 0, 0) if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
    q, k, v = query @ w_q.T + b_q, key @ w_k.T + b_k, value @ w_v.T + b_v
    for extra_k, extra_v in ((m.bias_k, m.bias_v), *(((0.0, 0.0),) if m.add_zero_attn else ())):
        if extra_k is not None:
            k = torch.cat([k, torch.zeros_like(k[:, :1]) + extra_k], 1)
            v = torch.cat([v, torch.zeros_like(v[:, :1]) + extra_v], 1)
            bias = torch.cat([bias, torch.zeros_like(bias[..., :1])], -1)
    q, k, v = (t.unflatten(-1, (m.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + bias).softmax(-1)
    weights = drop(weights, eta.reshape(weights.shape))
    output = (weights @ v).transpose(1, 2).flatten(-2)
    return m.out_proj(output), weights


class MyAttention(nn.MultiheadAttention):
    pass


HEADS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: options of the module, options of the call
    "weights": ({}, {}),
    "no weights": ({}, {"need_weights": False}),
    "weights by head": ({}, {"average_attn_weights": False}),
    "time first": ({"batch_first": False}, {"need_weights": False}),
    "time first, weights": ({"batch_first": False}, {}),
    "no bias": ({"bias": False}, {}),
    "key and value bias": ({"add_bias_kv": True}, {}),
    "key and value bias, no weights": ({"add_bias_kv": True}, {"need_weights": False}),
    "zero attention": ({"add_zero_attn": True}, {"need_weights": False}),
    "both": ({"add_zero_attn": True, "add_bias_kv": True}, {}),
    "other widths": ({"kdim": 3, "vdim": 5}, {}),
    "other widths, no weights": ({"kdim": 3, "vdim": 5}, {"need_weights": False}),
    "padding": ({}, {"key_padding_mask": True}),
    "padding, no weights": ({}, {"key_padding_mask": True, "need_weights": False}),
    "mask": ({}, {"attn_mask": SEEN}),
    "both masks": ({"add_bias_kv": True}, {"attn_mask": SEEN, "key_padding_mask": True}),
    "both masks, no weights": (
        {},
        {"attn_mask": SEEN, "key_padding_mask": True, "need_weights": False},
    ),
    "subclass": ({}, {}),
    "subclass, no weights": ({}, {"need_weights": False}),
    "mask of floats": ({}, {"attn_mask": randn(5, 7, seed=9), "need_weights": False}),
}


@pytest.mark.parametrize("name", HEADS)
def test_multi_head_attention(name: str) -> None:
    options, call = HEADS[name]
    torch.manual_seed(0)
    kind = MyAttention if name.startswith("subclass") else nn.MultiheadAttention
    m = kind(8, 2, dropout=0.3, **{"batch_first": True, **options})
    for each in m.parameters():
        nn.init.normal_(each, std=0.5)  # PyTorch starts biases at zero, where errors would hide
    key_width, value_width = options.get("kdim", 8), options.get("vdim", 8)
    q, k, v = randn(3, 5, 8), randn(3, 7, key_width, seed=2), randn(3, 7, value_width, seed=3)
    bias, call = torch.zeros(3, 1, 5, 7), dict(call)
    if "key_padding_mask" in call:
        padding = torch.zeros(3, 7, dtype=torch.bool)
        padding[1, 4:] = True
        call["key_padding_mask"] = padding
        bias = bias + as_bias(~padding)[:, None, None]
    if "attn_mask" in call:
        mask = call["attn_mask"]
        if mask.dtype == torch.bool:
            call["attn_mask"] = ~SEEN  # here True is what may not be seen
            mask = as_bias(SEEN)
        bias = bias + mask
    wrapped = _Attend(m, call)

    given = Given()
    (output, weights), (site,) = run(wrapped, (q, k, v), given)
    assert site.p == 0.3
    by_hand, weights_by_hand = heads_by_hand(m, q, k, v, given.etas[0], bias)
    torch.testing.assert_close(output, by_hand)
    if call.get("need_weights", True):
        if call.get("average_attn_weights", True):
            weights_by_hand = weights_by_hand.mean(1)
        torch.testing.assert_close(weights, weights_by_hand)
    else:
        assert weights is None

    without = run(wrapped, (q, k, v), clean)[0]
    torch.testing.assert_close(without, copy.deepcopy(wrapped).eval()(q, k, v))


class _Attend(nn.Module):
    """Attention that is always given its tensors batch first."""

    def __init__(self, m: nn.MultiheadAttention, call: dict[str, Any]) -> None:
        super().__init__()
        self.m, self.call = m, call

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.m.batch_first:
            q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        output, weights = self.m(q, k, v, **self.call)
        return (output if self.m.batch_first else output.transpose(0, 1)), weights


def test_self_attention_without_a_batch() -> None:
    torch.manual_seed(0)
    m, x, given = nn.MultiheadAttention(8, 2, dropout=0.3), randn(5, 8), Given()
    (output, _), _ = run(m, (x, x, x), given)
    by_hand, _ = heads_by_hand(m, x[None], x[None], x[None], given.etas[0], torch.zeros(5, 5))
    torch.testing.assert_close(output, by_hand[0])


# ------------------------------------------------------------------------------------ Transformer


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoder_layer(norm_first: bool, activation: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.3, activation=activation, batch_first=True, norm_first=norm_first
    )
    x, given = randn(3, 5, 8), Given()
    output, sites = run(layer, x, given)
    assert [s.kind for s in sites] == ["attention weights", "dropout", "dropout", "dropout"]
    in_attention, after_attention, hidden, after_hidden = given.etas

    def attend(h: Tensor) -> Tensor:
        heads, _ = heads_by_hand(layer.self_attn, h, h, h, in_attention, torch.zeros(5, 5))
        return drop(heads, after_attention)

    def feed(h: Tensor) -> Tensor:
        inner = drop(getattr(F, activation)(layer.linear1(h)), hidden)
        return drop(layer.linear2(inner), after_hidden)

    if norm_first:
        h = x + attend(layer.norm1(x))
        expected = h + feed(layer.norm2(h))
    else:
        h = layer.norm1(x + attend(x))
        expected = layer.norm2(h + feed(h))
    torch.testing.assert_close(output, expected)


def test_transformer_decoder_layer() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    x, memory, given = randn(3, 5, 8), randn(3, 7, 8, seed=2), Given()
    output, sites = run(layer, (x, memory), given)
    assert len(sites) == 6
    e = given.etas
    heads, _ = heads_by_hand(layer.self_attn, x, x, x, e[0], torch.zeros(5, 5))
    h = layer.norm1(x + drop(heads, e[1]))
    heads, _ = heads_by_hand(layer.multihead_attn, h, memory, memory, e[2], torch.zeros(5, 7))
    h = layer.norm2(h + drop(heads, e[3]))
    inner = drop(F.relu(layer.linear1(h)), e[4])
    torch.testing.assert_close(output, layer.norm3(h + drop(layer.linear2(inner), e[5])))


class MyEncoderLayer(nn.TransformerEncoderLayer):
    pass


def test_whole_transformer_without_noise_is_the_model_in_eval_mode() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 2, 2, 16, dropout=0.3, batch_first=True)
    model.encoder.layers[1] = MyEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    source, target = randn(3, 5, 8), randn(3, 4, 8, seed=2)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    inputs = {"src": source, "tgt": target, "tgt_mask": mask}
    output, sites = run(model, inputs, clean)
    assert len(sites) == 2 * 4 + 2 * 6
    assert sorted({s.p for s in sites}) == [0.2, 0.3]
    torch.testing.assert_close(output, copy.deepcopy(model).eval()(**inputs))


def test_encoder_in_eval_mode_inside_a_model_in_train_mode() -> None:
    # Without gradients PyTorch takes a fused fast path there, which drops nothing.
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    model = nn.Sequential(encoder, nn.Dropout(0.5), nn.Linear(8, 3))
    x = randn(3, 5, 8)
    assert [s.name for s in find_sites(model, x)] == ["1"]
    expected = copy.deepcopy(model).eval()(x)
    torch.testing.assert_close(run(model, x, clean)[0], expected)
    with torch.no_grad():
        torch.testing.assert_close(run(model, x, clean)[0], expected)


# ------------------------------------------------------------------- the law, against PyTorch's own

MANY = 4000  # rows of one batch: each has masks of its own, so one pass makes many draws


def rows(*shape: int) -> Tensor:
    """The same random row, repeated."""
    return randn(*shape).expand(MANY, *shape).clone()


SAME_LAW: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "Dropout": (lambda: nn.Dropout(0.3), lambda: rows(6)),
    "Dropout1d": (lambda: nn.Dropout1d(0.3), lambda: rows(3, 2)),
    "Dropout2d": (lambda: nn.Dropout2d(0.3), lambda: rows(3, 2, 2)),
    "Dropout3d": (lambda: nn.Dropout3d(0.3), lambda: rows(3, 2, 1, 2)),
    "LSTM": (lambda: nn.LSTM(3, 4, 2, batch_first=True, dropout=0.4), lambda: rows(4, 3)),
    "GRU": (lambda: nn.GRU(3, 4, 3, batch_first=True, dropout=0.4), lambda: rows(4, 3)),
    "RNN": (lambda: nn.RNN(3, 4, 2, batch_first=True, dropout=0.4), lambda: rows(4, 3)),
    "attention": (
        lambda: Calls(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.4)),
        lambda: rows(2, 4, 3),
    ),
    "attention heads": (
        lambda: _SelfAttend(nn.MultiheadAttention(6, 2, dropout=0.4, batch_first=True)),
        lambda: rows(4, 6),
    ),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.2, batch_first=True),
        lambda: rows(3, 6),
    ),
    # Locked dropout is this package's own: against PyTorch's Dropout1d, which shares over time.
    "LockedDropout": (lambda: _Locked(0.3), lambda: rows(3, 2)),
}


class _SelfAttend(nn.Module):
    def __init__(self, m: nn.MultiheadAttention) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        return self.m(x, x, x)[0]


class _Locked(nn.Module):
    """Outside of control PyTorch's channel dropout, under it ours: their laws must agree."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.ours, self.theirs, self.controlled = LockedDropout(p, (2,)), nn.Dropout1d(p), False

    def forward(self, x: Tensor) -> Tensor:
        return self.ours(x) if self.controlled else self.theirs(x)


@torch.no_grad()
@pytest.mark.parametrize("name", SAME_LAW)
def test_bernoulli_noise_is_pytorchs_dropout(name: str) -> None:
    make, make_rows = SAME_LAW[name]
    torch.manual_seed(0)
    model, x = make(), make_rows()

    def draws(output: Any) -> Tensor:
        flat = (output[0] if isinstance(output, tuple) else output).flatten(1).double()
        # Random directions too: their variance depends on what is dropped together.
        mixed = (
            flat
            @ torch.randn(flat.shape[1], 4, generator=torch.Generator().manual_seed(5)).double()
        )
        return torch.cat([flat, mixed], 1)

    theirs = draws(model(x))
    if isinstance(model, _Locked):
        model.controlled = True
    ours = draws(run(model, x, Probe("bernoulli", torch.Generator().manual_seed(1)).at(1.0))[0])
    assert theirs.std() > 0

    def moments(sample: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean and its squared standard error, variance and its squared standard error."""
        centred = sample - sample.mean(0)
        var = centred.square().mean(0)
        return sample.mean(0), var / MANY, var, (centred.pow(4).mean(0) - var.square()) / MANY

    mean, mean_error, var, var_error = moments(ours)
    mean_2, mean_error_2, var_2, var_error_2 = moments(theirs)
    # 4.5 standard errors: at up to 40 outputs and two moments, one false alarm in 1,800 seeds.
    assert ((mean - mean_2).abs() <= 4.5 * (mean_error + mean_error_2).sqrt() + 1e-6).all()
    assert ((var - var_2).abs() <= 4.5 * (var_error + var_error_2).sqrt() + 1e-6).all()


# ---------------------------------------------------------- this package's own, outside of control


def test_locked_dropout_outside_of_control() -> None:
    torch.manual_seed(0)
    x = torch.ones(2000, 3, 4)
    y = LockedDropout(0.25)(x)
    torch.testing.assert_close(y.unique(), torch.tensor([0.0, 4 / 3]))
    assert torch.equal(y, y[:, :1].expand_as(y))  # one mask for all times
    dropped = (y[:, 0] == 0).double()
    # 8,000 masks of probability 1/4: within 4 standard errors, sqrt(p (1-p) / n).
    assert abs(dropped.mean().item() - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / dropped.numel())
    assert torch.equal(LockedDropout(0.25).eval()(x), x)
    assert torch.equal(LockedDropout(0.0)(x), x)
    assert repr(LockedDropout(0.25)) == "LockedDropout(p=0.25, shared_dims=(1,))"


def test_shared_dropout_outside_of_control() -> None:
    x = randn(6, 5)
    torch.manual_seed(0)
    y = shared_dropout(x, 0.5, shared_dims=(-1,))
    kept = (y != 0).all(1)
    assert torch.equal(kept, (y != 0).any(1))  # whole rows
    assert kept.any()
    assert not kept.all()
    torch.testing.assert_close(y[kept], 2 * x[kept])
    assert shared_dropout(x, 0.5, training=False) is x
    with pytest.raises(errors.InputError, match=r"dimension 2, but the input has 2 dimensions"):
        shared_dropout(x, 0.5, shared_dims=(2,))
    with pytest.raises(errors.ProbabilityError, match=r"outside \[0, 1\)"):
        shared_dropout(x, 1.0)
    with pytest.raises(errors.ProbabilityError, match=r"outside \[0, 1\)"):
        LockedDropout(1.0)


def test_dropout_of_a_weight() -> None:
    class WeightDrop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            weight = shared_dropout(self.linear.weight, 0.5, self.training, shared_dims=(1,))
            return F.linear(x, weight, self.linear.bias)

    torch.manual_seed(0)
    model, x, given = WeightDrop(), randn(5, 4), Given()
    output, (site,) = run(model, x, given)
    assert (site.shape, site.mask_shape, site.sharing) == ((3, 4), (3, 1), "over dim 1")
    expected = x @ drop(model.linear.weight, given.etas[0]).T + model.linear.bias
    torch.testing.assert_close(output, expected)


def test_padding_of_a_packed_sequence_is_not_dropped() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(4, 5, num_layers=2, dropout=0.3)
    (packed, _), (site,) = run(model, PACKED, Given())
    assert site.shape == (3 + 6 + 5, 5)
    _, lengths = pad_packed_sequence(packed)
    assert lengths.tolist() == [3, 6, 5]
