"""The embedded images."""

import sys

import pytest
import torch

from dropreg.book.data import load_digits
from dropreg.errors import InputError, MissingPackageError


def test_the_test_set_is_the_same_for_every_size_and_disjoint():
    large, small = load_digits(), load_digits(100)
    assert (len(large.train_x), len(small.train_x), len(small.test_x)) == (1000, 100, 797)
    assert torch.equal(large.test_x, small.test_x)
    assert torch.equal(large.test_y, small.test_y)
    assert torch.equal(large.train_x[:100], small.train_x)
    assert 0 <= large.train_x.min() <= large.train_x.max() == 1
    every = torch.cat([large.train_x, large.test_x])
    assert len(every.unique(dim=0)) == 1797


def test_the_seed_matters():
    assert not torch.equal(load_digits(seed=1).test_y, load_digits(seed=2).test_y)
    assert torch.equal(load_digits(seed=1).test_y, load_digits(seed=1).test_y)


@pytest.mark.parametrize("size", [0, 1001])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(InputError, match=f"train_size is {size}"):
        load_digits(size)


def test_without_their_package_the_error_says_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingPackageError) as error:
        load_digits()
    assert str(error.value) == 'load_digits needs sklearn: pip install "dropreg[book]"'
    assert error.value.name == "sklearn.datasets"
