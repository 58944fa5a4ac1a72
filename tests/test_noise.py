"""The laws of the noise, their moments, and the reproducibility of masks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import run
from torch import Tensor, nn

from dropreg import Law, LockedDropout, Probe, find_sites, sample, shared_dropout
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


class Shared(nn.Module):
    def __init__(self, p: float, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.drop = nn.Dropout(p), LockedDropout(p, dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.first(x))


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    data=st.data(),
    p=probabilities,
    law=st.sampled_from(LAWS),
)
def test_a_probe_replays_and_mirrors(
    shape: tuple[int, ...], data: st.DataObject, p: float, law: str
) -> None:
    """The same probe at +e and -e is an antithetic pair, at every site, with the site's sharing."""
    dims = tuple(data.draw(st.lists(st.integers(-len(shape), len(shape) - 1), max_size=2)))
    model, x = Shared(p, dims).double(), torch.ones(shape, dtype=torch.float64)
    probe = Probe(law, torch.Generator().manual_seed(0))
    seen: dict[float, list[Tensor]] = {}
    for strength in (1.0, -1.0, 1.0, 0.25):
        noise, etas = probe.at(strength), []

        def keep(site, noise=noise, etas=etas):
            etas.append(noise(site))
            return etas[-1]

        _, sites = run(model, x, keep)
        if strength in seen:
            torch.testing.assert_close(etas, seen[strength], rtol=0, atol=0)
        seen[strength] = etas
    for up, down, weak, site in zip(seen[1.0], seen[-1.0], seen[0.25], sites, strict=True):
        assert torch.equal(up, -down)
        assert torch.equal(weak, 0.25 * up)
        assert up.shape == site.mask_shape
    shared = {d % len(shape) for d in dims}
    expected = tuple(1 if d in shared else size for d, size in enumerate(shape))
    assert sites[1].mask_shape == expected
    assert sites[0].mask_shape == shape


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    data=st.data(),
    p=probabilities,
    seed=st.integers(0, 100),
)
def test_shared_dropout_by_itself(
    shape: tuple[int, ...], data: st.DataObject, p: float, seed: int
) -> None:
    """Outside the library's control: 0 or x/(1-p), one choice along the shared dimensions."""
    dims = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1))))
    torch.manual_seed(seed)
    x = torch.rand(shape, dtype=torch.float64) + 0.5
    y = shared_dropout(x, p, True, dims)
    ratio = y / x
    kept = ratio > 0.5
    torch.testing.assert_close(ratio, kept.double() / (1 - p), rtol=1e-6, atol=1e-6)
    for dim in dims:
        assert torch.equal(kept, kept.narrow(dim, 0, 1).expand_as(kept))
    assert torch.equal(shared_dropout(x, p, False, dims), x)
    assert torch.equal(shared_dropout(x, 0.0, True, dims), x)


def test_locked_dropout_keeps_its_mask_over_time() -> None:
    torch.manual_seed(0)
    layer = LockedDropout(0.4)
    y = layer(torch.ones(3, 7, 50))
    assert (y == y[:, :1]).all()
    assert not (y[0] == y[1]).all()
    assert torch.equal(layer.eval()(y), y)
    assert repr(layer) == "LockedDropout(p=0.4, shared_dims=(1,))"
    assert find_sites(layer.train(), y)[0].sharing == "over dim 1"


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
    with pytest.raises(ValueError, match=r"outside \[0, 1\)"):
        LockedDropout(p)
