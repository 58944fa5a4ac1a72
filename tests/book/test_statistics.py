"""The intervals, against SciPy's own."""

import itertools
import math
import sys

import numpy as np
import pytest
from scipy import stats

from dropreg.book.statistics import (
    Uncertain,
    contrasts,
    holm,
    interval,
    percent,
    ratio_interval,
    student,
)
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


# Blocks of arms


@pytest.fixture
def block():
    """Four arms on six seeds, with parts of arm, seed and chance."""
    generator = np.random.default_rng(0)
    arms, seeds = generator.normal(0, 3, (4, 1)), generator.normal(0, 9, 6)
    values = arms + seeds + generator.normal(0, 1, (4, 6))
    return dict(zip("abcd", values.tolist(), strict=True))


def least_squares(block, weights):
    """A contrast and its error by regression on dummy variables of arms and seeds."""
    arms, seeds = list(block), len(block["a"])
    rows = [
        [float(arm == other) for other in arms] + [float(seed == s) for s in range(1, seeds)]
        for arm in arms
        for seed in range(seeds)
    ]
    design, y = np.array(rows), np.concatenate([block[arm] for arm in arms])
    solution, *_ = np.linalg.lstsq(design, y, rcond=None)
    degrees = len(y) - design.shape[1]
    variance = np.square(y - design @ solution).sum() / degrees
    factors = np.array([weights.get(arm, 0.0) for arm in arms] + [0.0] * (seeds - 1))
    error = (variance * factors @ np.linalg.inv(design.T @ design) @ factors) ** 0.5
    return factors @ solution, error, degrees


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": -1.0}, {"a": 1.0, "c": -0.5, "d": -0.5}])
def test_a_pooled_contrast_is_that_of_least_squares(block, weights):
    found = contrasts(block, [weights], list(block))
    assert found.pooled
    value, error, degrees = least_squares(block, weights)
    estimate = found.sum(1.0)
    assert estimate.value == pytest.approx(value)
    assert estimate.error == pytest.approx(error)
    assert estimate.degrees == degrees == 15


def test_several_contrasts_add_up_as_one_would(block, monkeypatch):
    monkeypatch.setattr("dropreg.book.statistics.LEVEL_OF_SPREAD", 1e-9)  # pooled in any case
    part, whole = {"a": 1.0, "b": -1.0}, {"a": 1.0, "c": -1.0}
    together = contrasts(block, [part, whole], list(block)).sum(1.0, -0.5)
    at_once = contrasts(block, [{"a": 0.5, "b": -1.0, "c": 0.5}], list(block)).sum(1.0)
    assert together.value == pytest.approx(at_once.value)
    assert together.error == pytest.approx(at_once.error)


def test_without_a_pool_it_is_the_paired_t_interval(block):
    found = contrasts(block, [{"a": 1.0, "b": -1.0}], []).sum(1.0)
    paired = stats.ttest_rel(block["a"], block["b"])
    assert found.interval == pytest.approx(paired.confidence_interval(0.95))
    assert found.p_value == pytest.approx(paired.pvalue)


def test_a_noisier_pair_is_judged_by_its_own_spread(block):
    noisy = block | {"a": [x + 20 * (-1) ** i for i, x in enumerate(block["a"])]}
    assert not contrasts(noisy, [{"a": 1.0, "b": -1.0}], ["b", "c", "d"]).pooled
    assert contrasts(block, [{"c": 1.0, "b": -1.0}], ["b", "c", "d"]).pooled


def test_independent_estimates_add_as_welch_has_it():
    generator = np.random.default_rng(1)
    x, y = generator.normal(0, 1, 5), generator.normal(0, 3, 9)
    means = [Uncertain(v.mean(), v.std(ddof=1) / len(v) ** 0.5, len(v) - 1) for v in (x, -y)]
    total = means[0] + means[1]
    welch = stats.ttest_ind(x, y, equal_var=False)
    assert total.degrees == pytest.approx(welch.df)
    assert total.interval == pytest.approx(welch.confidence_interval(0.95))
    assert total.p_value == pytest.approx(welch.pvalue)


def test_what_is_detectable_is_detected_four_times_in_five():
    """Drawn: normal means over chi-square spreads."""
    generator, degrees, runs = np.random.default_rng(2), 7, 200_000
    true = Uncertain(0.0, 1.0, degrees).detectable
    errors = np.sqrt(generator.chisquare(degrees, runs) / degrees)
    values = true + generator.normal(0, 1, runs)
    seen = (values > student(degrees) * errors).mean()
    assert seen == pytest.approx(0.8, abs=4.5 * (0.8 * 0.2 / runs) ** 0.5)


def test_a_ratio_has_fiellers_interval():
    """Against the roots of its quadratic equation."""
    part, whole, covariance, degrees = 1.0, 2.0, 0.01, 11
    variances = 0.04, 0.09
    t = student(degrees) ** 2
    a, b, c = whole**2 - t * variances[1], part * whole - t * covariance, part**2 - t * variances[0]
    root = (b**2 - a * c) ** 0.5

    def estimate(rho):
        variance = variances[0] - 2 * rho * covariance + rho**2 * variances[1]
        return Uncertain(part - rho * whole, variance**0.5, degrees)

    assert ratio_interval(estimate, part / whole) == pytest.approx(((b - root) / a, (b + root) / a))
    hidden = ratio_interval(lambda rho: Uncertain(1 - rho, 0.1 + abs(rho), degrees), 1.0)
    assert hidden[1] == math.inf


def test_holm_is_the_closed_test():
    """A hypothesis falls where Bonferroni's test rejects every set of them that it is in."""
    generator = np.random.default_rng(3)
    for _ in range(50):
        values = generator.uniform(0, 0.1, 4)
        corrected = holm(values.tolist())
        for i in range(4):
            others = [j for j in range(4) if j != i]
            sets = [(i, *s) for size in range(4) for s in itertools.combinations(others, size)]
            expected = max(min(1.0, len(s) * min(values[j] for j in s)) for s in sets)
            assert corrected[i] == pytest.approx(expected)


def test_what_is_no_contrast_is_refused(block):
    with pytest.raises(InputError, match=r"add up to 1\.0, not to 0"):
        contrasts(block, [{"a": 1.0}], [])
    with pytest.raises(InputError, match="2 seeds"):
        contrasts({arm: values[:2] for arm, values in block.items()}, [{"a": 1.0, "b": -1.0}], [])
