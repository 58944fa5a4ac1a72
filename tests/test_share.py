"""Both effects on a share of the batch, against all draws of share and noise, by hand."""

import copy
import itertools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dropreg import (
    CrossEntropy,
    LockedDropout,
    NoisyLoss,
    explicit_regularizer,
    implicit_noise,
    replace_dropout,
    shared_dropout,
)
from dropreg.errors import InputError, NotYetSupportedError
from dropreg.losses import Loss
from dropreg.share import layout
from dropreg.updates import DEFAULT_SHARE, Rule

N, UNITS, CLASSES, Q = 4, 2, 3, 0.3
STEP = 1e-3
torch.manual_seed(0)
X = torch.randn(N, 3, dtype=torch.float64)
Y = torch.tensor([0, 2, 1, 1])
SIGNS = list(itertools.product((-1.0, 1.0), repeat=UNITS))


class Perceptron(nn.Module):
    """Noise of its own for each example, or one noise for the weights of the last layer."""

    def __init__(self, *, on_weights=False, own=True):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(3, UNITS), nn.Linear(UNITS, CLASSES)
        self.on_weights, self.own = on_weights, own
        self.double()

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = F.dropout(h, Q, self.training and self.own)
        weight = self.last.weight
        if self.on_weights:
            weight = shared_dropout(weight, Q, self.training)
        return F.linear(h, weight, self.last.bias)


def flat_gradient(value, model):
    grads = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


def slope(model, eta_h, eta_w, rows):
    """The noise of some rows, without the library: d/d epsilon of their loss over N."""
    eps = torch.zeros((), dtype=torch.float64, requires_grad=True)
    h = torch.tanh(model.first(X[rows])) * (1 + eps * eta_h)
    logits = F.linear(h, model.last.weight * (1 + eps * eta_w), model.last.bias)
    loss = F.cross_entropy(logits, Y[rows], reduction="sum") / N
    (value,) = torch.autograd.grad(loss, eps, create_graph=True)
    return flat_gradient(value, model)


def fixed_order(monkeypatch, order):
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.tensor(order))


def sign_of(*rows):
    """A law that draws these signs."""
    size = (Q / (1 - Q)) ** 0.5

    def draw(shape, p, **options):
        return size * torch.tensor(rows, dtype=options["dtype"]).expand(shape)

    return draw


def update(model, monkeypatch, first, law, **options):
    others = [n for n in range(N) if n not in first]
    fixed_order(monkeypatch, [*first, *others])
    loss = replace_dropout(model, distribution=law, share=len(first) / N, step=STEP, **options)
    return flat_gradient(loss.loss(X, Y), model), loss.parts


def test_noise_of_its_own_keeps_its_covariance(monkeypatch):
    """All shares of one example, and all signs of its noise."""
    model = Perceptron()
    size = (Q / (1 - Q)) ** 0.5
    clean = flat_gradient(F.cross_entropy(model.eval()(X), Y), model)
    model.train()
    found, wanted = [], torch.zeros(len(clean), len(clean), dtype=torch.float64)
    for n, signs in itertools.product(range(N), SIGNS):
        found.append(update(model, monkeypatch, [n], sign_of(signs), explicit=0)[0] - clean)
        eta = size * torch.tensor(signs, dtype=torch.float64)
        xi = slope(model, eta, torch.zeros(()), [n])
        wanted += torch.outer(xi, xi) / len(SIGNS)
    found = torch.stack(found)
    assert found.mean(0).norm() < 1e-5 * found.norm()
    covariance = found.T @ found / len(found)
    assert (covariance - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("method", ["central", "even_odd", "central_identity"])
@pytest.mark.parametrize("size", [1, 2])
def test_the_explicit_effect_keeps_its_mean(monkeypatch, method, size):
    """Over all shares; the noise is fixed, so that the mean must be that of all examples."""
    model = Perceptron()
    law = sign_of((1.0, -1.0))
    whole = replace_dropout(model, distribution=law, method=method, implicit=0, share=1, step=STEP)
    wanted = flat_gradient(whole.loss(X, Y), model)
    value = whole.parts.get("explicit")
    if value is None:  # "even" holds the clean loss, too
        value = whole.parts["even"] - F.cross_entropy(model.eval()(X), Y)
        model.train()
    parts, found = [], []
    for first in itertools.combinations(range(N), size):
        gradient, of = update(model, monkeypatch, list(first), law, method=method, implicit=0)
        found.append(gradient)
        parts.append(of["explicit"])
    assert torch.allclose(torch.stack(parts).mean(), value, rtol=1e-5)
    assert torch.allclose(torch.stack(found).mean(0), wanted, rtol=1e-5, atol=1e-7)


def test_noise_that_examples_share_keeps_its_mean_given_the_noise(monkeypatch):
    model = Perceptron(on_weights=True, own=False)
    size = (Q / (1 - Q)) ** 0.5
    clean = flat_gradient(F.cross_entropy(model.eval()(X), Y), model)
    model.train()
    signs = (1.0, -1.0)  # of the two inputs of each of the last units
    eta = size * torch.tensor(signs, dtype=torch.float64)
    wanted = slope(model, torch.zeros(()), eta, list(range(N)))
    found = [
        update(model, monkeypatch, [n], sign_of(signs), explicit=0)[0] - clean for n in range(N)
    ]
    assert torch.allclose(torch.stack(found).mean(0), wanted, atol=1e-6 * wanted.norm())


def test_both_kinds_of_noise_have_shares_of_their_own(monkeypatch):
    model = Perceptron(on_weights=True)
    found = layout(NoisyLoss(model, X, "cross_entropy", Y))
    assert list(found.sites.values()) == [0, None]
    size = (Q / (1 - Q)) ** 0.5
    clean = flat_gradient(F.cross_entropy(model.eval()(X), Y), model)
    model.train()
    signs = (1.0, -1.0)
    eta = size * torch.tensor(signs, dtype=torch.float64)
    gradient, _ = update(model, monkeypatch, [2], sign_of(signs), explicit=0)
    # The first of the order has noise of its own, the second that of the weights.
    wanted = 2 * slope(model, eta, torch.zeros(()), [2]) + 4 * slope(
        model, torch.zeros(()), eta, [0]
    )
    assert torch.allclose(gradient - clean, wanted, atol=1e-5 * wanted.norm())


@pytest.mark.parametrize("method", ["central", "even_odd"])
@pytest.mark.parametrize("own", [False, True])
def test_with_shared_noise_clean_loss_and_output_are_the_networks(method, own):
    model = Perceptron(on_weights=True, own=own)
    logits = model.eval()(X)
    model.train()
    objective = replace_dropout(model, method=method, share=0.25, step=STEP)
    objective.loss(X, Y)
    clean = F.cross_entropy(logits, Y)
    assert torch.allclose(objective.parts["clean"], clean, rtol=1e-5)
    # The noise enters the logits linearly: the mean of a pair is the clean network's.
    assert torch.allclose(objective.output, logits)


LOSSES = {
    "padding": CrossEntropy(),
    "smoothing": CrossEntropy(label_smoothing=0.2),
    "class weights": CrossEntropy(weight=torch.tensor([1.0, 2.0, 0.5])),
    "normalizer": CrossEntropy(normalizer=7.0),
    "sum": CrossEntropy(reduction="sum"),
    "shift": CrossEntropy(shift=True),
    "torch's own": nn.CrossEntropyLoss(ignore_index=-100),
    "one number": lambda logits, y: F.cross_entropy(logits.flatten(0, 1), y.flatten()),
}


class Tokens(nn.Module):
    """Logits for each token."""

    def __init__(self, *, classes_first=False):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.dropout = nn.Embedding(9, 6), nn.Dropout(0.4)
        self.head, self.classes_first = nn.Linear(6, CLASSES), classes_first
        self.double()

    def forward(self, tokens):
        logits = self.head(self.dropout(self.table(tokens)).tanh())
        return logits.transpose(1, 2) if self.classes_first else logits


@pytest.mark.parametrize("name", LOSSES)
def test_ragged_targets_and_weights_keep_their_weights(monkeypatch, name):
    """The mean over all shares, with a fixed noise, is the value for all examples."""
    model, tokens = Tokens(classes_first=name == "torch's own"), torch.arange(20).view(4, 5) % 9
    targets = (tokens * 7 + 1) % CLASSES
    targets[0, 1:] = targets[2, 4] = -100
    law = sign_of((1.0, -1.0, 1.0, 1.0, -1.0, 1.0))
    whole = replace_dropout(model, distribution=law, share=1, loss=LOSSES[name], step=STEP)
    total = whole.loss(tokens, targets)
    shares = []
    for first in itertools.combinations(range(4), 2):
        fixed_order(monkeypatch, [*first, *(n for n in range(4) if n not in first)])
        of = replace_dropout(
            model, distribution=law, share=0.5, loss=LOSSES[name], implicit=2**0.5, step=STEP
        )
        shares.append(of.loss(tokens, targets))
        assert torch.allclose(of.parts["clean"], whole.parts["clean"], rtol=1e-5)
    assert torch.allclose(torch.stack(shares).mean(), total, rtol=1e-5)


class Recurrent(nn.Module):
    """As many layers as examples, and a state whose second dimension counts them."""

    def __init__(self, *, batch_first=True):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(3, 4, num_layers=4, dropout=0.4, batch_first=batch_first)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x, state=None):
        h, state = self.lstm(x, state)
        return self.head(h), state


def sequences(batch_first=True):
    torch.manual_seed(3)
    x, y = torch.randn(4, 6, 3), torch.randint(CLASSES, (4, 6))
    return (x, y) if batch_first else (x.transpose(0, 1), y.T.contiguous())


@pytest.mark.parametrize("batch_first", [True, False])
def test_states_are_taken_apart_and_put_together(batch_first):
    model, (x, y) = Recurrent(batch_first=batch_first), sequences(batch_first)
    zero = torch.zeros(4, 4, 4)
    objective = replace_dropout(
        model, share=0.25, step=1e-3, generator=torch.Generator().manual_seed(0)
    )
    # A zero state tells nothing of its dimensions, the next one does.
    objective.loss((x, (zero, zero)), y)
    state = tuple(s.detach() for s in objective.output[1])
    for _ in range(3):
        objective.loss((x, state), y)
        model.eval()
        logits, after = model(x, state)
        clean = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        model.train()
        assert torch.allclose(objective.parts["clean"], clean, atol=1e-5)
        assert torch.allclose(objective.output[0], logits, atol=1e-5)
        for ours, theirs in zip(objective.output[1], after, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
        state = tuple(s.detach() for s in objective.output[1])


class OfPacked(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.dropout, self.gru, self.head = nn.Dropout(0.3), nn.GRU(3, 4, batch_first=True), None
        self.head = nn.Linear(4, CLASSES)

    def forward(self, packed):
        _, last = self.gru(packed)
        return self.head(self.dropout(last[0]))


def test_packed_sequences_are_taken_apart():
    model, (x, y) = OfPacked(), sequences()
    packed = nn.utils.rnn.pack_padded_sequence(x, [2, 6, 3, 4], True, enforce_sorted=False)
    objective = replace_dropout(model, share=0.5, step=1e-3)
    for _ in range(3):
        objective.loss(packed, y[:, 0])
        clean = F.cross_entropy(model.eval()(packed), y[:, 0])
        model.train()
        assert torch.allclose(objective.parts["clean"], clean, atol=1e-5)
    assert objective.share == 0.5


class OfDict(nn.Module):
    """Keywords, a mask as large as the batch that belongs to no example, logits in one row."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(6, CLASSES)

    def forward(self, tokens, mask, scale=None):
        h = F.one_hot(tokens, 6).float().cumsum(1)
        h = torch.einsum("ts,nsd->ntd", mask, h) * (1.0 if scale is None else scale)
        return {"logits": self.head(self.dropout(h).tanh()).flatten(0, 1), "scale": scale}


def test_dicts_masks_and_flat_logits():
    model = OfDict()
    tokens = torch.arange(16).view(4, 4) % 6
    inputs = {"tokens": tokens, "mask": torch.ones(4, 4).tril(), "scale": None}
    targets = (tokens.flatten() * 5) % CLASSES
    found = layout(NoisyLoss(model, inputs, "cross_entropy", targets))
    assert sorted(map(str, found.inputs)) == ["0", "None", "None"]
    objective = replace_dropout(model, share=0.25, step=1e-3)
    objective.loss(inputs, targets)
    logits = model.eval()(**inputs)["logits"]
    assert torch.allclose(objective.parts["clean"], F.cross_entropy(logits, targets), atol=1e-5)
    assert torch.allclose(objective.output["logits"], logits, atol=1e-5)


class MeetsOthers(nn.Module):
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.dropout, self.head, self.how = nn.Dropout(0.3), nn.Linear(3, CLASSES), how

    def forward(self, x):
        h = self.dropout(x)
        if self.how == "mean":
            h = h - h.mean(0)
        elif self.how == "attention":
            h = (h @ h.T).softmax(-1) @ h
        elif self.how == "noise only":
            h = h + (h.detach() - x).mean(0)
        elif self.how == "size":
            h = h * len(h)
        return self.head(h)


@pytest.mark.parametrize("how", ["mean", "attention", "noise only", "size"])
def test_examples_that_see_each_other_are_not_taken_apart(how):
    model, x = MeetsOthers(how), X.float()
    with pytest.raises(NotYetSupportedError, match=r"cannot be taken apart.*share=1.*split="):
        replace_dropout(model, share=0.5).loss(x, Y)
    objective = replace_dropout(model, generator=torch.Generator().manual_seed(0))
    loss = objective.loss(x, Y)
    whole = replace_dropout(model, share=1, generator=torch.Generator().manual_seed(0))
    assert objective.share == 1
    assert torch.equal(loss, whole.loss(x, Y))


def test_integers_that_may_number_the_examples_are_not_left_whole():
    """On a GPU the edges of a graph with fewer nodes would end the process."""

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.dropout, self.head, self.passes = nn.Dropout(0.3), nn.Linear(3, CLASSES), []

        def forward(self, x, edges):
            self.passes.append(len(x))
            return self.head(self.dropout(x).index_add(0, edges[1], x[edges[0]]))

    model, edges = Graph(), torch.tensor([[0, 3, 1], [1, 2, 3]])
    with pytest.raises(NotYetSupportedError, match="may number the examples"):
        replace_dropout(model, share=0.5).loss((X.float(), edges), Y)
    objective = replace_dropout(model)
    objective.loss((X.float(), edges), Y)
    assert objective.share == 1
    assert set(model.passes) == {N}


def test_a_split_of_the_users_own():
    """Inputs as a list of sequences of unequal length, which no dimension counts."""

    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.dropout, self.head = nn.Dropout(0.3), nn.Linear(3, CLASSES)

        def forward(self, bags):
            return self.head(self.dropout(torch.stack([bag.mean(0) for bag in bags])))

    model, (x, y) = Bags(), sequences()
    bags = [x[0, :2], x[1], x[2, :3], x[3, :5]]
    with pytest.raises(NotYetSupportedError, match="split="):
        replace_dropout(model, share=0.5).loss((bags,), y[:, 0])

    def split(inputs, rows):
        return ([inputs[0][n] for n in rows.tolist()],)

    objective = replace_dropout(model, share=0.5, split=split, step=1e-3)
    objective.loss((bags,), y[:, 0])
    clean = F.cross_entropy(model.eval()(bags), y[:, 0])
    assert torch.allclose(objective.parts["clean"], clean, atol=1e-5)


def test_batch_norm_counts_the_share_twice_and_its_statistics_once():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, CLASSES)
    )
    x, y = torch.randn(16, 3), torch.randint(CLASSES, (16,))
    before = copy.deepcopy(model.state_dict())
    objective = replace_dropout(model, share=0.25, generator=torch.Generator().manual_seed(0))
    objective.loss(x, y)
    assert model[1].num_batches_tracked == 1
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([order, order[:4]])  # in whatever order
    reference = nn.BatchNorm1d(5)
    reference(model[0](x[rows]))
    assert torch.allclose(model[1].running_mean, reference.running_mean, atol=1e-6)
    assert torch.allclose(model[1].running_var, reference.running_var, atol=1e-6)
    weights = {name for name, _ in model.named_parameters()}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in weights)


def test_batch_norm_and_shared_noise_are_refused_together():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.weight = nn.BatchNorm1d(3), nn.Parameter(torch.randn(CLASSES, 3))

        def forward(self, x):
            return F.linear(self.norm(x), shared_dropout(self.weight, 0.3, self.training))

    with pytest.raises(NotYetSupportedError, match="batch norm"):
        replace_dropout(Both(), share=0.5).loss(X.float(), Y)


def test_attention_convolutions_and_locked_dropout_have_noise_by_rows():
    """Sites whose first dimension is examples times heads, (T, N, …), or shared over time."""

    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.attention = nn.MultiheadAttention(4, 2, dropout=0.3)  # time first
            self.locked, self.channels = LockedDropout(0.3, (1,)), nn.Dropout1d(0.3)
            self.head = nn.Linear(4, CLASSES)

        def forward(self, x):
            h = self.locked(x).transpose(0, 1)
            h = h + self.attention(h, h, h, need_weights=True)[0]
            return self.head(self.channels(h.permute(1, 2, 0)).mean(-1))

    model, x = Many().double(), torch.randn(6, 5, 4, dtype=torch.float64)
    y = torch.randint(CLASSES, (6,))
    found = layout(NoisyLoss(model, x, "cross_entropy", y))
    assert set(found.sites.values()) == {0}
    g = torch.Generator().manual_seed(0)
    objective = replace_dropout(model, share=1 / 3, generator=g, implicit=0)
    values = []
    for _ in range(3000):
        objective.loss(x, y)
        values.append(objective.parts["explicit"])
    exact = explicit_regularizer(model, x, method="exact")
    values = torch.stack(values)
    # A step of 0.2 adds to the sampling's error some per cent of its own.
    error = 4 * values.std() / len(values) ** 0.5 + 0.05 * exact
    assert (values.mean() - exact).abs() < error


def test_the_default_share():
    objective = replace_dropout(Perceptron())
    objective.loss(X, Y)
    assert objective.share == DEFAULT_SHARE
    shared = replace_dropout(Perceptron(on_weights=True))
    shared.loss(X, Y)
    assert shared.share == 1
    other = replace_dropout(Perceptron(), method="jvp")
    other.loss(X, Y)
    assert other.share == 1
    strong = replace_dropout(Perceptron(), method="even_odd")
    strong.loss(X, Y)
    assert strong.share == 1
    seldom = replace_dropout(Perceptron(), every=2)
    seldom.loss(X, Y)
    assert seldom.share == 1


def test_a_batch_of_one_or_an_odd_last_batch():
    model = Perceptron()
    objective = replace_dropout(model, share=0.25, generator=torch.Generator().manual_seed(0))
    objective.loss(X, Y)
    for rows in (1, 3, 2, 1, 1, 4, 1):
        objective.loss(X[:rows], Y[:rows])
        assert math.isfinite(float(objective.parts["clean"]))
    with pytest.raises(InputError, match="class labels"):
        objective.loss(X, Y[:3])


def test_a_probability_that_changes():
    model = nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 8), nn.Dropout(0.0), nn.Linear(8, CLASSES))
    objective = replace_dropout(model, share=0.5, implicit=0)
    x = X.float()
    objective.loss(x, Y)
    first = objective.parts["explicit"]
    model[0].p, model[2].p = 0.0, 0.5
    objective.loss(x, Y)
    assert objective.parts["explicit"] != first


def test_half_precision_on_a_share_keeps_its_parts():
    model, x = Perceptron().bfloat16(), X.bfloat16()
    objective = replace_dropout(
        model, method="even_odd", share=0.25, generator=torch.Generator().manual_seed(0)
    )
    total = objective.loss(x, Y)
    assert list(objective.parts) == ["clean", "explicit", "implicit"]
    assert torch.allclose(total, sum(objective.parts.values()), atol=1e-2)
    by_itself = replace_dropout(model)
    with pytest.warns(UserWarning, match="even_odd"):
        by_itself.loss(x, Y)
    assert by_itself.share == 1


def test_options_that_do_not_fit():
    for share in (0, -0.5, 1.5, math.nan, "half", True):
        with pytest.raises(InputError, match="share"):
            replace_dropout(Perceptron(), share=share)
    with pytest.raises(InputError, match="two passes"):
        replace_dropout(Perceptron(), share=0.5, method="jvp")
    with pytest.raises(InputError, match="choose one"):
        replace_dropout(Perceptron(), share=0.5, every=2)
    with pytest.raises(InputError, match="brings its own noise"):
        Rule("explicit", noise="dropout_pair", share=0.5)
    assert Rule("explicit", noise="analytic", share=0.25).label == "central+analytic-share0.25"


def test_copies_and_pickles_leave_the_output_behind():
    objective = replace_dropout(Perceptron(), share=0.5)
    objective.loss(X, Y)
    assert objective.output.shape == (N, CLASSES)
    for other in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert other.output is None
        other.loss(X, Y)
        assert other.output.shape == (N, CLASSES)


def test_a_loss_of_ones_own_is_taken_apart_if_it_has_terms():
    class Margins(Loss):
        def per_term(self, logits, targets):
            return (logits - F.one_hot(targets, CLASSES)).pow(4).sum(-1)

    model = Perceptron()
    objective = replace_dropout(model, loss=Margins(), share=0.5, step=STEP)
    objective.loss(X, Y)
    clean = (model.eval()(X) - F.one_hot(Y, CLASSES)).pow(4).sum(-1).mean()
    assert torch.allclose(objective.parts["clean"], clean, rtol=1e-5)


def test_what_cannot_be_put_together_is_said_when_it_is_asked_for():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout, self.head = nn.Dropout(0.3), nn.Linear(3, CLASSES)

        def forward(self, x):
            return self.head(self.dropout(x)), {1, 2}

    objective = replace_dropout(Odd(), share=0.5)
    objective.loss(X.float(), Y)
    with pytest.raises(NotYetSupportedError, match="cannot be put together"):
        _ = objective.output


def test_implicit_alone_is_the_slope(monkeypatch):
    """The part that is logged is the noise's scalar, of which the gradient is taken."""
    model, law = Perceptron(), sign_of((1.0, 1.0))
    fixed_order(monkeypatch, [0, 1, 2, 3])
    objective = replace_dropout(model, distribution=law, share=0.5, step=STEP)
    objective.loss(X, Y)
    monkeypatch.undo()
    whole = implicit_noise(model, X[:2], Y[:2], method="central", step=STEP, distribution=law)
    assert torch.allclose(objective.parts["implicit"], whole / 2**0.5, rtol=1e-4)
