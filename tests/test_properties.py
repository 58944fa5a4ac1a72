"""Properties of the explicit regularizer that hold for every network, mask and probability."""

from collections.abc import Sequence

import oracle
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import SPECS, Case
from torch import Tensor, nn

from dropreg import CrossEntropy, explicit_regularizer, shared_dropout

CLASSES = 3

# A batch may have as many positions as classes.
LAST = CrossEntropy(class_dim=-1)


class Net(nn.Module):
    """Two layers with a hidden site whose mask is shared along some dimensions."""

    def __init__(self, p: float, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.p, self.dims = p, dims
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = shared_dropout(self.a(x).tanh(), self.p, self.training, self.dims)
        return self.b(h.sin())


def case_of(leading: tuple[int, ...], dims: tuple[int, ...], p: float, seed: int) -> Case:
    torch.manual_seed(seed)
    model = Net(p, dims).double()
    shape = (*leading, 2)
    mask_shape = tuple(1 if d in dims else size for d, size in enumerate(shape))

    def net(w: dict[str, Tensor], x: Tensor, etas: Sequence[Tensor]) -> Tensor:
        h = torch.tanh(x @ w["a.weight"].T + w["a.bias"]) * (1 + etas[0])
        return h.sin() @ w["b.weight"].T + w["b.bias"]

    inputs = 2 * torch.randn(shape, dtype=torch.float64)
    return Case(model, inputs, net, (mask_shape,), (p,))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    leading = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    dims = tuple(draw(st.sets(st.integers(0, len(leading)))))
    return case_of(leading, dims, draw(st.floats(0.01, 0.95)), draw(st.integers(0, 1000)))


@given(case=cases(), spec_name=st.sampled_from(sorted(SPECS)))
def test_exact_agrees_with_the_oracle_and_is_not_negative(case: Case, spec_name: str) -> None:
    spec = SPECS[spec_name]
    y = oracle.targets_for(case, spec)
    # With every target ignored there is no mean; that is refused, and tested elsewhere.
    assume(spec.count(case.logits(case.zero), y) > 0)
    value = explicit_regularizer(case.model, case.inputs, loss=spec.loss, targets=y)
    expected = oracle.r_approx(case, spec, y)
    assert value >= 0
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(oracle.gradient(value, case), oracle.gradient(expected, case))


@given(case=cases(), spec_name=st.sampled_from(sorted(SPECS)), seed=st.integers(0, 1000))
def test_every_sample_of_a_quadratic_form_is_not_negative(
    case: Case, spec_name: str, seed: int
) -> None:
    """H_out is positive semi-definite, so no single draw of these estimators is negative."""
    spec = SPECS[spec_name]
    y = oracle.targets_for(case, spec)
    assume(spec.count(case.logits(case.zero), y) > 0)
    with torch.no_grad():
        for method in ("sampled_labels", "jvp", "central", "identity", "loss_jacobian"):
            value = explicit_regularizer(
                case.model,
                case.inputs,
                loss=spec.loss,
                targets=y,
                method=method,
                generator=torch.Generator().manual_seed(seed),
            )
            assert value >= 0


@given(case=cases(), shift=st.floats(-50, 50))
def test_a_constant_added_to_all_logits_changes_nothing(case: Case, shift: float) -> None:
    before = explicit_regularizer(case.model, case.inputs, loss=LAST)
    with torch.no_grad():
        case.model.b.bias.add_(shift)
    torch.testing.assert_close(explicit_regularizer(case.model, case.inputs, loss=LAST), before)


@given(seed=st.integers(0, 1000), order=st.permutations(range(4)), p=st.floats(0.01, 0.95))
def test_the_order_of_the_batch_does_not_matter(seed: int, order: list[int], p: float) -> None:
    case = case_of((4,), (), p, seed)
    torch.testing.assert_close(
        explicit_regularizer(case.model, case.inputs[order]),
        explicit_regularizer(case.model, case.inputs, loss=LAST),
    )


@given(case=cases(), p=st.floats(0.01, 0.95))
def test_one_site_scales_with_the_variance(case: Case, p: float) -> None:
    """R / (q/(1-q)) does not depend on q."""
    (old,) = case.ps
    before = explicit_regularizer(case.model, case.inputs, loss=LAST) / (old / (1 - old))
    case.model.p = p
    after = explicit_regularizer(case.model, case.inputs, loss=LAST) / (p / (1 - p))
    torch.testing.assert_close(before, after)


@given(seed=st.integers(0, 1000), leading=st.lists(st.integers(1, 3), min_size=1, max_size=2))
def test_a_batch_is_the_mean_of_its_examples(seed: int, leading: list[int]) -> None:
    """Where each example has masks of its own."""
    case = case_of(tuple(leading), (), 0.4, seed)
    parts = [explicit_regularizer(case.model, x[None], loss=LAST) for x in case.inputs]
    torch.testing.assert_close(
        explicit_regularizer(case.model, case.inputs, loss=LAST), torch.stack(parts).mean()
    )


@pytest.mark.parametrize("method", ["exact", "sampled_labels", "jvp", "full_hessian", "identity"])
def test_float32_agrees_with_float64(method: str) -> None:
    """Value and gradient, from the same random numbers, to the precision of float32."""
    results = []
    for dtype in (torch.float64, torch.float32):
        case = oracle.build(oracle.lstm)
        model, x = case.model.to(dtype), case.inputs.to(dtype)
        y = torch.tensor([[0, 1, 2, 1], [2, 1, 0, 0]])
        value = explicit_regularizer(
            model, x, targets=y, method=method, generator=torch.Generator().manual_seed(0)
        )
        assert value.dtype is dtype
        results.append(torch.cat([value[None], oracle.gradient(value, case)]).double())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_float32_central_differences_are_good_to_three_digits() -> None:
    """At the default step: the truncation is O(step^2), the rounding of order eps / step."""
    case = oracle.build(oracle.lstm)
    model, x = case.model.float(), case.inputs.float()
    values = []
    for method in ("jvp", "central"):
        generator = torch.Generator().manual_seed(0)
        values.append(explicit_regularizer(model, x, method=method, generator=generator))
    torch.testing.assert_close(*values, rtol=2e-3, atol=0)
