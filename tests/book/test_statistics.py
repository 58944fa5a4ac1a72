"""The intervals, against SciPy's own."""

import math
import sys

import numpy as np
import pytest
from scipy import stats

from dropreg.book.statistics import interval, percent
from dropreg.errors import InputError, MissingPackageError


def test_interval_is_that_of_student():
    runs = np.random.default_rng(0).normal(size=(5, 3))
    mean, half = interval(runs)
    low, high = stats.t.interval(0.95, 4, loc=runs.mean(0), scale=stats.sem(runs))
    np.testing.assert_allclose([mean - half, mean + half], [low, high])


def test_two_runs_have_no_interval():
    with pytest.raises(InputError, match="at least 3 seeds"):
        interval([[1.0], [2.0]])


def test_percent_turns_the_interval_of_the_logs_into_ratios():
    logs = [math.log(1.1), math.log(1.2), math.log(1.3)]
    mean, half = interval(logs)
    ratios = [1 + share / 100 for share in percent(logs)]
    np.testing.assert_allclose(ratios, np.exp([mean, mean - half, mean + half]))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MissingPackageError, match="A confidence interval needs sc"):
        interval([[1.0], [2.0], [3.0]])
