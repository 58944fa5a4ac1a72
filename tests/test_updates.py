"""Update rules on a network so small that its noise can be enumerated: every mask, every sign."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
from dropreg.errors import InputError, LogitsError, values_unchecked
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
