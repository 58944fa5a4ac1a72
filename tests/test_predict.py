"""MC dropout: formulas against all masks spelt out; the model else as at test time."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropreg
from dropreg import Prediction, errors, predict
from dropreg.errors import InputError

X = torch.randn((6, 4), generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Mixed(nn.Module):
    """A dropout by function and one by module, batch norms, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.4)
        self.out = nn.Linear(8, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = F.dropout(torch.tanh(self.first(x)), 0.3, self.training)
        return self.out(self.drop(self.norm(h)))


def mixed(seed: int = 0) -> Mixed:
    torch.manual_seed(seed)
    model = Mixed()
    model(3 * torch.randn(50, 4) + 1)  # statistics unlike those of the batch
    model.calls = 0
    return model


# ------------------------------------------------------------------------- closed forms, all masks


P, WEIGHT = 0.25, torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.5, -1.0]])
ONE = torch.tensor([1.0, 2.0, -1.0])


def every_mask() -> tuple[Tensor, Tensor]:
    """The logits of a linear model under each of the eight masks, and their probabilities."""
    logits, weights = [], []
    for kept in itertools.product([0.0, 1.0], repeat=3):
        logits.append(WEIGHT.double() @ (ONE.double() * torch.tensor(kept) / (1 - P)))
        weights.append(math.prod(1 - P if k else P for k in kept))
    return torch.stack(logits), torch.tensor(weights, dtype=torch.float64)


def linear() -> nn.Module:
    model = nn.Sequential(nn.Dropout(P), nn.Linear(3, 2, bias=False)).eval()
    model[1].weight.data = WEIGHT.clone()
    return model


def entropy(*p: Tensor) -> Tensor:
    return -sum(q * q.log() for q in p)


def test_the_means_over_all_masks_of_a_linear_model() -> None:
    """Each row of a batch has masks of its own: equal rows are so many independent estimates."""
    rows, samples = 300, 200
    got = predict(linear(), ONE.expand(rows, 3), mc_samples=samples, generator=seeded())
    logits, weights = every_mask()
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    mean = weights @ p
    expected = weights @ entropy(*p.T)
    whole = entropy(*mean)
    variance = weights @ (p - mean).square()
    # The entropy is concave: the mean of few masks has less, by half its curvature (delta method).
    bias = -0.5 * (variance / mean).sum() / samples
    for name, value, truth in [
        ("mean", got.mean[:, 0], mean[0]),
        ("variance", got.variance[:, 0], variance[0]),
        ("expected_entropy", got.expected_entropy, expected),
        ("entropy", got.entropy, whole + bias),
        ("mutual_information", got.mutual_information, whole + bias - expected),
    ]:
        error = value.double().std() / rows**0.5
        assert abs(value.double().mean() - truth) < 5 * error + 3 * bias.abs() / samples, name
        assert error < 0.05 * truth, name  # small enough to see a mistake


def test_a_squared_error_has_mean_and_variance_of_the_output() -> None:
    rows = 300
    got = predict(
        linear(), ONE.expand(rows, 3), loss="squared_error", mc_samples=100, generator=seeded()
    )
    clean = WEIGHT @ ONE
    variance = P / (1 - P) * WEIGHT.square() @ ONE.square()
    for value, truth in [(got.mean, clean), (got.variance, variance)]:
        assert (value.mean(0) - truth).abs().max() < 5 * (value.std(0) / rows**0.5).max()
    assert got.entropy is got.expected_entropy is got.mutual_information is None


def by_hand(
    model: Callable[[Tensor], Tensor], spread: Callable[[Tensor], Tensor], samples: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, entropy and expected entropy from all samples at once, in float64."""
    p = torch.stack([spread(model(X)).double() for _ in range(samples)])  # (samples, ..., classes)
    mean = p.mean(0)
    return mean, p.var(0), -(mean * mean.log()).sum(-1), -(p * p.log()).sum(-1).mean(0)


def noisy(model: Mixed, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """The same masks, drawn in the same order, in the model of test time written out."""

    def run(x: Tensor) -> Tensor:
        def drop(h: Tensor, p: float) -> Tensor:
            return h * (1 + dropreg.sample("bernoulli", h.shape, p, generator=generator))

        h = drop(torch.tanh(model.first(x)), 0.3)
        norm = model.norm
        h = (h - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        return model.out(drop(h * norm.weight + norm.bias, 0.4))

    return run


def both(z: Tensor) -> Tensor:
    return torch.stack([1 / (1 + (-z).exp()), 1 / (1 + z.exp())], -1)


def of_classes(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(-1, keepdim=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_formulas_and_batch_norm_by_hand(loss: str, training: bool) -> None:
    model = mixed().train(training)
    got = predict(model, X, loss=loss, mc_samples=7, generator=seeded(3))
    binary = loss == "binary_cross_entropy"
    with torch.no_grad():
        mean, variance, whole, expected = by_hand(
            noisy(model, seeded(3)), both if binary else of_classes, 7
        )
    if binary:
        mean, variance = mean[..., 0], variance[..., 0]
    torch.testing.assert_close(got.mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.variance.double(), variance, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(got.entropy.double(), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.expected_entropy.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        got.mutual_information.double(), whole - expected, rtol=1e-3, atol=1e-6
    )


def test_certain_and_forbidden_classes_have_no_nan() -> None:
    class Forbids(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = 1000 * F.dropout(x, 0.5, self.training)
            return torch.cat([logits, torch.full((len(x), 1), -math.inf)], 1)

    got = predict(Forbids().eval(), X, mc_samples=20, generator=seeded())
    assert (got.mean[:, -1] == 0).all()
    torch.testing.assert_close(got.mean.sum(1), torch.ones(len(X)))
    assert got.expected_entropy.max() < math.log(4) + 1e-6
    assert (got.mutual_information >= 0).all()
    assert got.mutual_information.max() > 0.1
    one = predict(
        Forbids().eval(), X, loss="binary_cross_entropy", output=lambda z: z[:, :4], mc_samples=9
    )
    assert one.entropy.isfinite().all()


def test_a_large_output_keeps_its_small_variance() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1)).double().eval()
    model[1].bias.data.fill_(1e8)
    got = predict(model, X.double(), loss="squared_error", mc_samples=50, generator=seeded())
    model[1].bias.data.zero_()
    small = predict(model, X.double(), loss="squared_error", mc_samples=50, generator=seeded())
    torch.testing.assert_close(got.variance, small.variance, rtol=1e-5, atol=1e-9)


# --------------------------------------------------------------------- dropout, and nothing besides


class Hand(nn.Module):
    """A mask by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.out(x)
        return self.out(x * x.new_empty((len(x), 1)).bernoulli_(0.7) / 0.7)


class Told(nn.Module):
    """A module that is told by its owner whether to drop, and a norm beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.norm, self.out = self.Part(), nn.BatchNorm1d(4), nn.Linear(4, 3)

    class Part(nn.Module):
        def forward(self, x: Tensor, p: float) -> Tensor:
            return F.dropout(x, p, training=p > 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.part(x, 0.3 if self.training else 0.0)))


class Heads(nn.Module):
    """A second head in train mode only, with dropout of its own, as in GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.out = nn.Dropout(0.3), nn.Linear(4, 3)
        self.second = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Any:
        logits = self.out(self.drop(x))
        return (logits, self.second(x)) if self.training else logits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, dropout=0.5)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x[None])[0][0])


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.zeros(1, len(x), dtype=torch.bool)
        padding[0, -1] = True
        return self.out(self.encoder(x[None], src_key_padding_mask=padding)[0])


class InPlace(nn.Module):
    """An in-place dropout of the input, whose result is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        F.dropout(x, 0.5, self.training, inplace=True)
        return self.out(x)


class Spectral(nn.Module):
    """Whose norm takes a step of its power iteration in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(x))


class NeverOff(nn.Module):
    """One dropout is on in eval mode, too, as its flag was forgotten; the other is not."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.out(F.dropout(x, 0.1)))


class Hooked(nn.Module):
    """Dropout by a hook on a module that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)
        self.out.register_forward_hook(lambda module, _, h: F.dropout(h, 0.3, module.training))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


CLASSES = (Mixed, Hand, Told, Heads, Recurrent, Attends, InPlace, Spectral, NeverOff, Hooked)
MODELS = {model.__name__: model for model in CLASSES}


def under_torchs_masks(model: nn.Module, samples: int) -> Tensor:
    """Probabilities under PyTorch's own dropout: train mode, and the norms as at test time."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.utils.parametrizations._SpectralNorm):
            module.eval()
    rows = []
    for _ in range(samples):
        logits = model(X.clone())
        rows.append((logits[0] if isinstance(logits, tuple) else logits).softmax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("name", MODELS)
def test_an_eval_model_predicts_as_under_torchs_own_masks(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.eval()
    x = X.clone()
    got = predict(model, x, mc_samples=400, generator=seeded())
    assert torch.equal(x, X)
    with torch.no_grad():
        torchs = under_torchs_masks(model, 400)
    deviation = torchs - torchs.mean(0)
    variance, fourth = deviation.square().mean(0), deviation.pow(4).mean(0)
    assert variance.max() > 1e-3
    for value, truth, of_one in [
        (got.mean, torchs.mean(0), variance),
        (got.variance, variance, fourth - variance.square()),
    ]:
        error = (2 * of_one / 400).sqrt()  # of a difference of two means of 400
        assert ((value - truth).abs() < 5 * error + 1e-6).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_same_masks_in_both_modes(training: bool) -> None:
    first = predict(mixed().train(), X, generator=seeded())
    second = predict(mixed().train(training), X, generator=seeded())
    assert torch.equal(first.mean, second.mean)


def test_some_dropouts_only() -> None:
    model = mixed().eval()
    model.drop.train()
    some = predict(model, X, mc_samples=5, generator=seeded())
    generator = seeded()

    def run(x: Tensor) -> Tensor:
        norm = model.norm(torch.tanh(model.first(x)))
        eta = dropreg.sample("bernoulli", norm.shape, 0.4, generator=generator)
        return model.out(norm * (1 + eta))

    with torch.no_grad():
        torch.testing.assert_close(
            some.mean.double(), by_hand(run, of_classes, 5)[0], rtol=1e-5, atol=1e-6
        )
    everything = predict(model.train(), X, mc_samples=5, generator=seeded())
    assert not torch.allclose(everything.mean, some.mean)


def test_a_single_example_of_a_model_with_batch_norm() -> None:
    for model in (mixed().train(), mixed().eval()):
        got = predict(model, X[:1], mc_samples=3)
        assert got.mean.shape == (1, 3)


def test_under_inference_mode_and_in_half_precision() -> None:
    model = mixed().eval()
    wanted = predict(model, X, generator=seeded()).mean
    with torch.inference_mode():
        assert torch.equal(predict(model, X, generator=seeded()).mean, wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = predict(model, X, generator=seeded())
    assert low.mean.dtype == torch.float32
    torch.testing.assert_close(low.mean, wanted, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("class_dim", "picked"), [(None, lambda z: z), (1, lambda z: z.movedim(-1, 1))]
)
def test_where_the_classes_are(class_dim: int | None, picked: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).eval()
    x = torch.randn(2, 5, 4, generator=seeded())
    got = predict(
        model, x, loss=dropreg.CrossEntropy(class_dim=class_dim), output=picked, generator=seeded()
    )
    assert got.entropy.shape == (2, 5)
    assert got.mean.shape == picked(torch.empty(2, 5, 3)).shape
    plain = predict(model, x, generator=seeded())
    assert torch.equal(got.mean, picked(plain.mean))
    assert torch.equal(got.variance, picked(plain.variance))


def test_torchs_own_losses_and_a_dict_of_inputs() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mixed()

        def forward(self, *, x: Tensor) -> dict[str, Tensor]:
            return {"start": self.inner(x)}

    got = predict(
        Named().eval(),
        {"x": X},
        loss=nn.BCEWithLogitsLoss(),
        output=lambda o: o["start"],
        generator=seeded(),
    )
    wanted = predict(mixed().eval(), X, loss="binary_cross_entropy", generator=seeded())
    assert torch.equal(got.mean, wanted.mean)


# ---------------------------------------------------------------------------- handed back as it was


def state(model: nn.Module) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [(id(t), t.detach().clone()) for t in tensors],
        [(m.training, sorted(vars(m)), len(m._forward_pre_hooks)) for m in model.modules()],
        [p.grad for p in model.parameters()],
        getattr(model, "calls", None),
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    ]


def assert_same(before: list[Any], after: list[Any]) -> None:
    for (old, value), (new, now) in zip(before[0], after[0], strict=True):
        assert old == new
        assert torch.equal(value, now)
    assert before[1:4] == after[1:4]
    assert torch.equal(before[4], after[4])
    assert before[5] == after[5]


def in_parts(model: Mixed) -> Mixed:
    model.train()
    model.norm.eval()
    model.first.eval()
    return model


@pytest.mark.parametrize("modes", [nn.Module.train, nn.Module.eval, in_parts])
def test_the_model_is_as_it_was(modes: Callable[[Any], Any]) -> None:
    model = modes(mixed())
    before = state(model)
    predict(model, X, mc_samples=3, generator=seeded())
    assert_same(before, state(model))


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6])
def test_the_model_is_as_it_was_after_any_exception(at: int) -> None:
    class Stop(Exception):
        pass

    model = mixed().eval()
    before, passes = state(model), []

    def stop(*_: object) -> None:
        passes.append(1)
        if len(passes) == at:
            raise Stop

    handle = model.out.register_forward_hook(stop)
    with pytest.raises(Stop):
        predict(model, X, mc_samples=10, generator=seeded())
    handle.remove()
    assert len(passes) == at
    assert_same(before, state(model))


def test_the_default_generator_is_drawn_from() -> None:
    model = mixed().eval()
    torch.manual_seed(5)
    first = predict(model, X).mean
    second = predict(model, X).mean
    torch.manual_seed(5)
    assert torch.equal(predict(model, X).mean, first)
    assert not torch.equal(first, second)


def test_nothing_is_kept_for_a_backward_pass() -> None:
    got = predict(mixed(), X.clone().requires_grad_(), mc_samples=2)
    assert not any(value.requires_grad for value in vars(got).values())
    assert isinstance(got, Prediction)


# ------------------------------------------------------------------------------------------ refused


class NormOfItsOwn(nn.Module):
    """Drops and standardizes the batch by the same flag."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        h = F.batch_norm(x, self.mean, self.var, training=self.training)
        return self.out(F.dropout(h, 0.3, self.training))


class NormInTheMiddle(NormOfItsOwn):
    """The same, told to a part: what asks the part's mode meets no dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Told.Part()

    def forward(self, x: Tensor) -> Tensor:
        h = self.part(x, 0.3 if self.training else 0.0)
        return self.out(F.batch_norm(h, self.mean, self.var, training=self.training))


@pytest.mark.parametrize("model", [NormOfItsOwn, NormInTheMiddle])
def test_a_dropout_that_cannot_be_had_alone(model: type[nn.Module]) -> None:
    for training in (True, False):
        made = model().train(training)
        before = state(made)
        with pytest.raises(
            errors.NotYetSupportedError, match=r"cannot be switched on alone.*than in"
        ):
            predict(made, X)
        assert_same(before, state(made))


def test_a_dropout_of_train_mode_only() -> None:
    class Odd(nn.Module):
        """Its part looks up another module's mode."""

        def __init__(self) -> None:
            super().__init__()
            self.flag, self.out = nn.Identity(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.out(x), 0.3, self.flag.training)

    model = Odd().eval()
    with pytest.raises(errors.NotYetSupportedError, match="1 of 1 dropouts are then off"):
        predict(model, X)


def test_other_noise_in_train_mode() -> None:
    class Jitter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.out = nn.Dropout(0.3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x + 0.1 * torch.randn_like(x) if self.training else x
            return self.out(self.drop(x))

    model = Jitter().eval()
    before = state(model)
    with pytest.raises(errors.NeverSupportedError, match="randn_like"):
        predict(model, X)
    assert_same(before, state(model))
    model.drop.train()  # the way out that the docstring names
    assert predict(model, X).variance.max() > 0


@pytest.mark.parametrize("new", [False, True])
def test_a_weight_that_is_dropped_in_place(new: bool) -> None:
    """Its masks would pile up from pass to pass."""

    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            dropped = F.dropout(self.out.weight.data, 0.3, self.training)
            if new:
                self.out.weight.data = dropped
            else:
                self.out.weight.data.copy_(dropped)
            return self.out(x)

    model = Drops().eval()
    before = state(model)
    with pytest.raises(errors.NotYetSupportedError, match=r"writes to parameters.*out\.weight"):
        predict(model, X, generator=seeded())
    assert_same(before, state(model))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Linear(4, 3), errors.NoSitesError, "no dropout was met"),
        (nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0)), errors.ZeroProbabilityError, "0"),
        (nn.Sequential(nn.Linear(4, 3), nn.AlphaDropout(0.2)), errors.NeverSupportedError, "Alpha"),
        (nn.Sequential(nn.Linear(4, 3), nn.Dropout(1.0)), errors.ProbabilityError, "1"),
        (nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.2)), InputError, "binary_cross_entropy"),
        (lambda x: x, InputError, "Module"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_models_that_are_refused(
    model: Any, error: type[Exception], message: str, training: bool
) -> None:
    if isinstance(model, nn.Module):
        model.train(training)
    with pytest.raises(error, match=message):
        predict(model, X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mc_samples": 1}, "at least 2"),
        ({"mc_samples": 0}, "at least 1"),
        ({"mc_samples": 2.0}, "whole number"),
        ({"generator": 3}, "Generator"),
        ({"loss": "mse"}, "squared_error"),
        ({"loss": F.cross_entropy}, "softmax"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict(mixed(), X, **arguments)
