"""The page *Try it* computes in numpy, by hand, what the library computes."""

import ast
import itertools
import sys

import nbformat
import numpy as np
import pytest
import torch
from torch import nn

import dropreg
from dropreg.book import plots, statistics
from tools import ROOT, lite

CELLS = {
    cell.id: cell.source
    for cell in nbformat.read(ROOT / lite.NOTEBOOK, as_version=4).cells
    if cell.cell_type == "code"
}
Q = 0.3


@pytest.fixture(scope="module")
def page():
    """What the page's cells define, before anything is trained."""
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib_inline.backend_inline.set_matplotlib_formats", lambda *_: None)
        patch.setattr("matplotlib.pyplot.rcParams", {})  # other tests' figures keep their looks
        for source in CELLS.values():
            if "runs = {" in source:
                return names
            if "# @title Draw" not in source or "digits" in source:
                exec(source, names)
    pytest.fail("no cell trains")


@pytest.fixture
def case():
    """A small network in PyTorch and the same as the page has it, images and labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(Q), nn.Linear(5, 10)).double()
    x, y = torch.randn(7, 6, dtype=torch.float64), torch.randint(10, (7,))
    first, last = model[0], model[3]
    net = [
        t.detach().numpy()
        for t in (first.weight.T, first.bias[None], last.weight.T, last.bias[None])
    ]
    return model, x, y, net


def gradient(model, value):
    """In the order and the shapes of the page's weights."""
    of = torch.autograd.grad(value, list(model.parameters()))
    return [of[0].T, of[1][None], of[2].T, of[3][None]]


def agrees(model, theirs, ours):
    value, slopes = ours
    assert np.isclose(theirs.item(), value)
    for their, our in zip(gradient(model, theirs), slopes, strict=True):
        np.testing.assert_allclose(our, their.numpy(), rtol=1e-8, atol=1e-12)


def test_the_loss_under_a_mask_is_pytorchs(page, case):
    model, x, y, net = case
    torch.manual_seed(1)
    mask = nn.functional.dropout(torch.ones(7, 5, dtype=torch.float64), Q)
    torch.manual_seed(1)
    theirs = nn.functional.cross_entropy(model(x), y)
    agrees(model, theirs, page["loss"](net, x.numpy(), np.eye(10)[y], mask.numpy() - 1))


def test_the_explicit_effect_is_the_librarys(page, case):
    model, x, _, net = case
    theirs = dropreg.explicit_regularizer(model, x)
    assert theirs > 0
    agrees(model, theirs, page["explicit"](net, x.numpy(), Q / (1 - Q)))


def test_the_implicit_effect_is_the_librarys_along_the_same_noise(page, case):
    model, x, y, net = case
    eta, theirs = (
        draw(torch.Generator().manual_seed(5))
        for draw in (
            lambda g: dropreg.sample("rademacher", (7, 5), Q, generator=g, dtype=torch.float64),
            lambda g: dropreg.implicit_noise(model, x, y, generator=g),
        )
    )
    agrees(model, theirs, page["implicit"](net, x.numpy(), np.eye(10)[y], eta.numpy()))


def test_a_step_adds_what_it_is_told_to(page, case):
    _, x, y, net = case
    x, labels = x.numpy()[None], np.eye(10)[y][None]
    net = [each[None] for each in net]  # of one seed

    def ours(seed=0, **strengths):
        return page["gradient"](net, x, labels, Q, np.random.default_rng(seed), **strengths)

    plain, effect = page["loss"](net, x, labels)[1], page["explicit"](net, x, Q / (1 - Q))[1]
    for got, a, b in zip(ours(R=0.5), plain, effect, strict=True):
        np.testing.assert_allclose(got, a + 0.5 * b)

    def mean_of(**strengths):
        draws = np.array([ours(seed, **strengths)[2] for seed in range(2000)])
        return draws.mean(0), draws.std(0, ddof=1) / len(draws) ** 0.5

    mean, error = mean_of(noise=1.0)
    assert error.max() > 0
    assert (abs(mean - plain[2]) <= 5 * error).all(), "noise adds nothing on average"
    # Over all masks, written out: 5 units of 7 images, so image by image.
    mean, error = mean_of(masks=True)
    wanted = np.zeros_like(plain[2])
    for kept in itertools.product((0, 1), repeat=5):
        eta = np.array(kept) / (1 - Q) - 1
        probability = np.prod(np.where(kept, 1 - Q, Q))
        wanted += probability * page["loss"](net, x, labels, eta)[1][2]
    assert (abs(mean - wanted) <= 5 * error).all()
    assert (abs(wanted - plain[2]) > 5 * error).any(), "masks do add something"


def test_figures_and_intervals_are_the_books(page):
    assert page["COLORS"] == plots.COLORS
    assert {page[tone] for tone in ("INK", "MID", "LIGHT", "GRID")} == set(plots.NEUTRAL.values())
    values = np.random.default_rng(0).normal(size=(8, 3))
    for got, wanted in zip(page["interval"](values), statistics.interval(values), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"q": 1.0}, "less than 1"),
        ({"q": -0.1}, "at least 0"),
        ({"width": 0}, "1 or more"),
        ({"width": 6.4}, "whole number"),
    ],
)
def test_what_a_reader_gets_wrong_is_said(page, wrong, says):
    with pytest.raises(ValueError, match=says):
        page["train"](**wrong)


def test_it_needs_nothing_that_a_browser_has_not():
    found = set()
    for source in CELLS.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.partition(".")[0])
    # matplotlib_inline comes with IPython, and so with each kernel.
    assert found - sys.stdlib_module_names == {
        "matplotlib",
        "matplotlib_inline",
        "numpy",
        "sklearn",
    }
