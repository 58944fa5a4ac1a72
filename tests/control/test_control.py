"""Functions from outside the library become sites."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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


class Rows(nn.Module):
    """Somebody's own layer: whole rows, by a generator of Python's."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.tensor([random.random() >= self.p for _ in x])
        return x * keep[:, None] / (1 - self.p)


class Subclass(Rows):
    pass


@pytest.fixture
def registered_class() -> Iterator[None]:
    def adapter(control: Control, module: Rows, x: Tensor) -> Any:
        return control.perturb("rows", x, module.p, module.training, mask_shape=(len(x), 1))

    dropreg.register_adapter(Rows, adapter)
    yield
    del ADAPTERS[Rows]


@pytest.mark.usefixtures("registered_class")
@pytest.mark.parametrize("kind", [Rows, Subclass])
def test_a_class_of_modules_becomes_a_site(kind: type[Rows]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), kind(0.3), nn.Linear(4, 3)).double()
    plain = nn.Sequential(model[0], dropreg.LockedDropout(0.3, shared_dims=(1,)), model[2])
    (site,) = dropreg.find_sites(model, X.double())
    assert (site.name, site.kind, site.p) == ("1", "rows", 0.3)
    for method in ("exact", "jvp", "central"):
        values = [
            dropreg.explicit_regularizer(
                each, X.double(), method=method, generator=torch.Generator().manual_seed(0)
            )
            for each in (model, plain)
        ]
        torch.testing.assert_close(*values)
    assert "forward" not in vars(model[1])


@pytest.mark.usefixtures("registered_class")
def test_a_module_with_an_adapter_is_handed_back_after_an_exception() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("broken")

    rows = Rows(0.3)

    def own(x: Tensor) -> Tensor:
        return 2 * x

    rows.forward = own
    for model in (nn.Sequential(rows, nn.Linear(4, 3)), nn.Sequential(rows, Breaks())):
        try:
            dropreg.find_sites(model, X)
        except KeyError:
            assert isinstance(model[1], Breaks)
        assert rows.forward is own
    assert torch.equal(rows(X), 2 * X)


def test_without_its_adapter_a_class_of_modules_is_refused() -> None:
    model = nn.Sequential(Rows(0.3), nn.Linear(4, 3))
    with pytest.raises(NeverSupportedError, match=r"Python's `random` \(in 0\)"):
        dropreg.find_sites(model, X)


def test_the_modules_that_are_running() -> None:
    """Also one that a function is called with, as transformers' attention is; innermost first."""

    def helper(module: nn.Module, x: Tensor) -> Tensor:
        return F.dropout(module(x), 0.3)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.drop = nn.Linear(4, 3), nn.Sequential(nn.Dropout(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(helper(self.part, x))

    model = Outer()
    met: list[list[nn.Module]] = []
    control = Control(
        lambda _: met.append(control.running()), paths={id(m): n for n, m in model.named_modules()}
    )
    with control:
        model(X)
    seen = [list(dict.fromkeys(modules)) for modules in met]
    assert seen == [[model.part, model], [model.drop[0], model.drop, model]]
    assert Control(lambda _: None).running() == []
