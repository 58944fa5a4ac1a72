"""Functions from outside the library become sites."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

import dropreg
from dropreg.control.control import ADAPTERS, Control
from dropreg.errors import InputError, NeverSupportedError


def row_dropout(x: Tensor, p: float) -> Tensor:
    """Somebody's own dropout: a choice for each row."""
    if has_torch_function_unary(x):
        return handle_torch_function(row_dropout, (x,), x, p)
    return x * torch.empty(len(x), 1).bernoulli_(1 - p) / (1 - p)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(row_dropout(x, 0.3))


X, Y = torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1])


@pytest.fixture
def registered() -> Iterator[None]:
    def adapter(control: Control, x: Tensor, p: float) -> Any:
        return control.perturb("row dropout", x, p, training=True, mask_shape=(len(x), 1))

    dropreg.register_adapter(row_dropout, adapter)
    yield
    del ADAPTERS[row_dropout]


def test_what_is_not_registered_is_refused() -> None:
    with pytest.raises(NeverSupportedError, match="bernoulli"):
        dropreg.find_sites(Net(), X)


@pytest.mark.usefixtures("registered")
def test_a_function_of_ones_own_becomes_a_site() -> None:
    model = Net().double()
    x = X.double()
    (site,) = dropreg.find_sites(model, x)
    assert (site.kind, site.p, site.sharing) == ("row dropout", 0.3, "over dim 1")
    locked = nn.Sequential(dropreg.LockedDropout(0.3, shared_dims=(1,)), model.linear)
    values = [dropreg.explicit_regularizer(each, x) for each in (model, locked)]
    torch.testing.assert_close(*values)


def test_an_audit_is_made_again_when_an_adapter_comes() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
    before = dropreg.explicit_regularizer(model, X)
    original = ADAPTERS[torch.nn.functional.dropout]

    def half(control: Control, input: Tensor, p: float, **options: Any) -> Any:
        return original(control, input, p / 2, **options)

    dropreg.register_adapter(torch.nn.functional.dropout, half)
    try:
        after = dropreg.explicit_regularizer(model, X)
        assert dropreg.NoisyLoss(model, X, "cross_entropy").sites[0].p == 0.25
    finally:
        dropreg.register_adapter(torch.nn.functional.dropout, original)
    torch.testing.assert_close(after, before / 3)  # of variance 1 and 1/3


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(InputError, match="takes a function"):
        dropreg.register_adapter("dropout", row_dropout)
