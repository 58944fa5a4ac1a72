"""Environments that hold what they should: folders of links to what is installed here."""

import re
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def required(*names: str) -> list[Distribution]:
    """Some distributions and all that they require here, extras left out."""
    found, todo = dict[str, Distribution](), list(names)
    while todo:
        each = distribution(todo.pop())
        if each.name in found:
            continue
        found[each.name] = each
        for line in each.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return list(found.values())


def link(folder: Path, distributions: Iterable[Distribution]) -> None:
    """Put links to everything that some distributions have installed into a folder."""
    for each in distributions:
        for top in {Path(file).parts[0] for file in each.files or []}:
            place = folder / top
            # ".." leads to scripts; caches are made by whoever imports.
            if top not in ("..", "__pycache__") and not place.exists():
                place.symlink_to(str(each.locate_file(top)))


def names_of(distributions: Iterable[Distribution]) -> set[str]:
    """Their names, as pip compares them."""
    return {re.sub(r"[-_.]+", "-", each.name).lower() for each in distributions}
