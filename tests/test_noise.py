"""The laws of the noise, their moments, and the reproducibility of masks."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dropreg import Law, explicit_regularizer, replace_dropout, sample
from dropreg.errors import InputError
from dropreg.noise import variance

LAWS = [str(law) for law in Law]

probabilities = st.floats(0.01, 0.95)
shapes = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)


def draw(law: str, size: int, p: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sample(law, (size,), p, generator=generator, dtype=torch.float64)


@given(p=probabilities)
def test_moments_of_the_two_valued_laws_are_exact(p: float) -> None:
    """From their values and probabilities: mean 0 and variance p/(1-p), not the paper's p/(p-1)."""
    v = variance(p)
    assert v == pytest.approx(p / (1 - p))
    assert v > 0
    values = draw("bernoulli", 200, p).unique()
    low, high = -1.0, v
    assert all(min(abs(x - low), abs(x - high)) <= 1e-6 * (1 + v) for x in values.tolist())
    assert p * low + (1 - p) * high == pytest.approx(0, abs=1e-12)
    assert p * low**2 + (1 - p) * high**2 == pytest.approx(v)
    assert p * low**3 + (1 - p) * high**3 == pytest.approx(-p + p**3 / (1 - p) ** 2)
    values = draw("rademacher", 200, p)
    torch.testing.assert_close(values.square(), torch.full_like(values, v), rtol=1e-6, atol=0)
    assert (values < 0).any()
    assert (values > 0).any()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_sampled_moments(law: str, p: float) -> None:
    """Mean and second moment of 50,000 draws: within 4.5 standard errors of 0 and p/(1-p)."""
    eta, n = draw(law, 50_000, p), 50_000
    v = p / (1 - p)
    assert abs(eta.mean()) < 4.5 * (v / n) ** 0.5
    squares = eta.square()
    assert abs(squares.mean() - v) <= 4.5 * squares.std() / n**0.5 + 1e-6 * v
    if law == "bernoulli":
        assert abs((eta == -1).double().mean() - p) < 4.5 * (p * (1 - p) / n) ** 0.5
    # Neighbours are independent: no correlation beyond 4.5 standard errors.
    assert abs((eta[1:] * eta[:-1]).mean()) < 4.5 * v / n**0.5


def test_fourth_moment_of_the_gaussian_is_three() -> None:
    """50,000 draws, within 4.5 standard errors of 3 v^2; the fourth power has variance 96 v^4."""
    eta = draw("gaussian", 50_000, 0.5)
    assert abs(eta.pow(4).mean() - 3) < 4.5 * (96 / 50_000) ** 0.5


@given(law=st.sampled_from(LAWS), shape=shapes, p=probabilities, seed=st.integers(0, 2**31))
def test_one_seed_is_one_mask_in_every_precision(
    law: str, shape: tuple[int, ...], p: float, seed: int
) -> None:
    def masks(dtype: torch.dtype | None) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return sample(law, shape, p, generator=generator, dtype=dtype)

    reference = masks(None)
    assert reference.dtype is torch.float32
    assert reference.shape == shape
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert masks(dtype).dtype is dtype
        torch.testing.assert_close(masks(dtype), reference.to(dtype), rtol=0, atol=0)


def test_masks_are_the_same_on_every_platform() -> None:
    """Drawn by torch.rand on the generator's device: these bits are PyTorch's Mersenne twister."""
    eta = sample("bernoulli", (8,), 0.5, generator=torch.Generator().manual_seed(0))
    assert eta.tolist() == [-1.0, 1.0, -1.0, -1.0, -1.0, 1.0, -1.0, 1.0]


def test_without_a_generator_the_global_seed_decides() -> None:
    torch.manual_seed(7)
    first = sample("gaussian", (5,), 0.5)
    torch.manual_seed(7)
    assert torch.equal(first, sample("gaussian", (5,), 0.5))
    assert not torch.equal(first, sample("gaussian", (5,), 0.5))


def test_bernoulli_at_a_half_and_its_mirror_image_are_complements() -> None:
    """1 + eta and 1 - eta are the masks 2m and 2(1 - m): what one drops the other keeps."""
    eta = draw("bernoulli", 1000, 0.5)
    up, down = 1 + eta, 1 - eta
    assert torch.equal(up * down, torch.zeros_like(eta))
    assert torch.equal(up + down, torch.full_like(eta, 2.0))


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.nan])
def test_a_probability_with_no_finite_variance_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"outside \[0, 1\)"):
        variance(p)
    with pytest.raises(ValueError, match=r"outside \[0, 1\)"):
        sample("bernoulli", (2,), p)


def arcsine(shape: tuple[int, ...], p: float, **source: Any) -> Tensor:
    """A law from outside the library: a Beta(1/2, 1/2) variable, centred and scaled."""
    return (2 * variance(p)) ** 0.5 * torch.cos(math.pi * torch.rand(shape, **source))


def test_a_law_of_ones_own() -> None:
    """Its moments, within 5 standard errors, and the same value of R_approx by it."""
    eta = sample(arcsine, (200_000,), 0.4, generator=torch.Generator().manual_seed(0)).double()
    assert abs(eta.mean()) < 5 * eta.std() / 200_000**0.5
    error = eta.square().std() / 200_000**0.5
    assert abs(eta.square().mean() - variance(0.4)) < 5 * error
    model, x = nn.Sequential(nn.Dropout(0.4), nn.Linear(3, 2)).double(), torch.ones(1, 3).double()
    values = [
        explicit_regularizer(
            model,
            x,
            method="central",
            distribution=arcsine,
            generator=torch.Generator().manual_seed(seed),
            step=1e-3,
        )
        for seed in range(4000)
    ]
    draws = torch.stack(values).detach()
    truth = explicit_regularizer(model, x).detach()
    assert abs(draws.mean() - truth) < 5 * draws.std() / 4000**0.5
    torch.manual_seed(0)
    replace_dropout(model, distribution=arcsine).loss(x, torch.tensor([1])).backward()


def test_a_law_that_draws_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(1,\), not \(2,\)"):
        sample(lambda shape, p, **source: torch.zeros(1), (2,), 0.5)
