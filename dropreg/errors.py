"""Everything that `dropreg` refuses, each with what is wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import NoReturn


class DropregError(Exception):
    """Base class of every error that this package raises on purpose."""


class NoSitesError(DropregError, ValueError):
    """The forward pass met no active dropout, so there is nothing to regularize with."""


class EvalModeError(NoSitesError):
    """The model has dropout, but it is switched off because the model is in eval mode."""


class ZeroProbabilityError(NoSitesError):
    """Every dropout of the model has probability 0."""


class ProbabilityError(DropregError, ValueError):
    """A dropout probability lies outside [0, 1), where the noise has no finite variance."""


class InputError(DropregError, ValueError):
    """An argument is wrong: an unknown name, targets of the wrong shape, `k = 0`."""


class LogitsError(DropregError, ValueError):
    """The model's output is not a tensor of floating-point logits, or holds NaN."""


class DataError(DropregError):
    """A corpus is not there and cannot be fetched, or is not the text it should be."""


class MissingPackageError(DropregError, ImportError):
    """A function needs a package that is not installed; the message has the command that does."""


class PrecisionError(DropregError, ValueError):
    """The chosen method is not accurate in the precision that the forward pass uses."""


class UnsupportedError(DropregError):
    """A part of the model draws noise that this package cannot control."""


class NeverSupportedError(UnsupportedError):
    """It cannot work: the part's noise is not a multiplicative noise that can be seen."""


class NotYetSupportedError(UnsupportedError):
    """It could work and does not yet; the message names the way around it."""


@contextmanager
def needs(extra: str, purpose: str) -> Iterator[None]:
    """Around imports inside a function, of packages that torch does not bring.

    Args:
        extra: The extra of this package that brings them.
        purpose: What they are for: the subject of the message.

    Yields:
        None: The imports stand in the block.

    Raises:
        MissingPackageError: If one of the packages is not installed.
        ModuleNotFoundError: If what is missing is a module of this package.

    >>> with needs("book", "Drawing a house"):
    ...     import pencil
    Traceback (most recent call last):
    dropreg.errors.MissingPackageError: Drawing a house needs pencil: pip install "dropreg[book]"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "a package").partition(".")[0]
        if missing == "dropreg":  # a mistake of ours, which no installation mends
            raise
        raise MissingPackageError(
            f'{purpose} needs {missing}: pip install "dropreg[{extra}]"', name=error.name
        ) from error


class Choice(StrEnum):
    """A named option: a plain string works wherever a member does, a misspelt one is refused."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        names = ", ".join(repr(str(member)) for member in cls)
        raise InputError(f"unknown {cls.__name__}: {value!r}. Choose one of: {names}.")


_values_are_checked: ContextVar[bool] = ContextVar("values_are_checked", default=True)


def values_are_checked() -> bool:
    """Whether the values of logits and targets are looked at, not only their shapes and types."""
    return _values_are_checked.get()


@contextmanager
def values_unchecked() -> Iterator[None]:
    """Within this context nobody looks for NaN in logits, or for labels out of range.

    To look at a value, the processor waits until the GPU has computed it, and then the GPU waits
    for the next command. A training loop whose labels are known to fit, and which looks at the norm
    of its gradient now and then, does without.
    """
    before = _values_are_checked.set(False)
    try:
        yield
    finally:
        _values_are_checked.reset(before)
