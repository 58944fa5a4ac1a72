"""The figures' intervals, against SciPy's."""

import numpy as np
import pytest
from scipy import stats

from dropreg.errors import InputError
from dropreg.plots import interval


def test_interval_is_that_of_student():
    runs = np.random.default_rng(0).normal(size=(5, 3))
    mean, half = interval(runs)
    low, high = stats.t.interval(0.95, 4, loc=runs.mean(0), scale=stats.sem(runs))
    np.testing.assert_allclose([mean - half, mean + half], [low, high])


def test_two_runs_have_no_interval():
    with pytest.raises(InputError, match="at least 3 seeds"):
        interval([[1.0], [2.0]])
