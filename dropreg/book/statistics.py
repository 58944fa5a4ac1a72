"""What runs with several seeds say: a mean with its interval, and a difference in percent."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dropreg.errors import InputError, needs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

FEWEST = 3
"""Seeds below which there is no interval."""


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


def student(degrees: int) -> float:
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

    return float(t.ppf(0.975, degrees))


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
