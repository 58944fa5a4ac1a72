"""The checks of the pieces that a reader writes: right ones pass, known mistakes are named."""

import pytest
import torch

from dropreg.book.checks import Mistake, pieces


def dropout(h, q):
    return h * (torch.rand_like(h) >= q) / (1 - q)


def dropout_k(loss, draw, k):
    return sum(loss(draw()) for _ in range(k)) / k


def pair_noise(loss, draw, k):
    return ((1 - 1 / k) / 2) ** 0.5 * (loss(draw()) - loss(draw()))


def explicit(logits, eta):
    clean, moved = torch.func.jvp(logits, (torch.zeros_like(eta),), (eta,))
    p = clean.softmax(-1)
    return 0.5 * ((p * moved**2).sum(-1) - (p * moved).sum(-1) ** 2).mean()


def implicit(loss, eta, at=0.0, graph=True):
    e = torch.tensor(at, dtype=eta.dtype, requires_grad=True)
    return torch.autograd.grad(loss(e * eta), e, create_graph=graph)[0]


def even_odd(loss, eta, explicit, implicit):
    clean, up, down = loss(0 * eta), loss(eta), loss(-eta)
    return clean + explicit * ((up + down) / 2 - clean) + implicit * (up - down) / 2


RIGHT = {
    pieces.dropout: dropout,
    pieces.dropout_k: dropout_k,
    pieces.pair_noise: pair_noise,
    pieces.explicit: explicit,
    pieces.implicit: implicit,
    pieces.even_odd: even_odd,
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("check", RIGHT)
def test_the_right_piece_passes(check, seed, capsys):
    check(RIGHT[check], seed=seed)
    assert "✓" in capsys.readouterr().out


def test_the_noise_of_a_pair_may_have_either_sign():
    pieces.pair_noise(lambda *all_of_it: -pair_noise(*all_of_it))


def with_a_seed(h, q):
    torch.manual_seed(0)
    return dropout(h, q)


def once(loss, draw, k):
    return k * loss(draw()) / k


def with_whole_columns(h, q):
    return h * (torch.rand(h.shape[1]) >= q) / (1 - q)


def of_the_mean_mask(loss, draw, k):
    return loss(sum(draw() for _ in range(k)) / k)


def second_moment(logits, eta):
    clean, moved = torch.func.jvp(logits, (torch.zeros_like(eta),), (eta,))
    return 0.5 * (clean.softmax(-1) * moved**2).sum(-1).mean()


def by_the_identity(logits, eta):
    return 0.5 * torch.func.jvp(logits, (0 * eta,), (eta,))[1].square().sum(-1).mean()


def one_each(logits, eta):
    clean, moved = torch.func.jvp(logits, (torch.zeros_like(eta),), (eta,))
    return (clean.softmax(-1) * moved**2).sum(-1)


@pytest.mark.parametrize(
    ("check", "wrong", "says"),
    [
        (pieces.dropout, lambda h, q: dropout(h, 1 - q), "probability of a zero"),
        (pieces.dropout, lambda h, q: dropout(h, q) * (1 - q), "or the mean shrinks"),
        (pieces.dropout, lambda h, q: dropout(h, q) * (1 - q) / q, "not by q"),
        (pieces.dropout, lambda h, q: dropout(h, q) * (1 - q) ** 2, "shrinks twice"),
        (pieces.dropout, with_whole_columns, "whole columns"),
        (pieces.dropout, with_a_seed, "seed"),
        (pieces.dropout, lambda h, q: None, "return"),
        (pieces.dropout_k, once, "draw anew"),
        (pieces.dropout_k, lambda loss, draw, k: k * dropout_k(loss, draw, k), "that is the sum"),
        (pieces.dropout_k, of_the_mean_mask, "not the masks"),
        (pieces.dropout_k, lambda loss, draw, k: dropout_k(loss, draw, 2), "one for each"),
        (pieces.pair_noise, lambda *a: 2**0.5 * pair_noise(*a), "root of 2"),
        (pieces.pair_noise, lambda loss, draw, k: (1 - 1 / k) / 2 * (loss(draw()) - loss(draw())),
         "squared"),
        (pieces.pair_noise, lambda loss, draw, k: 0.5**0.5 * (loss(draw()) - loss(draw())),
         "in full"),
        (pieces.pair_noise, lambda loss, draw, k: (0.5 / k) ** 0.5 * (loss(draw()) - loss(draw())),
         "what is left"),
        (pieces.pair_noise, lambda loss, draw, k: loss(draw()), "independent of each other"),
        (pieces.explicit, lambda f, eta: 2 * explicit(f, eta), "factor 1/2"),
        (pieces.explicit, second_moment, "second part"),
        (pieces.explicit, lambda f, eta: 5 * explicit(f, eta), "not the sum"),
        (pieces.explicit, by_the_identity, "identity"),
        (pieces.explicit, one_each, "return their mean"),
        (pieces.implicit, lambda loss, eta: loss(eta), "under the noise"),
        (pieces.implicit, lambda loss, eta: implicit(loss, eta, at=1.0), "at ε = 0"),
        (pieces.implicit, lambda loss, eta: implicit(loss, eta, graph=False), "create_graph"),
        (pieces.even_odd, lambda f, eta, e, i: even_odd(f, eta, i, e), "exchanged"),
        (pieces.even_odd, lambda f, eta, e, i: even_odd(f, eta, e, i) + e * f(0 * eta), "already"),
        (pieces.even_odd, lambda f, eta, e, i: even_odd(f, eta, e, i) - (1 - e) * f(0 * eta),
         "must stay"),
        (pieces.even_odd, lambda f, eta, e, i: even_odd(f, -eta, e, i), "sign"),
        (pieces.even_odd,
         lambda f, eta, e, i: f(0 * eta) + e * (f(eta) + f(-eta) - f(0 * eta))
         + i * (f(eta) - f(-eta)), "factor 1/2"),
    ],
)  # fmt: skip
def test_mistakes_are_named(check, wrong, says):
    with pytest.raises(Mistake, match=says):
        check(wrong)
