"""What cannot be controlled is refused by its own error, which says what it is and what to do."""

import copy
import random
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dropreg
from dropreg import errors, find_sites

X = torch.randn((6, 4), generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Net(nn.Module):
    """A linear model with dropout, and one more thing in the middle."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.drop, self.head = nn.Linear(4, 4), nn.Dropout(0.3), nn.Linear(4, 3)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.middle(self.first(x))))


def script(thing: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit.script
        return torch.jit.script(thing)


def test_errors_have_a_family() -> None:
    for name in ("NeverSupportedError", "NotYetSupportedError"):
        assert issubclass(getattr(errors, name), errors.UnsupportedError)
    # A caller who knows nothing of this package still catches bad values as ValueError.
    for name in ("InputError", "LogitsError", "ProbabilityError", "NoSitesError"):
        assert issubclass(getattr(errors, name), ValueError)
        assert issubclass(getattr(errors, name), errors.DropregError)


# --------------------------------------------------------------------------------- affine dropout

AFFINE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "nn.AlphaDropout": (nn.AlphaDropout(0.2), r"^AlphaDropout \(in middle\)"),
    "nn.FeatureAlphaDropout": (nn.FeatureAlphaDropout(0.2), r"^FeatureAlphaDropout \(in middle\)"),
    "F.alpha_dropout": (
        lambda x: F.alpha_dropout(x, 0.2, training=True),
        r"^AlphaDropout \(in the model itself\)",
    ),
    "torch.alpha_dropout": (
        lambda x: torch.alpha_dropout(x, p=0.2, train=True),
        r"^torch\.alpha_dropout ",
    ),
    "torch.feature_alpha_dropout": (
        lambda x: torch.feature_alpha_dropout(x, 0.2, True),
        r"^torch\.feature_alpha_dropout ",
    ),
    "torch.alpha_dropout_": (
        lambda x: torch.alpha_dropout_(x.clone(), 0.2, True),
        r"^torch\.alpha_dropout_ ",
    ),
    "torch.feature_alpha_dropout_": (
        lambda x: torch.feature_alpha_dropout_(x.clone(), 0.2, True),
        r"^torch\.feature_alpha_dropout_ ",
    ),
}


@pytest.mark.parametrize("name", AFFINE)
def test_affine_dropout_is_refused(name: str) -> None:
    middle, where = AFFINE[name]
    message = where + r".*affine noise, not multiplicative.*Replace it with nn\.Dropout"
    with pytest.raises(errors.NeverSupportedError, match=message):
        find_sites(Net(middle), X)
    with pytest.raises(errors.NeverSupportedError, match=message):
        dropreg.replace_dropout(Net(middle)).loss(X, Y)


def test_affine_dropout_that_is_off_is_fine() -> None:
    for middle in (nn.AlphaDropout(0.2).eval(), nn.AlphaDropout(0.0)):
        assert [s.name for s in find_sites(Net(middle), X)] == ["drop"]


# ------------------------------------------------------------------------- TorchScript and compile


def test_scripted_dropout_is_refused() -> None:
    scripted = script(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    message = "middle is a scripted module with dropout.*Use the original Python module"
    with pytest.raises(errors.NeverSupportedError, match=message):
        find_sites(Net(scripted), X)
    with pytest.raises(errors.NeverSupportedError, match=r"^the model itself is a scripted"):
        find_sites(scripted, X)


def test_traced_dropout_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of many things, above all of itself
        traced = torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), X)
    with pytest.raises(errors.NeverSupportedError, match="middle is a scripted module"):
        find_sites(Net(traced), X)


def test_scripted_module_without_dropout_is_fine() -> None:
    scripted = script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()))
    model = Net(scripted)
    assert [s.name for s in find_sites(model, X)] == ["drop"]
    dropreg.replace_dropout(model).loss(X, Y).backward()
    assert scripted[1].num_batches_tracked == 1


def test_scripted_function_with_dropout_is_refused() -> None:
    def drops(x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, True, False)

    with pytest.raises(errors.NeverSupportedError, match=r"aten\.bernoulli_"):
        find_sites(Net(script(drops)), X)


def test_scripted_recurrent_dropout_is_refused() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 4, num_layers=2, dropout=0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    with pytest.raises(errors.NeverSupportedError, match=r"aten\.bernoulli_.*\(in middle\)"):
        find_sites(Net(script(Last())), X)


def test_exported_dropout_is_refused() -> None:
    exported = torch.export.export(nn.Dropout(0.5), (X,)).module()
    with pytest.raises(errors.NeverSupportedError, match=r"aten.*dropout|torch's generator"):
        find_sites(Net(exported), X)


def test_symbolically_traced_model_is_fine() -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    assert len(find_sites(traced, X)) == 1


def test_compiled_modules_are_refused() -> None:
    message = "is compiled by torch.compile.*_orig_mod"
    whole = torch.compile(Net(nn.ReLU()), backend="eager")
    with pytest.raises(errors.NotYetSupportedError, match="^the model itself " + message):
        find_sites(whole, X)
    part = Net(torch.compile(nn.Dropout(0.2), backend="eager"))
    with pytest.raises(errors.NotYetSupportedError, match="^middle " + message):
        find_sites(part, X)
    in_place = Net(nn.ReLU())
    in_place.compile(backend="eager")
    with pytest.raises(errors.NotYetSupportedError, match=message):
        find_sites(in_place, X)
    assert len(find_sites(whole._orig_mod, X)) == 1


# ------------------------------------------------------------------------------------ checkpoints


def block(x: Tensor) -> Tensor:
    return F.dropout(F.dropout(x, 0.5).tanh(), 0.3)


def nested(x: Tensor) -> Tensor:
    inner = checkpoint(F.dropout, x, 0.5, use_reentrant=False)
    return F.dropout(inner.tanh(), 0.3)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("case", ["not reentrant", "nested", "reentrant"])
@pytest.mark.parametrize("method", ["central", "even_odd", "exact", "sampled_labels", "dropout_k"])
def test_checkpointed_dropout_has_the_same_noise_again(case: str, method: str) -> None:
    re = case == "reentrant"
    part = nested if case == "nested" else block
    model = Net(lambda x: checkpoint(part, x, use_reentrant=re)).double()
    plain = Net(block).double()
    plain.load_state_dict(model.state_dict())
    if re and method in ("exact", "sampled_labels"):
        with pytest.raises(errors.NotYetSupportedError, match=r"use_reentrant=True.*'central'"):
            dropreg.replace_dropout(model, method=method).loss(X.double(), Y)
        return
    losses = []
    for each in (model, plain):
        generator = torch.Generator().manual_seed(0)
        if method == "dropout_k":
            loss = dropreg.dropout_k_loss(each, X.double(), Y, 2, generator=generator)
        else:
            objective = dropreg.replace_dropout(each, method=method, generator=generator)
            loss = objective.loss(X.double(), Y)
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(model.first.weight.grad, plain.first.weight.grad)
    assert [s.p for s in find_sites(model, X.double())] == [0.5, 0.3, 0.3]


class Recomputes(torch.autograd.Function):
    """A checkpoint by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.function(x)
        return torch.autograd.grad(out, x, grad)[0], None


class RecomputesLater(Recomputes):
    """The same in the newer form, whose forward has no context."""

    @staticmethod
    def forward(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.function = inputs[1]


@pytest.mark.parametrize("function", [Recomputes, RecomputesLater])
def test_recomputation_by_hand_is_refused(function: Any) -> None:
    model = Net(lambda x: function.apply(x, block))
    with pytest.raises(errors.NotYetSupportedError, match=r"torch\.utils\.checkpoint\.checkpoint"):
        find_sites(model, X)
    with pytest.raises(errors.NotYetSupportedError, match=r"torch\.utils\.checkpoint\.checkpoint"):
        dropreg.replace_dropout(model).loss(X, Y)
    assert all(p.grad is None for p in model.parameters())
    assert len(find_sites(Net(lambda x: function.apply(x, torch.tanh)), X)) == 1


# The reentrant form warns when no input needs a gradient, as in the audit.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_without_dropout_is_fine(use_reentrant: bool) -> None:
    model = Net(lambda x: checkpoint(torch.tanh, x, use_reentrant=use_reentrant))
    generator = torch.Generator()
    plain = Net(torch.tanh)
    plain.load_state_dict(model.state_dict())
    losses = []
    for each in (model, plain):
        loss = dropreg.replace_dropout(each, generator=generator.manual_seed(0)).loss(X, Y)
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(model.first.weight.grad, plain.first.weight.grad)


# ------------------------------------------------------------------------------ hidden randomness


class Jitter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class SkipsLayers(nn.Module):
    """Rarely skips a layer, as LayerDrop does."""

    def forward(self, x: Tensor) -> Tensor:
        return x if torch.rand(()) < 0.4 else 2 * x


OWN_RANDOM, OWN_NUMPY = random.Random(0), np.random.default_rng(0)
RANDOM: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "torch.rand": (lambda x: x * torch.rand(4), r"torch\.rand, used by `mul` \(in the model"),
    "a choice": (
        lambda x: torch.where(torch.rand(4) < 0.5, x, -x),
        r"torch\.rand, used by `where`",
    ),
    "uniform_": (lambda x: x * (torch.empty(4).uniform_() > 0.5), r"aten\.uniform_"),
    "in a module": (Jitter(), r"aten\.randn_like\.default \(in middle\)"),
    "deeper": (nn.Sequential(nn.ReLU(), Jitter()), r"aten\.randn_like\.default \(in middle\.1\)"),
    "bernoulli": (
        lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
        r"bernoulli \(in the model",
    ),
    "its own generator": (
        lambda x: x + torch.randn(4, generator=torch.Generator()),
        r"randn with a generator of its own \(in the model itself\)",
    ),
    "Python": (lambda x: x * random.random(), r"Python's `random` \(in the model itself\)"),
    "numpy": (lambda x: x * float(np.random.rand()), r"`numpy\.random` \(in the model itself\)"),  # noqa: NPY002
    "Python's own": (lambda x: x * OWN_RANDOM.random(), r"a generator of the model"),
    "numpy's own": (lambda x: x * float(OWN_NUMPY.random()), r"a generator of the model"),
    "native_dropout": (
        lambda x: torch.native_dropout(x, 0.5, True)[0],
        r"aten\.native_dropout",
    ),
    "gumbel_softmax": (lambda x: F.gumbel_softmax(x), r"aten\.exponential_"),
    "rrelu": (nn.RReLU(), r"aten\.rrelu_with_noise.*\(in middle\)"),
    "multinomial": (lambda x: x[torch.multinomial(torch.ones(6), 6)], r"aten\.multinomial"),
    "permutation": (lambda x: x[torch.randperm(6)], r"aten\.randperm"),
    "skipped layers": (SkipsLayers(), r"torch\.rand, used by an `if` \(in middle\)"),
}


@pytest.mark.parametrize("name", RANDOM)
def test_hidden_randomness_is_refused(name: str) -> None:
    middle, operation = RANDOM[name]
    message = "something else is random.*" + operation + r".*shared_dropout, or switch it off"
    with pytest.raises(errors.NeverSupportedError, match=message):
        find_sites(Net(middle), X)


def test_attention_is_not_taken_for_random() -> None:
    # PyTorch tags its attention kernels as random even when they drop nothing.
    x = torch.ones(2, 2, 6, 4)  # with a batch and heads, so that the fused kernel runs
    with pytest.raises(errors.NeverSupportedError, match="randn_like") as caught:
        find_sites(Net(lambda x: Jitter()(F.scaled_dot_product_attention(x, x, x))), x)
    assert "attention" not in str(caught.value)


def test_random_state_is_set_back_when_a_model_is_refused() -> None:
    models = [Net(RANDOM[name][0]) for name in ("Python", "numpy", "multinomial")]
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    for model in models:
        with pytest.raises(errors.NeverSupportedError):
            find_sites(model, X)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()  # noqa: NPY002


class Gated(Net):
    """Noise behind a gate that is closed at first: zero-init, LayerScale, ReZero, LoRA."""

    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__(nn.Identity())
        self.noise, self.gate = noise, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.gate * self.noise(x))


@pytest.mark.parametrize("name", RANDOM)
def test_hidden_randomness_behind_a_closed_gate_is_refused(name: str) -> None:
    with pytest.raises(errors.NeverSupportedError, match="something else is random"):
        find_sites(Gated(RANDOM[name][0]), X)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("method", ["central", "even_odd", "exact", "jvp"])
def test_randomness_that_is_switched_on_later_is_refused(name: str, method: str) -> None:
    class Switched(Net):
        noisy = False

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.head(self.drop(self.middle(h) if self.noisy else h))

    middle, operation = RANDOM[name]
    model = Switched(middle)
    objective = dropreg.replace_dropout(model, method=method)
    objective.loss(X, Y)
    model.noisy = True
    with pytest.raises(errors.NeverSupportedError, match="something else is random.*" + operation):
        objective.loss(X, Y)


def test_randomness_only_with_gradients_is_refused() -> None:
    model = Net(lambda x: x + torch.randn_like(x) if torch.is_grad_enabled() else x)
    with pytest.raises(errors.NeverSupportedError, match="randn_like"):
        find_sites(model, X)


def test_pass_that_changes_its_own_input_is_refused() -> None:
    with pytest.raises(errors.NeverSupportedError, match="changes its own inputs or state"):
        find_sites(nn.Sequential(_AddsOne(), nn.Dropout(0.5)), X.clone())


class _AddsOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return x


def test_random_numbers_without_effect_are_fine() -> None:
    def draws(x: Tensor) -> Tensor:
        return x if torch.rand(()) < 2 else -x

    assert len(find_sites(Net(draws), X)) == 1


@pytest.mark.parametrize("masked", [float("-inf"), torch.finfo(torch.float32).min])
def test_masked_classes_neither_hide_randomness_nor_look_like_it(masked: float) -> None:
    class Masked(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).index_fill(1, torch.tensor([2]), masked)

    assert len(find_sites(Masked(nn.ReLU()), X)) == 1
    with pytest.raises(errors.NeverSupportedError, match="randn_like"):
        find_sites(Masked(Jitter()), X)


def test_output_of_another_shape_is_seen_as_random() -> None:
    with pytest.raises(errors.NeverSupportedError, match="something else is random"):
        find_sites(Net(lambda x: x[: int(torch.randint(1, 6, ()))]), X)


COUNTED: list[int] = []


def test_audit_is_made_once_and_again_when_the_model_changes() -> None:
    class Counted(Net):
        def forward(self, x: Tensor) -> Tensor:
            COUNTED.append(1)
            return super().forward(x)

    model = Counted(nn.Identity())
    dropreg.explicit_regularizer(model, X)
    first = len(COUNTED)
    assert first == 11  # ten passes for the audit and one for the value
    dropreg.explicit_regularizer(model, X)
    assert len(COUNTED) == first + 1
    model.middle = Jitter()
    with pytest.raises(errors.NeverSupportedError, match="randn_like"):
        dropreg.explicit_regularizer(model, X)
    model.middle = nn.AlphaDropout(0.5).eval()
    dropreg.explicit_regularizer(model, X)
    model.train()  # the modes have changed
    with pytest.raises(errors.NeverSupportedError, match="affine"):
        dropreg.explicit_regularizer(model, X)


# -------------------------------------------------------------------------------- in-place dropout


def test_inplace_dropout_whose_result_is_not_used_is_refused() -> None:
    class Ignores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            F.dropout(h, 0.5, self.training, inplace=True)
            return self.head(h)

    with pytest.raises(errors.NotYetSupportedError, match=r"in-place .*write x = F\.dropout"):
        find_sites(Ignores(), X)


def test_inplace_dropout_of_a_tensor_used_elsewhere_is_refused() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.drop = nn.Linear(4, 4), nn.Dropout(0.5, inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return h + self.drop(h)  # in PyTorch both terms are dropped here

    with pytest.raises(errors.NotYetSupportedError, match="whose input is used elsewhere"):
        find_sites(Residual(), X)


def test_inplace_dropout_of_the_input_leaves_it_alone() -> None:
    x = X.clone()
    model = nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(4, 3))
    assert len(find_sites(model, x)) == 1
    dropreg.replace_dropout(model).loss(x, Y).backward()
    assert torch.equal(x, X)


def test_inplace_dropout_that_is_off_is_fine() -> None:
    def off(x: Tensor) -> Tensor:
        F.dropout(x, 0.5, training=False, inplace=True)
        return x

    assert len(find_sites(Net(off), X)) == 1


# ---------------------------------------------------- noise that cannot be kept or differentiated


def test_dropout_inside_vmap_is_refused() -> None:
    for randomness in ("same", "different"):
        model = Net(torch.vmap(lambda row: F.dropout(row, 0.5), randomness=randomness))
        message = r"inside torch\.vmap .*outside of vmap"
        with pytest.raises(errors.NotYetSupportedError, match=message):
            find_sites(model, X)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_dropout_of_a_nested_tensor_is_refused() -> None:
    def nested(x: Tensor) -> Tensor:
        parts = torch.nested.nested_tensor([x[:2], x[2:]], layout=torch.jagged)
        return torch.nested.to_padded_tensor(F.dropout(parts, 0.5), 0.0)

    message = r"dropout of a nested tensor \(the model itself\).*Pad the sequences"
    with pytest.raises(errors.NotYetSupportedError, match=message):
        find_sites(Net(nested), X)


def test_vmap_without_dropout_is_fine() -> None:
    assert len(find_sites(Net(torch.vmap(torch.tanh)), X)) == 1


class Frozen(nn.Module):
    """A trunk with dropout that is run without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.trunk(x)
        return self.head(h)


BACKWARD = ("exact", "sampled_labels", "full_hessian", "identity", "loss_jacobian")


@pytest.mark.parametrize("method", BACKWARD)
def test_dropout_without_gradients_is_refused_by_backward_methods(method: str) -> None:
    message = r"torch\.no_grad\(\) block.*method='central'"
    with pytest.raises(errors.NotYetSupportedError, match=message):
        dropreg.explicit_regularizer(Frozen(), X, targets=Y, method=method)


def test_dropout_without_gradients_is_right_by_the_others() -> None:
    torch.manual_seed(0)
    model, values = Frozen(), []
    with pytest.raises(errors.NotYetSupportedError, match="no_grad"):
        dropreg.implicit_noise(model, X, Y)
    trained = Frozen()  # the same function of the noise, with gradients everywhere
    trained.load_state_dict(model.state_dict())
    trained.forward = types.MethodType(lambda self, x: self.head(self.trunk(x)), trained)
    for each in (model, trained):
        for method in ("jvp", "central"):
            generator = torch.Generator().manual_seed(0)
            values.append(
                dropreg.explicit_regularizer(each, X, method=method, generator=generator).item()
            )
    assert values[0] > 0
    assert values == pytest.approx([values[0]] * 4, rel=1e-3)


def test_noise_that_changes_the_way_through_the_model_is_refused() -> None:
    class Routed(nn.Module):
        """Sends each row to one of two experts, by a noisy decision."""

        def __init__(self) -> None:
            super().__init__()
            self.gate, self.expert, self.head = nn.Dropout(0.5), nn.Dropout(0.5), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.abs()
            chosen = self.gate(x)[:, 0] > x[:, 0]  # where the noise is positive
            h = torch.where(chosen[:, None], x, -x)
            return self.head(h.index_put((chosen,), self.expert(x[chosen])))

    model = Routed()
    replacement = dropreg.replace_dropout(model, method="even_odd")
    with pytest.raises(errors.NotYetSupportedError, match="met different dropouts"):
        replacement.loss(X[:5], Y[:5])  # of five rows the two halves choose different numbers


def test_noise_that_changes_the_shapes_of_later_masks_is_audited() -> None:
    class Experts(nn.Module):
        """Rows go to one of two experts by a noisy score: full noise changes how many do."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.gate, self.experts = nn.Linear(4, 2), nn.ModuleList(nn.Linear(4, 3) for _ in "ab")
            self.before, self.after = nn.Dropout(0.5), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x)
            chosen, out = self.gate(x).argmax(-1), x.new_zeros(len(x), 3)
            for index, expert in enumerate(self.experts):
                rows = chosen == index
                out = out.index_put((rows,), self.after(expert(x[rows])))
            return out

    x = torch.randn((32, 4), generator=torch.Generator().manual_seed(1))
    sites = find_sites(Experts(), x)
    assert len(sites) == 3
    assert not sites.unreached


def test_a_mask_as_an_index_is_refused() -> None:
    model = Net(lambda h: h.index_put((torch.rand(6) < 0.3,), torch.zeros(())))
    with pytest.raises(errors.NeverSupportedError, match="index_put"):
        find_sites(model, X)


def test_a_module_may_hold_an_ordered_dict() -> None:
    model = Net(torch.tanh)
    model.seen = OrderedDict(a=1)
    model.middle = lambda h: (model.seen.update(b=2), h)[1]
    find_sites(model, X)
    assert model.seen == OrderedDict(a=1)


# -------------------------------------------------------------------- gradients that must arrive


class Halved(torch.autograd.Function):
    """A backward pass that is wrong by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / 2


def partly(h: Tensor) -> Tensor:
    dropped = F.dropout(h, 0.4)
    return dropped / 2 + dropped.detach() / 2


def straight_through(h: Tensor) -> Tensor:
    dropped = F.dropout(h, 0.4)
    return dropped + (dropped.round(decimals=1) - dropped).detach()


def one_of_two(h: Tensor) -> Tensor:
    return F.dropout(F.dropout(h, 0.4).detach() / 2 + F.dropout(h, 0.4) / 2, 0.2)


# Each with the same function of the noise, where gradients arrive.
CUT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "detach": (lambda h: F.dropout(h, 0.4).detach(), lambda h: F.dropout(h, 0.4)),
    "data": (lambda h: F.dropout(h, 0.4).data, lambda h: F.dropout(h, 0.4)),
    "Parameter": (
        lambda h: h * nn.Parameter(F.dropout(torch.ones(5).to(h), 0.4)),
        lambda h: h * F.dropout(torch.ones(5).to(h), 0.4),
    ),
    "numpy": (
        lambda h: h * torch.from_numpy(F.dropout(torch.ones(5).to(h), 0.4).detach().numpy()),
        lambda h: h * F.dropout(torch.ones(5).to(h), 0.4),
    ),
    "wrong backward": (lambda h: Halved.apply(F.dropout(h, 0.4)), lambda h: F.dropout(h, 0.4)),
    "partly": (partly, lambda h: F.dropout(h, 0.4)),
    "one of two": (
        one_of_two,
        lambda h: F.dropout(F.dropout(h, 0.4) / 2 + F.dropout(h, 0.4) / 2, 0.2),
    ),
    "straight-through": (straight_through, straight_through),
}


class Gate(nn.Module):
    """A residual branch behind a gate, or the branch alone."""

    def __init__(self, branch: Callable[[Tensor], Tensor], gate: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.branch = branch
        self.gate = None if gate is None else nn.Parameter(torch.full((5,), gate))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        dropped = self.branch(h)
        return self.head(dropped if self.gate is None else h + self.gate * dropped)


DERIVED = ("exact", "sampled_labels", "jvp", "full_hessian", "identity", "loss_jacobian")


@pytest.mark.parametrize("gate", [None, 0.0, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CUT)
def test_a_cut_or_wrong_gradient_is_refused(
    name: str, dtype: torch.dtype, gate: float | None
) -> None:
    model = Gate(CUT[name][0], gate).to(dtype)
    x = X.to(dtype)
    weights = {n: (p.data_ptr(), p.detach().clone()) for n, p in model.named_parameters()}
    if name == "straight-through":
        with pytest.raises(errors.NeverSupportedError, match="made-up gradient"):
            find_sites(model, x)
        return
    assert find_sites(model, x)
    for method in DERIVED:
        with pytest.raises(errors.NotYetSupportedError, match=r"derivative.*method='central'"):
            dropreg.explicit_regularizer(model, x, targets=Y, method=method)
    with pytest.raises(errors.NotYetSupportedError, match=r"derivative.*method='central'"):
        dropreg.implicit_noise(model, x, Y)
    for n, p in model.named_parameters():
        assert p.data_ptr() == weights[n][0]
        assert torch.equal(p, weights[n][1])
        assert p.grad is None


@pytest.mark.parametrize("name", [n for n in CUT if n != "straight-through"])
@pytest.mark.parametrize("method", ["central", "even_odd", "monte_carlo"])
def test_a_cut_gradient_does_no_harm_to_passes_alone(name: str, method: str) -> None:
    values = []
    for branch in CUT[name]:
        generator = torch.Generator().manual_seed(0)
        values.append(
            dropreg.explicit_regularizer(
                Gate(branch).double(), X.double(), targets=Y, method=method, generator=generator
            )
        )
    assert values[0] != 0
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("batch", [2, 64, 512])
@pytest.mark.parametrize("function", [Halved.apply, torch.detach])
def test_a_wrong_gradient_is_seen_in_batches_of_any_size(batch: int, function: Any) -> None:
    """The rounding of many logits must not pass for agreement."""
    torch.manual_seed(0)
    x = torch.randn(batch, 20)

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(20, 64), nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = F.dropout(self.a(x).relu(), 0.3)
            h = h + function(F.dropout(self.b(h).relu(), 0.3))
            return self.c(h)

    with pytest.raises(errors.NotYetSupportedError, match="derivative"):
        dropreg.explicit_regularizer(Wide(), x)


@pytest.mark.parametrize("gate", [None, 0.0, 1e-6])
def test_dropout_that_is_only_a_choice_is_refused(gate: float | None) -> None:
    def keeps(h: Tensor) -> Tensor:
        return h * (F.dropout(torch.ones_like(h), 0.4) != 0)

    with pytest.raises(errors.NeverSupportedError, match="used as a choice only"):
        find_sites(Gate(keeps, gate), X)


def test_an_auxiliary_head_changes_nothing() -> None:
    class TwoHeads(nn.Module):
        def __init__(self, p: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.trunk, self.head, self.aux = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)
            self.drop, self.p = nn.Dropout(p), p

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.trunk(x).tanh()
            logits = self.head(self.drop(h) if self.p else h)
            return logits, self.aux(F.dropout(h, 0.5))

    class Without(TwoHeads):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.drop(self.trunk(x).tanh()))

    with_aux, without = TwoHeads(0.3).double(), Without(0.3).double()
    for method in dropreg.ExplicitMethod:
        if method in ("sampled_labels", "identity", "exact", "loss_jacobian", "jvp", "central"):
            values = []
            for each in (with_aux, without):
                generator = torch.Generator().manual_seed(0)
                values.append(
                    dropreg.explicit_regularizer(
                        each, X.double(), targets=Y, method=method, generator=generator
                    )
                )
            torch.testing.assert_close(*values)
    only_aux = TwoHeads(0.0)
    for method in ("exact", "full_hessian", "central", "monte_carlo", "loss_jacobian"):
        assert dropreg.explicit_regularizer(only_aux, X, targets=Y, method=method) == 0
    noise = dropreg.implicit_noise(only_aux, X, Y)
    noise.backward()
    assert noise == 0
    assert all(p.grad is None or not p.grad.any() for p in only_aux.parameters())


def relu_network(seed: int) -> tuple[nn.Module, Tensor]:
    """Kinks at every unit, in many shapes."""
    torch.manual_seed(seed)
    width, depth = (4, 16, 64)[seed % 3], 1 + seed % 4
    layers: list[nn.Module] = [nn.Conv1d(1, width, 3, padding=1), nn.ReLU(), nn.Dropout(0.3)]
    for _ in range(depth):
        layers += [
            nn.Conv1d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Dropout(0.1 + 0.2 * (seed % 2)),
        ]
    layers += [nn.MaxPool1d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * width, 3)]
    return nn.Sequential(*layers), torch.randn(1 + seed % 7, 1, 8)


def test_kinks_and_rounding_are_no_wrong_gradients() -> None:
    for seed in range(50):
        model, x = relu_network(seed)
        for each, inputs in ((model, x), (copy.deepcopy(model).double(), x.double())):
            assert not find_sites(each, inputs).unreached, seed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_wrong_gradient(dtype: torch.dtype) -> None:
    for seed in range(6):
        model, x = relu_network(seed)
        sites = find_sites(model.to(dtype), x.to(dtype))
        assert sites.uses_half_precision
        assert not sites.unreached
    cut = Gate(CUT["detach"][0]).to(dtype)
    assert "no derivative reaches its noise" in find_sites(cut, X.to(dtype)).unreached


def test_inputs_with_a_past_are_left_alone() -> None:
    """A prompt or an encoder before the model: no gradient, no hook, no graph that is used up."""
    calls: list[int] = []
    prompt = nn.Parameter(torch.ones(4))
    prompt.register_hook(lambda grad: calls.append(1))
    inner = X * prompt
    inner.register_hook(lambda grad: calls.append(2))
    model = Net(nn.ReLU())
    find_sites(model, inner)
    assert (calls, prompt.grad) == ([], None)
    inner.sum().backward()  # its graph is still there
    assert sorted(calls) == [1, 2]


def test_two_passes_that_meet_other_sites_are_refused() -> None:
    class Experts(nn.Module):
        """The whole batch goes to one of two experts of the same shape, by a noisy decision."""

        def __init__(self, *, fewer: bool) -> None:
            super().__init__()
            self.gate, self.head, self.fewer = nn.Dropout(0.5), nn.Linear(4, 3), fewer
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(2)
            )

        def forward(self, x: Tensor) -> Tensor:
            first = bool(self.gate(torch.ones(()).to(x)) > 1)
            if self.fewer:
                return self.head(self.experts[0](x) if first else x)
            return self.head(self.experts[0 if first else 1](x))

    for fewer in (False, True):
        for method in ("central", "even_odd"):
            objective = dropreg.replace_dropout(Experts(fewer=fewer), method=method)
            with pytest.raises(errors.UnsupportedError, match=r"different|choice"):
                objective.loss(X, Y)  # one of the two signs goes one way, one the other


def test_a_dropout_whose_probability_grows_is_found_and_right() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.Dropout(0.0), nn.Linear(5, 3), nn.Dropout(0.2)
    ).double()
    x = X.double()
    objective = dropreg.replace_dropout(model, method="exact", implicit=0)
    objective.loss(x, Y)
    model[1].p = 0.4
    objective.loss(x, Y)
    fresh = copy.deepcopy(model)
    expected = dropreg.explicit_regularizer(fresh, x)
    torch.testing.assert_close(torch.as_tensor(objective.parts["explicit"]), expected.detach())
    # The last layer's noise acts on logits alone: against the closed form of both.
    j = (model[2].weight[None] * model[0](x)[:, None]).detach()  # one column a unit
    logits = model(x) if not model.training else model[2](model[0](x))
    prob = logits.softmax(-1).detach()
    h_out = torch.diag_embed(prob) - prob[:, :, None] * prob[:, None]
    first = (0.4 / 0.6) * torch.einsum("bcu,bcd,bdu->b", j, h_out, j)
    last = (0.2 / 0.8) * (h_out.diagonal(dim1=1, dim2=2) * logits.detach() ** 2).sum(-1)
    torch.testing.assert_close(expected.detach(), (first + last).mean() / 2)


def test_a_dropout_that_forward_makes_is_a_site() -> None:
    model = Net(lambda x: nn.Dropout(0.4)(x)).double()
    reference = Net(nn.Dropout(0.4)).double()
    reference.load_state_dict(model.state_dict())
    assert [s.p for s in find_sites(model, X.double())] == [0.4, 0.3]
    values = [dropreg.explicit_regularizer(each, X.double()) for each in (model, reference)]
    torch.testing.assert_close(*values)


def test_a_model_that_is_cast_is_audited_again() -> None:
    model = Net(nn.ReLU())
    dropreg.explicit_regularizer(model, X, method="central")
    model.bfloat16()
    with pytest.raises(errors.PrecisionError):
        dropreg.explicit_regularizer(model, X.bfloat16(), method="central")
    objective = dropreg.replace_dropout(model)
    with pytest.warns(UserWarning, match="even_odd"):
        objective.loss(X.bfloat16(), Y)
