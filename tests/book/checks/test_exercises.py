"""The checks of exercises in chapters: right answers pass, known mistakes are named."""

import pytest

from dropreg.book.checks import Mistake, exercises


def variance(q, steps, locked):
    return q / (1 - q) * steps ** (2 if locked else 1)


def covariance(k):
    return 2 - 1 / k


@pytest.mark.parametrize("seed", range(5))
def test_right_answers_pass(seed, capsys):
    exercises.variance_of_sum(variance, seed=seed)
    exercises.without_the_root(covariance, seed=seed)
    assert capsys.readouterr().out.count("✓") == 2


@pytest.mark.parametrize(
    ("check", "wrong", "says"),
    [
        (exercises.variance_of_sum, lambda q, t, locked: variance(q, t, True), "variances add up"),
        (exercises.variance_of_sum, lambda q, t, locked: variance(q, t, False), "one mask for all"),
        (
            exercises.variance_of_sum,
            lambda q, t, locked: variance(q, t, locked) * (1 - q) ** 2,
            "bare mask",
        ),
        (
            exercises.variance_of_sum,
            lambda q, t, locked: variance(q, t, locked) ** 0.5,
            "standard deviation",
        ),
        (exercises.without_the_root, lambda k: 1.0, "with the root"),
        (exercises.without_the_root, lambda k: 1 / k + 2, "without the factor"),
        (exercises.without_the_root, lambda k: 1 / k + 2 * (1 - 1 / k) ** 0.5, "enters squared"),
        (exercises.without_the_root, lambda k: 2 - 2 / k, "mean of k gradients"),
        (exercises.without_the_root, lambda k: None, "return"),
    ],
)
def test_mistakes_are_named(check, wrong, says):
    with pytest.raises(Mistake, match=says):
        check(wrong)


def share(A, B, s):
    return min(1.0, (A / (s * B)) ** 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_share_passes(seed, capsys):
    exercises.best_share(share, seed=seed)
    assert "✓" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda A, B, s: share(A, B, 1), "without what a share costs"),
        (lambda A, B, s: (A / (s * B)) ** 0.5, "at most 1"),
        (lambda A, B, s: min(1.0, A / (s * B)), "its square"),
        (lambda A, B, s: share(A, B, 1 / s), "should be smaller"),
        (lambda A, B, s: None, "return"),
    ],
)
def test_mistakes_about_the_best_share_are_named(wrong, says):
    with pytest.raises(Mistake, match=says):
        exercises.best_share(wrong)
