"""The key under which an executed notebook is kept: everything that decides what it prints.

That is its code, the pinned environment, the modules of `dropreg` that its cells import, with all
that these import, and the recorded results if there is among them what reads results. So an edited
notebook executes alone, an edited module executes the notebooks that use it, and no page shows what
an older library printed.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from tools import ROOT
from tools.notebooks import code_hash, code_of

PACKAGE = "dropreg"
# The only part of the package that knows where the results lie.
READS_RESULTS = "dropreg.book.experiments"


@functools.cache
def imports(source: str, package: str = "") -> frozenset[str]:
    """Name what a source imports, inside functions too, but not for a type checker alone.

    Args:
        source: Of a module, or of a cell without its magics. What is no Python imports nothing.
        package: Where relative imports start.

    Returns:
        Dotted names. `from a import b` gives `a.b`, which may be a module or a name in `a`.
    """
    found: set[str] = set()
    try:
        todo: list[ast.AST] = [ast.parse(source)]
    except SyntaxError:
        return frozenset()
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            found.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)
    return frozenset(found)


def modules(names: Iterable[str], root: Path) -> dict[str, Path]:
    """Find the files of `dropreg` that are executed when some names are imported, by module."""
    found: dict[str, Path] = {}
    todo = list(names)
    while todo:
        parts = todo.pop().split(".")
        for end in range(1, len(parts) + 1):  # a package is executed before what is in it
            module, place = ".".join(parts[:end]), root.joinpath(*parts[:end])
            initial, plain = place / "__init__.py", place.with_name(f"{place.name}.py")
            path = initial if initial.is_file() else plain
            if parts[0] == PACKAGE and module not in found and path.is_file():
                found[module] = path
                package = module if path == initial else module.rpartition(".")[0]
                todo += imports(path.read_text("utf-8"), package)
    return found


def cache_key(notebook: Any, root: Path = ROOT) -> str:
    """Hash all that decides what a notebook prints."""
    # Magics and shell lines become Python, as the kernel makes them.
    cells = map(TransformerManager().transform_cell, code_of(notebook))
    executed = modules({name for cell in cells for name in imports(cell)}, root)
    files = [root / "requirements.txt", *sorted(executed.values())]
    if READS_RESULTS in executed:
        results = sorted((root / "results").rglob("*"))
        files += [path for path in results if path.suffix in (".json", ".csv")]
    digest = hashlib.sha256(code_hash(notebook).encode())
    for path in files:
        digest.update(f"\0{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
