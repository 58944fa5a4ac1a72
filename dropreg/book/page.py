"""What the cells of a chapter put on its page: checks, votes, and what the page cost."""

from __future__ import annotations

import html
import platform
import textwrap
import time
from dataclasses import dataclass
from importlib.metadata import version

COLUMNS = 76
"""Of text that a page prints, as of code that is seen: what is wider is broken on a phone."""


class CheckFailed(AssertionError):
    """A statement of the book that does not hold where it was checked."""


def holds(statement: str, condition: object) -> None:
    """Print a statement that has just been checked; where it is false, stop.

    A cell of such statements is folded under a badge on the book's page.

    Args:
        statement: What is claimed, in words, the same on every processor.
        condition: Whether it is true: anything that `bool` reads, such as a tensor of one element.

    Raises:
        CheckFailed: If it is false. The build of the book stops there.

    >>> holds("two and two are four", 2 + 2 == 4)
    ✓ two and two are four
    """
    if not bool(condition):
        raise CheckFailed(f"this does not hold here: {statement}")
    print(f"✓ {statement}")


@dataclass(frozen=True)
class Outcome:
    """What came out of an experiment on which the reader has voted.

    Args:
        vote: The reader's choice; None or empty before it.
        option: The option that came out, None where the runs do not decide.
        because: The measured numbers, in a sentence or part of one.
    """

    vote: str | None
    option: str | None
    because: str

    def __repr__(self) -> str:
        if self.option is None:
            lines = [f"These runs do not decide: {self.because}"]
            if self.vote:
                lines.insert(0, f"You chose: {self.vote}. Nobody can be right or wrong yet.")
        else:
            lines = [f"What came out: {self.option}. {self.because}"]
            if self.vote:
                same = "just so" if self.vote == self.option else "it came out otherwise"
                lines.insert(0, f"You chose: {self.vote}; {same}.")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        option = f' data-option="{html.escape(self.option)}"' if self.option is not None else ""
        body = "<br>".join(html.escape(line) for line in repr(self).splitlines())
        return f'<p class="dropreg-outcome"{option}>{body}</p>'


def came_out(vote: str | None, option: str | None, because: str) -> Outcome:
    """Say what came out, for the last line of a cell; on the book's page it answers a vote.

    The vote is a cell before it, in the same section, of two lines:

        # @title Vote: which of the two ends lower?
        my_end = ""  # @param ["", "dropout", "explicit only"]

    Args:
        vote: The variable of the vote.
        option: That of its options which the runs speak for; None where they do not decide. An
            interval that holds zero decides nothing: it does not say that two things are equal.
        because: The numbers, with their intervals.

    Returns:
        A sentence, in text and in HTML.

    >>> came_out("up", "down", "−0.3 ± 0.1 nats.")
    You chose: up; it came out otherwise.
    What came out: down. −0.3 ± 0.1 nats.
    >>> came_out("", None, "0.1 ± 0.3 nats.")
    These runs do not decide: 0.1 ± 0.3 nats.
    """
    return Outcome(vote, option, because)


def spent(start: float, *facts: str) -> None:
    """Print what a page took, and what it ran on.

    Args:
        start: `time.process_time()` at its beginning.
        facts: Further lines, such as the seeds.
    """
    import torch

    print(f"{time.process_time() - start:.0f} s of one core")
    packages = ("dropreg", "torch", "numpy", "scikit-learn", "matplotlib")
    print(textwrap.fill(", ".join(f"{name} {version(name)}" for name in packages), COLUMNS))
    threads = torch.get_num_threads()
    print(
        f"Python {platform.python_version()}, {platform.machine()} CPU, "
        f"{threads} thread{'s' if threads > 1 else ''}"
    )
    print(*facts, sep="\n")
