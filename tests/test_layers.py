"""Layers whose masks are shared along some dimensions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dropreg import DropPath, LockedDropout, find_sites, shared_dropout


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    data=st.data(),
    p=st.floats(0.01, 0.95),
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


def test_drop_path_drops_whole_examples() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.3)
    y = layer(torch.ones(1000, 2, 3))
    assert (y == y[:, :1, :1]).all()
    kept = y[:, 0, 0] > 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / 0.7))
    # 4.5 standard errors of a share.
    assert abs(kept.float().mean() - 0.7) < 4.5 * (0.3 * 0.7 / 1000) ** 0.5
    assert torch.equal(layer.eval()(y), y)
    assert repr(layer) == "DropPath(p=0.3)"
    site = find_sites(layer.train(), y)[0]
    assert site.mask_shape == (1000, 1, 1)
    assert site.sharing == "over dim 1, 2"


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.nan])
@pytest.mark.parametrize("layer", [LockedDropout, DropPath])
def test_a_probability_with_no_finite_variance_is_refused_at_once(
    layer: type[nn.Module], p: float
) -> None:
    with pytest.raises(ValueError, match=r"outside \[0, 1\)"):
        layer(p)
