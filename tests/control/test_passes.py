"""The model is handed back exactly as it came, after every pass and after an exception."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import run
from torch import Tensor, nn

import dropreg
from dropreg import find_sites
from dropreg.control import Control
from dropreg.control.buffers import scratch_buffers
from dropreg.probes import clean


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, Y = randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


class Counting(nn.Module):
    """Writes to its buffers in every way there is: in place, by assignment, persistent or not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 3)
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(8), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.linear(x))
        self.passes += 1
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        self.nothing = torch.ones(2)
        return self.head(self.drop(h.relu()))


class CreatedLater(nn.Module):
    """Registers a buffer when it first runs, as position caches do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 3), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.full((4,), 2.0))
        return self.linear(self.drop(x * self.scale))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
        self.head.weight = self.embed.weight
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.embed(x) @ self.embed.weight))


def spectral() -> nn.Module:
    first = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8))
    # Far from the fixed point of its power iteration, so that a pass changes the buffers and they
    # change the output.
    with torch.no_grad():
        first.parametrizations.weight.original.copy_(randn(8, 4))
    return nn.Sequential(first, nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit.script
        return nn.Sequential(torch.jit.script(nn.BatchNorm1d(4)), nn.Dropout(0.3), nn.Linear(4, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "buffers of every kind": Counting,
    "buffers created later": CreatedLater,
    "tied weights": Tied,
    "spectral norm": spectral,
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.Dropout(0.3), nn.Linear(8, 3)
    ),
    "scripted batch norm": scripted,
    "buffers that are None": lambda: nn.Sequential(
        nn.BatchNorm1d(4, track_running_stats=False), nn.Dropout(0.3), nn.Linear(4, 3)
    ),
    "no buffers": lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3)),
}


def hooks(model: nn.Module) -> int:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
    own = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    return sum(len(getattr(m, table)) for m in own for table in tables)


@contextmanager
def untouched(model: nn.Module, *, buffers_too: bool = True) -> Iterator[None]:
    """Check that a model, the random state and the modes are the same afterwards."""
    parameters = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = {name: p.grad for name, p in model.named_parameters()}
    buffers = {name: (id(b), b.clone()) for name, b in model.named_buffers()}
    names = [dict(m._buffers.items()).keys() for m in model.modules()]
    state = list(model.state_dict())
    modes = [m.training for m in model.modules()]
    before, rng = hooks(model), torch.get_rng_state()
    yield
    assert parameters == {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
    assert all(torch.equal(p, values[name]) for name, p in model.named_parameters())
    assert all(p.grad is grads[name] for name, p in model.named_parameters())
    if buffers_too:
        now = dict(model.named_buffers())
        assert now.keys() == buffers.keys()
        assert all(id(b) == buffers[name][0] for name, b in now.items())
        assert all(torch.equal(b, buffers[name][1]) for name, b in now.items())
        assert [dict(m._buffers.items()).keys() for m in model.modules()] == names
        assert list(model.state_dict()) == state
    assert [m.training for m in model.modules()] == modes
    assert hooks(model) == before
    assert torch.equal(torch.get_rng_state(), rng)


USES: dict[str, Callable[[nn.Module, torch.Generator], Any]] = {
    "find_sites": lambda m, g: find_sites(m, X),
    **{
        f"explicit {method}": lambda m, g, method=method: dropreg.explicit_regularizer(
            m, X, targets=Y, method=method, generator=g
        )
        for method in dropreg.ExplicitMethod
    },
    **{
        f"implicit {method}": lambda m, g, method=method: dropreg.implicit_noise(
            m, X, Y, method=method, generator=g
        )
        for method in dropreg.ImplicitMethod
    },
    "measure_explicit": lambda m, g: dropreg.measure_explicit(m, X, Y, mc_samples=2, generator=g),
    "gradient_noise": lambda m, g: dropreg.gradient_noise(m, X, Y, mc_samples=2, generator=g),
}


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("use", USES)
def test_model_is_handed_back(model_name: str, use: str) -> None:
    torch.manual_seed(0)
    model = MODELS[model_name]()
    with untouched(model):
        USES[use](model, torch.Generator().manual_seed(0))


UPDATES: dict[str, Callable[[nn.Module, torch.Generator], Tensor]] = {
    "dropout_k": lambda m, g: dropreg.dropout_k_loss(m, X, Y, 3, generator=g),
    "dropout_k in chunks": lambda m, g: dropreg.dropout_k_loss(m, X, Y, 3, chunk=2, generator=g),
    "clean": lambda m, g: dropreg.replace_dropout(m, explicit=0, implicit=0).loss(X, Y),
    **{
        f"replace {method}": lambda m, g, method=method: dropreg.replace_dropout(
            m, method=method, explicit=0.5, generator=g
        ).loss(X, Y)
        for method in ("central", "even_odd", "exact", "sampled_labels", "jvp")
    },
}


@pytest.mark.parametrize("update", UPDATES)
def test_buffers_move_once_in_a_training_step(update: str) -> None:
    torch.manual_seed(0)
    model = Counting()
    ordinary = copy.deepcopy(model)
    ordinary(X)  # batch norm comes before the dropout, so its statistics do not depend on masks
    with untouched(model, buffers_too=False):
        loss = UPDATES[update](model, torch.Generator().manual_seed(0))
    assert model.passes == 1
    assert model.norm.num_batches_tracked == 1
    assert set(model.state_dict()) == set(ordinary.state_dict())
    for name, value in ordinary.named_buffers():
        torch.testing.assert_close(dict(model.named_buffers())[name], value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.linear.weight.detach().clone()
    loss.backward()
    optimizer.step()
    assert not torch.equal(model.linear.weight, before)


@pytest.mark.parametrize("method", ["central", "even_odd", "exact"])
def test_all_passes_of_a_step_start_from_the_same_buffers(method: str) -> None:
    # Spectral norm divides by an estimate that each pass refines. Were the two halves of a pair to
    # use different estimates, their difference would have nothing to do with the noise.
    torch.manual_seed(0)
    model = spectral()
    seed = torch.Generator()
    alone = dropreg.explicit_regularizer(
        model,
        X,
        method="exact" if method == "exact" else "central",
        generator=seed.manual_seed(3),
    )
    replacement = dropreg.replace_dropout(
        model, method=method, explicit=0.5, share=1, generator=seed.manual_seed(3)
    )
    replacement.loss(X, Y)
    # Even and odd parts hold all orders of the noise, so they are only near.
    tolerance = 0.5 if method == "even_odd" else 1e-4
    torch.testing.assert_close(
        replacement.parts["explicit"], alone.detach(), rtol=tolerance, atol=0.0
    )


@pytest.mark.parametrize("assign", [False, True])
def test_audit_sees_a_buffer_that_is_at_its_fixed_point(assign: bool) -> None:
    class Fixed(nn.Module):
        """Writes to its buffer the value that is there, for now."""

        def __init__(self) -> None:
            super().__init__()
            self.drop, self.linear = nn.Dropout(0.5), nn.Linear(4, 3)
            self.register_buffer("rate", torch.ones(()))
            self.factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            if assign:
                self.rate = self.rate * self.factor
            else:
                self.rate.mul_(self.factor)
            return self.linear(self.drop(x)) * self.rate

    model = Fixed()
    find_sites(model, X)
    dropreg.explicit_regularizer(model, X)  # audits
    model.factor = 0.5
    dropreg.explicit_regularizer(model, X)
    assert model.rate == 1.0


def test_shared_buffers_stay_shared_during_a_pass() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
            self.second.running_mean = self.first.running_mean
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            assert self.first.running_mean is self.second.running_mean
            return self.drop(self.second(self.first(x)))

    model = Shared()
    with untouched(model):
        find_sites(model, X)


# ----------------------------------------------------------------------------- after an exception


class BreaksAt(Counting):
    """Raises in the middle of a chosen pass."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.passes_made = number, SimpleNamespace(count=0)
        self.drop.register_forward_hook(self._raise)

    def _raise(self, module: nn.Module, args: Any, output: Any) -> None:
        self.passes_made.count += 1
        if self.passes_made.count == self.number:
            raise RuntimeError("the model broke")


@pytest.mark.parametrize("number", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize(
    "use",
    [use for use in USES if use not in ("find_sites", "explicit exact", "explicit loss_jacobian")],
)
def test_model_is_handed_back_after_an_exception(use: str, number: int) -> None:
    torch.manual_seed(0)
    model = BreaksAt(number)
    with untouched(model):
        message = ""
        try:
            USES[use](model, torch.Generator().manual_seed(0))
        except RuntimeError as error:
            message = str(error)
    # The audit makes 5 passes, and each use at least one; most make more.
    assert message == "the model broke" if model.passes_made.count >= number else number > 6
    assert torch.backends.cudnn.enabled
    assert torch.is_grad_enabled()
    # Control has ended: dropout drops again.
    assert (F.dropout(torch.ones(100), 0.5) == 0).any()


@pytest.mark.parametrize("number", [1, 2])
def test_find_sites_hands_back_after_an_exception(number: int) -> None:
    model = BreaksAt(number)
    with untouched(model), pytest.raises(RuntimeError, match="the model broke"):
        find_sites(model, X)
    assert len(find_sites(model, X)) == 1


def test_exception_in_a_training_step() -> None:
    # The pass that moves the buffers comes last, so a step that breaks before has moved nothing.
    torch.manual_seed(0)
    model = BreaksAt(6)
    with untouched(model), pytest.raises(RuntimeError, match="the model broke"):
        dropreg.replace_dropout(model, generator=torch.Generator()).loss(X, Y)
    assert model.passes == 0


def test_scratch_buffers_are_given_back_when_the_body_raises() -> None:
    model = Counting()

    def body() -> None:
        with scratch_buffers(model) as changed, Control(clean):
            assert not changed()
            model(X)
            assert changed()
            raise ZeroDivisionError

    with untouched(model), pytest.raises(ZeroDivisionError):
        body()


# ------------------------------------------------------------------------------- users' own habits


def test_hooks_of_the_user_still_run() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    model[1].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    expected = model[2](2 * F.linear(X, model[0].weight, model[0].bias) + 1)
    torch.testing.assert_close(run(model, X, clean)[0], expected)
    assert len(find_sites(model, X)) == 1
    assert hooks(model) == 2


def test_functional_call_inside_and_outside() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            doubled = {name: 2 * p for name, p in self.net.named_parameters()}
            return torch.func.functional_call(self.net, doubled, (x,))

    model = Inner()
    assert [s.name for s in find_sites(model, X)] == ["net.1"]
    torch.testing.assert_close(run(model, X, clean)[0], copy.deepcopy(model).eval()(X))


def test_control_ends_with_its_context() -> None:
    x = torch.ones(1000)
    with Control(clean):
        assert torch.equal(F.dropout(x, 0.5), x)
    assert not torch.equal(F.dropout(x, 0.5), x)


def test_random_state_of_python_code_between_passes_is_the_users() -> None:
    # With a generator of its own, a call leaves the user's random state as it is.
    model = Counting()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    find_sites(model, X)
    for use in USES.values():
        use(model, torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_random_state_of_cuda_is_untouched() -> None:
    model = Counting().cuda()
    before = torch.cuda.get_rng_state()
    find_sites(model, X.cuda())
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_cuda_that_has_not_started_is_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.manual_seed also seeds a CUDA that is yet to start, so the audit must not call it.
    def seeded(seed: int) -> None:
        raise AssertionError("the audit seeded every device")

    monkeypatch.setattr(torch, "manual_seed", seeded)
    find_sites(nn.Dropout(0.5), X)


# ------------------------------------------------------------- attributes and parameters that move


class Remembers(nn.Module):
    """Sets attributes of every kind in its forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.drop = nn.Linear(4, 3), nn.Dropout(0.3)
        self.steps, self.seen, self.cache = 0, [], {"last": None}
        self.activation = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.seen.append(len(x))
        self.cache["last"] = x
        self.activation = self.linear(x)
        self.new = 1
        return self.drop(self.activation)


def test_attributes_are_set_back() -> None:
    model = Remembers()
    kept = (model.seen, model.cache, model.activation)
    find_sites(model, X)
    for method in ("exact", "central", "jvp", "monte_carlo"):
        dropreg.explicit_regularizer(model, X, targets=Y, method=method)
    assert model.steps == 0
    assert model.seen == []
    assert model.cache == {"last": None}
    assert (model.seen, model.cache) == kept[:2]
    assert model.seen is kept[0]
    assert model.activation is kept[2]
    assert not hasattr(model, "new")
    objective = dropreg.replace_dropout(model)
    for step in (1, 2):
        objective.loss(X, Y).backward()
        assert model.steps == len(model.seen) == step  # once a training step, as buffers move


class Centre(nn.Module):
    """Keeps a running mean in a parameter."""

    def __init__(self, write: Callable[["Centre", Tensor], None]) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.ones(4), requires_grad=False)
        self.drop, self.head, self.write = nn.Dropout(0.3), nn.Linear(4, 3), write

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.write(self, x.mean(0))
        return self.head(self.drop(x - self.centre))


def assign(model: Centre, mean: Tensor) -> None:
    model.centre.data = 0.9 * model.centre.data + 0.1 * mean


def through_a_view(model: Centre, mean: Tensor) -> None:
    model.centre.view(2, 2)[0].add_(1.0)


def dropped_data(model: Centre, mean: Tensor) -> None:
    model.centre.data = F.dropout(model.centre.data + 0.0, 0.3).contiguous()


def dropped_in_place(model: Centre, mean: Tensor) -> None:
    model.centre.mul_(F.dropout(torch.ones(4), 0.3))


WRITES: dict[str, Callable[[Centre, Tensor], None]] = {
    "in place": lambda model, mean: model.centre.mul_(0.9).add_(0.1 * mean),  # type: ignore[func-returns-value]
    "out=": lambda model, mean: torch.add(model.centre, mean, out=model.centre),  # type: ignore[func-returns-value]
    "several at once": lambda model, mean: torch._foreach_add_([model.centre], [mean]),  # type: ignore[func-returns-value]
    "a view": through_a_view,
    "data": assign,
    # Weights that are dropped where they are: with the noise off they stay as they are.
    "dropped data": dropped_data,
    "dropped in place": dropped_in_place,
}


@pytest.mark.parametrize("name", WRITES)
def test_a_pass_that_writes_to_parameters_is_refused(name: str) -> None:
    model = Centre(WRITES[name])
    with untouched(model):
        for use in (find_sites, lambda m, x: dropreg.replace_dropout(m).loss(x, Y)):
            with pytest.raises(
                dropreg.errors.NotYetSupportedError, match=r"writes to .*\(centre\)"
            ):
                use(model, X)


def test_a_weight_that_is_dropped_by_setattr() -> None:
    """As AWD-LSTM's and torchnlp's WeightDrop do."""

    class WeightDrop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)
            self.raw = nn.Parameter(self.rnn.weight_hh_l0.data.clone())
            del self.rnn._parameters["weight_hh_l0"]

        def forward(self, x: Tensor) -> Tensor:
            self.rnn.weight_hh_l0 = F.dropout(self.raw, 0.5, self.training)
            return self.head(self.rnn(x)[0])

    model, x = WeightDrop(), randn(2, 4, 3)
    names = [n for n, _ in model.named_parameters()]
    y = torch.zeros(2, 4, dtype=torch.long)
    (site,) = find_sites(model, x)
    assert (site.p, site.shape) == (0.5, (16, 4))
    dropreg.replace_dropout(model).loss(x, y).backward()
    assert model.raw.grad is not None
    assert [n for n, _ in model.named_parameters()] == names
    F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()  # a step of the user's own
    # The explicit effect, against the same network with the weight given from outside.
    plain = nn.LSTM(3, 4, batch_first=True)
    weights = dict(model.rnn.named_parameters())

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raw, self.drop = model.raw, nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            given = {**weights, "weight_hh_l0": self.drop(self.raw)}
            return model.head(torch.func.functional_call(plain, given, (x,))[0])

    torch.testing.assert_close(
        dropreg.explicit_regularizer(model, x), dropreg.explicit_regularizer(Given(), x)
    )
