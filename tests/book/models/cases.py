"""Every model twice: as the package has it, and written out by hand with its noise as an argument.

The second form loops over sequences, positions and heads, and shares nothing with the first but the
weights. `oracle.Case` holds the two together.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from oracle import Case
from torch import Tensor

from dropreg.book.models import (
    MLP,
    LSTMLanguageModel,
    QRNNLanguageModel,
    TransformerLanguageModel,
    TransformerXL,
)

Weights = Mapping[str, Tensor]
Etas = Sequence[Tensor]
BATCH, TIME, WORDS = 2, 3, 5


def tokens(time: int = TIME, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, WORDS, (BATCH, time), generator=generator)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    bias = w.get(f"{name}.bias", torch.zeros((), dtype=x.dtype))
    return torch.mv(w[f"{name}.weight"], x) + bias


# ------------------------------------------------------------------------------------------ MLP


def mlp_net(w: Weights, inputs: Tensor, etas: Etas) -> Tensor:
    logits = []
    for b, h in enumerate(inputs):
        for layer, eta in zip((1, 4, 7), etas, strict=True):
            h = linear(w, f"layers.{layer}", h * (1 + eta[b]))
            h = h if layer == 7 else relu(h)
        logits.append(h)
    return torch.stack(logits)


def mlp() -> Case:
    model = MLP(3, 4, width=3, input_p=0.2, hidden_p=0.4).double()
    return Case(model, normal(2, 3), mlp_net, ((2, 3),) * 3, (0.2, 0.4, 0.4))


# ----------------------------------------------------------------------------- recurrent models

Layer = Callable[[Weights, int, list[Tensor], Tensor, Any], list[Tensor]]


def recurrent_net(layer: Layer) -> Callable[..., Tensor]:
    """Sites in order: rows, word vectors, and for each layer its weights and its output."""

    def net(w: Weights, inputs: tuple[Tensor, Any], etas: Etas) -> Tensor:
        words, state = inputs
        rows, vectors, *others = etas
        table = w["embedding.weight"] * (1 + rows)
        logits = []
        for b in range(len(words)):
            sequence = [table[word] * (1 + vectors[b, 0]) for word in words[b]]
            for i, (weights, output) in enumerate(zip(others[::2], others[1::2], strict=True)):
                before = [part.reshape(BATCH, -1)[b] for part in state[i]]
                sequence = layer(w, i, sequence, weights, before)
                sequence = [h * (1 + output[b, 0]) for h in sequence]
            logits += [torch.mv(w["embedding.weight"], h) + w["decoder_bias"] for h in sequence]
        return torch.stack(logits).reshape(*words.shape, -1)

    return net


def lstm_layer(w: Weights, i: int, xs: list[Tensor], eta: Tensor, state: Any) -> list[Tensor]:
    h, c = state
    names = (f"layers.{i}.weight_ih_l0", f"layers.{i}.weight_hh_l0")
    w_ih, w_hh = w[names[0]], w[names[1]] * (1 + eta)
    bias = w[f"layers.{i}.bias_ih_l0"] + w[f"layers.{i}.bias_hh_l0"]
    outputs = []
    for x in xs:
        enter, forget, new, leave = (torch.mv(w_ih, x) + torch.mv(w_hh, h) + bias).chunk(4)
        c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(new)
        h = torch.sigmoid(leave) * torch.tanh(c)
        outputs.append(h)
    return outputs


def qrnn_layer(w: Weights, i: int, xs: list[Tensor], eta: Tensor, state: Any) -> list[Tensor]:
    c, past = state
    weight, bias = w[f"layers.{i}.linear.weight"] * (1 + eta), w[f"layers.{i}.linear.bias"]
    n, width = len(c), len(xs[0])
    outputs = []
    for x in xs:
        pre = torch.mv(weight[:, -width:], x) + bias
        if i == 0:  # the first layer sees the input before this one, too
            pre = pre + torch.mv(weight[:, :width], past)
            past = x
        z, f, o = torch.tanh(pre[:n]), torch.sigmoid(pre[n : 2 * n]), torch.sigmoid(pre[2 * n :])
        c = f * c + (1 - f) * z
        outputs.append(o * c)
    return outputs


PS = {"row_p": 0.1, "embedding_p": 0.2, "weight_p": 0.3, "hidden_p": 0.4, "output_p": 0.5}
SITE_PS = (0.1, 0.2, 0.3, 0.4, 0.3, 0.5)
ACTIVATIONS = ((BATCH, 1, 2), (BATCH, 1, 3), (BATCH, 1, 2))


def lstm() -> Case:
    model = LSTMLanguageModel(WORDS, embedding_size=2, hidden_size=3, depth=2, **PS).double()
    state = tuple((normal(1, BATCH, n), normal(1, BATCH, n)) for n in (3, 2))
    first, between, last = ACTIVATIONS
    shapes = ((WORDS, 1), first, (12, 3), between, (8, 2), last)
    return Case(model, (tokens(), state), recurrent_net(lstm_layer), shapes, SITE_PS)


def qrnn() -> Case:
    model = QRNNLanguageModel(WORDS, embedding_size=2, hidden_size=3, depth=2, **PS).double()
    state = ((normal(BATCH, 3), normal(BATCH, 1, 2)), (normal(BATCH, 2), normal(BATCH, 0, 3)))
    first, between, last = ACTIVATIONS
    shapes = ((WORDS, 1), first, (9, 4), between, (6, 3), last)
    return Case(model, (tokens(), state), recurrent_net(qrnn_layer), shapes, SITE_PS)


# --------------------------------------------------------------------------------- Transformers


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.sum() / len(x)
    standardized = centred / (centred.square().sum() / len(x) + 1e-5).sqrt()
    return standardized * w[f"{name}.weight"] + w[f"{name}.bias"]


def waves(position: int, width: int) -> Tensor:
    angles = [position / 10000 ** (2 * k / width) for k in range(width // 2)]
    values = [*map(math.sin, angles), *map(math.cos, angles)]
    return torch.tensor(values, dtype=torch.float64)


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.0)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def expand(
    w: Weights,
    block: str,
    activation: Callable[[Tensor], Tensor],
    x: Tensor,
    inner: Tensor,
    outer: Tensor,
) -> Tensor:
    h = activation(linear(w, f"{block}.feed_forward.0", x)) * (1 + inner)
    return linear(w, f"{block}.feed_forward.3", h) * (1 + outer)


def heads_of(x: Tensor) -> tuple[Tensor, ...]:
    return x.chunk(2)


def weigh(scores: list[Tensor], values: list[Tensor], eta: Tensor) -> Tensor:
    exps = [score.exp() for score in scores]
    shares = [e / sum(exps) * (1 + n) for e, n in zip(exps, eta, strict=True)]
    return torch.stack([a * v for a, v in zip(shares, values, strict=True)]).sum(0)


def transformer_net(w: Weights, inputs: tuple[Tensor, None], etas: Etas) -> Tensor:
    words, logits = inputs[0], []
    width = w["embedding.weight"].shape[1]
    for b, sentence in enumerate(words):
        xs = [
            (math.sqrt(width) * w["embedding.weight"][word] + waves(t, width)) * (1 + etas[0][b, t])
            for t, word in enumerate(sentence)
        ]
        for i, start in enumerate(range(1, len(etas), 4)):
            block, (attend, added, inner, outer) = f"blocks.{i}", etas[start : start + 4]
            qkv = [linear(w, f"{block}.qkv", norm(w, f"{block}.attention_norm", x)) for x in xs]
            q, k, v = ([heads_of(row.chunk(3)[part]) for row in qkv] for part in range(3))
            after = []
            for t, x in enumerate(xs):
                attended = [
                    weigh(
                        [q[t][h] @ k[s][h] / math.sqrt(width / 2) for s in range(t + 1)],
                        [v[s][h] for s in range(t + 1)],
                        attend[b, h, t, : t + 1],
                    )
                    for h in range(2)
                ]
                x = x + linear(w, f"{block}.out", torch.cat(attended)) * (1 + added[b, t])
                y = norm(w, f"{block}.feed_forward_norm", x)
                after.append(x + expand(w, block, gelu, y, inner[b, t], outer[b, t]))
            xs = after
        logits += [torch.mv(w["embedding.weight"], norm(w, "norm", x)) for x in xs]
    return torch.stack(logits).reshape(*words.shape, -1) + w["decoder_bias"]


def transformer() -> Case:
    ps = {"p": 0.2, "attention_p": 0.3}
    model = TransformerLanguageModel(WORDS, width=4, heads=2, inner=3, depth=2, **ps).double()
    each = ((BATCH, 2, TIME, TIME), (BATCH, TIME, 4), (BATCH, TIME, 3), (BATCH, TIME, 4))
    shapes = ((BATCH, TIME, 4), *each, *each)
    return Case(model, (tokens(), None), transformer_net, shapes, (0.2, *(0.3, 0.2, 0.2, 0.2) * 2))


def before_it(query: int, key: int) -> bool:
    return key <= query


def xl_net(
    w: Weights,
    inputs: tuple[Tensor, Any],
    etas: Etas,
    sees: Callable[[int, int], bool] = before_it,
) -> Tensor:
    """Positions count from the start of the memory."""
    words, memory = inputs
    width = w["embedding.weight"].shape[1]
    kept = memory[0].shape[1]
    keys = kept + words.shape[1]
    far_to_near = [waves(keys - 1 - n, width) * (1 + etas[1][n]) for n in range(keys)]
    distances = far_to_near[::-1]
    logits = []
    for b, sentence in enumerate(words):
        xs = [
            math.sqrt(width) * w["embedding.weight"][word] * (1 + etas[0][b, t])
            for t, word in enumerate(sentence)
        ]
        for i, start in enumerate(range(2, len(etas) - 1, 4)):
            block, (attend, added, inner, outer) = f"blocks.{i}", etas[start : start + 4]
            joined = [*memory[i][b], *xs]
            key_values = [linear(w, f"{block}.key_value", x).chunk(2) for x in joined]
            k, v = ([heads_of(pair[part]) for pair in key_values] for part in range(2))
            r = [heads_of(linear(w, f"{block}.position", d)) for d in distances]
            after = []
            for t, x in enumerate(xs):
                q = heads_of(linear(w, f"{block}.query", x))
                seen = [s for s in range(keys) if sees(kept + t, s)]
                attended = []
                for h in range(2):
                    scores = [
                        (q[h] + w["u"][h, 0]) @ k[s][h] + (q[h] + w["v"][h, 0]) @ r[kept + t - s][h]
                        for s in seen
                    ]
                    scores = [score / math.sqrt(width / 2) for score in scores]
                    attended.append(weigh(scores, [v[s][h] for s in seen], attend[b, h, t, seen]))
                x = x + linear(w, f"{block}.out", torch.cat(attended)) * (1 + added[b, t])
                x = norm(w, f"{block}.attention_norm", x)
                x = x + expand(w, block, relu, x, inner[b, t], outer[b, t])
                after.append(norm(w, f"{block}.feed_forward_norm", x))
            xs = after
        logits += [
            torch.mv(w["embedding.weight"], x * (1 + etas[-1][b, t])) for t, x in enumerate(xs)
        ]
    return torch.stack(logits).reshape(*words.shape, -1) + w["decoder_bias"]


def xl_shapes(time: int, kept: int) -> tuple[tuple[int, ...], ...]:
    keys = kept + time
    each = ((BATCH, 2, time, keys), (BATCH, time, 4), (BATCH, time, 3), (BATCH, time, 4))
    return ((BATCH, time, 4), (keys, 4), *each, *each, (BATCH, time, 4))


def transformer_xl(memory_length: int = 2) -> Case:
    ps = {"p": 0.2, "attention_p": 0.3, "memory_length": memory_length}
    model = TransformerXL(WORDS, width=4, heads=2, inner=3, depth=2, **ps).double()
    state = tuple(normal(BATCH, 2, 4) for _ in range(2))
    ps_of_sites = (0.2, 0.2, *(0.3, 0.2, 0.2, 0.2) * 2, 0.2)
    return Case(model, (tokens(), state), xl_net, xl_shapes(TIME, 2), ps_of_sites)


CASES: dict[str, Callable[[], Case]] = {
    each.__name__: each for each in (mlp, lstm, qrnn, transformer, transformer_xl)
}
