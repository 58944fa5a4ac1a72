"""The same numbers from BackPACK and curvlinops, where they compute the same thing.

With dropout on a weight, the noise coordinates are the weight's own: dF/d eta_j = w_j dF/dw_j. So
R_approx = 1/2 q/(1-q) sum_j GGN_jj w_j^2, with the Gauss-Newton matrix of the mean loss, and the
full second-order term is the same with the Hessian.
"""

import warnings
from collections.abc import Iterator

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg import explicit_regularizer, shared_dropout

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside the two libraries
    from backpack import backpack, extend
    from backpack.extensions import DiagGGNExact, DiagHessian
    from curvlinops import GGNLinearOperator, HessianLinearOperator

P = 0.3
LOSSES = {
    "cross_entropy": nn.CrossEntropyLoss,
    "squared_error": nn.MSELoss,
    "binary_cross_entropy": nn.BCEWithLogitsLoss,
}


class WeightDrop(nn.Module):
    """A multi-layer perceptron with dropout on one of its weights, or on a bias."""

    def __init__(self, layers: nn.Sequential, dropped: str) -> None:
        super().__init__()
        self.layers, self.dropped = layers, dropped

    def forward(self, x: Tensor) -> Tensor:
        weights = dict(self.layers.named_parameters())
        weights[self.dropped] = shared_dropout(weights[self.dropped], P, self.training)
        x = torch.tanh(F.linear(x, weights["0.weight"], weights["0.bias"]))
        return F.linear(x, weights["2.weight"], weights["2.bias"])


def setup(loss: str) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    if loss == "cross_entropy":
        return layers, x, torch.tensor([0, 2, 1, 0])
    return layers, x, torch.rand(4, 3, dtype=torch.float64)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Both libraries use parts of PyTorch that warn of their removal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def weighted(diagonal: Tensor, weight: Tensor) -> Tensor:
    return 0.5 * P / (1 - P) * (diagonal * weight.detach().square()).sum()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dropped", ["0.weight", "0.bias", "2.weight", "2.bias"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_backpack_diagonals(loss: str, dropped: str) -> None:
    layers, x, y = setup(loss)
    extended, criterion = extend(layers), extend(LOSSES[loss]())
    with backpack(DiagGGNExact(), DiagHessian()):
        criterion(extended(x), y).backward()
    weight = dict(layers.named_parameters())[dropped]
    model = WeightDrop(layers, dropped)
    value = explicit_regularizer(model, x, loss=loss)
    torch.testing.assert_close(value.detach(), weighted(weight.diag_ggn_exact, weight))
    if weight.numel() <= 6:
        signs = oracle.all_signs(weight.numel()) * (P / (1 - P)) ** 0.5
        with oracle.drawn(signs):
            full = explicit_regularizer(
                model, x, loss=loss, targets=y, method="full_hessian", mc_samples=len(signs)
            )
        torch.testing.assert_close(full.detach(), weighted(weight.diag_h, weight))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dropped", ["0.weight", "2.weight"])
@pytest.mark.parametrize("loss", LOSSES)
def test_curvlinops_diagonals(loss: str, dropped: str) -> None:
    layers, x, y = setup(loss)
    weight = dict(layers.named_parameters())[dropped]
    model = WeightDrop(layers, dropped)
    size = weight.numel()

    def dense(operator: type) -> Tensor:
        linear = operator(layers, LOSSES[loss](), [weight], [(x, y)], check_deterministic=False)
        return linear @ torch.eye(size, dtype=torch.float64)

    value = explicit_regularizer(model, x, loss=loss)
    ggn = dense(GGNLinearOperator).diagonal().reshape(weight.shape)
    torch.testing.assert_close(value.detach(), weighted(ggn, weight))
    signs = oracle.all_signs(size) * (P / (1 - P)) ** 0.5
    with oracle.drawn(signs):
        full = explicit_regularizer(
            model, x, loss=loss, targets=y, method="full_hessian", mc_samples=len(signs)
        )
    hessian = dense(HessianLinearOperator).diagonal().reshape(weight.shape)
    torch.testing.assert_close(full.detach(), weighted(hessian, weight))
