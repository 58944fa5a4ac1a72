"""What every check is made of: numbers, the student's function, a comparison that explains."""

from __future__ import annotations

import builtins
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dropreg.book.checks import fixtures

# A right answer is refused with this probability in one comparison: five standard errors.
FALSE_ALARM = 2 * statistics.NormalDist().cdf(-5.0)
# A mistake is named within this share of its tolerance, 3½ of 5 standard errors: further off it is
# more likely to be another one.
NAMED = 0.7
# A variance of some hundred draws is skewed: its upper tail is that of a standard error as much
# larger.
SKEWED = 1.25


class Mistake(AssertionError):
    """What is wrong with an answer, in words for the student.

    The words hold no number that was drawn or computed from one, and nothing that the student's
    function gave back: whoever sees them alone learns nothing about hidden numbers.

    Attributes:
        public: The words alone, for who may not see the numbers. `str` has both.
        seed: That of the check's numbers, 0 for the visible ones; None outside a check.
    """

    seed: int | None = None

    def __init__(self, words: str, numbers: str = "") -> None:
        """Say what is wrong.

        Args:
            words: What is wrong, and what to do.
            numbers: The case, the student's result and the right one, or the text of an error.
        """
        super().__init__(f"{words} {numbers}".strip())
        self.public = words

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
        name = getattr(function, "__name__", "the function")

        def call(seed: int, args: tuple[Any, ...]) -> Any:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(seed)
                try:
                    return function(*handed_over(args))
                except NotImplementedError as error:
                    if (where := unwritten(error)) is None:
                        raise
                    raise stopped(name, "NotImplementedError", "", where) from None

        return cls(name, call)

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
        except Mistake:
            raise
        except Exception as error:
            bare = isinstance(error, NotImplementedError) and not error.args
            where = self.name if bare else None
            text = f"{error}{_inside(error, self.name)}"
            mistake = stopped(self.name, type(error).__name__, text, where)
            raise mistake from (None if where else error)

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
        return as_numbers(f"`{self.name}`", self(*args), shape=shape)


def handed_over(args: Any) -> Any:
    """Copies of the arguments, which a function may change, with the fixtures built."""
    if isinstance(args, list | tuple):
        return type(args)(handed_over(arg) for arg in args)
    if isinstance(args, Tensor):
        return args.detach().clone(memory_format=torch.contiguous_format)
    return args.build() if isinstance(args, Fixture) else args


def unwritten(error: BaseException) -> str | None:
    """Say which function is not written, if that is what an error says.

    Args:
        error: As it was caught, with its traceback.

    Returns:
        The name of the function that raises a bare `NotImplementedError`, None for other errors:
        PyTorch raises them too, with a text.
    """
    trace = error.__traceback__
    if not isinstance(error, NotImplementedError) or error.args or trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_name


def _inside(error: BaseException, name: str) -> str:
    """Say in which function of the notebook or of this package an error arose, if in another."""
    found, trace = name, error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        module = str(frame.f_globals.get("__name__"))
        if module in ("__main__", "notebook") or (
            module.startswith("dropreg.") and module != __name__
        ):
            found = frame.f_code.co_name
    return "" if found == name else f", in `{found}`, which it calls"


def stopped(name: str, kind: str, text: str, where: str | None) -> Mistake:
    """Say what is wrong with a function that ended with an error.

    Args:
        name: The function that was called.
        kind: Name of the error's class. One of the student's own may hold anything.
        text: What the error says, which may hold the numbers of the call.
        where: What `unwritten` says of it.

    Returns:
        The message.
    """
    if where is None:
        known = isinstance(getattr(builtins, kind, None), type)
        what = kind if known else "one of its own or of a library"
        return Mistake(f"`{name}` stopped with an error: {what}.", f"({kind}: {text})")
    what_to_do = (
        "Replace the line `raise NotImplementedError()`, run that cell, then this one again."
    )
    if where == name:
        return Mistake(f"`{name}` is not written yet. {what_to_do}")
    return Mistake(
        f"`{name}` calls a function that is not written yet. {what_to_do}", f"(It is `{where}`.)"
    )


def check(body: Callable[..., None]) -> Callable[..., None]:
    """Turn a function ``(answer, …, numbers)`` that raises `Mistake` into a check.

    Args:
        body: Takes one `Answer` for each function that it checks, and `Numbers`. The first line of
            its docstring says what holds when it passes.

    Returns:
        A function of the student's functions and a ``seed``, 0 if not given. It prints a line if
        all is well, and lets the `Mistake` through if not.
    """
    return rounds(1)(body)


def rounds(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a check that holds a function to several draws of its numbers: luck passes one.

    Args:
        count: How many.

    Returns:
        What `check` is for one.
    """

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        assert body.__doc__ is not None
        passed = body.__doc__.strip().splitlines()[0]

        @functools.wraps(body)
        def run(*functions: Callable[..., Any], seed: int = 0) -> None:
            answers = [f if isinstance(f, Answer) else Answer.local(f) for f in functions]
            numbers = Numbers(seed)
            try:
                for _ in range(count):
                    body(*answers, numbers)
            except Mistake as mistake:
                mistake.seed = seed
                raise
            print(f"✓ {passed}")

        return run

    return decorate


def expect(
    what: str,
    value: Any,
    truth: Any,
    *,
    error: Any = None,
    rounding: float = 1e-4,
    size: float | None = None,
    mistakes: Mapping[str, Any] | None = None,
    follows: Sequence[Any] = (),
    at: str = "",
) -> None:
    """Compare an answer with the truth, and with what known mistakes would give.

    A value passes within 5 standard errors; one of m values within so many that all m together
    pass with the same probability. Without a standard error it passes up to rounding. Truth and
    error come from theory or from draws of the check's own: what a student's function gives back
    must not decide by what it is judged.

    Args:
        what: Name of the quantity, for the message: no number that was drawn.
        value: The answer: a number or tensor, from the student, so possibly anything at all.
        truth: What it should be, a number or a tensor.
        error: Standard error of value minus truth, of the shape of the truth; None if exact.
        rounding: Allowed relative to `size`, added to the rest.
        size: What rounding is relative to; the largest absolute value of the truth if None.
        mistakes: The message of each known mistake, and the value that it leads to, or a tuple of
            this and its standard error. Those that come near are named, the nearest first.
        follows: What passes as well: what follows from a mistake that costs points elsewhere.
        at: The numbers of the case, for the student's own notebook.

    Raises:
        Mistake: If the value does not pass.
    """
    right = torch.as_tensor(truth).detach().double()
    got = as_numbers(what, value, shape=tuple(right.shape))
    largest = right.abs().max().item() if right.numel() else 0.0
    factor = -statistics.NormalDist().inv_cdf(FALSE_ALARM / max(right.numel(), 1) / 2)

    def room(deviation: Any) -> Tensor:
        """How far a value may lie from one that has this standard error."""
        exact = torch.full_like(right, rounding * max(largest if size is None else size, 1e-12))
        return exact if deviation is None else exact + factor * torch.as_tensor(deviation).double()

    def distance(to: Any, deviation: Any) -> float:
        """The largest difference, in units of what is allowed."""
        other = torch.as_tensor(to).detach().double().expand_as(right)
        return ((got - other).abs() / room(deviation)).nan_to_num(nan=math.inf).max().item()

    if min(distance(passes, error) for passes in (right, *follows)) <= 1:
        return
    named = {}
    for message, wrong in (mistakes or {}).items():
        far = distance(*wrong) if isinstance(wrong, tuple) else distance(wrong, error)
        if far <= NAMED:
            named[message] = far
    reason = " Or: ".join(sorted(named, key=lambda m: named[m])) or "that is not what theory says."
    allowed = room(error)
    worst = int(((got - right).abs() / allowed).nan_to_num(nan=math.inf).argmax())
    raise Mistake(
        f"{what}: {reason}",
        f"(You have {got.flatten()[worst]:.5g}, it should be {right.flatten()[worst]:.5g}, "
        f"give or take {allowed.flatten()[worst]:.2g}{at and f', at {at}'}.)",
    )


def as_numbers(what: str, value: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    """Take a student's result for a float64 tensor, or say why it is none.

    Args:
        what: Name of the quantity, for the message.
        value: Anything.
        shape: The shape that the numbers must have; () for a single number, which may come as a
            tensor or list of one entry, too. Any shape if None.

    Returns:
        The numbers, detached.

    Raises:
        Mistake: If it is not a number, a tensor or a list of these, holds NaN or infinity, or has
            another shape.
    """
    if value is None:
        raise Mistake(f"{what}: the function returns None. Does it end with `return`?")
    try:
        numbers = _tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise Mistake(
            f"{what}: a number or a tensor is expected.", f"(You have: {type(value).__name__}.)"
        ) from None
    if numbers.isnan().any():
        raise Mistake(f"{what}: some of the numbers are NaN (0/0, or the root of a negative one?).")
    if numbers.isinf().any():
        raise Mistake(f"{what}: some of the numbers are infinite (a division by 0?).")
    if shape == () and numbers.numel() == 1:
        return numbers.reshape(())
    if shape is not None and numbers.shape != shape:
        asked = "one number is expected" if shape == () else "the shape is another one"
        raise Mistake(
            f"{what}: {asked}.",
            f"(The shape is {tuple(numbers.shape)}, but the shape should be {shape}.)",
        )
    return numbers


def _tensor(value: Any) -> Tensor:
    """A tensor of a number, a tensor, or lists of these, however they are nested."""
    if isinstance(value, list | tuple) and any(
        isinstance(item, Tensor | list | tuple) for item in value
    ):
        return torch.stack([_tensor(item) for item in value])
    numbers = torch.as_tensor(value)
    if numbers.is_complex():
        raise TypeError
    return numbers.detach().to("cpu", torch.float64)
