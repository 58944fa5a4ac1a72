"""Models as users have them: their inputs, outputs, precisions, wrappers and habits."""

import copy
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from oracle import run
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import dropreg
from dropreg import errors, find_sites
from dropreg.probes import clean


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X, Y = randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


class Body(nn.Module):
    """The same small network behind every form of input and output below."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.head = nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.first(x).relu()))

    def forward(self, x: Tensor) -> Any:
        return self.logits(x)


def values(model: nn.Module, inputs: Any, targets: Tensor = Y) -> list[Tensor]:
    """One of everything."""
    return [
        dropreg.explicit_regularizer(model, inputs),
        dropreg.explicit_regularizer(model, inputs, method="central", generator=seeded()),
        dropreg.implicit_noise(model, inputs, targets, generator=seeded()),
        dropreg.dropout_k_loss(model, inputs, targets, 2, generator=seeded()),
        dropreg.replace_dropout(model, generator=seeded()).loss(inputs, targets),
    ]


def body(kind: type[nn.Module] = Body, *args: Any) -> Any:
    torch.manual_seed(0)
    return kind(*args)


@pytest.fixture(scope="module")
def expected() -> list[Tensor]:
    return values(body(), X)


# ----------------------------------------------------------------------------- inputs and outputs


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class NamedOutput(NamedTuple):
    hidden: Tensor
    logits: Tensor


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "object with logits": lambda x: Output(None, x),
    "named tuple with logits": lambda x: NamedOutput(x[:, :1], x),
    "dict": lambda x: {"hidden": x[:, :1], "logits": x},
    "other mapping": lambda x: UserDict(logits=x),
    "logits and state": lambda x: (x, (x[:, :1], x[:, :1])),
    "list": lambda x: [x, None],
}


class Returns(Body):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return OUTPUTS[self.form](self.logits(x))


@pytest.mark.parametrize("form", OUTPUTS)
def test_outputs(form: str, expected: list[Tensor]) -> None:
    torch.testing.assert_close(values(body(Returns, form), X), expected)


def test_output_is_kept_for_the_state_it_carries() -> None:
    model = body(Returns, "logits and state")
    for options in (
        {},
        {"method": "even_odd"},
        {"method": "exact"},
        {"explicit": 0, "implicit": 0},
    ):
        replacement = dropreg.replace_dropout(model, **options)
        replacement.loss(X, Y)
        logits, (state, _) = replacement.output
        assert torch.equal(state, logits[:, :1])


class Takes(Body):
    def __init__(self, keywords: bool) -> None:
        super().__init__()
        self.keywords = keywords

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        assert bool(kwargs) == self.keywords
        left, right = (kwargs["left"], kwargs["right"]) if self.keywords else args
        return self.logits(torch.cat([left, right], 1))


@pytest.mark.parametrize(
    "inputs",
    [
        (X[:, :1], X[:, 1:]),
        {"left": X[:, :1], "right": X[:, 1:]},
        UserDict(left=X[:, :1], right=X[:, 1:]),  # as a tokenizer's BatchEncoding is
    ],
    ids=["tuple", "dict", "mapping"],
)
def test_inputs(inputs: Any, expected: list[Tensor]) -> None:
    model = body(Takes, not isinstance(inputs, tuple))
    torch.testing.assert_close(values(model, inputs), expected)


class Keywords(Body):
    def forward(self, *, x: Tensor) -> Tensor:
        return self.logits(x)


def test_forward_with_keywords_only(expected: list[Tensor]) -> None:
    torch.testing.assert_close(values(body(Keywords), {"x": X}), expected)


class OfSequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 5, 2, dropout=0.5), nn.Linear(5, 3)

    def forward(self, packed: Any) -> Tensor:
        padded, _ = pad_packed_sequence(self.rnn(packed)[0])
        return self.head(padded)


def test_packed_sequence_as_input() -> None:
    torch.manual_seed(0)
    model = OfSequences()
    packed = pack_sequence([randn(5, 4), randn(3, 4, seed=2)])
    targets = torch.tensor([[0, 1], [1, 2], [2, 0], [0, -100], [1, -100]])
    assert len(find_sites(model, packed)) == 1
    loss = dropreg.replace_dropout(model, generator=seeded()).loss(packed, targets)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


# ------------------------------------------------------------------------------------- precisions

METHODS = ("exact", "sampled_labels", "jvp")


class Deep(nn.Module):
    """Enough of everything that autocast treats in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.layer(self.embed(x))))


SEQUENCES, LABELS = randn(4, 6, 4), torch.arange(24).reshape(4, 6) % 5


@pytest.mark.parametrize("method", METHODS)
def test_explicit_under_autocast(method: str) -> None:
    torch.manual_seed(0)
    model = Deep()
    options: dict[str, Any] = {"method": method, "mc_samples": 1 if method == "exact" else 20}
    exact = dropreg.explicit_regularizer(model, SEQUENCES, generator=seeded(), **options)
    with torch.autocast("cpu", torch.bfloat16):
        low = dropreg.explicit_regularizer(model, SEQUENCES, generator=seeded(), **options)
    assert low.dtype == torch.float32  # squares are summed in float32
    # bfloat16 rounds by 2^-8 = 0.4 %; labels sampled near a boundary of their intervals may differ.
    torch.testing.assert_close(low, exact, rtol=0.1 if method == "sampled_labels" else 0.03, atol=0)
    low.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("method", ["analytic", "dropout_pair"])
def test_implicit_under_autocast(method: str) -> None:
    torch.manual_seed(0)
    model = Deep()

    def gradient() -> Tensor:
        value = dropreg.implicit_noise(model, SEQUENCES, LABELS, method=method, generator=seeded())
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, model.parameters())])

    exact = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        low = gradient()
    assert F.cosine_similarity(low, exact, dim=0) > 0.99
    assert (low - exact).norm() < 0.1 * exact.norm()


def test_training_losses_under_autocast() -> None:
    torch.manual_seed(0)
    model = Deep()

    def losses() -> list[Tensor]:
        even_odd = dropreg.replace_dropout(model, method="even_odd", generator=seeded())
        sampled = dropreg.replace_dropout(model, method="sampled_labels", generator=seeded())
        chunks = {"chunk": 2, "generator": seeded()}
        return [
            even_odd.loss(SEQUENCES, LABELS),
            sampled.loss(SEQUENCES, LABELS),
            dropreg.dropout_k_loss(model, SEQUENCES, LABELS, 3, **chunks),
        ]

    exact = losses()
    with torch.autocast("cpu", torch.bfloat16):
        low = losses()
    for a, b in zip(low, exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.03, atol=0.0)
        a.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_in_other_precisions(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    single = Deep()
    model = copy.deepcopy(single).to(dtype)
    x = SEQUENCES.to(dtype)
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    for method in (*METHODS, "even_odd", "monte_carlo", "full_hessian", "identity"):
        options: dict[str, Any] = {"method": method, "targets": LABELS}
        options["mc_samples"] = 1 if method == "exact" else 10
        # One seed means the same noise in every precision.
        reference = dropreg.explicit_regularizer(single, SEQUENCES, generator=seeded(), **options)
        value = dropreg.explicit_regularizer(model, x, generator=seeded(), **options)
        assert value.dtype == torch.promote_types(dtype, torch.float32)
        # Differences of losses, of about 1.6 here, lose digits that squares do not.
        atol = {"even_odd": 0.02, "monte_carlo": 0.02, "full_hessian": 0.02}.get(method, 0.0)
        torch.testing.assert_close(
            value.float(),
            reference,
            rtol=tolerance,
            atol=atol if dtype == torch.bfloat16 else 1e-6,
        )
    value = dropreg.replace_dropout(model, method="even_odd", generator=seeded()).loss(x, LABELS)
    value.backward()
    assert model.embed.weight.grad.dtype == dtype


def test_small_gradients_do_not_underflow_in_float16() -> None:
    # The square of 1e-4 is below what float16 can hold.
    torch.manual_seed(0)
    single = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 3))
    with torch.no_grad():
        single[1].weight.mul_(1e-3)
    x = randn(8, 64)
    exact = dropreg.explicit_regularizer(single, x)
    half = copy.deepcopy(single).half()
    value = dropreg.explicit_regularizer(half, x.half())
    torch.testing.assert_close(value, exact, rtol=0.02, atol=0.0)


# --------------------------------------------------------------------------------- with no gradient


@pytest.mark.parametrize("method", dropreg.ExplicitMethod, ids=str)
def test_explicit_value_without_gradients(method: str) -> None:
    model = body()
    options: dict[str, Any] = {"targets": Y, "method": method}
    with_graph = dropreg.explicit_regularizer(model, X, generator=seeded(), **options)
    with torch.no_grad():
        without = dropreg.explicit_regularizer(model, X, generator=seeded(), **options)
    assert with_graph.requires_grad
    assert not without.requires_grad
    torch.testing.assert_close(without, with_graph.detach())


@pytest.mark.parametrize("method", dropreg.ImplicitMethod, ids=str)
def test_implicit_value_without_gradients(method: str) -> None:
    model = body()
    with_graph = dropreg.implicit_noise(model, X, Y, method=method, generator=seeded())
    with torch.no_grad():
        without = dropreg.implicit_noise(model, X, Y, method=method, generator=seeded())
    assert with_graph.requires_grad
    assert not without.requires_grad
    torch.testing.assert_close(without, with_graph.detach())


def test_training_losses_without_gradients() -> None:
    model = body()
    for chunk in (None, 2):
        with_graph = dropreg.dropout_k_loss(model, X, Y, 3, chunk=chunk, generator=seeded())
        with torch.no_grad():
            without = dropreg.dropout_k_loss(model, X, Y, 3, chunk=chunk, generator=seeded())
        assert not without.requires_grad
        torch.testing.assert_close(without, with_graph.detach())
    for method in ("central", "even_odd", "exact"):
        replacement = dropreg.replace_dropout(model, method=method, generator=seeded())
        with_graph = replacement.loss(X, Y)
        with torch.no_grad():
            again = dropreg.replace_dropout(model, method=method, generator=seeded())
            without = again.loss(X, Y)
        assert not without.requires_grad
        torch.testing.assert_close(without, with_graph.detach())


# ------------------------------------------------------------------------------------ ugly models


class SharedByMany(nn.Module):
    """One dropout object in several places, in a ModuleList and in a nested module."""

    def __init__(self) -> None:
        super().__init__()
        drop = nn.Dropout(0.3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.Tanh(), drop) for _ in range(3)
        )
        self.inner = nn.ModuleDict({"drop": drop, "head": nn.Linear(4, 3)})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.inner["head"](self.inner["drop"](x))


class OnViews(nn.Module):
    """Drops slices and views, writes into parts, and returns early where it can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h[:, :4] = dropout(h[:, :4].clone(), 0.5, self.training)
        parts = [dropout(part, 0.2, self.training) for part in h.view(-1, 2, 4).unbind(1)]
        return self.head(torch.stack(parts, 1).transpose(1, 2).reshape(-1, 8))


class Wrapper(nn.Module):
    """As DistributedDataParallel does, it holds the model as `module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class WeightShared(nn.Module):
    """Recurrent by hand, with locked dropout and a weight that is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(2, 5), nn.Linear(5, 3)
        self.locked = dropreg.LockedDropout(0.3, shared_dims=(1,))

    def forward(self, x: Tensor) -> Tensor:
        weight = dropreg.shared_dropout(self.cell.weight_hh, 0.2, self.training)
        weights = dict(self.cell.named_parameters()) | {"weight_hh": weight}
        h = x.new_zeros(x.shape[0], 5)
        steps = self.locked(x.view(-1, 2, 2))
        for t in range(2):
            h = torch.func.functional_call(self.cell, weights, (steps[:, t], h))
        return self.head(h)


class CustomFunction(nn.Module):
    class Clip(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.clamp(-1, 1)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return grad * (x.abs() <= 1)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.head = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.Clip.apply(self.first(x))))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout2d(0.3, inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(F.relu(self.norm(self.conv(x.view(-1, 1, 2, 2))), inplace=True))
        return self.head(h.mean((2, 3)))


UGLY: dict[str, tuple[Callable[[], nn.Module], int]] = {
    # name: model, number of sites
    "one dropout in many places": (SharedByMany, 4),
    "views": (OnViews, 3),
    "wrapped": (lambda: Wrapper(Wrapper(Body())), 1),
    "sequential of wrappers": (lambda: nn.Sequential(nn.Dropout(0.1), Wrapper(Body())), 2),
    "dropped weight": (WeightShared, 2),
    "custom function": (CustomFunction, 1),
    "convolutional": (Convolutional, 1),
    "head without gradients": (lambda: _frozen(Body()), 1),
}


def _frozen(model: Body) -> Body:
    model.first.requires_grad_(False)
    return model


@pytest.mark.parametrize("name", UGLY)
def test_ugly_models(name: str) -> None:
    make, number = UGLY[name]
    torch.manual_seed(0)
    model = make()
    assert len(find_sites(model, X)) == number
    if name != "convolutional":  # batch norm in eval mode is another network
        torch.testing.assert_close(run(model, X, clean)[0], copy.deepcopy(model).eval()(X))
    exact = dropreg.explicit_regularizer(model, X)
    assert exact > 0
    # The two families agree: squares from the outside, and probes from the inside.
    generator = seeded()
    with torch.no_grad():
        draws = torch.stack(
            [
                dropreg.explicit_regularizer(model, X, method="central", generator=generator)
                for _ in range(100)
            ]
        )
    assert (draws.mean() - exact).abs() <= 4.5 * draws.std() / 10  # 4.5 standard errors
    for method in ("central", "even_odd", "sampled_labels"):
        model.zero_grad()
        dropreg.replace_dropout(model, method=method, generator=seeded()).loss(X, Y).backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert dropreg.dropout_k_loss(model, X, Y, 2, chunk=1).isfinite()


def test_two_models_at_once() -> None:
    # Control of one model must not leak into another that its forward pass does not call.
    first, second = body(), body()
    replacement = dropreg.replace_dropout(first, generator=seeded())
    loss = replacement.loss(X, Y)
    torch.manual_seed(0)
    noisy = second(X)
    (loss + noisy.square().mean()).backward()
    torch.manual_seed(0)
    assert torch.equal(noisy, second(X))
    assert not torch.equal(noisy, copy.deepcopy(second).eval()(X))


def test_teacher_in_eval_mode_inside_the_model() -> None:
    class Distilled(Body):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = Body()

        def train(self, mode: bool = True) -> "Distilled":
            super().train(mode)
            self.teacher.eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                soft = self.teacher(x)
            return self.logits(x) + soft

    model = body(Distilled).train()
    assert [s.name for s in find_sites(model, X)] == ["drop"]
    dropreg.replace_dropout(model).loss(X, Y).backward()


def test_gradients_accumulate_over_micro_batches() -> None:
    model = body()
    whole = dropreg.replace_dropout(model, implicit=0, method="exact").loss(X, Y)
    expected = torch.autograd.grad(whole, model.parameters())
    for rows in (slice(0, 3), slice(3, 6)):
        part = dropreg.replace_dropout(model, implicit=0, method="exact")
        (part.loss(X[rows], Y[rows]) / 2).backward()
    torch.testing.assert_close(tuple(p.grad for p in model.parameters()), expected)


def test_training_with_an_optimizer_made_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    replacement = dropreg.replace_dropout(model, generator=seeded())
    before = F.cross_entropy(copy.deepcopy(model).eval()(X), Y)
    for _ in range(60):
        optimizer.zero_grad()
        replacement.loss(X, Y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    after = F.cross_entropy(model.eval()(X), Y)
    assert after < 0.5 * before
    # In eval mode there is nothing to replace, and a forgotten model.train() is told.
    with pytest.raises(errors.EvalModeError):
        replacement.loss(X, Y)


def test_a_seed_means_the_same_numbers() -> None:
    model = body()
    for make in (
        lambda g: dropreg.implicit_noise(model, X, Y, generator=g),
        lambda g: dropreg.explicit_regularizer(model, X, method="sampled_labels", generator=g),
        lambda g: dropreg.dropout_k_loss(model, X, Y, 3, generator=g),
        lambda g: dropreg.replace_dropout(model, generator=g).loss(X, Y),
    ):
        assert torch.equal(make(seeded(3)), make(seeded(3)))
        assert not torch.equal(make(seeded(3)), make(seeded(4)))
        torch.manual_seed(5)
        first = make(None)
        torch.manual_seed(5)
        assert torch.equal(first, make(None))  # and without a generator, PyTorch's own


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("model_name", ["body", "deep", "recurrent"])
def test_cuda_agrees_with_the_cpu(model_name: str) -> None:
    torch.manual_seed(0)
    model: nn.Module
    if model_name == "recurrent":
        model, x, y = OfSequences(), pack_sequence([randn(5, 4), randn(5, 4)]), LABELS[:2, :5].T % 3
    elif model_name == "deep":
        model, x, y = Deep(), SEQUENCES, LABELS
    else:
        model, x, y = Body(), X, Y
    here = values(model, x, y)
    there = values(model.cuda(), x.to("cuda"), y.cuda())
    # One seed gives one mask on every device, so only the arithmetic differs.
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-3, atol=1e-4)
