"""Checks of what a reader or a student writes: in the book's exercises and in the assignments.

A check calls the student's function with numbers of its own and compares what comes back with what
theory says, with a tolerance from the standard error. If it looks like a known mistake, the message
names it. The graders of the assignments run the same checks, with other numbers.
"""

from dropreg.book.checks.core import (
    Answer,
    Fixture,
    Mistake,
    Numbers,
    check,
    expect,
    rounds,
    stopped,
    unwritten,
)

__all__ = [
    "Answer",
    "Fixture",
    "Mistake",
    "Numbers",
    "check",
    "expect",
    "rounds",
    "stopped",
    "unwritten",
]
