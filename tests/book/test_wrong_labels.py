"""The experiment of the book's first half against ordinary networks, one at a time."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dropreg
from dropreg.book.wrong_labels import (
    LEARNING_RATE,
    Training,
    at_equal_fit,
    each_loss,
    forward,
    network,
    one_of,
    second_order,
    side_by_side,
    train,
    wrong_labels,
)
from dropreg.errors import InputError


def test_each_seed_has_digits_and_wrong_labels_of_its_own():
    data = wrong_labels(3)
    assert data.x.shape == (3, 200, 64)
    assert not torch.equal(data.x[0], data.x[1])
    assert not torch.equal(data.wrong[0], data.wrong[1])
    again = wrong_labels(2)
    assert torch.equal(again.y, data.y[:2])
    clean = wrong_labels(3, wrong=0)
    for seed in range(3):
        rows = (clean.y[seed] != data.y[seed]).nonzero().flatten().tolist()
        assert set(rows) <= set(data.wrong[seed].tolist())
        assert len(rows) > 40


@pytest.mark.parametrize("arguments", [{"seeds": 0}, {"wrong": 201}, {"wrong": -1}])
def test_impossible_draws_are_refused(arguments):
    with pytest.raises(InputError):
        wrong_labels(**arguments)


def test_a_network_taken_out_computes_what_it_computed_beside_the_others():
    data = wrong_labels(3)
    models = [network(seed, width=8) for seed in range(3)]
    together = side_by_side(models).eval()
    for seed, model in enumerate(models):
        expected = model.eval()(data.test_x[seed])
        torch.testing.assert_close(together(data.test_x)[seed], expected)
        alone = one_of(together, seed).eval()
        torch.testing.assert_close(alone(data.test_x[seed]), expected)
        assert all(parameter.is_contiguous() for parameter in alone.parameters())


def test_trained_side_by_side_they_are_what_each_would_be_alone():
    data, models = wrong_labels(3), [network(seed, q=0.0, width=8) for seed in range(3)]
    alone = copy.deepcopy(models)
    together = side_by_side(models)
    result = train(together, data, steps=60, keep=(0, 60))
    assert result.steps.tolist() == [0, 50, 60]
    batches = torch.Generator().manual_seed(0)
    drawn = [torch.randint(200, (3, 20), generator=batches) for _ in range(60)]
    for seed, model in enumerate(alone):
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        for rows in drawn:
            optimizer.zero_grad()
            F.cross_entropy(model(data.x[seed, rows[seed]]), data.y[seed, rows[seed]]).backward()
            optimizer.step()
        for name, x, y in (
            ("test", data.test_x[seed], data.test_y[seed]),
            ("fit", data.x[seed], data.y[seed]),
        ):
            end = F.cross_entropy(model(x), y)
            torch.testing.assert_close(getattr(result, name)[seed, -1], end, rtol=1e-3, atol=1e-4)
    assert not torch.equal(result.networks[0][0].weight, result.networks[60][0].weight)


def test_layer_by_layer_is_the_network_and_noise_stands_in_for_dropout():
    data, models = wrong_labels(2), [network(seed, width=8) for seed in range(2)]
    together = side_by_side(models)
    layers = forward(together, data.x)
    torch.testing.assert_close(layers.logits, together.eval()(data.x))
    torch.testing.assert_close(layers.h2, layers.z2.tanh())
    noisy = forward(together, data.x, eta1=torch.full_like(layers.h1, -1.0))
    torch.testing.assert_close(noisy.z2, together[3].bias.expand_as(noisy.z2))
    own = F.cross_entropy(layers.logits[1], data.y[1], reduction="none")
    torch.testing.assert_close(each_loss(layers.logits, data.y)[1], own)


def test_the_second_order_is_that_of_the_library_and_of_autograd():
    data, models = wrong_labels(2, images=5, wrong=3), [network(seed, width=4) for seed in range(2)]
    together = side_by_side(models).double()
    x, y = data.x.double(), data.y
    found = second_order(together, x, y)
    for seed in range(2):
        library = dropreg.explicit_regularizer(one_of(together, seed), x[seed], method="exact")
        torch.testing.assert_close(found.gauss_newton[seed].mean(), library)

    def loss(eta):
        return each_loss(forward(together, x, eta[:4], eta[4:]).logits, y)

    strength = torch.zeros(8, dtype=torch.float64)
    bends = torch.func.hessian(loss)(strength).diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(found.gauss_newton + found.dropped, bends / 2)


def test_the_second_order_is_of_tanh_units():
    together = side_by_side([network(0, activation=nn.ReLU)])
    with pytest.raises(InputError, match="ReLU"):
        second_order(together, torch.zeros(1, 1, 64), torch.zeros(1, 1, dtype=torch.long))


def test_equal_fit_is_where_the_one_that_fits_least_is_at_its_best():
    quick = Training(
        torch.arange(4),
        test=torch.tensor([[3.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 2.0]]),
        fit=torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]]),
        networks={},
    )
    slow = Training(
        torch.arange(4),
        test=torch.tensor([[3.0, 2.5, 2.0, 1.5], [3.0, 0.5, 0.7, 0.9]]),
        fit=torch.tensor([[3.0, 2.5, 2.0, 1.5], [3.0, 2.5, 2.4, 2.3]]),
        networks={},
    )
    # First seed: quick is best at a training loss of 2, which is above slow's last one. Second
    # seed: slow is best at 2.5, which quick passes half-way between its first two looks.
    found = at_equal_fit({"quick": quick, "slow": slow})
    assert found == {"quick": [1.0, 2.5], "slow": [2.0, 0.5]}
