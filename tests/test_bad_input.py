"""Bad input: each mistake has its own clear error, and none runs on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropreg
from dropreg import errors, find_sites

X = torch.randn((6, 4), generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def network(p: float = 0.3, *, last: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(p), nn.Linear(8, 3), last or nn.Identity()
    )


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


# Every entry of the public surface, with a model to be filled in.
CALLS: dict[str, Callable[..., Any]] = {
    "find_sites": lambda model, x=X, y=Y: find_sites(model, x),
    "explicit_regularizer": lambda model, x=X, y=Y, **k: dropreg.explicit_regularizer(
        model, x, targets=y, **k
    ),
    "implicit_noise": lambda model, x=X, y=Y, **k: dropreg.implicit_noise(model, x, y, **k),
    "dropout_k_loss": lambda model, x=X, y=Y, **k: dropreg.dropout_k_loss(model, x, y, 2, **k),
    "replace_dropout": lambda model, x=X, y=Y, **k: dropreg.replace_dropout(model, **k).loss(x, y),
    "measure_explicit": lambda model, x=X, y=Y, **k: dropreg.measure_explicit(
        model, x, y, mc_samples=2, **k
    ),
    "gradient_noise": lambda model, x=X, y=Y, **k: dropreg.gradient_noise(
        model, x, y, mc_samples=2, **k
    ),
}
LOSSES = [name for name in CALLS if name != "find_sites"]
everywhere = pytest.mark.parametrize("call", CALLS)
with_a_loss = pytest.mark.parametrize("call", LOSSES)


# -------------------------------------------------------------------------------------- the model


@everywhere
def test_no_site(call: str) -> None:
    with pytest.raises(errors.NoSitesError, match=r"no dropout was met.*Add nn\.Dropout") as caught:
        CALLS[call](nn.Linear(4, 3))
    assert type(caught.value) is errors.NoSitesError


@everywhere
def test_eval_mode(call: str) -> None:
    with pytest.raises(errors.EvalModeError, match=r"in eval mode.*call model\.train\(\) first"):
        CALLS[call](network().eval())


def test_eval_mode_of_other_dropouts() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 4, num_layers=2, dropout=0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    with pytest.raises(errors.EvalModeError, match="every dropout of the model is in eval mode"):
        find_sites(Recurrent().eval(), X)
    # Attention in eval mode does not even say that it would drop.
    layer = nn.MultiheadAttention(4, 2, dropout=0.5).eval()
    with pytest.raises(errors.EvalModeError, match="no dropout was met, and the model is in eval"):
        find_sites(layer, X, X, X)


@everywhere
def test_probability_zero_everywhere(call: str) -> None:
    if call in ("replace_dropout", "dropout_k_loss"):  # the start of a schedule: the clean loss
        model = network(0.0)
        clean = F.cross_entropy(model.eval()(X), Y)
        torch.testing.assert_close(CALLS[call](model.train()), clean)
        return
    with pytest.raises(errors.ZeroProbabilityError, match=r"probability 0.*Set a probability"):
        CALLS[call](network(0.0))


@everywhere
def test_probability_one(call: str) -> None:
    with pytest.raises(errors.ProbabilityError, match=r"1\.0 is outside \[0, 1\).*finite variance"):
        CALLS[call](network(1.0))


def test_probability_one_of_other_dropouts() -> None:
    attend = Lambda(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=1.0))
    recurrent = Lambda(nn.LSTM(4, 3, num_layers=2, dropout=1.0))
    for model in (attend, recurrent):
        with pytest.raises(errors.ProbabilityError, match="finite variance"):
            find_sites(model, X)


@everywhere
def test_nan_logits(call: str) -> None:
    with pytest.raises(errors.LogitsError, match=r"hold NaN.*learning rate"):
        CALLS[call](network(last=Lambda(lambda x: x * float("nan"))))


def test_nan_that_comes_later() -> None:
    model = network()
    replacement = dropreg.replace_dropout(model)
    replacement.loss(X, Y)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(errors.LogitsError, match="hold NaN"):
        replacement.loss(X, Y)


@everywhere
def test_integer_logits(call: str) -> None:
    with pytest.raises(errors.LogitsError, match=r"torch\.int64; expected floating-point logits"):
        CALLS[call](network(last=Lambda(lambda x: x.argmax(-1))))


@pytest.mark.parametrize(
    ("output", "name"),
    [
        (lambda x: None, "NoneType"),
        (lambda x: {"hidden": x}, "dict"),
        (lambda x: (), "tuple"),
        (lambda x: [None, x], "list|NoneType"),
        (lambda x: 1.0, "float"),
    ],
)
def test_no_logits(output: Callable[[Tensor], Any], name: str) -> None:
    model = network(last=Lambda(output))
    message = f"returned ({name}); expected logits as a tensor.*output=lambda"
    with pytest.raises(errors.LogitsError, match=message):
        dropreg.explicit_regularizer(model, X)
    if name in ("dict", "list|NoneType"):  # sites are found wherever the logits are
        assert len(find_sites(model, X)) == 1
    else:
        with pytest.raises(errors.LogitsError, match=message):
            find_sites(model, X)


def test_lazy_parameters() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.Dropout(0.5), nn.LazyBatchNorm1d())
    with pytest.raises(errors.InputError, match="run it once on a batch"):
        find_sites(model, X)
    assert isinstance(model[0], nn.LazyLinear)  # and it is still lazy
    model(X)
    assert len(find_sites(model, X)) == 1


# ------------------------------------------------------------------------------------ the targets

BAD_TARGETS: dict[str, tuple[Tensor, str]] = {
    "too few": (Y[:5], r"integer class labels of shape \(6,\).*of shape \(5,\)"),
    "one more dimension": (Y[:, None], r"of shape \(6,\) .*of shape \(6, 1\)"),
    "probabilities of other classes": (torch.full((6, 4), 0.25), r"integer class labels.*float32"),
    "negative probabilities": (torch.tensor([[2.0, -1.0, 0.0]] * 6), "must not be negative"),
    "truth values": (Y.bool(), r"integer class labels.*torch\.bool"),
    "floats": (Y.float(), r"integer class labels.*torch\.float32 of shape \(6,\)"),
    "too large": (Y + 1, r"between 1 and 3, but the logits have 3 classes"),
    "negative": (Y - 1, r"between -1 and 1, but the logits have 3 classes"),
}


@with_a_loss
@pytest.mark.parametrize("mistake", BAD_TARGETS)
def test_targets_of_cross_entropy(call: str, mistake: str) -> None:
    targets, message = BAD_TARGETS[mistake]
    with pytest.raises(errors.InputError, match=message):
        CALLS[call](network(), X, targets)


@with_a_loss
@pytest.mark.parametrize("loss", ["binary_cross_entropy", "squared_error"])
def test_targets_of_the_other_losses(call: str, loss: str) -> None:
    message = r"needs floating-point targets of shape \(6, 3\) .* got torch\.int64"
    with pytest.raises(errors.InputError, match=message):
        CALLS[call](network(), X, Y, loss=loss)


@with_a_loss
def test_targets_that_are_no_tensor(call: str) -> None:
    with pytest.raises(errors.InputError, match="targets are a list; they must be a tensor"):
        CALLS[call](network(), X, Y.tolist())


def test_binary_targets_outside_of_zero_and_one() -> None:
    with pytest.raises(errors.InputError, match="between 0 and 1"):
        dropreg.implicit_noise(network(), X, torch.full((6, 3), 1.5), loss="binary_cross_entropy")


def test_one_logit_for_cross_entropy() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))
    with pytest.raises(errors.InputError, match=r"C >= 2 classes.*'binary_cross_entropy'"):
        dropreg.explicit_regularizer(model, X)


@pytest.mark.parametrize("method", dropreg.ExplicitMethod, ids=str)
def test_targets_of_every_method(method: str) -> None:
    for targets in (Y[:5], Y > 0):
        with pytest.raises(errors.InputError, match="integer class labels"):
            dropreg.explicit_regularizer(network(), X, targets=targets, method=method)


@with_a_loss
def test_an_empty_batch(call: str) -> None:
    with pytest.raises(errors.InputError, match="the batch is empty"):
        CALLS[call](network(), X[:0], Y[:0])


@pytest.mark.parametrize("method", [m for m in dropreg.ExplicitMethod if m.needs_targets], ids=str)
def test_missing_targets(method: str) -> None:
    with pytest.raises(errors.InputError, match="needs targets"):
        dropreg.explicit_regularizer(network(), X, method=method)


# ---------------------------------------------------------------------------------- the arguments


@with_a_loss
def test_unknown_loss(call: str) -> None:
    for loss in ("crossentropy", {}, None, 3):
        message = rf"loss {loss!r} is unknown\. Choose one of 'cross_entropy'"
        with pytest.raises(errors.InputError, match=message):
            CALLS[call](network(), loss=loss)


def test_unknown_loss_is_told_at_once() -> None:
    with pytest.raises(errors.InputError, match="unknown"):
        dropreg.replace_dropout(network(), loss="hinge")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0; it must be a whole number, at least 1"),
        ({"every": 2.0}, "every is 2.0; it must be"),
        ({"every": 4, "method": "even_odd"}, "the weight -3"),
    ],
)
def test_impossible_every(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.InputError, match=message):
        dropreg.replace_dropout(network(), **options)


@pytest.mark.parametrize(
    "call", ["explicit_regularizer", "implicit_noise", "replace_dropout", "gradient_noise"]
)
def test_unknown_method(call: str) -> None:
    with pytest.raises(errors.InputError, match=r"unknown .*'centre'\. Choose one of: .*'central'"):
        CALLS[call](network(), method="centre")


@with_a_loss
def test_unknown_law(call: str) -> None:
    if call == "explicit_regularizer":
        options = {"method": "central", "distribution": "cauchy"}
    else:
        options = {"distribution": "cauchy"}
    with pytest.raises(errors.InputError, match=r"unknown Law: 'cauchy'.*'rademacher'"):
        CALLS[call](network(), **options)


@pytest.mark.parametrize("k", [0, -1, 1.5, "3", None])
def test_number_of_masks(k: Any) -> None:
    with pytest.raises(errors.InputError, match=r"k is .*; it must be a whole number, at least 1"):
        dropreg.dropout_k_loss(network(), X, Y, k)


@pytest.mark.parametrize("chunk", [0, -2, 1.5])
def test_chunk(chunk: Any) -> None:
    with pytest.raises(errors.InputError, match=r"chunk is .*; it must be a whole number"):
        dropreg.dropout_k_loss(network(), X, Y, 2, chunk=chunk)


@pytest.mark.parametrize("method", ["sampled_labels", "central", "monte_carlo", "exact"])
@pytest.mark.parametrize("mc_samples", [0, -1])
def test_number_of_samples(method: str, mc_samples: int) -> None:
    with pytest.raises(errors.InputError, match=f"mc_samples is {mc_samples}; it must be"):
        dropreg.explicit_regularizer(network(), X, targets=Y, method=method, mc_samples=mc_samples)


@pytest.mark.parametrize("count", [True, 2.5, "3"])
def test_counts_are_whole_numbers(count: Any) -> None:
    """True is an int of Python's, and no number of anything."""
    calls: list[Callable[[], Any]] = [
        lambda: dropreg.explicit_regularizer(network(), X, method="jvp", mc_samples=count),
        lambda: dropreg.measure_explicit(network(), X, Y, mc_samples=count),
        lambda: dropreg.gradient_noise(network(), X, Y, mc_samples=count),
        lambda: dropreg.gradient_noise(network(), X, Y, mc_samples=2, projections=count),
        lambda: dropreg.dropout_k_loss(network(), X, Y, count),
        lambda: dropreg.dropout_k_loss(network(), X, Y, 2, chunk=count),
        lambda: dropreg.replace_dropout(network(), every=count),
        lambda: dropreg.Rule("even", probes=count),
    ]
    for call in calls:
        with pytest.raises(errors.InputError, match=r"is .*; it must be a whole number, at least"):
            call()


@pytest.mark.parametrize("name", ["explicit", "implicit"])
@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (nn.Parameter(torch.tensor(0.5)), r"requires a gradient.*Pass a number"),
        (torch.ones(2), "must be a finite number"),
        (float("nan"), "is nan; it must be a finite number"),
        (torch.tensor(float("inf")), "is inf; it must be a finite number"),
        ("1", "is '1'; it must be a finite number"),
        (None, "is None; it must be"),
        (True, "is True; it must be"),
    ],
    ids=str,
)
def test_strength(name: str, strength: Any, message: str) -> None:
    with pytest.raises(errors.InputError, match=f"{name} is .*{message}|{name} {message}"):
        dropreg.replace_dropout(network(), **{name: strength})
    objective = dropreg.replace_dropout(network())
    with pytest.raises(errors.InputError, match=name):
        setattr(objective, name, strength)
    assert getattr(objective, name) == 1.0


@with_a_loss
@pytest.mark.parametrize("generator", [42, torch.default_generator.get_state()], ids=type)
def test_generator(call: str, generator: Any) -> None:
    message = r"generator is .*; it must be a torch\.Generator, for instance"
    with pytest.raises(errors.InputError, match=f"(?s){message}"):
        CALLS[call](network(), generator=generator)


def test_number_of_samples_of_a_spread() -> None:
    for measure in (dropreg.measure_explicit, dropreg.gradient_noise):
        with pytest.raises(errors.InputError, match="mc_samples is 1; a spread needs at least 2"):
            measure(network(), X, Y, mc_samples=1)


def test_number_of_projections() -> None:
    for projections, message in ((0, "at least 1"), (68, "the model has 67")):
        with pytest.raises(errors.InputError, match=f"projections is {projections}; .*{message}"):
            dropreg.gradient_noise(network(), X, Y, mc_samples=2, projections=projections)


@pytest.mark.parametrize("step", [0.0, -1e-3, float("nan"), float("inf"), 1.5, "a", True, None])
@pytest.mark.parametrize("call", ["explicit_regularizer", "implicit_noise", "replace_dropout"])
@pytest.mark.parametrize("method", ["central", "sampled_labels"])
def test_step(call: str, step: Any, method: str) -> None:
    if call == "implicit_noise":
        method = method.replace("sampled_labels", "analytic")
    with pytest.raises(errors.InputError, match=r"step is .*; it must be a number, positive and"):
        CALLS[call](network(), method=method, step=step)


@pytest.mark.parametrize("call", ["explicit_regularizer", "implicit_noise", "replace_dropout"])
def test_step_that_drowns_in_rounding(call: str) -> None:
    for step in (1e-30, 1e-6):
        with pytest.raises(errors.InputError, match=r"too small.*something near 0\.005"):
            CALLS[call](network(), method="central", step=step)
    CALLS[call](network(), method="central", step=1e-3)
    # In double precision there is room below.
    y = torch.zeros(6, 3).double()
    options = {"loss": "squared_error", "method": "central"}
    CALLS[call](network().double(), X.double(), y, step=1e-9, **options)
    with pytest.raises(errors.InputError, match=r"too small.*something near 6e-06"):
        CALLS[call](network().double(), X.double(), y, step=1e-16, **options)


@with_a_loss
def test_inference_mode(call: str) -> None:
    with torch.inference_mode(), pytest.raises(errors.InputError, match=r"use torch\.no_grad"):
        CALLS[call](network())


def test_find_sites_works_in_inference_mode() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    with torch.inference_mode():
        assert len(find_sites(model, X)) == 1


# ---------------------------------------------------------------------------------- the precision

HALF_MESSAGE = "central differences need a float32 forward pass.*'sampled_labels'.*'even_odd'"
CENTRAL = ["explicit_regularizer", "implicit_noise", "replace_dropout"]


@pytest.mark.parametrize("call", CENTRAL)
def test_central_under_autocast(call: str) -> None:
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(errors.PrecisionError, match=HALF_MESSAGE),
    ):
        CALLS[call](network(), method="central")


@pytest.mark.parametrize("call", CENTRAL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_central_in_half_precision(call: str, dtype: torch.dtype) -> None:
    with pytest.raises(errors.PrecisionError, match=HALF_MESSAGE):
        CALLS[call](network().to(dtype), X.to(dtype), method="central")


class Mixed(nn.Module):
    """Computes its middle layer in half precision, before or after the dropout."""

    def __init__(self, *, drop_first: bool, autocast: bool) -> None:
        super().__init__()
        self.drop_first, self.autocast = drop_first, autocast
        self.middle, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)
        if not autocast:
            self.middle.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_first:
            x = self.drop(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            x = self.middle(x if self.autocast else x.bfloat16())
        x = x.float()
        return x if self.drop_first else self.drop(x)


@pytest.mark.parametrize("call", CENTRAL)
@pytest.mark.parametrize("autocast", [False, True])
def test_central_with_half_precision_inside(call: str, autocast: bool) -> None:
    # Sites and logits are in float32 here, so that only what lies between them tells.
    with pytest.raises(errors.PrecisionError, match=HALF_MESSAGE):
        CALLS[call](Mixed(drop_first=True, autocast=autocast), method="central")
    # Half precision before the first site does no harm.
    CALLS[call](Mixed(drop_first=False, autocast=autocast), method="central")


# ------------------------------------------------------------------------------- missing packages


def test_a_missing_module_of_ours_is_no_missing_package() -> None:
    with pytest.raises(ModuleNotFoundError, match="dropreg") as caught, errors.needs("book", "It"):
        import dropreg.no_such_module  # noqa: F401
    assert not isinstance(caught.value, errors.DropregError)


def test_a_missing_package_without_a_name_is_told_too() -> None:
    with pytest.raises(errors.MissingPackageError) as caught, errors.needs("book", "It"):
        raise ModuleNotFoundError("gone")
    assert str(caught.value) == 'It needs a package: pip install "dropreg[book]"'
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_package_that_fails_to_load_is_no_missing_package() -> None:
    with pytest.raises(ImportError, match="undefined symbol") as caught, errors.needs("book", "It"):
        raise ImportError("undefined symbol")
    assert not isinstance(caught.value, errors.DropregError)
