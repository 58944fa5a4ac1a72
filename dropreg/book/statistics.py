"""What runs with several seeds say: a mean with its interval, and a difference in percent.

Several arms that are run on the same seeds make a block design: an outcome is the arm's, plus the
seed's, plus chance. What is compared is a contrast, a weighted sum of arms whose weights add up to
zero, so that the seed's part drops out; how much chance there is can be told from all arms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from dropreg.errors import InputError, needs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

FEWEST = 3
"""Seeds below which there is no interval."""
CONFIDENCE = 0.95
"""Of every interval."""
LEVEL_OF_SPREAD = 0.25
"""How often a contrast as noisy as the others is taken for a noisier one; see `contrasts`. Rarer
means narrower intervals, and too narrow ones where arms do differ in spread."""
POWER = 0.8
"""With what probability `Uncertain.detectable` is told from zero."""


def interval(runs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean over runs and the half-width of its 95 % confidence interval (Student's t).

    Args:
        runs: One row for each seed, (seeds, ...), at least 3.

    Returns:
        Mean and half-width, each of shape (...).

    Raises:
        InputError: If there are fewer than 3 runs.
        MissingPackageError: If NumPy or SciPy is not installed.

    >>> mean, half = interval([[1.0], [2.0], [3.0]])
    >>> print(mean.round(2), half.round(2))
    [2.] [2.48]
    """
    with needs("book", "A confidence interval"):
        import numpy as np

    values = np.asarray(runs, dtype=float)
    seeds = values.shape[0]
    if seeds < FEWEST:
        raise InputError(f"{seeds} runs; an interval needs at least {FEWEST} seeds.")
    error = values.std(axis=0, ddof=1) / seeds**0.5
    return values.mean(axis=0), student(seeds - 1) * error


def student(degrees: float) -> float:
    """How many standard errors a 95 % confidence interval reaches to either side.

    Args:
        degrees: Degrees of freedom: one less than there are runs.

    Returns:
        The 97.5 % point of Student's t.

    Raises:
        MissingPackageError: If SciPy is not installed.

    >>> round(student(2), 3)
    4.303
    """
    with needs("book", "A confidence interval"):
        from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, degrees))


def percent(logs: ArrayLike) -> tuple[float, float, float]:
    """Log ratios as a difference in percent.

    Args:
        logs: For each seed the log of one perplexity over another, at least 3.

    Returns:
        By how many percent the first is higher: of the mean, and of both ends of its 95 % interval.

    >>> print("{:.1f} ({:.1f} to {:.1f})".format(*percent([0.01, 0.02, 0.03])))
    2.0 (-0.5 to 4.6)
    """
    mean, half = map(float, interval(logs))
    return in_percent(mean), in_percent(mean - half), in_percent(mean + half)


def in_percent(log: float) -> float:
    """One log ratio as a difference in percent.

    Args:
        log: The log of one perplexity over another.

    Returns:
        By how many percent the first is higher.
    """
    return 100 * math.expm1(log)


def at_fit(train: Sequence[float], test: Sequence[float], level: float) -> float:
    """Test loss where the training loss first comes down to a level, between two looks by a line.

    Args:
        train: Training losses of one run, (looks,).
        test: Its test losses, (looks,).
        level: Of the training loss.

    Returns:
        The test loss; NaN if the training loss starts below the level, or never comes down to it.

    >>> at_fit([3.0, 2.0, 1.0], [5.0, 4.0, 4.5], 1.5)
    4.25
    """
    if train[0] < level:
        return math.nan
    looks = zip(train, test, strict=True)
    for (before, at_before), (after, at_after) in pairwise(looks):
        if before == level:
            return at_before
        if after <= level:
            return at_before + (before - level) / (before - after) * (at_after - at_before)
    return test[-1] if train[-1] == level else math.nan


@dataclass(frozen=True)
class Uncertain:
    """A number with its standard error.

    Attributes:
        value: The number.
        error: Its standard error.
        degrees: Degrees of freedom of the error.
    """

    value: float
    error: float
    degrees: float

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval of Student's t."""
        return student(self.degrees) * self.error

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.value - self.half, self.value + self.half

    @property
    def p_value(self) -> float:
        """How often chance alone gives a value as far from zero, on either side."""
        with needs("book", "A p-value"):
            from scipy.stats import t

        return float(2 * t.sf(abs(self.value) / self.error, self.degrees))

    @property
    def detectable(self) -> float:
        """The true value that would be told from zero four times in five.

        A noncentral t variable lies beyond the interval's end with that probability.
        """
        with needs("book", "A power"):
            from scipy.optimize import brentq
            from scipy.stats import nct

        end = student(self.degrees)

        def missed(shift: float) -> float:
            return float(nct.cdf(end, self.degrees, shift)) - (1 - POWER)

        return self.error * float(brentq(missed, 0.0, 4 * end + 4))

    def __add__(self, other: Uncertain) -> Uncertain:
        """The sum of two independent numbers; Welch and Satterthwaite's degrees of freedom."""
        squares = self.error**2, other.error**2
        total = sum(squares)
        degrees = total**2 / (squares[0] ** 2 / self.degrees + squares[1] ** 2 / other.degrees)
        return Uncertain(self.value + other.value, total**0.5, degrees)


@dataclass(frozen=True)
class Contrasts:
    """Some contrasts of one block.

    Attributes:
        values: Their values, (contrasts,).
        covariance: Their covariance, (contrasts, contrasts).
        degrees: Degrees of freedom of the covariance.
        pooled: Whether the spread is that of all arms.
    """

    values: np.ndarray
    covariance: np.ndarray
    degrees: float
    pooled: bool

    def sum(self, *factors: float) -> Uncertain:
        """The sum of the contrasts, each times a factor."""
        value = float(sum(f * v for f, v in zip(factors, self.values, strict=True)))
        return Uncertain(value, float(factors @ self.covariance @ factors) ** 0.5, self.degrees)


def contrasts(
    outcomes: Mapping[str, Sequence[float]],
    weights: Sequence[Mapping[str, float]],
    pool: Sequence[str],
) -> Contrasts:
    r"""Weighted sums of arms, with the spread of a whole block of arms.

    With residuals :math:`e_{as}` of the additive model (arm plus seed) over the pool of :math:`A`
    arms and :math:`n` seeds, :math:`\hat\sigma^2 = \sum e_{as}^2 / (A-1)(n-1)`, and the variance of
    :math:`\sum_a w_a \bar y_a` is :math:`\hat\sigma^2 \sum_a w_a^2 / n`. Arms may differ in spread.
    So the contrasts' own covariance over the seeds, with :math:`n - 1` degrees of freedom, takes
    its place where one of them spreads more than pooling lets expect (F test, 25 %), and where the
    pool is less than two arms.

    Args:
        outcomes: For each arm its outcomes, one for each seed, in the same order for all.
        weights: For each contrast the weights of its arms, which add up to 0.
        pool: The arms whose spread is pooled.

    Returns:
        The contrasts.

    Raises:
        InputError: If there are fewer than 3 seeds, or weights do not add up to 0.
        MissingPackageError: If NumPy or SciPy is not installed.

    >>> outcomes = {"a": [1.0, 2.0, 3.1], "b": [0.0, 1.1, 2.0], "c": [5.0, 6.0, 7.0]}
    >>> found = contrasts(outcomes, [{"a": 1.0, "b": -1.0}], pool=["a", "b", "c"]).sum(1.0)
    >>> print(f"{found.value:.2f} ± {found.half:.2f}, {found.degrees} degrees")
    1.00 ± 0.12, 4 degrees
    """
    with needs("book", "A contrast"):
        import numpy as np
        from scipy.stats import f

    for each in weights:
        if abs(sum(each.values())) > 1e-12:
            raise InputError(f"the weights {dict(each)} add up to {sum(each.values())}, not to 0.")
    arms = list(dict.fromkeys(arm for each in weights for arm in each))
    matrix = np.array([[each.get(arm, 0.0) for arm in arms] for each in weights])
    sums = matrix @ np.array([outcomes[arm] for arm in arms])  # (contrasts, seeds)
    seeds = sums.shape[1]
    if seeds < FEWEST:
        raise InputError(f"{seeds} seeds; a contrast needs at least {FEWEST}.")
    values, own = sums.mean(1), np.atleast_2d(np.cov(sums)) / seeds
    if len(pool) < 2:
        return Contrasts(values, own, seeds - 1, pooled=False)
    pooled = np.array([outcomes[arm] for arm in pool])
    residuals = pooled - pooled.mean(0) - pooled.mean(1, keepdims=True) + pooled.mean()
    degrees = (len(pool) - 1) * (seeds - 1)
    covariance = np.square(residuals).sum() / degrees * matrix @ matrix.T / seeds
    limit = f.isf(LEVEL_OF_SPREAD, seeds - 1, degrees)
    if (own.diagonal() > limit * covariance.diagonal()).any():
        return Contrasts(values, own, seeds - 1, pooled=False)
    return Contrasts(values, covariance, degrees, pooled=True)


def ratio_interval(estimate: Callable[[float], Uncertain], ratio: float) -> tuple[float, float]:
    r"""Fieller's 95 % interval of a ratio.

    It holds all :math:`\rho` for which *part* :math:`- \rho\,\cdot` *whole* is not told from zero.

    Args:
        estimate: Gives for a :math:`\rho` the estimate of that difference; it is linear in it.
        ratio: Where it is zero.

    Returns:
        Both ends; infinite where the whole is not told from zero.

    >>> block = {"a": [3.0, 3.1, 2.9], "b": [2.0, 2.1, 1.9], "c": [1.05, 1.0, 0.95]}
    >>> found = contrasts(block, [{"a": 1.0, "b": -1.0}, {"a": 1.0, "c": -1.0}], pool=[*block])
    >>> low, high = ratio_interval(lambda r: found.sum(1.0, -r), 0.5)
    >>> print(f"{low:.2f} to {high:.2f}")
    0.45 to 0.55
    """
    with needs("book", "A ratio's interval"):
        from scipy.optimize import brentq

    def outside(rho: float) -> float:
        found = estimate(rho)
        return found.value**2 - found.half**2

    ends = []
    for direction in (-1.0, 1.0):
        reach = 1.0
        while outside(ratio + direction * reach) < 0:
            reach *= 2
            if reach > 1e6:
                break
        else:
            ends.append(float(brentq(outside, ratio, ratio + direction * reach)))
            continue
        ends.append(direction * math.inf)
    return ends[0], ends[1]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being several (Holm 1979): below 0.05 all errors together are.

    Args:
        p_values: One for each claim.

    Returns:
        The corrected ones, in the same order.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected
