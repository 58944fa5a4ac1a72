"""Networks where the explicit regularizer has a closed form."""

import pytest
import torch
from oracle import all_signs, drawn
from torch import Tensor, nn

from dropreg import explicit_regularizer, measure_explicit

Q = 0.3
UNBIASED = ["sampled_labels", "jvp", "central", "full_hessian", "monte_carlo"]


def linear(outputs: int, q: float = Q) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(q), nn.Linear(3, outputs)).double()
    return model, torch.randn(2, 3, dtype=torch.float64), model[1].weight


def ridge(x: Tensor, weight: Tensor, q: float) -> Tensor:
    """Squared error of a linear model: q/(1-q) times the mean of sum_j x_j^2 w_kj^2."""
    return q / (1 - q) * (x.square() @ weight.square().T).mean()


def wager(x: Tensor, model: nn.Module, weight: Tensor, q: float) -> Tensor:
    """Logistic regression: 1/2 q/(1-q) mean of p(1-p) sum_j x_j^2 w_j^2.

    Wager, Wang and Liang, Dropout Training as Adaptive Regularization (2013), Section 3.
    """
    p = (x @ weight.T + model[1].bias).sigmoid()
    return 0.5 * q / (1 - q) * (p * (1 - p) * (x.square() @ weight.square().T)).mean()


def same(value: Tensor, expected: Tensor, weight: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    grads = [torch.autograd.grad(v, weight, retain_graph=True)[0] for v in (value, expected)]
    torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance)


def test_linear_regression_exact() -> None:
    """R_approx, the full second order and R_drop itself are all the data-weighted ridge."""
    model, x, weight = linear(2)
    y = torch.randn(2, 2, dtype=torch.float64)
    options = {"loss": "squared_error", "targets": y}
    same(explicit_regularizer(model, x, **options), ridge(x, weight, Q), weight)
    signs = all_signs(6) * (Q / (1 - Q)) ** 0.5
    for method in ("jvp", "full_hessian", "central", "monte_carlo"):
        with drawn(signs):
            value = explicit_regularizer(
                model, x, method=method, mc_samples=len(signs), distribution="rademacher", **options
            )
        same(value, ridge(x, weight, Q), weight, 1e-8 if method == "central" else 1e-10)


@pytest.mark.parametrize("q", [0.5, 0.25])
def test_linear_regression_under_all_dropout_masks(q: float) -> None:
    """No Taylor error is left: the loss is quadratic in the noise, whatever q."""
    model, x, weight = linear(2, q)
    y = torch.randn(2, 2, dtype=torch.float64)
    kept = (all_signs(6) + 1) / 2
    etas = kept / (1 - q) - 1
    # A mask with m units kept stands here as often as its probability demands: q is a fraction.
    odds = round((1 - q) / q)
    times = odds ** kept.sum(1).long()
    etas = etas.repeat_interleave(times, 0)
    with drawn(etas):
        value = explicit_regularizer(
            model,
            x,
            loss="squared_error",
            targets=y,
            method="monte_carlo",
            mc_samples=len(etas),
        )
    same(value, ridge(x, weight, q), weight)


@pytest.mark.parametrize("method", UNBIASED)
def test_linear_regression_sampled(method: str) -> None:
    """Within 4 standard errors of 400 samples."""
    model, x, weight = linear(2)
    y = torch.randn(2, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        samples = torch.stack(
            [
                explicit_regularizer(
                    model, x, loss="squared_error", targets=y, method=method, generator=generator
                )
                for _ in range(400)
            ]
        )
    error = samples.mean() - ridge(x, weight, Q).detach()
    assert error.abs() < 4 * samples.std() / 20


def test_linear_regression_measured() -> None:
    """Dropout's own effect by Monte Carlo, within 4 standard errors."""
    model, x, weight = linear(2)
    y = x @ weight.detach().T + model[1].bias.detach()  # at the minimum the loss is its own effect
    generator = torch.Generator().manual_seed(0)
    measured = measure_explicit(model, x, y, loss="squared_error", generator=generator)
    expected = ridge(x, weight, Q).item()
    assert abs(measured.mean - expected) < 4 * measured.standard_error < 0.2 * expected


def test_logistic_regression() -> None:
    model, x, weight = linear(1)
    value = explicit_regularizer(model, x, loss="binary_cross_entropy")
    same(value, wager(x, model, weight, Q), weight)


def test_logistic_regression_as_two_classes() -> None:
    """Softmax over two classes depends on the difference of their weights only."""
    model, x, weight = linear(2)
    p = (x @ weight.T + model[1].bias).softmax(-1)[:, 1]
    difference = (weight[1] - weight[0]).square()
    expected = 0.5 * Q / (1 - Q) * (p * (1 - p) * (x.square() @ difference)).mean()
    same(explicit_regularizer(model, x), expected, weight)


def test_two_layer_linear_network() -> None:
    """Dropout on the hidden layer: q/(1-q) mean over data and outputs of sum_j h_j^2 u_kj^2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(Q), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = ridge(model[0](x), model[2].weight, Q)
    for weight in (model[0].weight, model[2].weight):
        same(explicit_regularizer(model, x, loss="squared_error"), expected, weight)
    # Less the clean loss, it does not depend on the targets.
    y = torch.randn(5, 2, dtype=torch.float64)
    full = explicit_regularizer(model, x, loss="squared_error", targets=y)
    torch.testing.assert_close(full, expected)
