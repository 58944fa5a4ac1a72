"""What every check is made of: numbers, the student's function, a comparison that explains."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dropreg.book.checks import fixtures

# A right answer is refused with this probability in one comparison: five standard errors.
FALSE_ALARM = 2 * statistics.NormalDist().cdf(-5.0)


class Mistake(AssertionError):
    """What is wrong with an answer, in words for the student."""

    def _render_traceback_(self) -> list[str]:
        """Show the words alone in a notebook: the frames of the check would only hide them."""
        return [f"✗ {self}"]


@dataclass(frozen=True)
class Fixture:
    """An argument that is built where the student's function runs, such as a model.

    Attributes:
        name: A function of `dropreg.book.checks.fixtures`.
        args: Its arguments: numbers and text.
    """

    name: str
    args: tuple[int | float | str, ...] = ()

    def build(self) -> Any:
        """Build it.

        Returns:
            What the function of that name returns.

        Raises:
            LookupError: If there is no such fixture.
        """
        if self.name not in fixtures.__all__:
            raise LookupError(f"there is no fixture {self.name!r}; there are {fixtures.__all__}.")
        return getattr(fixtures, self.name)(*self.args)


class Numbers:
    """Numbers for a check, drawn afresh for each seed.

    >>> Numbers(0).uniform(0.2, 0.4) == Numbers(0).uniform(0.2, 0.4)
    True
    """

    def __init__(self, seed: int) -> None:
        """Start the stream of a seed."""
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        """A number between `low` and `high`, of three digits, so that a message can show it."""
        return round(low + (high - low) * torch.rand((), generator=self._generator).item(), 3)

    def integer(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(torch.randint(low, high + 1, (), generator=self._generator))

    def normal(self, *shape: int) -> Tensor:
        """A tensor of independent standard normal numbers, float64."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def seed(self) -> int:
        """A seed for something else, such as a fixture."""
        return self.integer(0, 2**31 - 1)


class Answer:
    """A student's function, as a check calls it.

    Each call starts from a random state of its own, so that a check ends the same way every time.
    """

    def __init__(self, name: str, call: Callable[[int, tuple[Any, ...]], Any]) -> None:
        """Wrap a function.

        Args:
            name: What the student knows it by.
            call: Takes a seed for torch's default generator, and the arguments.
        """
        self.name, self._call, self._calls = name, call, 0

    @classmethod
    def local(cls, function: Callable[..., Any]) -> Answer:
        """Wrap a function that runs in this process.

        Args:
            function: The student's function.

        Returns:
            The wrapped function.
        """

        def call(seed: int, args: tuple[Any, ...]) -> Any:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(seed)
                return function(*(a.build() if isinstance(a, Fixture) else a for a in args))

        return cls(getattr(function, "__name__", "the function"), call)

    def __call__(self, *args: Any) -> Any:
        """Call the student's function.

        Args:
            args: Numbers, text, tensors, lists of these, and fixtures.

        Returns:
            What it returns.

        Raises:
            Mistake: If it is not written yet, or raises an error.
        """
        self._calls += 1
        try:
            return self._call(self._calls, args)
        except NotImplementedError:
            raise Mistake(
                f"`{self.name}` is not written yet. Replace the line "
                "`raise NotImplementedError()`, run that cell, then this one again."
            ) from None
        except Mistake:
            raise
        except Exception as error:
            raise Mistake(
                f"`{self.name}` stopped with an error: {type(error).__name__}: {error}"
            ) from error

    def numbers(self, *args: Any, shape: tuple[int, ...]) -> Tensor:
        """Call the student's function where numbers of a known shape are expected.

        Args:
            args: As for a plain call.
            shape: The shape that they must have; () for a single number.

        Returns:
            What it returns, as float64.

        Raises:
            Mistake: If there are no such numbers.
        """
        numbers = as_numbers(f"`{self.name}`", self(*args))
        if numbers.shape != shape:
            raise Mistake(
                f"`{self.name}` returns shape {tuple(numbers.shape)}; the shape should be {shape}"
                + (", a single number." if shape == () else ".")
            )
        return numbers


def check(body: Callable[..., None]) -> Callable[..., None]:
    """Turn a function ``(answer, …, numbers)`` that raises `Mistake` into a check.

    Args:
        body: Takes one `Answer` for each function that it checks, and `Numbers`. The first line of
            its docstring says what holds when it passes.

    Returns:
        A function of the student's functions and a ``seed``, 0 if not given. It prints a line if
        all is well, and lets the `Mistake` through if not.
    """
    assert body.__doc__ is not None
    passed = body.__doc__.strip().splitlines()[0]

    @functools.wraps(body)
    def run(*functions: Callable[..., Any], seed: int = 0) -> None:
        answers = [f if isinstance(f, Answer) else Answer.local(f) for f in functions]
        body(*answers, Numbers(seed))
        print(f"✓ {passed}")

    return run


def standard_error(draws: Tensor) -> Tensor:
    r"""The standard error of the mean over the first dimension, :math:`s/\sqrt n`.

    Args:
        draws: Independent draws, (n, …).

    Returns:
        A tensor of the other dimensions.
    """
    return draws.std(0) / math.sqrt(len(draws))


def expect(
    what: str,
    value: Any,
    truth: Any,
    *,
    error: Any = None,
    rounding: float = 1e-4,
    mistakes: Mapping[str, Any] | None = None,
) -> None:
    """Compare an answer with the truth, and with what known mistakes would give.

    A value passes within 5 standard errors; one of m values within so many that all m together
    pass with the same probability. Without a standard error it passes up to rounding.

    Args:
        what: Name of the quantity, for the message.
        value: The answer: a number or tensor, from the student, so possibly anything at all.
        truth: What it should be, a number or a tensor.
        error: Standard error of value minus truth, of the shape of the truth; None if exact.
        rounding: Allowed relative to the largest absolute value of the truth, added to the rest.
        mistakes: The message of each known mistake, and the value that it leads to. The nearest one
            within the tolerance names the mistake.

    Raises:
        Mistake: If the value does not pass.
    """
    right = torch.as_tensor(truth).detach().double()
    got = as_numbers(what, value)
    if got.shape != right.shape:
        raise Mistake(
            f"{what}: the shape is {tuple(got.shape)}, but should be {tuple(right.shape)}."
        )
    largest = right.abs().max().item() if right.numel() else 0.0
    allowed = torch.full_like(right, rounding * max(largest, 1e-12))
    if error is not None:
        one = FALSE_ALARM / max(right.numel(), 1)
        allowed += -statistics.NormalDist().inv_cdf(one / 2) * torch.as_tensor(error).double()

    def distance(to: Any) -> float:
        """The largest difference, in units of what is allowed."""
        other = torch.as_tensor(to).detach().double().expand_as(right)
        return ((got - other).abs() / allowed).nan_to_num(nan=math.inf).max().item()

    if distance(right) <= 1:
        return
    named = {message: distance(wrong) for message, wrong in (mistakes or {}).items()}
    message = min(named, key=lambda m: named[m], default="")
    reason = message if message and named[message] <= 1 else "that is not what theory says."
    worst = int(((got - right).abs() / allowed).nan_to_num(nan=math.inf).argmax())
    raise Mistake(
        f"{what}: {reason} (You have {got.flatten()[worst]:.5g}, it should be "
        f"{right.flatten()[worst]:.5g}, give or take {allowed.flatten()[worst]:.2g}.)"
    )


def as_numbers(what: str, value: Any) -> Tensor:
    """Take a student's result for a float64 tensor, or say why it is none.

    Args:
        what: Name of the quantity, for the message.
        value: Anything.

    Returns:
        The numbers, detached.

    Raises:
        Mistake: If it is not a number, a tensor or a list of numbers, or holds NaN.
    """
    if value is None:
        raise Mistake(f"{what}: the function returns None. Does it end with `return`?")
    try:
        numbers = torch.as_tensor(value).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise Mistake(
            f"{what}: a number or a tensor is expected, not {type(value).__name__}."
        ) from None
    if numbers.isnan().any():
        raise Mistake(f"{what}: some of the numbers are NaN (0/0, or the root of a negative one?).")
    return numbers
