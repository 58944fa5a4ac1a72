"""The reference of the model families, against closed forms and autograd."""

import pytest
import torch
from compare import Case
from reference import NotDescribed, Reference
from torch import Tensor, nn

P = 0.3


def linear() -> Case:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(P), nn.Linear(3, 3))
    return Case(model.double().train(), torch.randn(4, 3, dtype=torch.float64))


def test_the_reference_is_the_closed_form_of_a_linear_model():
    case = linear()
    reference = Reference(case.model, case.inputs)
    x, weight = case.inputs, case.model[1].weight.detach()
    p = (x @ weight.T + case.model[1].bias.detach()).softmax(-1)
    h_out = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    curvature = torch.einsum("cj,ncd,dj->nj", weight, h_out, weight)
    expected = 0.5 * P / (1 - P) * (curvature * x.square()).sum(1).mean()
    torch.testing.assert_close(reference.explicit(), expected)
    # The slope of the mean loss along eta: the residual times the weights times eta x.
    (eta,) = reference.rademacher(0)
    residual = p - torch.eye(3, dtype=torch.float64)[reference.targets]
    slope = (residual * ((x * eta) @ weight.T)).sum(1).mean()
    torch.testing.assert_close(reference.slope([eta]), slope)
    t = (x * eta) @ weight.T
    along = 0.5 * torch.einsum("nc,ncd,nd->n", t, h_out, t).mean()
    torch.testing.assert_close(reference.explicit_along([eta]), along)


def test_the_mask_that_the_reference_gives_is_the_one_that_dropout_applies():
    case = linear()
    reference = Reference(case.model, case.inputs)
    ones = torch.ones_like(case.inputs)
    expected = case.model[1](case.inputs * 2)
    torch.testing.assert_close(reference.logits([ones]), expected)
    assert [(each.shape, round(each.p, 9)) for each in reference.drawn] == [((4, 3), P)]


def test_a_derivative_along_the_parameters_is_that_of_autograd():
    case = linear()
    reference = Reference(case.model, case.inputs)
    zero = [torch.zeros_like(case.inputs)]
    direction = reference.direction()
    gradient = torch.autograd.grad(reference.loss(zero), reference.parameters)
    expected = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    before = [p.clone() for p in reference.parameters]
    got = reference.along(direction, lambda: reference.loss(zero))
    assert got == pytest.approx(expected, rel=1e-8)
    for now, then in zip(reference.parameters, before, strict=True):
        assert torch.equal(now, then)


class Hidden(nn.Module):
    """Dropout, and something that the reference cannot describe beside it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.drop, self.head = kind, nn.Dropout(P), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "noise":
            x = x + 0.1 * torch.randn_like(x)
        if self.kind == "rare":
            x = x * (1 + (torch.rand(()) < 0.3))
        if self.kind == "detached":
            return self.head(self.drop(x).detach())
        return self.head(x if self.kind == "nothing" else self.drop(x))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("noise", "something other"),
        ("rare", "something other"),
        ("detached", "autograd does not see"),
        ("nothing", "nothing is dropped"),
    ],
)
def test_what_the_reference_does_not_describe_it_says(kind, reason):
    model = Hidden(kind).double().train()
    with pytest.raises(NotDescribed, match=reason):
        Reference(model, torch.randn(4, 3, dtype=torch.float64))
