"""The checks of exercises in chapters: right answers pass, known mistakes are named."""

import pytest

from dropreg.book.checks import Mistake, exercises


def variance(q, steps, locked):
    return q / (1 - q) * steps ** (2 if locked else 1)


def covariance(k):
    return 2 - 1 / k


def of_a_logit(logit, label):
    return logit.sigmoid() * (1 - logit.sigmoid())


@pytest.mark.parametrize("seed", range(5))
def test_right_answers_pass(seed, capsys):
    exercises.variance_of_sum(variance, seed=seed)
    exercises.without_the_root(covariance, seed=seed)
    exercises.curvature_of_one_logit(of_a_logit, seed=seed)
    assert capsys.readouterr().out.count("✓") == 3


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
        (exercises.curvature_of_one_logit, lambda f, y: f.sigmoid() - y, "once more"),
        (exercises.curvature_of_one_logit, lambda f, y: f.sigmoid(), "predicted"),
        (exercises.curvature_of_one_logit, lambda f, y: 0.25, "even odds"),
    ],
)
def test_mistakes_are_named(check, wrong, says):
    with pytest.raises(Mistake, match=says):
        check(wrong)


def copies(k, q):
    return k / (k + q / (1 - q))


def wider(q, old, new):
    odds = q / (1 - q) * new / old
    return odds / (1 + odds)


@pytest.mark.parametrize("seed", range(5))
def test_exact_cases_pass(seed, capsys):
    exercises.factor_of_copies(copies, seed=seed)
    exercises.probability_of_width(wider, seed=seed)
    assert capsys.readouterr().out.count("✓") == 2


@pytest.mark.parametrize(
    ("check", "wrong", "says"),
    [
        (exercises.factor_of_copies, lambda k, q: 1 - q, "one copy"),
        (exercises.factor_of_copies, lambda k, q: copies(k, q) / k, "each weight"),
        (exercises.factor_of_copies, lambda k, q: k / (k + q), "not q"),
        (exercises.probability_of_width, lambda q, old, new: q * new / old, "not q"),
        (exercises.probability_of_width, lambda q, old, new: q / (1 - q) * new / old, "solve"),
        (exercises.probability_of_width, lambda q, old, new: q, "regularized less"),
    ],
)
def test_mistakes_of_exact_cases_are_named(check, wrong, says):
    with pytest.raises(Mistake, match=says):
        check(wrong)


def weights(explicit, implicit):
    return 1 - explicit, (explicit + implicit) / 2, (explicit - implicit) / 2


@pytest.mark.parametrize("seed", range(5))
def test_right_answers_of_the_chapters_that_separate_the_effects_pass(seed, capsys):
    exercises.share_left(lambda k, order: k ** (1 - order), seed=seed)
    exercises.three_weights(weights, seed=seed)
    assert capsys.readouterr().out.count("✓") == 2


@pytest.mark.parametrize(
    ("check", "wrong", "says"),
    [
        (exercises.share_left, lambda k, order: float(k) ** -order, "independent terms"),
        (exercises.share_left, lambda k, order: 1 / k, "for every order"),
        (exercises.share_left, lambda k, order: k ** (order - 1), "what grows"),
        (exercises.three_weights, lambda e, i: weights(e, -i), "exchanged"),
        (exercises.three_weights, lambda e, i: (1.0, *weights(e, i)[1:]), "already"),
        (exercises.three_weights, lambda e, i: (1 - e, e + i, e - i), "factor 1/2"),
    ],
)
def test_their_mistakes_are_named(check, wrong, says):
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
