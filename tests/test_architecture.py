"""The house is as ARCHITECTURE.md draws it: no circle, and each import leads to an earlier row."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import dropreg

PACKAGE = Path(dropreg.__file__).parent
PAGE = PACKAGE.parent / "ARCHITECTURE.md"
FILES = {
    ".".join(("dropreg", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in PACKAGE.rglob("*.py")
}


def imported(name: str) -> Iterator[str]:
    """The modules of the package that a module imports: anywhere, for types only too."""
    for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in FILES else node.module


IMPORTS = {name: set(imported(name)) - {name} for name in FILES}


def row_of(name: str, rows: list[str]) -> int:
    """The row of a module: of its file, or of the nearest folder that has one."""
    path = FILES[name].relative_to(PACKAGE.parent).as_posix()
    for candidate in (path, *(f"{parent.as_posix()}/" for parent in Path(path).parents)):
        if candidate in rows:
            return rows.index(candidate)
    raise AssertionError(f"ARCHITECTURE.md has no row for {path}")


def test_no_module_is_imported_by_what_it_imports() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join((*path, name))}"
        if name not in done:
            for other in IMPORTS[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


def test_every_import_leads_to_an_earlier_row_of_the_page() -> None:
    rows = re.findall(r"^\| `(dropreg/[^`]*)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert all((PACKAGE.parent / row).exists() for row in rows)
    up = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if row_of(other, rows) > row_of(name, rows)
    ]
    assert not up


def test_the_library_does_without_the_book() -> None:
    ours = {name for name in FILES if not name.startswith("dropreg.book")}
    ours.remove("dropreg.__main__")  # the door of the command line, which nobody imports
    assert len(ours) > 15
    for name in ours:
        assert not [other for other in IMPORTS[name] if other.startswith("dropreg.book")], name
    assert not [name for name, others in IMPORTS.items() if "dropreg.__main__" in others]
