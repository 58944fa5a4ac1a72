"""What a pass draws is seen, and a mask that is written by hand is the dropout that it is."""

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Variable

import dropreg
from dropreg import errors, find_sites
from dropreg.control import draws

X = torch.randn((6, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
KEEP = 0.7


class Net(nn.Module):
    """Two linear layers, and something between them."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.first(x).tanh()))


# ------------------------------------------------------------------------ the generators' states

OWN_RANDOM, OWN_NUMPY = random.Random(0), np.random.default_rng(0)
LEGACY, OWN_TORCH = np.random.RandomState(0), torch.Generator()

PUBLIC: dict[str, tuple[Callable[[], Any], str]] = {
    "torch.rand": (lambda: torch.rand(1), "torch's generator"),
    "torch.manual_seed": (lambda: torch.manual_seed(123456), "torch's generator"),
    "dropout": (lambda: F.dropout(torch.ones(3), 0.5), "torch's generator"),
    "random": (random.random, "Python's `random`"),
    "random.shuffle": (lambda: random.shuffle([1, 2, 3]), "Python's `random`"),
    "random.gauss": (lambda: random.gauss(0, 1), "Python's `random`"),
    "random.seed": (lambda: random.seed(123456), "Python's `random`"),
    "numpy rand": (lambda: np.random.rand(), "`numpy.random`"),  # noqa: NPY002
    "numpy choice": (lambda: np.random.choice(3), "`numpy.random`"),  # noqa: NPY002
    "numpy seed": (lambda: np.random.seed(123456), "`numpy.random`"),  # noqa: NPY002
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_draw_of_a_public_generator_is_seen(name: str) -> None:
    draw, generator = PUBLIC[name]
    with draws.restored():
        before = draws.states()
        draw()
        assert draws.changed(before, draws.states()) == [generator]


def test_the_second_number_of_a_pair_is_seen_too() -> None:
    """Python keeps half of a pair of Gaussian numbers for the next call."""
    with draws.restored():
        random.gauss(0, 1)
        before = draws.states()
        random.gauss(0, 1)
        assert draws.changed(before, draws.states()) == ["Python's `random`"]


def test_reading_a_state_changes_nothing() -> None:
    with draws.restored():
        torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
        expected = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
        states = [draws.states() for _ in range(3)]
        assert states[0] == states[1] == states[2]
        assert torch.equal(torch.rand(3), expected[0])
        assert (random.random(), np.random.rand()) == expected[1:]  # noqa: NPY002


def test_nothing_drawn_is_no_alarm() -> None:
    before = draws.states()
    random.Random(3).random(), np.random.default_rng(3).random()
    torch.rand(3, generator=torch.Generator())
    copy.deepcopy(nn.Dropout(0.5)), F.dropout(torch.ones(3), 0.5, training=False)
    random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    assert draws.changed(before, draws.states()) == []


def test_random_states_are_set_back() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    with draws.restored():
        for draw, _ in PUBLIC.values():
            draw()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert all(np.array_equal(a, b) for a, b in zip(before[2], np.random.get_state(), strict=True))  # noqa: NPY002


class Holds(nn.Module):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


class NamesAGlobal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * OWN_RANDOM.random()


def closes_over(generator: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: x * float(generator.random())


PRIVATE: dict[str, tuple[Callable[[Any], nn.Module], Any]] = {
    "attribute": (lambda g: Holds(rng=g), OWN_RANDOM),
    "list": (lambda g: Holds(rngs=[None, g]), OWN_NUMPY),
    "tuple": (lambda g: Holds(rngs=(g,)), LEGACY),
    "dict": (lambda g: Holds(rngs={"a": g}), OWN_NUMPY),
    "closure": (lambda g: Net(closes_over(g)), OWN_NUMPY),
    "global": (lambda g: NamesAGlobal(), OWN_RANDOM),
    "torch's": (lambda g: Holds(rng=g), OWN_TORCH),
    "in a submodule": (lambda g: nn.Sequential(nn.Linear(2, 2), Holds(rng=g)), OWN_RANDOM),
}


@pytest.mark.parametrize("name", PRIVATE)
def test_a_draw_of_a_private_generator_is_seen(name: str) -> None:
    build, generator = PRIVATE[name]
    private = draws.private_generators(build(generator))
    assert len(private) == 1
    before = draws.states(private)
    assert draws.changed(before, draws.states(private), private) == []
    if isinstance(generator, torch.Generator):
        torch.rand(1, generator=generator)
    else:
        generator.random() if hasattr(generator, "random") else generator.rand()
    (found,) = draws.changed(before, draws.states(private), private)
    assert found == private[0][0]
    assert "generator of" in found


# -------------------------------------------------------------------------------- masks by hand


def shared(dims: tuple[int, ...] = ()) -> Callable[[Tensor], Tensor]:
    return lambda x: dropreg.shared_dropout(x, 1 - KEEP, shared_dims=dims)


def in_place_statement(x: Tensor) -> Tensor:
    mask = torch.empty_like(x)
    mask.bernoulli_(KEEP)
    return x * mask / KEEP


def in_place_division(x: Tensor) -> Tensor:
    mask = x.new_empty(x.shape).bernoulli_(KEEP)
    mask.div_(KEEP)
    return mask * x


def multiplied_in_place(x: Tensor) -> Tensor:
    x = x / KEEP
    x *= (torch.rand_like(x) < KEEP).to(x.dtype)
    return x


def multiplied_in_place_by_truth(x: Tensor) -> Tensor:
    x = x / KEEP
    x *= torch.rand_like(x) < KEEP
    return x


def mul_statement(x: Tensor) -> Tensor:
    x = x / KEEP
    x.mul_(torch.rand_like(x) < KEEP)
    return x


def timm_drop_path(x: Tensor, keep_prob: float = KEEP, scale_by_keep: bool = True) -> Tensor:
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    random_tensor = x.new_empty(shape).bernoulli_(keep_prob)
    if keep_prob > 0.0 and scale_by_keep:
        random_tensor.div_(keep_prob)
    return x * random_tensor


def transformers_drop_path(x: Tensor, keep_prob: float = KEEP) -> Tensor:
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    random_tensor = keep_prob + torch.rand(shape, dtype=x.dtype, device=x.device)
    random_tensor.floor_()
    return x.div(keep_prob) * random_tensor


def torchvision_stochastic_depth(x: Tensor, survival_rate: float = KEEP) -> Tensor:
    noise = torch.empty([x.shape[0]] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
    noise = noise.bernoulli_(survival_rate)
    if survival_rate > 0.0:
        noise.div_(survival_rate)
    return x * noise


def added_in_place(x: Tensor) -> Tensor:
    mask = torch.rand((len(x), 1), dtype=x.dtype)
    mask.add_(KEEP)
    return x / KEEP * torch.floor(mask)


def awd_locked(x: Tensor) -> Tensor:
    m = x.data.new(1, x.size(1)).bernoulli_(KEEP)
    mask = Variable(m, requires_grad=False) / KEEP
    mask = mask.expand_as(x)
    return mask * x


def typed_by_name(x: Tensor) -> Tensor:
    return x * (torch.rand(x.shape) < KEEP).type("torch.DoubleTensor") / KEEP


ROW, COLUMN = (1,), (0,)
BY_HAND: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "bernoulli_": (lambda x: x * torch.empty_like(x).bernoulli_(KEEP) / KEEP, ()),
    "bernoulli_ by name": (lambda x: x * torch.empty_like(x).bernoulli_(p=KEEP) / KEEP, ()),
    "bernoulli_ as a statement": (in_place_statement, ()),
    "bernoulli_ and div_": (in_place_division, ()),
    "torch.bernoulli": (lambda x: torch.bernoulli(x, KEEP) * x / KEEP, ()),
    "x.bernoulli": (lambda x: x.detach().bernoulli(KEEP) * (x / KEEP), ()),
    "rand <": (lambda x: x * (torch.rand(x.shape) < KEEP).to(x.dtype) / KEEP, ()),
    "rand <=": (lambda x: x * (torch.rand(*x.shape) <= KEEP).double() / KEEP, ()),
    "rand >": (lambda x: x * (torch.rand(x.shape) > 1 - KEEP) / KEEP, ()),
    "rand >=": (lambda x: (torch.rand(x.size()) >= 1 - KEEP) * x / KEEP, ()),
    "keep >": (lambda x: x * (KEEP > torch.rand(x.shape)) / KEEP, ()),  # noqa: SIM300
    "rand_like <": (lambda x: x * (torch.rand_like(x) < KEEP).float() / KEEP, ()),
    "rand_like, type_as": (lambda x: x * (torch.rand_like(x) < KEEP).type_as(x) / KEEP, ()),
    "rand_like, type": (lambda x: x * (torch.rand_like(x) < KEEP).type(x.dtype) / KEEP, ()),
    "type by name": (typed_by_name, ()),
    "mask / keep": (lambda x: x * ((torch.rand_like(x) < KEEP).to(x) / KEEP), ()),
    "truth / keep": (lambda x: x * ((torch.rand_like(x) < KEEP) / KEEP), ()),
    "div_ of a mask": (lambda x: x * (torch.rand_like(x) < KEEP).to(x).div_(KEEP), ()),
    "method lt": (lambda x: x * torch.rand_like(x).lt(KEEP) / KEEP, ()),
    "method ge": (lambda x: x.mul(torch.rand_like(x).ge(1 - KEEP).to(x)).div(KEEP), ()),
    "torch.lt": (lambda x: torch.mul(x, torch.lt(torch.rand_like(x), KEEP)) / KEEP, ()),
    "torch.ge": (lambda x: torch.mul(x, torch.ge(torch.rand_like(x), 1 - KEEP)) / KEEP, ()),
    "not": (lambda x: x * ~(torch.rand_like(x) < 1 - KEEP) / KEEP, ()),
    "logical_not": (lambda x: x * torch.logical_not(torch.rand_like(x) < 1 - KEEP) / KEEP, ()),
    "*=": (multiplied_in_place, ()),
    "*= truth": (multiplied_in_place_by_truth, ()),
    "mul_ truth": (mul_statement, ()),
    "floor": (lambda x: x / KEEP * torch.floor(KEEP + torch.rand_like(x)), ()),
    "floor, other order": (lambda x: x / KEEP * (torch.rand_like(x) + KEEP).floor(), ()),
    "floor after add_": (added_in_place, ROW),
    "timm": (timm_drop_path, ROW),
    "transformers": (transformers_drop_path, ROW),
    "torchvision": (torchvision_stochastic_depth, ROW),
    "detached": (lambda x: x * torch.empty_like(x).bernoulli_(KEEP).detach() / KEEP, ()),
    "AWD-LSTM": (awd_locked, COLUMN),
    "AWD-LSTM, 3 dims": (
        lambda x: (x[:, None] * x.new(1, 1, x.size(1)).bernoulli_(KEEP).div_(KEEP))[:, 0],
        COLUMN,
    ),
}


CUT = "AWD-LSTM"
"""Its Variable(mask) cuts the mask off, where no function of PyTorch's is seen."""


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_mask_by_hand_is_a_dropout(name: str) -> None:
    by_hand, dims = BY_HAND[name]
    model, reference = Net(by_hand).double(), Net(shared(dims)).double()
    (site,) = find_sites(model, X)
    assert site.p == pytest.approx(1 - KEEP)
    before = torch.get_rng_state()
    for method in ("exact", "jvp", "central", "even_odd", "monte_carlo"):
        if name == CUT and method in ("exact", "jvp"):
            with pytest.raises(errors.NotYetSupportedError, match="no derivative reaches"):
                dropreg.explicit_regularizer(model, X, method=method)
            continue
        values, gradients = [], []
        for each in (model, reference):
            value = dropreg.explicit_regularizer(
                each, X, targets=Y, method=method, generator=seeded()
            )
            gradients.append(torch.autograd.grad(value, list(each.parameters())))
            values.append(value)
        # A mask in float32 is rounded there, as the user's own would be.
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-7, check_dtype=False)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    for method in ("central", "even_odd", *(() if name == CUT else ("sampled_labels",))):
        losses = []
        for each in (model, reference):
            each.zero_grad()
            loss = dropreg.replace_dropout(each, method=method, generator=seeded()).loss(X, Y)
            loss.backward()
            losses.append(loss)
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-7, check_dtype=False)
        torch.testing.assert_close(
            model.first.weight.grad, reference.first.weight.grad, rtol=1e-4, atol=1e-6
        )
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", BY_HAND)
def test_a_mask_by_hand_has_the_law_of_the_users_own(name: str) -> None:
    """The mean loss over many masks, the user's own and ours, within four standard errors."""
    by_hand, _ = BY_HAND[name]
    model = Net(by_hand).double()
    torch.manual_seed(0)
    with torch.no_grad():
        own = torch.stack([F.cross_entropy(model(X), Y) for _ in range(100)])
        clean = dropreg.NoisyLoss(model, X, "cross_entropy", Y)(lambda site: None)
    ours = dropreg.measure_explicit(model, X, Y, mc_samples=100, generator=seeded())
    error = math.hypot(float(own.std()) / 100**0.5, ours.standard_error)
    assert abs(float(own.mean() - clean) - ours.mean) < 4 * error


def test_embedding_dropout_of_awd_lstm() -> None:
    class Embeds(nn.Module):
        def __init__(self, *, by_hand: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.head, self.by_hand = nn.Embedding(7, 4), nn.Linear(4, 3), by_hand

        def forward(self, words: Tensor) -> Tensor:
            weight = self.embed.weight
            if self.by_hand:
                mask = weight.data.new().resize_((weight.size(0), 1)).bernoulli_(KEEP)
                masked = mask.expand_as(weight) / KEEP * weight
            else:
                masked = dropreg.shared_dropout(weight, 1 - KEEP, shared_dims=(1,))
            return self.head(F.embedding(words, masked).tanh())

    words = torch.tensor([0, 3, 3, 6, 1, 0])
    models = [Embeds(by_hand=by_hand).double() for by_hand in (True, False)]
    for method in ("exact", "central"):
        values = [
            dropreg.explicit_regularizer(m, words, method=method, generator=seeded())
            for m in models
        ]
        gradients = [
            torch.autograd.grad(v, m.embed.weight) for v, m in zip(values, models, strict=True)
        ]
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*gradients)


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "where": lambda x: torch.where(torch.rand_like(x) < KEEP, x, 0.0),
    "where of a mask": lambda x: torch.where(torch.empty_like(x).bernoulli_(KEEP).bool(), x, 0.0),
    "masked_fill": lambda x: x.masked_fill(torch.rand_like(x) < KEEP, 0.0),
    "masked_fill by name": lambda x: x.masked_fill(mask=torch.rand_like(x) < KEEP, value=0.0),
    "masked_fill of a mask": lambda x: x.masked_fill(torch.empty_like(x).bernoulli_(0.5) == 1, 0.0),
    "index": lambda x: x[torch.rand(len(x)) < KEEP],
    "assignment": lambda x: x.clone().index_put((torch.rand_like(x) < KEEP,), x.new_zeros(())),
    "1 - mask": lambda x: x * (1 - torch.empty_like(x).bernoulli_(KEEP)),
    "1 - truth": lambda x: x * (1 - (torch.rand_like(x) < KEEP)),
    "1 - float": lambda x: x * (1 - (torch.rand_like(x) < KEEP).to(x)),
    "1 - rand": lambda x: x * (1 - torch.rand_like(x)),
    "max_pool": lambda x: x * F.max_pool1d(torch.empty_like(x).bernoulli_(KEEP), 3, 1, 1),
    "== 0": lambda x: x * (torch.empty_like(x).bernoulli_(KEEP) == 0),
    "truth == 0": lambda x: x * ((torch.rand_like(x) < KEEP) == 0),
    "truth != 0": lambda x: x * ((torch.rand_like(x) < KEEP) != 0),
    "rand == 0": lambda x: x * (torch.rand_like(x) == 0),
    "and": lambda x: x * ((torch.rand_like(x) < KEEP) & (x > 0)),
    "and, other order": lambda x: x * ((x > 0) & (torch.rand_like(x) < KEEP)),
    "or": lambda x: x * ((torch.rand_like(x) < KEEP) | (x > 0)),
    "xor": lambda x: x * ((torch.rand_like(x) < KEEP) ^ (x > 0)),
    "plus": lambda x: x + (torch.rand_like(x) < KEEP),
    "truth plus": lambda x: (torch.rand_like(x) < KEEP) + x,
    "uniform_": lambda x: x * (torch.empty_like(x).uniform_() < KEEP),
    "reused": lambda x: (lambda m: x * m + m)(torch.empty_like(x).bernoulli_(KEEP)),
    "reused as a sum": lambda x: (lambda m: x * m / m.sum())(torch.empty_like(x).bernoulli_(KEEP)),
    "stacked": lambda x: (
        torch.stack([torch.empty_like(x).bernoulli_(KEEP), x.detach()]).amax(0) * x
    ),
    "a number": lambda x: x * torch.rand(1).item(),
    "a float": lambda x: x * float(torch.rand(1)),
    "an int": lambda x: x * int(torch.rand(1)),
    "times 2": lambda x: x * (torch.rand_like(x) * 2),
    "2 times": lambda x: x * (2 * torch.rand_like(x)),
    "minus": lambda x: x * -torch.rand_like(x),
    "power": lambda x: x * torch.rand_like(x) ** 2,
    "over": lambda x: x / torch.rand_like(x),
    "item of it": lambda x: x * torch.rand_like(x)[0],
    "loop over it": lambda x: x * sum(torch.rand(3)),
    "length of it": lambda x: x * len(torch.rand(3)),
    "numpy": lambda x: x * torch.rand(3).numpy()[0],
    "round": lambda x: x * torch.rand_like(x).round(),
    "matmul": lambda x: torch.rand(6, 6, dtype=x.dtype) @ x,
    "of a tensor": lambda x: x * (torch.rand_like(x) < x.sigmoid()),
    "two": lambda x: x * (torch.rand_like(x) < torch.rand_like(x)),
    "if": lambda x: x if torch.rand(1) < KEEP else -x,
    "if, number": lambda x: x if torch.rand(1).item() < KEEP else -x,
    "an int of a product": lambda x: x * int(10 * torch.rand(1)),
    "negative mask": lambda x: x * -torch.empty_like(x).bernoulli_(KEEP),
    "a learned threshold": lambda x: x * (torch.rand_like(x) < x.mean().sigmoid()),
    "out of a number": lambda x: x * torch.ones(()).div(torch.empty(()).bernoulli_(KEEP)),
    "generator": lambda x: x * (torch.rand(5, generator=torch.Generator()) < KEEP),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_uses_of_random_numbers_are_refused(name: str) -> None:
    model = Net(REFUSED[name]).double()
    kinds = (errors.NeverSupportedError, errors.NotYetSupportedError)
    with pytest.raises(kinds, match=r"shared_dropout, or switch it off"):
        find_sites(model, X)


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("number", [False, True])
def test_layers_that_are_skipped_at_random_run_at_probability_zero(p: float, number: bool) -> None:
    class LayerDrop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.head, self.drop = nn.Linear(4, 4), nn.Linear(4, 3), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            draw = torch.rand([]).item() if number else torch.rand([])
            skip = self.training and draw < p
            return self.head(self.drop(x if skip else self.first(x)))

    model = LayerDrop().double()
    if p:
        with pytest.raises(errors.NeverSupportedError, match=r"torch\.rand, used by an `if`"):
            find_sites(model, X)
        return
    plain = nn.Sequential(model.first, nn.Dropout(0.3), model.head)
    values = [dropreg.explicit_regularizer(each, X) for each in (model, plain)]
    torch.testing.assert_close(*values)


def test_thresholds_that_leave_no_choice_are_no_sites() -> None:
    for keep, off in ((1.0, lambda x: x), (0.0, lambda x: 0 * x)):
        by_hand = Net(lambda x, k=keep: F.dropout(x, 0.4) + x * (torch.rand_like(x) < k)).double()
        plain = Net(lambda x, off=off: F.dropout(x, 0.4) + off(x)).double()
        assert len(find_sites(by_hand, X)) == 1
        values = [dropreg.explicit_regularizer(each, X) for each in (by_hand, plain)]
        torch.testing.assert_close(*values)


def test_a_mask_that_multiplies_twice_is_refused() -> None:
    def squared(h: Tensor) -> Tensor:
        mask = torch.empty_like(h).bernoulli_(0.7)
        return h * mask * mask / 0.7

    def itself(h: Tensor) -> Tensor:
        mask = torch.empty_like(h).bernoulli_(0.7)
        return h * (mask * mask) / 0.7

    def shared(h: Tensor) -> Tensor:
        mask = torch.empty_like(h).bernoulli_(0.7) / 0.7
        return h * mask + h.square() * mask

    x = torch.ones(2, 4)
    for function in (squared, itself):
        with pytest.raises(errors.NotYetSupportedError, match="multiplies a tensor, once"):
            dropreg.find_sites(Applies(function), x)
    assert len(dropreg.find_sites(Applies(shared), x)) == 1


class Applies(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("count", [1, 2, 311, 312, 623, 624, 625, 1248, 6240])
def test_whole_turns_of_a_generator_are_seen(count: int) -> None:
    """A Mersenne twister has 624 words: after so many its position is the same again."""
    numpy_bits = np.random.mtrand._rand  # type: ignore[attr-defined]
    draw: dict[str, Callable[[], object]] = {
        "torch's generator": lambda: torch.rand(count),
        "Python's `random`": lambda: [random.getrandbits(32) for _ in range(count)],
        "`numpy.random`": lambda: numpy_bits.randint(0, 2**32, count, dtype=np.uint32),
    }
    for name, function in draw.items():
        before = draws.states()
        function()
        assert draws.changed(before, draws.states()) == [name]
