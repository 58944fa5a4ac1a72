"""Update rules on a network so small that its noise can be enumerated: every mask, every sign."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.rules import CHECKED
from dropreg import (
    CrossEntropy,
    GradientNoise,
    NoisyLoss,
    Objective,
    Probe,
    Rule,
    Update,
    dropout_k_loss,
    replace_dropout,
)
from dropreg.book.experiments import EXPERIMENTS, TASKS, Run, Size
from dropreg.control.passes import find_logits
from dropreg.errors import InputError, LogitsError, PrecisionError, values_unchecked
from dropreg.fused import pair
from dropreg.layers import shared_dropout
from dropreg.noisy_loss import DEFAULT_STEP
from dropreg.probes import clean

Q, UNITS = 0.3, 3
TOKENS, TARGETS = torch.tensor([[2]]), torch.tensor([[1]])
DRAWS = 1500


class Network(nn.Module):
    """One word in, one word out, dropout on three units, which are the state as well."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(4, UNITS)
        self.output = nn.Linear(UNITS, 4)
        self.double()

    def forward(self, tokens, state=None):
        h = torch.tanh(self.embedding(tokens)) + (0 if state is None else state)
        h = shared_dropout(h, Q, self.training)
        return self.output(torch.tanh(h)), h


MODEL = Network()
WEIGHTS = list(MODEL.parameters())


def flat(grads):
    return torch.cat([g.flatten() for g in grads])


def loss_under(eta):
    """The loss with a noise of three numbers, without the library."""
    h = torch.tanh(MODEL.embedding(TOKENS)) * (1 + eta)
    return F.cross_entropy(MODEL.output(torch.tanh(h))[0], TARGETS[0])


def gradient(value):
    return flat(torch.autograd.grad(value, WEIGHTS, materialize_grads=True))


def moments(values, chances):
    """Mean and covariance of gradients with known probabilities."""
    values, chances = torch.stack(values), torch.tensor(chances).double()
    mean = chances @ values
    return mean, (values - mean).T @ (chances[:, None] * (values - mean))


def of_masks():
    """Exact mean and covariance of the gradient under one dropout mask."""
    low, high = -1.0, Q / (1 - Q)
    grads, chances = [], []
    for drops in itertools.product((True, False), repeat=UNITS):
        eta = torch.tensor([low if drop else high for drop in drops], dtype=torch.float64)
        grads.append(gradient(loss_under(eta)))
        chances.append(torch.tensor([Q if drop else 1 - Q for drop in drops]).double().prod())
    return moments(grads, chances)


def of_signs(value_at):
    """Exact mean and covariance over the signs of Rademacher noise, of the gradient of a value."""
    signs = itertools.product((-1.0, 1.0), repeat=UNITS)
    size = (Q / (1 - Q)) ** 0.5
    grads = [gradient(value_at(size * torch.tensor(s, dtype=torch.float64))) for s in signs]
    return moments(grads, [1 / 2**UNITS] * 2**UNITS)


def slope(eta):
    """The derivative of the loss along a noise."""
    strength = torch.zeros((), dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(loss_under(strength * eta), strength, create_graph=True)[0]


def taylor(in_place=None):
    """Half the variance times the trace of J^T M J over the three units.

    M is H_out, which makes it the exact R_approx, or what a function of the logits gives.
    """
    eta = torch.zeros(UNITS, dtype=torch.float64, requires_grad=True)
    h = torch.tanh(MODEL.embedding(TOKENS)) * (1 + eta)
    logits = MODEL.output(torch.tanh(h))[0, 0]
    p = logits.softmax(-1)
    jacobian = torch.stack(
        [torch.autograd.grad(logits[c], eta, create_graph=True)[0] for c in range(4)]
    )
    hessian = torch.diag(p) - torch.outer(p, p) if in_place is None else in_place(logits)
    return 0.5 * Q / (1 - Q) * torch.trace(jacobian.T @ hessian @ jacobian)


CLEAN = gradient(loss_under(torch.zeros(UNITS, dtype=torch.float64)))
MASK_MEAN, MASK_COV = of_masks()
ANALYTIC_COV = of_signs(slope)[1]
EVEN_MEAN, EVEN_COV = of_signs(lambda eta: (loss_under(eta) + loss_under(-eta)) / 2)
PAIR_MEAN, PAIR_COV = of_signs(loss_under)  # even and odd part together: the noise is its own law
APPROX = CLEAN + gradient(taylor())


def squared_score(logits):
    score = logits.softmax(-1) - F.one_hot(TARGETS[0, 0], 4)
    return torch.outer(score, score)


ABLATED = {
    "central_identity": CLEAN + gradient(taylor(lambda logits: torch.eye(4).double())),
    "central_loss_jacobian": CLEAN + gradient(taylor(squared_score)),
}
NOTHING = torch.zeros_like(MASK_COV)

CASES = {
    "dropout_1": (Rule("dropout_k"), MASK_MEAN, MASK_COV),
    "dropout_4": (Rule("dropout_k", k=4), MASK_MEAN, MASK_COV / 4),
    "dropout_4+dropout_pair": (Rule("dropout_k", "dropout_pair", 4), MASK_MEAN, MASK_COV),
    "dropout_4+analytic": (
        Rule("dropout_k", "analytic", 4),
        MASK_MEAN,
        MASK_COV / 4 + 0.75 * ANALYTIC_COV,
    ),
    "none+analytic": (Rule("none", "analytic"), CLEAN, ANALYTIC_COV),
    "none+dropout_pair-0.5": (
        Rule("none", "dropout_pair", noise_scale=0.5),
        CLEAN,
        MASK_COV / 4,
    ),
    "even": (Rule("even"), EVEN_MEAN, EVEN_COV),
    "even+odd": (Rule("even", "odd"), PAIR_MEAN, PAIR_COV),
    "even-probes4": (Rule("even", probes=4), EVEN_MEAN, EVEN_COV / 4),
    # The two parts are uncorrelated, and only the even one is averaged.
    "even+odd-probes4": (Rule("even", "odd", probes=4), PAIR_MEAN, PAIR_COV - 0.75 * EVEN_COV),
    "central_identity-0+analytic": (
        Rule("explicit", "analytic", method="central_identity", strength=0.0),
        CLEAN,
        ANALYTIC_COV,
    ),
    "exact": (Rule("explicit", method="exact"), APPROX, NOTHING),
    "exact+analytic": (Rule("explicit", "analytic", method="exact"), APPROX, ANALYTIC_COV),
}


def updated(rule, model=MODEL, text=None, *, state=None, generator=0):
    """One update, which adds its gradient to the model's; the generator or its seed."""
    inputs, targets = (TOKENS, TARGETS) if text is None else (text[:, :-1], text[:, 1:])
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    update = Update(rule, generator=generator, carry=True)
    update.backward(NoisyLoss(model, (inputs, state), "cross_entropy", targets))
    return update


def draws(rule, count=DRAWS):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        MODEL.zero_grad()
        updated(rule, MODEL, generator=generator)
        rows.append(flat([weight.grad for weight in WEIGHTS]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", CASES)
def test_mean_and_covariance_are_those_of_the_enumerated_noise(name):
    rule, mean, covariance = CASES[name]
    assert rule.label == name
    rows = draws(rule, DRAWS if covariance.any() else 2)
    error = (covariance.diagonal() / len(rows)).sqrt()
    # 4.5 standard errors: of 31 coordinates and ten rules not one is beyond that by chance.
    # ξ by a central difference is right up to a few percent of the square of its step.
    slack = 0.01 * mean.abs().max() if "analytic" in name else 1e-9
    assert ((rows.mean(0) - mean).abs() <= 4.5 * error + slack).all()
    if covariance.any():
        # The trace is a mean over draws of a squared distance; its error comes from their spread.
        squares = (rows - mean).square().sum(1)
        spread = (squares.std() / len(rows) ** 0.5).item()
        third_order = 0.02 if "analytic" in name else 0.0
        trace = covariance.trace().item()
        assert abs(squares.mean().item() - trace) <= 4.5 * spread + third_order * trace


def test_every_nth_update_has_the_mean_and_the_covariance_of_every_update():
    _, mean, covariance = CASES["exact+analytic"]
    n = 4
    seldom = Rule("explicit", "analytic", method="exact", strength=1.0, every=n)
    assert seldom.label == "exact+analytic-every4"
    update = Update(seldom, generator=torch.Generator().manual_seed(0))
    sums = []
    for _ in range(DRAWS):  # the gradients of n updates at fixed weights
        MODEL.zero_grad()
        for _ in range(n):
            update.backward(NoisyLoss(MODEL, (TOKENS, None), "cross_entropy", TARGETS))
        sums.append(flat([weight.grad for weight in WEIGHTS]))
    sums = torch.stack(sums)
    error = (n * covariance.diagonal() / len(sums)).sqrt()
    slack = 0.02 * n * mean.abs().max()  # of the central difference, as above, at twice the noise
    assert ((sums.mean(0) - n * mean).abs() <= 4.5 * error + slack).all()
    squares = (sums - n * mean).square().sum(1)
    trace = n * covariance.trace().item()
    assert squares.mean().item() == pytest.approx(
        trace, abs=4.5 * (squares.std() / len(sums) ** 0.5).item() + 0.02 * trace
    )


@pytest.mark.parametrize("method", ["central", "sampled_labels", "jvp", *ABLATED])
def test_estimated_regularizers_have_the_exact_mean(method):
    rows, expected = draws(Rule("explicit", method=method)), ABLATED.get(method, APPROX)
    error = rows.std(0) / len(rows) ** 0.5
    assert ((rows.mean(0) - expected).abs() <= 4.5 * error + 0.02 * expected.abs().max()).all()


@pytest.mark.parametrize("method", ["central", *ABLATED])
def test_several_probes_leave_the_mean_and_set_buffers_once(method):
    counts = {1: DRAWS, 16: 400}
    rows = [draws(Rule("explicit", method=method, probes=n), c) for n, c in counts.items()]
    one, sixteen = (r.var(0).sum().item() for r in rows)
    assert 16 * sixteen == pytest.approx(one, rel=0.25)
    expected = ABLATED.get(method, APPROX)
    error = rows[1].std(0) / len(rows[1]) ** 0.5
    assert ((rows[1].mean(0) - expected).abs() <= 4.5 * error + 0.02 * expected.abs().max()).all()
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.3), nn.Linear(3, 2))
    noisy = NoisyLoss(model, torch.randn(4, 2), "cross_entropy", torch.tensor([0, 1, 0, 1]))
    update = Update(Rule("explicit", "analytic", method=method, probes=3))
    update.backward(noisy)
    assert model[1].num_batches_tracked == 1
    assert set(update.parts) == {"clean", "explicit", "implicit", "objective"}


def test_plain_and_l2_are_exact():
    assert torch.allclose(draws(Rule("none"), 1)[0], CLEAN)
    decayed = draws(Rule("l2", strength=0.1), 1)[0]
    assert torch.allclose(decayed, CLEAN + 0.1 * flat(w.detach() for w in WEIGHTS))


def test_strength_scales_the_regularizer_only():
    rows = draws(Rule("explicit", method="exact", strength=2.0), 1)
    assert torch.allclose(rows[0] - CLEAN, 2 * (APPROX - CLEAN))


def test_state_is_of_the_network_that_is_trained():
    clean_state = torch.tanh(MODEL.embedding(TOKENS)).detach()
    for rule in (Rule("none"), Rule("l2"), Rule("explicit"), Rule("explicit", method="exact")):
        update = updated(rule)
        assert torch.equal(update.output[1], clean_state)
    for rule in (Rule("dropout_k", k=2), Rule("even", "odd")):
        update = updated(rule)
        noise = update.output[1].detach() / clean_state - 1
        law = (
            [-1.0, Q / (1 - Q)] if rule.k == 2 else [-((Q / (1 - Q)) ** 0.5), (Q / (1 - Q)) ** 0.5]
        )
        assert torch.isclose(noise.flatten()[:, None], torch.tensor(law).double()).any(1).all()


def test_state_before_enters_the_update():
    state = torch.full((1, 1, UNITS), 0.5, dtype=torch.float64)
    for rule in (Rule("none"), Rule("dropout_k"), Rule("even"), Rule("explicit")):
        grads = []
        for given in (None, state):
            MODEL.zero_grad()
            updated(rule, state=given)
            grads.append(flat([w.grad for w in WEIGHTS]))
        assert not torch.allclose(*grads)


def test_parts_add_up():
    for rule in (Rule("explicit", "analytic", strength=0.5), Rule("even", "odd", noise_scale=0.7)):
        update = updated(rule)
        parts = update.parts
        base = parts["even"] if "even" in parts else parts["clean"] + 0.5 * parts["explicit"]
        assert parts["objective"] == pytest.approx(base + rule.noise_scale * parts["implicit"])


def masked(noisy, generator):
    return noisy(Probe("bernoulli", generator).at(1.0))


def halves(noisy, generator, step):
    probe = Probe("rademacher", generator)
    down = noisy(probe.at(-step))
    return noisy(probe.at(step)), down


def central_noise(noisy, generator):
    up, down = halves(noisy, generator, DEFAULT_STEP)
    return (up - down) / (2 * DEFAULT_STEP)


def even_and_odd(noisy, generator):
    up, down = halves(noisy, generator, 1.0)
    return (up + down) / 2 + (up - down) / 2


def derived(noisy, generator):
    probe = Probe("rademacher", generator)
    down, up = (noisy.logits(probe.at(sign * DEFAULT_STEP))[0] for sign in (-1, 1))
    strengths = {"step": DEFAULT_STEP, "explicit": 0.5, "implicit": 1.0}
    return pair(noisy.criterion, up, down, noisy.targets, **strengths).total


SPELLED_OUT = {
    Rule("none"): [lambda noisy, _: noisy(clean)],
    Rule("dropout_k", "dropout_pair", 2): [
        *[lambda noisy, g: masked(noisy, g) / 2] * 2,
        lambda noisy, g: 0.5**0.5 / 2**0.5 * masked(noisy, g),
        lambda noisy, g: -(0.5**0.5) / 2**0.5 * masked(noisy, g),
    ],
    Rule("none", "analytic"): [lambda noisy, _: noisy(clean), central_noise],
    Rule("even", "odd"): [even_and_odd],
    Rule("explicit", "analytic", strength=0.5): [derived],
}


@pytest.mark.parametrize("rule", SPELLED_OUT, ids=lambda rule: rule.label)
def test_a_rule_is_its_passes_to_the_last_bit(rule):
    """So the recorded runs are those that this version would make, draw by draw."""
    gradients = []
    for terms in (None, SPELLED_OUT[rule]):
        model = Network().float()
        noisy = NoisyLoss(model, (TOKENS, None), "cross_entropy", TARGETS)
        generator = torch.Generator().manual_seed(3)
        for _ in range(2):
            if terms is None:
                Update(rule, generator=generator).backward(noisy)
            else:
                for term in terms:
                    term(noisy, generator).backward()
        gradients.append(flat([weight.grad for weight in model.parameters()]))
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        ("central", Rule("explicit", "analytic", strength=0.5, noise_scale=0.7)),
        ("even_odd", Rule("even", "odd", strength=0.5, noise_scale=0.7)),
        (
            "sampled_labels",
            Rule("explicit", "analytic", method="sampled_labels", strength=0.5, noise_scale=0.7),
        ),
    ],
)
def test_replace_dropout_is_the_update_of_a_rule(method, rule):
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    replacement = replace_dropout(
        MODEL, explicit=0.5, implicit=0.7, method=method, generator=generators[0]
    )
    loss = replacement.loss((TOKENS, None), TARGETS)
    noisy = NoisyLoss(MODEL, (TOKENS, None), "cross_entropy", TARGETS)
    assert torch.equal(loss, Update(rule, generator=generators[1]).loss(noisy))


def test_dropout_k_is_the_mean_of_its_masks():
    generators = [torch.Generator().manual_seed(0) for _ in range(3)]
    noisy = NoisyLoss(MODEL, (TOKENS, None), "cross_entropy", TARGETS)
    masks = torch.stack([masked(noisy, generators[0]) for _ in range(5)])
    for generator, chunk in zip(generators[1:], (None, 2), strict=True):
        loss = dropout_k_loss(MODEL, (TOKENS, None), TARGETS, 5, chunk=chunk, generator=generator)
        torch.testing.assert_close(loss, masks.mean())


class Tied(nn.Module):
    """Embeds outside the model with the matrix that the model ends with, as a soft prompt does."""

    def __init__(self, upstream=None):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(5, 4)
        self.hidden, self.drop = nn.Linear(4, 4), nn.Dropout(0.3)
        self.upstream = upstream

    def forward(self, x):
        if self.upstream is not None:
            x = x + self.upstream["x"]
        return F.linear(self.drop(torch.tanh(self.hidden(x))), self.table.weight)


def functional(weights):
    """A model whose weights are another's, or are computed from some."""
    inner = Tied()
    inner.requires_grad_(False)

    class Functional(nn.Module):
        def forward(self, x):
            return torch.func.functional_call(inner, weights(), (x,))

    return Functional()


class SparseTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.drop = nn.Embedding(5, 3, sparse=True), nn.Dropout(0.3)

    def forward(self, words):
        return self.drop(self.table(words))


class Alike(nn.Module):
    """Autograd gives two leaves the same tensor, and a third one number that is repeated."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.ones(6, 4))
        self.c, self.tied = nn.Parameter(torch.zeros(6, 5)), Tied()

    def forward(self, x):
        return self.tied(x + (self.a + self.b)) + self.c.sum() * torch.arange(5)


def chunk_cases():
    """Name to (model, inputs, leaves), made anew for each loss."""
    words = torch.tensor([0, 1, 2, 3, 4, 0])
    torch.manual_seed(1)
    encoder, model, x = nn.Linear(4, 4), Tied(), torch.randn(6, 4)
    prompt = torch.randn(6, 4, requires_grad=True)
    yield "an encoder", model, encoder(x), [*encoder.parameters(), *model.parameters()]
    yield "a soft prompt", model, prompt, [prompt, *model.parameters()]
    yield "tied to the inputs", model, model.table(words), [*model.parameters()]
    yield "a dict", model, {"x": encoder(x)}, [*encoder.parameters(), *model.parameters()]
    yield "held by the model", Tied({"x": encoder(x)}), x, [*encoder.parameters()]
    frozen = Tied().requires_grad_(False)
    yield "a frozen model", frozen, (encoder(x),), [*encoder.parameters()]
    leaves = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    yield "functional_call", functional(lambda: leaves), x, [*leaves.values()]
    made = {name: 2 * p for name, p in leaves.items()}  # before the call: one graph for all chunks
    yield "functional_call, made before", functional(lambda: made), x, [*leaves.values()]
    now = functional(lambda: {name: 2 * p for name, p in leaves.items()})
    yield "functional_call, made inside", now, x, [*leaves.values()]
    sparse = SparseTable()
    yield "sparse gradients", sparse, words, [*sparse.parameters()]
    alike = Alike()
    yield "one gradient for two", alike, x, [*alike.parameters()]


@pytest.mark.parametrize("name", [name for name, *_ in chunk_cases()])
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunks_reach_what_the_whole_loss_reaches(name, chunk):
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    gradients = []
    for size in (None, chunk):
        ((model, inputs, leaves),) = [case for n, *case in chunk_cases() if n == name]
        calls = []
        leaves[0].register_hook(lambda grad, calls=calls: calls.append(1) or 3 * grad)
        generator = torch.Generator().manual_seed(0)
        loss = dropout_k_loss(model, inputs, y, 4, chunk=size, generator=generator)
        (2 * loss).backward()
        assert calls == [1]  # a hook sees the gradient once
        gradients.append([leaf.grad for leaf in leaves])
    assert all(grad is not None and grad.any() for grad in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_chunks_of_a_frozen_model_are_a_value():
    model, x = Tied().requires_grad_(False), torch.randn(3, 4)
    y, generators = torch.tensor([0, 1, 2]), [torch.Generator().manual_seed(0) for _ in range(2)]
    loss = dropout_k_loss(model, x, y, 4, chunk=2, generator=generators[0])
    assert not loss.requires_grad
    torch.testing.assert_close(loss, dropout_k_loss(model, x, y, 4, generator=generators[1]))


def test_chunks_leave_parameters_that_are_not_met_without_a_gradient():
    model, x, y = Tied(), torch.randn(3, 4), torch.tensor([0, 1, 2])
    model.extra = nn.Linear(2, 2)
    dropout_k_loss(model, x, y, 4, chunk=2).backward()
    assert model.extra.weight.grad is None
    assert model.hidden.weight.grad is not None


class WithoutOne(torch.autograd.Function):
    """Has no gradient for its second input, as straight-through functions have none for a scale."""

    @staticmethod
    def forward(ctx, x, scale):
        return x * scale

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def test_chunks_where_a_function_has_no_gradient_for_a_parameter():
    class Rounded(Tied):
        def forward(self, x):
            return WithoutOne.apply(super().forward(x), self.scale)

    gradients = []
    for chunk in (None, 1):
        model, x, y = Rounded(), torch.ones(3, 4), torch.tensor([0, 1, 2])
        model.scale = nn.Parameter(torch.ones(()))
        generator = torch.Generator().manual_seed(0)
        dropout_k_loss(model, x, y, 3, chunk=chunk, generator=generator).backward()
        assert model.scale.grad is None
        gradients.append(model.hidden.weight.grad)
    torch.testing.assert_close(*gradients)


class Live(TorchDispatchMode):
    """The most bytes in tensors at any time, of those that an operation made in this mode."""

    def __init__(self):
        super().__init__()
        self.peak, self.made = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in args if isinstance(x, Tensor)}
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor) and (storage := x.untyped_storage())._cdata not in given:
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.made = {key: it for key, it in self.made.items() if not it[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.made.values()))
        return result


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 16, 64])
def test_chunks_keep_one_chunk_and_one_set_of_gradients(rows, before):
    """Whatever weighs more: the gradients by far, both alike, the activations by far."""
    torch.manual_seed(0)
    layers = (nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.3))
    model = nn.Sequential(*(copy.deepcopy(layer) for _ in range(6) for layer in layers))
    batch = torch.randn(rows, 64), torch.randint(64, (rows,))
    weights = dict(model.named_parameters())
    one_set = sum(p.numel() * p.itemsize for p in weights.values())
    if before:
        made = {name: 2 * p for name, p in weights.items()}
        inner, model = model, nn.Module()
        model.inner = inner
        model.forward = lambda x: torch.func.functional_call(inner, made, (x,))

    def peak(k, chunk=None):
        for p in weights.values():
            p.grad = None
        with Live() as live:
            dropout_k_loss(model, *batch, k, chunk=chunk).backward(retain_graph=before)
        return live.peak

    peak(1)  # finds the sites
    for chunk in (1, 4):
        last = batch[0].nbytes  # an output, which is kept
        assert peak(12, chunk) < peak(chunk) + 1.05 * one_set + last
    if not before:  # else there are gradients of what was made from the weights, too
        assert peak(12, 4) < 1.3 * peak(4)


def small(p=0.3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(p), nn.Linear(8, 3))


X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(9)), torch.tensor([0, 1, 2] * 2)


class Holder(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.net = small()
        self.objective = replace_dropout(self.net, **options)


def again(holder, how):
    if how == "pickle":
        return pickle.loads(pickle.dumps(holder))
    if how == "average":
        return torch.optim.swa_utils.AveragedModel(holder).module
    return copy.deepcopy(holder)


@pytest.mark.parametrize("how", ["pickle", "average", "deepcopy"])
@pytest.mark.parametrize("method", [None, "even_odd", "sampled_labels"])
def test_a_copy_after_a_step_goes_on_by_itself(how, method):
    holder = Holder(method=method, generator=torch.Generator().manual_seed(0))
    holder.objective.loss(X, Y).backward()
    assert holder.objective.output.requires_grad  # what could not be copied
    other = again(holder, how)
    assert other.objective.output is None
    assert other.objective.model is other.net is not holder.net
    torch.testing.assert_close(other.objective.parts, holder.objective.parts)
    # Draw by draw the same noise, of generators that are two.
    for _ in range(2):
        losses = [one.objective.loss(X, Y) for one in (holder, other)]
        assert torch.equal(*losses)


def test_an_update_is_copied_without_its_output():
    update = Update(Rule("dropout_k"), generator=torch.Generator().manual_seed(0))
    noisy = NoisyLoss(small(), X, "cross_entropy", Y)
    update.loss(noisy)
    other = copy.deepcopy(update)
    assert update.output is not None
    assert other.output is None
    assert torch.equal(update.loss(noisy), other.loss(noisy))


def test_a_state_goes_on_where_another_stopped(tmp_path):
    def made(seed):
        options = {"every": 3, "generator": torch.Generator().manual_seed(seed)}
        return replace_dropout(small(), method="central", **options)

    first, second = made(0), made(1)
    first.explicit = 0.5
    for _ in range(2):
        first.loss(X, Y)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.explicit == 0.5
    assert second.implicit == 1.0
    for _ in range(4):
        assert torch.equal(first.loss(X, Y), second.loss(X, Y))
        assert set(first.parts) == set(second.parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: None, "it has NoneType"),
        (lambda state: state | {"every": 2}, "must have the entries"),
        (lambda state: {"explicit": 1.0}, "must have the entries"),
        (lambda state: state | {"explicit": float("nan")}, "explicit is nan"),
        (lambda state: state | {"implicit": "1"}, "implicit is '1'"),
        (lambda state: state | {"done": True}, "done is True"),
        (lambda state: state | {"done": -1}, "done is -1"),
        (
            lambda state: state | {"generator": None},
            "object has a generator and the state has none",
        ),
        (lambda state: state | {"generator": torch.zeros(3).byte()}, "does not fit"),
        (lambda state: state | {"generator": "seed"}, "does not fit"),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(change, message):
    objective = replace_dropout(small(), generator=torch.Generator().manual_seed(0))
    before = objective.state_dict()
    with pytest.raises(InputError, match=message):
        objective.load_state_dict(change(objective.state_dict()))
    after = objective.state_dict()
    assert torch.equal(before.pop("generator"), after.pop("generator"))
    assert before == after
    without = replace_dropout(small())
    with pytest.raises(InputError, match="state has a generator and the object has none"):
        without.load_state_dict(objective.state_dict())


def test_the_default_method_suits_the_precision():
    objective = replace_dropout(small(), generator=torch.Generator().manual_seed(0))
    assert objective.method is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective.loss(X, Y)
        assert objective.method == "central"
    model = small().bfloat16()
    objective = replace_dropout(model, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"below float32.*method='even_odd'"):
        loss = objective.loss(X.bfloat16(), Y)
    assert objective.method == "even_odd"
    assert set(objective.parts) == {"even", "implicit"}
    same = replace_dropout(
        model, method="even_odd", generator=torch.Generator().manual_seed(0)
    ).loss(X.bfloat16(), Y)
    assert torch.equal(loss, same)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has been said
        objective.loss(X.bfloat16(), Y).backward()


def test_the_default_method_follows_autocast_and_a_cast():
    objective = replace_dropout(small())
    objective.loss(X, Y)
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="even_odd"):
        objective.loss(X, Y)
    objective.loss(X, Y)
    assert objective.method == "central"
    objective.model.bfloat16()  # the audit was of a float32 model
    with pytest.warns(UserWarning, match="even_odd"):
        objective.loss(X.bfloat16(), Y)
    assert objective.method == "even_odd"


@pytest.mark.parametrize("options", [{"every": 4}, {"explicit": 2.0}, {"explicit": -1.0}])
def test_the_default_method_refuses_what_has_no_substitute(options):
    objective = replace_dropout(small().bfloat16(), **options)
    with pytest.raises(PrecisionError, match="Use method='sampled_labels', or every=1"):
        objective.loss(X.bfloat16(), Y)
    replace_dropout(small().bfloat16(), method="sampled_labels", **options).loss(X.bfloat16(), Y)


def test_a_method_that_is_asked_for_is_not_replaced():
    with pytest.raises(PrecisionError, match="need a float32 forward pass"):
        replace_dropout(small().bfloat16(), method="central").loss(X.bfloat16(), Y)


@pytest.mark.parametrize("label", [name for name in CASES if name != "none"])
def test_where_nothing_drops_there_is_the_clean_loss(label):
    """At the start of a schedule: no site, so that any noise but none is refused."""
    value = torch.tensor(1.5, requires_grad=True)

    class WithoutSites:
        sites, output = (), "logits"

        def __call__(self, noise, *, update_buffers):
            assert noise is clean
            assert update_buffers
            return 2 * value

    update = Update(CASES[label][0])
    update.backward(WithoutSites())
    assert value.grad == 2
    assert update.output == "logits"
    assert update.parts == {"clean": 3, "objective": 3}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_any_optimizer_learns(optimizer):
    for rule in {rule.label: rule for rule, _, _ in CASES.values()}.values():
        model = Network()
        steps = optimizer(model.parameters(), lr=0.05)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            before = F.cross_entropy(model.eval()(TOKENS)[0][0], TARGETS[0])
        model.train()
        for _ in range(40):
            steps.zero_grad()
            updated(rule, model, generator=generator)
            steps.step()
        with torch.no_grad():
            assert F.cross_entropy(model.eval()(TOKENS)[0][0], TARGETS[0]) < before, rule


def test_noise_is_scaled_as_in_the_paper():
    assert Rule("dropout_k", "dropout_pair", 4).noise_scale == 0.75**0.5
    assert Rule("dropout_k", "analytic", 1).noise_scale == 0
    assert Rule("explicit", "analytic").noise_scale == 1
    assert Rule("dropout_k", "analytic", 4, noise_scale=0.3).noise_scale == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "dropuot_k"}, "unknown Objective"),
        ({"objective": "none", "noise": "pair"}, "unknown GradientNoise"),
        ({"objective": "explicit", "method": "best"}, "unknown ExplicitMethod"),
        ({"objective": "dropout_k", "k": 0}, "at least 1"),
        ({"objective": "dropout_k", "k": 2.0}, "whole number"),
        ({"objective": "even", "k": 4}, "belong to 'dropout_k'"),
        ({"objective": "l2", "strength": -1.0}, "must not be negative"),
        ({"objective": "explicit", "every": 0}, "at least 1"),
        ({"objective": "even", "every": 2}, "could run away"),
        ({"objective": "none", "every": 2}, "belongs to 'explicit'"),
        ({"objective": "none", "probes": 0}, "at least 1"),
        ({"objective": "dropout_k", "probes": 2}, "belongs to 'even' and 'explicit'"),
    ],
)
def test_impossible_rules_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Rule(**arguments)


def test_different_rules_have_different_labels():
    rules = [
        Rule(objective, noise, method=method, strength=strength, noise_scale=scale)
        for objective, noise, strength, scale, method in itertools.product(
            Objective, GradientNoise, (0.5, 1.0), (None, 0.5), ("central", "identity")
        )
    ]
    # Without what the objective or the absence of noise makes meaningless.
    meant = {
        (
            rule.objective,
            rule.noise,
            rule.method if rule.objective is Objective.EXPLICIT else None,
            rule.strength if rule.objective in ("l2", "even", "explicit") else None,
            rule.noise_scale if rule.noise is not GradientNoise.NONE else None,
        )
        for rule in rules
    }
    assert len({rule.label for rule in rules}) == len(meant)


def test_runs_with_one_name_are_one_run():
    by_name = {}
    for experiment in EXPERIMENTS.values():
        for size in Size:
            for run in experiment.runs(size, lambda _: None):
                assert by_name.setdefault(run.name, run.config) == run.config


EVERY_RULE = {rule.label: rule for rule in CHECKED}


@pytest.mark.parametrize("label", EVERY_RULE)
def test_a_step_never_waits_for_a_gpu(label):
    """On the device "meta" nothing is computed, so that whoever looks at a value fails."""
    run = Run(TASKS["lstm"], EVERY_RULE[label], Size.TINY, seed=0)
    model = run.task.model(50, **run.setting.model)
    tokens = torch.randint(50, (2, 9))
    updated(run.rule, model, tokens)  # on the CPU, where the sites are found
    with values_unchecked():
        meta = tokens.to("meta")
        model.to("meta")
        update = updated(run.rule, model, meta, generator=None)
    assert all(part.is_meta for part in update.parts.values())
    assert all(weight.grad.is_meta for weight in model.parameters())


def test_values_are_looked_at_where_nothing_is_said():
    """Labels out of range and NaN in the logits, in both states."""
    wrong = torch.full_like(TARGETS, 9)
    with pytest.raises(InputError, match="4 classes"):
        Update(Rule("none")).loss(NoisyLoss(MODEL, (TOKENS, None), "cross_entropy", wrong))
    logits = torch.full((1, 4), torch.nan)
    with pytest.raises(LogitsError, match="NaN"):
        find_logits(logits)
    with values_unchecked():
        assert find_logits(logits) is logits
        assert CrossEntropy().count(logits, torch.tensor([9])) == 1
    with pytest.raises(LogitsError, match="NaN"):
        find_logits(logits)
