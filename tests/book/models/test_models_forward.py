"""The models without noise: PyTorch's own forms, causality, carried state, sizes and refusals."""

import inspect
import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from cases import BATCH, WORDS, tokens, transformer_xl, xl_net, xl_shapes
from oracle import build, run
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dropreg import errors
from dropreg.book import models
from dropreg.book.models import (
    MLP,
    LSTMLanguageModel,
    QRNNLanguageModel,
    Sized,
    TransformerLanguageModel,
    TransformerXL,
    detach,
)

LANGUAGE_MODELS: list[type[Sized]] = [
    LSTMLanguageModel,
    QRNNLanguageModel,
    TransformerLanguageModel,
    TransformerXL,
]
WITH_STATE = [model for model in LANGUAGE_MODELS if model is not TransformerLanguageModel]


def tiny(model: type[Sized], **overrides: float) -> nn.Module:
    torch.manual_seed(0)
    made = model.of_size("tiny", WORDS, **overrides).double().eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    return made


# ----------------------------------------------------------------------------- PyTorch's own forms


def test_lstm_is_a_stack_of_nn_lstm():
    model = tiny(LSTMLanguageModel)
    state = tuple(
        (torch.randn(1, BATCH, n).double(), torch.randn(1, BATCH, n).double()) for n in (12, 8)
    )
    words = tokens(7)
    x, after = F.embedding(words, model.embedding.weight), []
    for layer, before in zip(model.layers, state, strict=True):
        plain = nn.LSTM(layer.input_size, layer.hidden_size, batch_first=True).double()
        plain.load_state_dict(layer.state_dict())
        x, new = plain(x, before)
        after.append(new)
    logits, new_state = model(words, state)
    torch.testing.assert_close(logits, x @ model.embedding.weight.T + model.decoder_bias)
    torch.testing.assert_close(new_state, tuple(after))


def test_lstm_runs_as_one_fused_call_a_layer_under_weight_noise(monkeypatch):
    calls = []
    fused = torch.lstm
    monkeypatch.setattr(torch, "lstm", lambda *args: calls.append(args) or fused(*args))
    model = tiny(LSTMLanguageModel).train()
    run(model, tokens(7), lambda site: torch.ones(site.mask_shape, dtype=site.noise_dtype))
    assert len(calls) == 2
    torch.testing.assert_close(calls[0][2][1], 2 * model.layers[0].weight_hh_l0)


def test_lstm_trains_in_float32_as_in_float64():
    """In float32 the CPU runs another kernel, which must not see other weights."""
    grads = []
    for dtype in (torch.float32, torch.float64):
        model = tiny(LSTMLanguageModel, row_p=0.2).to(dtype).train()
        torch.manual_seed(1)
        model(tokens(7))[0].square().mean().backward()
        grads.append([p.grad.double() for p in model.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("noisy", [False, True])
def test_transformer_is_pytorchs_encoder(noisy):
    """The sites come in the same order, too, so that one noise serves both."""
    ps = {"p": 0.2, "attention_p": 0.2}
    model = tiny(TransformerLanguageModel, **ps)
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.2, activation="gelu", batch_first=True, norm_first=True
    )
    plain = nn.TransformerEncoder(layer, 2, norm=model.norm, enable_nested_tensor=False).double()
    for theirs, ours in zip(plain.layers, model.blocks, strict=True):
        pairs = [
            (theirs.self_attn.out_proj, ours.out),
            (theirs.linear1, ours.feed_forward[0]),
            (theirs.linear2, ours.feed_forward[3]),
            (theirs.norm1, ours.attention_norm),
            (theirs.norm2, ours.feed_forward_norm),
        ]
        for module, source in pairs:
            module.load_state_dict(source.state_dict())
        theirs.self_attn.in_proj_weight.data = ours.qkv.weight.data
        theirs.self_attn.in_proj_bias.data = ours.qkv.bias.data

    class Reference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.plain = nn.Dropout(0.2), plain

        def forward(self, words: Tensor) -> Tensor:
            positions = torch.arange(words.shape[1]).double()
            angles = positions[:, None] / 10000 ** (torch.arange(0, 8, 2) / 8)
            x = 8**0.5 * model.embedding.weight[words] + torch.cat([angles.sin(), angles.cos()], 1)
            mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1]).double()
            h = self.plain(self.drop(x), mask=mask, is_causal=True)
            return h @ model.embedding.weight.T + model.decoder_bias

    reference, words = Reference(), tokens(7)
    if not noisy:
        torch.testing.assert_close(model(words)[0], reference.eval()(words))
        return
    outputs = []
    for each in (model.train(), reference.train()):
        generator = torch.Generator().manual_seed(0)
        output, _ = run(each, words, lambda s: torch.randn(s.mask_shape, generator=generator))  # noqa: B023
        outputs.append(output if isinstance(output, Tensor) else output[0])
    torch.testing.assert_close(*outputs)


# -------------------------------------------------------------------- Transformer-XL's recurrence


@pytest.mark.parametrize("memory_length", [0, 1, 3, 20])
def test_xl_memory_is_attention_over_the_joined_segments(memory_length):
    """Three segments in turn, against one pass in which a word sees what its segment's can see."""
    model = build(lambda: transformer_xl(memory_length)).model.eval()
    words, lengths = tokens(9), (4, 2, 3)
    state, logits = None, []
    for segment in words.split(lengths, 1):
        part, state = model(segment, state)
        logits.append(part)
        assert all(m.shape[1] <= memory_length for m in state)
    starts = [0, 4, 6]

    def sees(query: int, key: int) -> bool:
        start = max(s for s in starts if s <= query)
        return start - memory_length <= key <= query

    etas = [torch.zeros(shape, dtype=torch.float64) for shape in xl_shapes(9, 0)]
    nothing = (torch.zeros(BATCH, 0, 4, dtype=torch.float64),) * 2
    expected = xl_net(dict(model.named_parameters()), (words, nothing), etas, sees)
    torch.testing.assert_close(torch.cat(logits, 1), expected)


def test_relative_shift_takes_each_score_to_its_key():
    queries, keys = 3, 5
    by_distance = torch.randn(2, queries, keys)
    by_key = models.transformer_xl.relative_shift(by_distance)
    for i, j in itertools.product(range(queries), range(keys)):
        distance = (keys - queries + i) - j
        if distance >= 0:
            assert torch.equal(by_key[:, i, j], by_distance[:, i, keys - 1 - distance])


# ------------------------------------------------------------------------------ causality and state


@pytest.mark.parametrize("model_class", LANGUAGE_MODELS)
def test_later_words_do_not_matter(model_class):
    model, words = tiny(model_class), tokens(7)
    logits, _ = model(words)
    for t in range(7):
        changed = words.clone()
        changed[:, t] = (changed[:, t] + 1) % WORDS
        new, _ = model(changed)
        torch.testing.assert_close(new[:, :t], logits[:, :t], rtol=0, atol=1e-14)
        assert (new[:, t] != logits[:, t]).any(-1).all()


@pytest.mark.parametrize("model_class", LANGUAGE_MODELS)
def test_sequences_of_a_batch_do_not_meet(model_class):
    model, words = tiny(model_class), tokens(7)
    torch.testing.assert_close(model(words)[0][1:], model(words[1:])[0])


@pytest.mark.parametrize("model_class", WITH_STATE)
def test_carried_state_is_one_long_pass(model_class):
    overrides = {"memory_length": 20} if model_class is TransformerXL else {}
    model, words = tiny(model_class, **overrides), tokens(9)
    state, parts = None, []
    for segment in words.split((1, 5, 3), 1):
        logits, state = model(segment, detach(state))
        parts.append(logits)
    whole, last = model(words)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("model_class", WITH_STATE)
def test_detach_cuts_the_gradient(model_class):
    _, state = tiny(model_class)(tokens(3))
    assert any(leaf.requires_grad for leaf in tree_leaves(state))
    assert not any(leaf.requires_grad for leaf in tree_leaves(detach(state)))
    torch.testing.assert_close(detach(state), state)


def test_no_state_where_there_is_no_memory():
    _, state = tiny(TransformerLanguageModel)(tokens(3))
    assert state is None
    assert detach(state) is None


# --------------------------------------------------------------------------------------- full size


def parameters(model_class: type[Sized], *args: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in model_class.of_size("full", *args).parameters())


def test_lstm_at_full_size():
    widths = [400, 1150, 1150, 400]
    layers = sum(4 * n * (m + n + 2) for m, n in itertools.pairwise(widths))
    count = parameters(LSTMLanguageModel, 10_000)
    assert count == 10_000 * (400 + 1) + layers == 24_221_600
    assert round(count / 1e6) == 24  # Merity et al. 2017, Table 1


def test_qrnn_at_full_size():
    widths = [400, 2500, 2500, 2500, 400]
    layers = sum(
        3 * n * ((2 if i == 0 else 1) * m + 1)
        for i, (m, n) in enumerate(itertools.pairwise(widths))
    )
    assert parameters(QRNNLanguageModel, 267_735) == 267_735 * (400 + 1) + layers == 153_885_435


def test_transformers_at_full_size():
    feed_forward, norms = 2 * 410 * 2100 + 2100 + 410, 4 * 410
    vocabulary = 267_735 * (410 + 1)
    xl = parameters(TransformerXL, 267_735)
    assert xl == vocabulary + 16 * (5 * 410**2 + feed_forward + norms) + 2 * 410
    assert round(xl / 1e6) == 151  # Dai et al. 2019, Table 1
    plain = parameters(TransformerLanguageModel, 267_735)
    assert plain == vocabulary + 16 * (4 * 410 * 411 + feed_forward + norms) + 2 * 410


def test_mlp_at_full_size():
    assert parameters(MLP, 784, 10) == 785 * 1024 + 1025 * 1024 + 1025 * 10


@pytest.mark.parametrize("model_class", LANGUAGE_MODELS)
def test_the_constructors_defaults_are_the_papers(model_class):
    defaults = inspect.signature(model_class.__init__).parameters
    for name, value in model_class.sizes["full"].items():
        assert defaults[name].default == value


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("model_class", LANGUAGE_MODELS)
def test_untrained_models_predict_about_uniformly(model_class, size):
    torch.manual_seed(0)
    words = torch.randint(50, (4, 20))
    logits, _ = model_class.of_size(size, 50).eval()(words)
    loss = F.cross_entropy(logits.flatten(0, 1), words.roll(-1, 1).flatten())
    assert loss.item() == pytest.approx(torch.tensor(50.0).log().item(), rel=0.1)


# ------------------------------------------------------------------------ initialisation, refusals


def test_recurrent_models_start_as_merity_says():
    torch.manual_seed(0)
    model = LSTMLanguageModel.of_size("small", 500)
    bounds = [(model.embedding.weight, 0.1), *((w, 200**-0.5) for w in model.layers.parameters())]
    for weight, bound in bounds:
        assert 0.98 * bound < weight.abs().max() <= bound
    assert not model.decoder_bias.any()


@pytest.mark.parametrize("model_class", [TransformerLanguageModel, TransformerXL])
def test_transformers_start_normal(model_class):
    torch.manual_seed(0)
    for name, weight in model_class.of_size("small", 500).named_parameters():
        if weight.ndim == 1:
            assert bool((weight == (1 if name.endswith("norm.weight") else 0)).all()), name
        else:  # 128 entries at least: 5 standard errors
            error = 5 * 0.02 / (2 * weight.numel()) ** 0.5
            assert weight.std().item() == pytest.approx(0.02, abs=error), name


def test_the_mlp_starts_as_he_says():
    torch.manual_seed(0)
    for layer in MLP.of_size("small", 64, 10).layers:
        if isinstance(layer, nn.Linear):
            assert not layer.bias.any()
            std = (2 / layer.in_features) ** 0.5
            error = 5 * std / (2 * layer.weight.numel()) ** 0.5  # 5 standard errors
            assert layer.weight.std().item() == pytest.approx(std, abs=error)


@pytest.mark.parametrize("p", [-0.1, 1.0])
@pytest.mark.parametrize(
    ("model_class", "name"),
    [(MLP, name) for name in ("input_p", "hidden_p")]
    + [
        (model_class, name)
        for model_class in (LSTMLanguageModel, QRNNLanguageModel)
        for name in ("embedding_p", "hidden_p", "output_p", "weight_p", "row_p")
    ]
    + [
        (model_class, name)
        for model_class in (TransformerLanguageModel, TransformerXL)
        for name in ("p", "attention_p")
    ],
)
def test_impossible_probabilities_are_refused(model_class, name, p):
    args = (3, 2) if model_class is MLP else (WORDS,)
    with pytest.raises(errors.ProbabilityError, match="outside"):
        model_class.of_size("tiny", *args, **{name: p})


def test_other_refusals():
    with pytest.raises(errors.InputError, match=r"no size 'huge'.*'tiny', 'small', 'full'"):
        MLP.of_size("huge", 3, 2)
    for model_class in (TransformerLanguageModel, TransformerXL):
        for width, heads in ((10, 4), (9, 3)):
            with pytest.raises(errors.InputError, match=f"width {width} must be even"):
                model_class(WORDS, width=width, heads=heads, inner=4, depth=1)
    for model_class in LANGUAGE_MODELS:
        with pytest.raises(errors.InputError, match=r"\(batch, time\), got \(7,\)"):
            tiny(model_class)(tokens(7)[0])


def test_a_state_of_another_batch_is_refused():
    model = tiny(LSTMLanguageModel)
    _, state = model(tokens(3)[:1])
    with pytest.raises(RuntimeError, match="hidden"):
        model(tokens(3), state)


@pytest.mark.parametrize("name", [name for name in models.__all__ if name != "State"])
def test_every_argument_is_documented(name):
    each = getattr(models, name)
    functions = [each]
    if inspect.isclass(each):
        functions = [f for f in vars(each).values() if inspect.isroutine(f)]
    for function in functions:
        function = getattr(function, "__func__", function)
        documented = re.findall(r"^ +\*{0,2}(\w+):", inspect.getdoc(function), re.MULTILINE)
        assert {*inspect.signature(function).parameters} - {"self", "cls"} <= {*documented}


@pytest.mark.parametrize("model_class", [MLP, *LANGUAGE_MODELS])
def test_every_model_has_an_example(model_class):
    assert ">>>" in inspect.getdoc(model_class)
