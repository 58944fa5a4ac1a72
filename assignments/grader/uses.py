"""What answers take from elsewhere that they were to write themselves, read off their code.

It is for the marker to judge. Code that looks names up while it runs hides what it uses; that it
does so is said.
"""

import ast
import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence

from assignments.grader.definitions import BUILT_IN, LOOK_UP, Notebook

HIDDEN_IN = {"__dict__", "modules", "import_module", "__getattribute__"}


def _path(node: ast.AST, aliases: Mapping[str, str]) -> str | None:
    """What a chain of names stands for: `F.dropout` for `torch.nn.functional.dropout`."""
    names: list[str] = []
    while True:
        match node:
            case ast.Name(name):
                root = aliases.get(name)
                return ".".join([root, *reversed(names)]) if root else None
            case ast.Attribute(inner, name):
                pass
            case ast.Call(ast.Name("getattr"), [inner, ast.Constant(str(name)), *_]):
                pass
            case _:
                return None
        names.append(name)
        node = inner


def imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """The names that an import binds, and what each stands for; `*` for all of a module."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            root = alias.name.split(".")[0]
            yield alias.asname or root, alias.name if alias.asname else root
            if not alias.asname and root != alias.name:
                yield alias.name, alias.name
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        for alias in node.names:
            name = "" if alias.name == "*" else f".{alias.name}"
            yield alias.asname or alias.name, node.module + name


def _aliases(nodes: Sequence[ast.AST]) -> tuple[dict[str, str], list[str]]:
    aliases: dict[str, str] = {}
    stars: list[str] = []
    for node in nodes:
        for name, path in imported(node):
            if name == "*":
                stars.append(path)
            else:
                aliases[name] = path
        if isinstance(node, ast.Assign) and (value := _path(node.value, aliases)):
            aliases |= {t.id: value for t in node.targets if isinstance(t, ast.Name)}
    return aliases, stars


def _within(path: str, name: str) -> bool:
    """Whether a path is a name, something in it, or on the way to it."""
    inside = path.startswith(f"{name}.")
    if name == "dropreg" and path.startswith("dropreg.book"):
        inside = False
    return path == name or inside or name.startswith(f"{path}.")


def suspicious(
    notebook: Notebook,
    allowed: Collection[str],
    write_yourself: Mapping[str, Sequence[str]],
) -> list[str]:
    """A sentence for each path that answers use and should not.

    Args:
        notebook: The student's cells.
        allowed: Names of `dropreg` that may be used, with all that is in them; of `dropreg` itself
            all but the book's part.
        write_yourself: For each function the patterns of what it may not use, such as
            `torch*[dD]ropout*`, matched with the whole path.
    """
    users: dict[str, list[str]] = {}
    said: list[str] = []
    for answer in notebook.answers:
        needed = notebook.needed_by({answer, notebook.stands_for(answer)})
        everything = [node for s in needed for node in ast.walk(s.node)]
        aliases, stars = _aliases(everything)
        own = [s for s in needed if notebook.cells[s.cell] not in notebook.given]
        bound = set(BUILT_IN).union(*(s.binds for s in needed))
        paths: dict[str, None] = {}
        looks: dict[str, None] = {}
        for node in (node for s in own for node in ast.walk(s.node)):
            paths |= dict.fromkeys(path for _, path in imported(node))
            if path := _path(node, aliases):
                paths[path] = None
                root, _, name = path.rpartition(".")
                if root == "builtins" and name in LOOK_UP:
                    looks[name] = None
            if isinstance(node, ast.Name) and node.id not in bound | set(aliases):
                # Of our own modules all is said by their name.
                theirs = [module for module in stars if module.split(".")[0] != "dropreg"]
                paths |= {f"{module}.{node.id}": None for module in theirs}
            match node:
                case ast.Name(name) if name in LOOK_UP:
                    looks[name] = None
                case ast.Attribute(_, name) if name in HIDDEN_IN:
                    looks[name] = None
                case ast.Call(ast.Name("getattr"), [_, ast.Constant(), *_]):
                    pass
                case ast.Call(ast.Name("getattr")):
                    looks["getattr"] = None
        listed = write_yourself.get(answer, ())
        for path in paths:
            ours = path.split(".")[0] == "dropreg"
            kept = ours and not any(_within(path, name) for name in allowed)
            if kept or any(fnmatch.fnmatchcase(path, pattern) for pattern in listed):
                users.setdefault(path, []).append(answer)
        if looks:
            names = ", ".join(f"`{name}`" for name in looks)
            said.append(
                f"`{answer}` looks names up while it runs ({names}): what it uses cannot all be "
                "seen in its code."
            )
    for path, answers in users.items():
        who = ", ".join(f"`{answer}`" for answer in answers)
        uses = "uses" if len(answers) == 1 else "use"
        said.append(f"{who} {uses} `{path}`, and should do without.")
    return said
