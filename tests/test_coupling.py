"""Terms that share noise are kept apart, whatever stands in the way of a backward pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropreg

X = torch.randn((6, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dense(model: nn.Module, x: Tensor, p: float) -> Tensor:
    """R_approx from the full Jacobian in the noise of the one dropout, and the Hessian by hand."""
    shape: list[torch.Size] = []

    def logits(eta: Tensor | None) -> Tensor:
        def dropout(h: Tensor, *_: Any, **__: Any) -> Tensor:
            shape.append(h.shape)
            return h if eta is None else h * (1 + eta)

        original, F.dropout = F.dropout, dropout
        try:
            return model(x)
        finally:
            F.dropout = original

    logits(None)
    zero = torch.zeros(shape[0], dtype=x.dtype)
    j = torch.autograd.functional.jacobian(logits, zero, create_graph=True)
    prob = logits(None).softmax(-1)
    h_out = torch.diag_embed(prob) - prob[..., :, None] * prob[..., None, :]
    j = j.flatten(2)
    total = torch.einsum("bcu,bcd,bdu->", j, h_out, j)
    return 0.5 * p / (1 - p) * total / len(x)


class LogCumSumExp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.drop, self.head = nn.Linear(4, 4), nn.Dropout(0.4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.first(x)).logcumsumexp(0))


class Hooked(nn.Module):
    """One mask for all rows, and a hook on the way back."""

    def __init__(self, hook: Callable[[Tensor], Tensor | None] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.drop, self.head = nn.Linear(4, 4), nn.Dropout(0.4), nn.Linear(4, 3)
        self.hook = hook

    def forward(self, x: Tensor) -> Tensor:
        z = self.drop(self.first(x).mean(0, keepdim=True)).expand(len(x), -1) * x
        if self.hook is not None and z.requires_grad:
            z.register_hook(self.hook)
        return self.head(z)


def is_finite(grad: Tensor) -> None:
    assert torch.isfinite(grad).all(), "gradient exploded"


@pytest.mark.parametrize(
    "model", [LogCumSumExp(), Hooked(None), Hooked(torch.nan_to_num), Hooked(is_finite)]
)
def test_rows_that_share_noise(model: nn.Module) -> None:
    model.double()
    value, expected = dropreg.explicit_regularizer(model, X), dense(model, X, 0.4)
    torch.testing.assert_close(value, expected)
    weights = list(model.parameters())
    gradients = torch.autograd.grad(value, weights, materialize_grads=True)
    for weight, gradient in zip(weights, gradients, strict=True):
        numeric = torch.zeros_like(gradient)
        for index in range(weight.numel()):  # PyTorch's own gradient of `dense` can be NaN here
            ends = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    weight.view(-1)[index] += step
                    ends.append(dense(model, X, 0.4).item())
                    weight.view(-1)[index] -= step
            numeric.view(-1)[index] = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(gradient, numeric, rtol=1e-5, atol=1e-8)


def test_a_hook_that_keeps_statistics_sees_finite_numbers() -> None:
    norms: list[float] = []
    model = Hooked(lambda grad: norms.append(float(grad.detach().norm()))).double()
    dropreg.explicit_regularizer(model, X)
    assert norms
    assert torch.tensor(norms).isfinite().all()


@pytest.mark.parametrize("case", ["identity weights", "one-hot inputs"])
def test_a_derivative_that_is_zero_by_chance(case: str) -> None:
    """The rows share noise only as the weights move: the gradient, by finite differences."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.mix, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
            self.drop = nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.mix(self.drop(x).T).T).tanh())

    model = Mixed().double()
    x = torch.eye(4, dtype=torch.float64) if case == "one-hot inputs" else X[:4]
    if case == "identity weights":
        nn.init.eye_(model.mix.weight)
    value = dropreg.explicit_regularizer(model, x)
    torch.testing.assert_close(value, dense(model, x, 0.3))
    (gradient,) = torch.autograd.grad(value, model.mix.weight)
    numeric = torch.zeros_like(gradient)
    for index in range(16):
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                model.mix.weight.view(-1)[index] += step
                ends.append(dense(model, x, 0.3).item())
                model.mix.weight.view(-1)[index] -= step
        numeric.view(-1)[index] = (ends[0] - ends[1]) / 2e-5
    torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-8)
