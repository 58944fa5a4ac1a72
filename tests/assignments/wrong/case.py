"""How a wrong solution is declared."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Wrong:
    """One function of an assignment, written as somebody might who has misunderstood something.

    Attributes:
        name: What is misunderstood.
        function: The function, which is also the grade_id of its cell.
        source: What stands in that cell.
        fails: The test cells that are lost, all others keep their marks.
        says: Words of the message that a lost cell shows.
    """

    name: str
    function: str
    source: str
    fails: frozenset[str] | set[str]
    says: str


def one_in(n: int, cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Leave every n-th case as it is: the others are for `make thorough`."""
    return [
        case if i % n == 0 else pytest.param(*case, marks=pytest.mark.thorough)
        for i, case in enumerate(cases)
    ]
