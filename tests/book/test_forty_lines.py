"""The reader's forty lines, as the book shows them, are `replace_dropout`."""

import nbformat
import pytest
import torch
from torch import nn

import dropreg
from tools import ROOT, reading

PAGE = ROOT / "book" / "use" / "forty_lines.ipynb"


class TwoLayers(nn.Module):
    """What the lines' own `noisy_logits` takes apart."""

    def __init__(self, p):
        super().__init__()
        self.first, self.second, self.out = (
            nn.Linear(6, 128),
            nn.Linear(128, 128),
            nn.Linear(128, 3),
        )
        self.drop = nn.Dropout(p)

    def forward(self, x):
        h = self.drop(torch.relu(self.first(x)))
        return self.out(self.drop(torch.relu(self.second(h))))


@pytest.fixture(scope="module")
def lines():
    """The cells that are seen, as text."""
    return [cell.source for cell in reading.seen_code(nbformat.read(PAGE, as_version=4))]


@pytest.fixture
def written(lines):
    """What they define."""
    names = {"torch": torch, "F": nn.functional}
    exec("\n".join(lines), names)
    return names


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def drawn(seed, q):
    """The noise of both layers, draw after draw, as the library draws it."""
    source = torch.Generator().manual_seed(seed)

    def draw(x):
        options = {"generator": source, "dtype": x.dtype}
        layers = [dropreg.sample("rademacher", (len(x), 128), q, **options) for _ in range(2)]
        return torch.cat(layers, 1)

    return draw


def test_they_are_forty_at_most(lines):
    code = [line for cell in lines for line in cell.splitlines() if line.strip()]
    assert 30 <= len(code) <= 40


@pytest.mark.parametrize("q", [0.5, 0.2])
@pytest.mark.parametrize("strengths", [(1.0, 1.0), (1.0, 0.0), (0.3, 1.7)])
def test_value_and_gradient_are_those_of_the_library(written, q, strengths):
    torch.manual_seed(0)
    model, x, y = TwoLayers(q).double(), torch.randn(9, 6).double(), torch.randint(3, (9,))
    explicit, implicit = strengths
    recipe = dropreg.replace_dropout(
        model,
        method="jvp",
        explicit=explicit,
        implicit=implicit,
        generator=torch.Generator().manual_seed(3),
    )
    ours = written["replaced"](model, x, y, explicit, implicit, drawn(3, q))
    theirs = recipe.loss(x, y)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, model), gradient(theirs, model))


def test_even_and_odd_are_those_of_the_library(written):
    torch.manual_seed(0)
    model, x, y = TwoLayers(0.5).double(), torch.randn(9, 6).double(), torch.randint(3, (9,))
    recipe = dropreg.replace_dropout(
        model,
        method="even_odd",
        explicit=0.6,
        implicit=1.4,
        share=1,
        generator=torch.Generator().manual_seed(3),
    )

    def loss(eta):
        return nn.functional.cross_entropy(written["noisy_logits"](model, x, eta), y)

    ours = written["even_odd"](loss, drawn(3, 0.5)(x), 0.6, 1.4)
    theirs = recipe.loss(x, y)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, model), gradient(theirs, model))


def test_their_own_noise_has_the_mean_and_the_variance_of_dropout(written):
    torch.manual_seed(0)
    eta = written["signs"](torch.zeros(2000, 6), q=0.2)
    variance = 0.25
    assert eta.square().sub(variance).abs().max() < 1e-6
    assert abs(eta.mean()) < 4 * (variance / eta.numel()) ** 0.5
