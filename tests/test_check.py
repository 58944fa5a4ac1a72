"""`dropreg.check` on models that are right, and on models that are silently wrong."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg import LockedDropout, Report, Verdict, check, errors
from dropreg.check import Row

X = torch.randn((6, 4), generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def network(
    between: Callable[[Tensor], Tensor] = lambda h: h,
    *,
    at: int = 3,
    activation: type[nn.Module] = nn.Tanh,
    seed: int = 0,
) -> nn.Module:
    """Two hidden layers with dropout, and something that happens before layer number `at`."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(4, 8),
                activation(),
                nn.Dropout(0.3),
                nn.Linear(8, 8),
                activation(),
                nn.Dropout(0.2),
                nn.Linear(8, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[at:](between(self.layers[:at](x)))

    torch.manual_seed(seed)
    return Network()


class WrongBackward(torch.autograd.Function):
    """Twice its input, it says backward: three times."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        return 2 * a

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * g


class NoSecondDerivative(torch.autograd.Function):
    """A square with the right gradient, which is a constant to whoever differentiates it again."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return a.square()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return g * 2 * a.detach()


class Halved(nn.Module):
    """Dropout whose probability is another one while the library looks: 0.1 in place of 0.6."""

    def forward(self, h: Tensor) -> Tensor:
        controlled = torch.overrides._get_current_function_mode() is not None
        return F.dropout(h, 0.1 if controlled else 0.6, self.training)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def found(report: Report) -> set[tuple[str, str]]:
    return {(row.quantity, row.method) for row in report.differing}


VALUES = {("R_approx", "exact"), ("R_approx", "sampled_labels")}
WRONG: dict[str, tuple[nn.Module, set[tuple[str, str]]]] = {
    # Noise of the first site counts as zero, in forward mode, too.
    "detached site": (
        network(lambda h: h.detach()),
        VALUES | {("R_approx", "jvp"), ("slope along the noise", "analytic")},
    ),
    "wrong backward after a site": (
        network(WrongBackward.apply),
        VALUES
        | {("slope along the noise", "analytic"), ("gradient of the noisy loss", "backward")},
    ),
    # No method sees it: each one's gradient is wrong in the same way, as ordinary training's is.
    "wrong backward before all sites": (
        network(WrongBackward.apply, at=1),
        {("gradient of the noisy loss", "backward")},
    ),
    # The values are right, and so is an ordinary gradient.
    "no second derivative": (
        network(NoSecondDerivative.apply, at=4),
        {("gradient of that slope", "analytic")},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_model_is_found(name: str) -> None:
    model, expected = WRONG[name]
    report = check(model, X, Y, mc_samples=200, generator=seeded())
    assert not report.agrees
    # What the audit of a model sees already is refused; the rest is found here.
    refused = {(r.quantity, r.method) for r in report.rows if r.verdict is Verdict.REFUSED}
    assert expected <= found(report) | refused
    assert found(report)
    assert "DIFFERS: " in repr(report)
    # What needs no derivative in the noise is right, and is told to be.
    assert not found(report) & {("R_approx", "central"), ("R_drop", "monte_carlo")}
    if name == "wrong backward before all sites":
        assert found(report) == expected


def test_noise_that_our_control_does_not_draw_is_found() -> None:
    """An adapter of the user's own that forgets most of the noise: the model itself has more."""
    generator = seeded()
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), Halved(), nn.Linear(8, 3))
    torch.manual_seed(0)
    report = check(model, X, Y, mc_samples=200, generator=generator)
    assert ("variance of the gradient noise", "dropout_pair") in found(report)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_right_model_agrees(activation: type[nn.Module]) -> None:
    model = network(activation=activation)
    report = check(model, X, Y, generator=seeded())
    assert report.agrees, report
    quantities = {row.quantity for row in report.rows if row.verdict is Verdict.AGREES}
    assert quantities == {
        "gradient of the noisy loss",
        "R_approx",
        "gradient of R_approx",
        "slope along the noise",
        "gradient of that slope",
        "R_drop",
        "variance of the gradient noise",
    }
    assert repr(report).endswith("Everything that was computed agrees.")


def test_the_reference_of_r_approx_is_its_closed_form() -> None:
    """F = w (1 + eta) h for squared error: R_approx is q/(1-q) times the sum of (w h)^2."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1, bias=False)).double()
    x = X.double()
    report = check(model, x, torch.zeros(6, 1).double(), loss="squared_error", generator=seeded())
    expected = (x * model[1].weight.detach()).square().sum(1).mean().item()
    rows = {row.method: row for row in report.rows if row.quantity == "R_approx"}
    exact = rows["exact"].estimate
    assert exact is not None
    assert exact.mean == pytest.approx(expected, rel=1e-9)
    reference = rows["divergence"]
    assert reference.verdict is Verdict.REFERENCE
    assert reference.estimate is not None
    error = 4.5 * reference.estimate.standard_error
    assert reference.estimate.mean == pytest.approx(expected, abs=error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "most"), [(10, 1), pytest.param(100, 2, marks=pytest.mark.thorough)]
)
def test_a_right_model_is_rarely_told_to_differ(seeds: int, most: int) -> None:
    """In one percent at most: then more than two of 100 have a probability below 8 %."""
    alarms = 0
    for seed in range(seeds):
        generator = seeded(seed)
        model = network(activation=(nn.Tanh, nn.ReLU)[seed % 2], seed=seed)
        x = torch.randn((6, 4), generator=generator)
        y = torch.randint(3, (6,), generator=generator)
        alarms += not check(model, x, y, mc_samples=20, generator=generator).agrees
    assert alarms <= most


def test_the_model_and_the_random_states_are_left_as_they_were() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    check(model, X, Y, mc_samples=20, generator=seeded())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_one_seed_is_one_report() -> None:
    one, two = (check(network(), X, Y, mc_samples=20, generator=seeded(3)) for _ in range(2))
    assert one.rows == two.rows


def test_a_refusal_is_listed_with_its_words() -> None:
    model = network(NoSecondDerivative.apply, at=4)  # forward mode does not know it
    rows = check(model, X, Y, mc_samples=20, generator=seeded()).rows
    (refused,) = [r for r in rows if r.method == "jvp" and r.quantity == "R_approx"]
    assert refused.verdict is Verdict.REFUSED
    assert refused.estimate is None
    assert len(refused.note) > 30


def test_half_precision_is_checked_without_small_differences() -> None:
    report = check(network().bfloat16(), X.bfloat16(), Y, mc_samples=20, generator=seeded())
    rows = {(row.quantity, row.method): row for row in report.rows}
    assert "PrecisionError" in rows["R_approx", "central"].note
    assert rows["R_approx", "sampled_labels"].verdict is Verdict.REFERENCE
    assert rows["R_drop", "monte_carlo"].verdict is Verdict.AGREES
    assert report.agrees, report


def test_frozen_and_large_models() -> None:
    model = network().requires_grad_(False)
    report = check(model, X, Y, mc_samples=20, generator=seeded())
    assert {row.quantity for row in report.rows} == {"R_approx", "slope along the noise", "R_drop"}
    assert report.agrees, report
    wide = nn.Sequential(nn.Linear(4, 5), LockedDropout(0.3), nn.Linear(5, 30))
    x = X.expand(2, 6, 4)
    rows = check(wide, x, torch.zeros(2, 6).long(), mc_samples=20, generator=seeded()).rows
    (exact,) = [row for row in rows if row.method == "exact" and row.quantity == "R_approx"]
    assert exact == Row(
        "R_approx", "exact", Verdict.SHOWN, None, "left out: up to 360 backward passes"
    )


def test_bad_input() -> None:
    for count, message in (
        (19, "need at least 20"),
        (True, "whole number"),
        (30.0, "whole number"),
    ):
        with pytest.raises(errors.InputError, match=message):
            check(network(), X, Y, mc_samples=count)  # type: ignore[arg-type]
    with pytest.raises(errors.InputError, match=r"must be a torch\.Generator"):
        check(network(), X, Y, generator=42)  # type: ignore[arg-type]
    with pytest.raises(errors.InputError, match="integer class labels"):
        check(network(), X, Y[:5])
    with pytest.raises(errors.EvalModeError):
        check(network().eval(), X, Y)
    with pytest.raises(errors.ZeroProbabilityError):
        check(nn.Sequential(nn.Dropout(0.0), nn.Linear(4, 3)), X, Y)
