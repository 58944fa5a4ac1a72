"""What a notebook's answers need, and running that: in the notebook's order, and nothing else.

An experiment that no answer needs is not run, however long it is, and its errors are nobody's.
What is needed is found in the compiled code, before anything of it runs: the names that a statement
reads, binds and changes, and so on from the answers' own.
"""

import ast
import asyncio
import builtins
import contextlib
import dis
import functools
import inspect
import re
import signal
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

# What is shown of a student's error or text.
SHOWN = 300
# So many characters of a cell are read, magic by magic, before that is given up.
READ_AGAIN = 500_000
# Magics that run the rest of their line or cell in the notebook's namespace.
RUNNING = {"time", "capture", "prun", "debug"}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
# With these, what is looked up stands in a text.
LOOK_UP = {"eval", "exec", "globals", "locals", "vars", "__import__", "importlib", "compile"}
BUILT_IN = set(dir(builtins))


class Transformer(TransformerManager):
    """IPython's own, which reads the whole cell again for each magic: up to so many characters."""

    def do_token_transforms(self, lines: list[str]) -> list[str]:
        """Replace the magics, one at a time."""
        for _ in range(min(100, max(5, READ_AGAIN // (1 + sum(map(len, lines)))))):
            changed, lines = self.do_one_token_transform(lines)
            if not changed:
                return lines
        raise ValueError("too many magics")


def statements(source: str) -> list[ast.stmt]:
    """The statements at the top of a cell, as IPython reads it.

    The body of `%%time` and its like, and of `if __name__ == "__main__":`, stands for itself.

    Raises:
        SyntaxError: Whatever it is that keeps the cell from being read.
    """
    # Half an emoji, or a zero, in a comment or a text.
    source = re.sub("[\x00\ud800-\udfff]", "\ufffd", source)
    # IPython leaves out empty lines at the head.
    above = len(source[: len(source) - len(source.lstrip())].split("\n")) - 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash in a text, and the like
            tree = ast.increment_lineno(ast.parse(Transformer().transform_cell(source)), above)
            return [inner for node in tree.body for inner in _unfolded(node)]
    except SyntaxError as error:
        error.lineno = (error.lineno or 1) + above
        raise
    except Exception as error:  # of a parser that is given anything at all
        raise SyntaxError(f"it cannot be read ({type(error).__name__}: {error})") from error


def _unfolded(node: ast.stmt) -> Iterator[ast.stmt]:
    match node:
        case ast.Expr(
            ast.Call(
                ast.Attribute(ast.Call(ast.Name("get_ipython")), kind),
                [ast.Constant(name), ast.Constant(line), *rest],
            )
        ) if name in RUNNING and kind in ("run_line_magic", "run_cell_magic"):
            body = rest[0].value if rest and isinstance(rest[0], ast.Constant) else line
            for inner in statements(str(body)):
                yield ast.increment_lineno(inner, node.lineno - (not rest))
        case ast.If(ast.Compare(ast.Name("__name__"), [ast.Eq()], [ast.Constant("__main__")])):
            for inner in node.body:
                yield from _unfolded(inner)
        case _:
            yield node


def is_stub(node: ast.stmt) -> bool:
    """Whether a function does nothing but say that it is not written."""
    body = node.body if isinstance(node, ast.FunctionDef) else []
    last = body[-1] if body else None
    raised = last.exc if isinstance(last, ast.Raise) else None
    name = raised.func if isinstance(raised, ast.Call) else raised
    only = len(body) == 1 or (len(body) == 2 and isinstance(body[0], ast.Expr))
    return only and isinstance(name, ast.Name) and name.id == "NotImplementedError"


@dataclass
class Statement:
    """A statement at the top of a cell, and the names of the notebook that it touches.

    Attributes:
        node: Its syntax.
        code: It, compiled.
        cell: The number of its cell.
        reads: Names that it reads, now or when its functions are called.
        now: Those that it reads when it runs.
        binds: Names that it binds when it runs.
        later: Names that its functions bind when they are called.
        changes: Names whose value it changes: `x[i] = …`, `x.a = …`, `x.append(…)`, `f_(x)`.
    """

    node: ast.stmt
    code: types.CodeType
    cell: int
    reads: set[str] = field(default_factory=set)
    now: set[str] = field(default_factory=set)
    binds: set[str] = field(default_factory=set)
    later: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)

    @functools.cached_property
    def calls(self) -> bool:
        """Whether running it may call something."""
        return any(isinstance(node, ast.Call | ast.For | ast.While) for node in ast.walk(self.node))


def _read(statement: Statement, code: types.CodeType, *, top: bool, later: bool) -> None:
    for step in dis.get_instructions(code):
        name = step.argval
        if step.opname in ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"):
            statement.reads.add(name)
            if not later:
                statement.now.add(name)
        elif step.opname == "STORE_GLOBAL" or (step.opname == "STORE_NAME" and top):
            (statement.later if later else statement.binds).add(name)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            # A comprehension and the body of a class run at once, a function when it is called.
            called = inner.co_flags & inspect.CO_OPTIMIZED and not inner.co_name.endswith("comp>")
            at_once = not called or inner.co_name == "<genexpr>"
            _read(statement, inner, top=False, later=later or not at_once)


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement but for the bodies of functions and classes."""
    yield node
    if not isinstance(node, SCOPES):
        for child in ast.iter_child_nodes(node):
            yield from _own(child)


def _root(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Starred):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _changed(node: ast.AST) -> Iterator[ast.AST]:
    """What a node changes in place."""
    if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
        yield node
    elif isinstance(node, ast.Expr):
        call = node.value.value if isinstance(node.value, ast.Await) else node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            yield call.func
            if call.func.attr.endswith("_"):
                yield from call.args


def looked_at(node: ast.stmt, cell: int, flags: int) -> Statement:
    """Compile a statement and find its names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = compile(
            ast.Module([node], []),
            f"<cell {cell}>",
            "exec",
            flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
    found = Statement(node, code, cell)
    _read(found, code, top=True, later=False)
    for inner in _own(node):
        found.changes |= {root for part in _changed(inner) if (root := _root(part))}
    if found.reads & LOOK_UP:
        texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
        found.reads |= set(re.findall(r"\w+", " ".join(t for t in texts if isinstance(t, str))))
    return found


class Notebook:
    """The cells of a notebook, read and not run.

    Attributes:
        errors: Cells that cannot be read, and why.
        unread: Why, for the source of each of them.
        needed: The statements that the answers need, in their order.
        failed: Why a name has no value, once `define` has run.
    """

    def __init__(
        self, cells: Sequence[str], answers: Mapping[str, str], given: Iterable[str] = ()
    ) -> None:
        """Read the cells.

        Args:
            cells: Their sources, in the notebook's order.
            answers: For each function that is asked for its own cell.
            given: Those of the cells that are not the student's.
        """
        self.cells, self.answers, self.given = list(cells), dict(answers), set(given)
        self.errors: list[str] = []
        self.statements: list[Statement] = []
        self.unread: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        flags = 0
        for number, source in enumerate(self.cells):
            try:
                found = []
                for node in statements(source):
                    if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                        flags |= _future(node)
                    found.append(looked_at(node, number, flags))
                self.statements += found
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                if source not in self.unread:
                    self.unread[source] = said(error)
                    self.errors.append(f"{self.place(number)}: {said(error)}")
        self._later = self._bound_by_calls()
        self._kinds = self._kinds_of_names()
        self.needed = self.needed_by(set(answers) | {self.stands_for(name) for name in answers})

    def place(self, number: int) -> str:
        """What an instructor knows a cell by, under one name if it comes again."""
        source = self.cells[number]
        first = next((line.strip() for line in source.splitlines() if line.strip()), "")
        return f"cell {self.cells.index(source) + 1} (`{first[:40]}`)"

    def stands_for(self, name: str) -> str:
        """The name of a function; if there is none, of the only one that its cell defines."""
        source = self.answers[name]
        if any(name in s.binds for s in self.statements):
            return name
        here = {
            s.node.name
            for s in self.statements
            if self.cells[s.cell] == source
            and isinstance(s.node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        return here.pop() if len(here) == 1 else name

    def _bound_by_calls(self) -> dict[str, set[str]]:
        """For each function of the notebook the names that a call of it binds."""
        later: dict[str, set[str]] = {}
        calls: dict[str, set[str]] = {}
        for s in self.statements:
            if isinstance(s.node, ast.FunctionDef | ast.AsyncFunctionDef):
                later.setdefault(s.node.name, set()).update(s.later)
                calls.setdefault(s.node.name, set()).update(s.reads - s.now)
        changed = True
        while changed:
            sizes = [len(names) for names in later.values()]
            for name, called in calls.items():
                later[name].update(*(later[other] for other in called if other in later))
            changed = sizes != [len(names) for names in later.values()]
        return {name: names for name, names in later.items() if names}

    def _kinds_of_names(self) -> dict[str, dict[str, set[int]]]:
        """Which cells bind each name by a definition, by an import, or by what costs time.

        What the release and the answers' own cells import is as good as a definition.
        """
        kinds: dict[str, dict[str, set[int]]] = {"defined": {}, "imported": {}, "dear": {}}
        for s in self.statements:
            imports = isinstance(s.node, ast.Import | ast.ImportFrom) or (
                isinstance(s.node, ast.Try | ast.If)
                and any(isinstance(n, ast.Import | ast.ImportFrom) for n in s.node.body)
            )
            kept = {*self.given, *self.answers.values()}
            for name in s.binds:
                written = isinstance(s.node, SCOPES) and not is_stub(s.node)
                if written or (imports and self.cells[s.cell] in kept):
                    kinds["defined"].setdefault(name, set()).add(s.cell)
                if imports:
                    kinds["imported"].setdefault(name, set()).add(s.cell)
                elif s.calls or isinstance(s.node, SCOPES):
                    kinds["dear"].setdefault(name, set()).add(s.cell)
        return kinds

    def keeps_to_its_cell(self, statement: Statement, name: str) -> bool:
        """Whether a value is of its own cell only: it would replace a function or a built-in.

        As in a cell for trying out, which says `sum = 0`: the student's self-checks had passed
        before. An answer's own cell may do it, and so may a new definition.
        """
        if isinstance(statement.node, DEFINITIONS):
            return False
        if self.cells[statement.cell] in {*self.given, *self.answers.values()}:
            return False
        defined = self._kinds["defined"].get(name, set())
        before = any(cell < statement.cell for cell in defined)
        return statement.cell not in defined and (name in BUILT_IN or before)

    def needed_by(self, names: set[str]) -> list[Statement]:
        """The statements that bind or change the names, and on to what those read, in their order.

        A setting, such as `torch.set_default_dtype(…)`, changes a module: it counts where it calls
        nothing of the notebook's own.
        """
        imported, dear = self._kinds["imported"], self._kinds["dear"]
        chosen: set[int] = set()
        wanted = set(names)
        in_cell: set[tuple[str, int]] = set()
        size = -1
        while size != len(chosen):
            size = len(chosen)
            for i, s in enumerate(self.statements):
                if i in chosen:
                    continue
                binds = s.binds.union(*(self._later.get(n, ()) for n in s.now if s.calls))
                star = isinstance(s.node, ast.ImportFrom) and s.node.names[0].name == "*"
                own = {n for n in binds if self.keeps_to_its_cell(s, n)}
                changes = s.changes & wanted
                if changes and all(name in imported for name in changes):
                    plain = all(n in imported or n not in dear for n in s.reads)
                    changes = changes if plain or not s.calls else set()
                if not (
                    star
                    or changes
                    or (binds - own) & wanted
                    or any((name, s.cell) in in_cell for name in own)
                ):
                    continue
                chosen.add(i)
                wanted |= s.reads
                in_cell |= {(name, s.cell) for name in s.now}
        return [s for i, s in enumerate(self.statements) if i in chosen]


def _future(node: ast.ImportFrom) -> int:
    import __future__

    features = [getattr(__future__, alias.name, None) for alias in node.names]
    return sum(f.compiler_flag for f in features if f is not None)


def said(error: BaseException) -> str:
    """An error in words: its kind, its message, its line."""
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
    except Exception:  # of a student's own class
        text = ""
    at = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
    return f"{type(error).__name__}{at}: {text}"[:SHOWN]


class TooLongError(BaseException):
    """A definition takes longer than it may. Not an Exception, which students catch."""


class NoNotebook:
    """What `get_ipython()` gives: its magics do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Any method, which takes anything."""
        return lambda *args, **options: None


def define(
    notebook: Notebook, seconds: float, module: types.ModuleType | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Run what the answers need, in the notebook's order; return the names and the errors.

    A statement that fails or takes too long is left out; all together may take six times as long as
    one. A function that is not written yet does not replace one that is. What lacks a name is tried
    once more at the end, as cells may have been moved. An answer's cell that comes once more binds
    again only what another cell has bound since.

    Args:
        notebook: The cells.
        seconds: Time of one statement.
        module: Where the names are to be; a module of its own if there is none.
    """

    def stop(*_: object) -> None:
        raise TooLongError(f"took longer than {seconds:.0f} s")

    if module is None:
        module = types.ModuleType("notebook")
        sys.modules["notebook"] = module  # dataclasses look their module up
    names: dict[str, Any] = vars(module)
    names |= {"get_ipython": NoNotebook, "display": lambda *args, **options: None}
    errors = list(notebook.errors)
    begin_cpu, begin = time.process_time(), time.monotonic()
    owner: dict[str, str] = {}
    lacking: list[Statement] = []
    covered: dict[str, Any] = {}  # what a cell's own values stand before
    answers = set(notebook.answers.values())
    seen: set[str] = set()
    absent = object()

    def uncover() -> None:
        for name, value in covered.items():
            if value is absent:
                names.pop(name, None)
            else:
                names[name] = value
        covered.clear()

    def fail(statement: Statement, why: str) -> None:
        errors.append(f"{notebook.place(statement.cell)}: {why}")
        notebook.failed |= dict.fromkeys(statement.binds - set(names), why)

    def run(statement: Statement, *, again: bool) -> bool:
        node, source = statement.node, notebook.cells[statement.cell]
        if is_stub(node) and isinstance(node, ast.FunctionDef) and node.name in names:
            return True
        own = {n for n in statement.binds if notebook.keeps_to_its_cell(statement, n)}
        covered.update({name: names.get(name, absent) for name in own - set(covered)})
        # Time of the processor, as the machine may be busy; and six times that for sleepers.
        timers = ((signal.ITIMER_PROF, seconds), (signal.ITIMER_REAL, 6 * seconds))
        try:
            for timer, limit in timers:
                signal.setitimer(timer, limit)
            result = eval(statement.code, names)
            if statement.code.co_flags & inspect.CO_COROUTINE:
                asyncio.run(result)
            owner.update(dict.fromkeys(statement.binds - own, source))
        except NameError as error:
            if not again:
                lacking.append(statement)
            else:
                fail(statement, said(error))
        except BaseException as error:
            fail(statement, explained(error, node))
        finally:
            for timer, _ in timers:
                signal.setitimer(timer, 0)
        spent = max(time.process_time() - begin_cpu, (time.monotonic() - begin) / 2)
        return spent <= 6 * seconds

    def run_all(group: Sequence[Statement], *, again: bool) -> bool:
        cell = -1
        repeated = False
        for statement in group:
            source = notebook.cells[statement.cell]
            if statement.cell != cell:
                uncover()
                cell, repeated = statement.cell, source in seen and source in answers
                seen.add(source)
            if repeated and not again:
                binds = {name for name in statement.binds if owner.get(name) != source}
                if not binds or statement.changes:
                    continue
            if not run(statement, again=again):
                rest = notebook.place(cell)
                errors.append(f"{rest} and what follows: no time was left to define it")
                return False
        uncover()
        return True

    with _signals(stop):
        if run_all(notebook.needed, again=False):
            run_all(lacking, again=True)
    uncover()
    return names, list(dict.fromkeys(errors))


@contextlib.contextmanager
def _signals(stop: Callable[..., None]) -> Iterator[None]:
    kinds = (signal.SIGPROF, signal.SIGALRM)
    before = [signal.signal(kind, stop) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def explained(error: BaseException, node: ast.stmt | None = None) -> str:
    """An error in words, which say so where it looked for what is kept from answers."""
    missing = None
    if isinstance(error, ModuleNotFoundError):
        missing = error.name
    elif isinstance(error, ImportError):
        names = node.names if isinstance(node, ast.ImportFrom) else []
        missing = ".".join([str(error.name), *(n.name for n in names[:1])])
        if match := re.match(r"cannot import name '(\w+)'", str(error)):
            missing = f"{error.name}.{match[1]}"
    elif isinstance(error, AttributeError) and isinstance(error.obj, types.ModuleType):
        missing = f"{error.obj.__name__}.{error.name}"
    if missing and missing.split(".")[0] == "dropreg":
        return f"`{missing}` is not there when answers are tested: write it yourself."[:SHOWN]
    return said(error)


def find(name: str, notebook: Notebook, names: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The function of that name, if there is one; or the only one that its cell defines."""
    for candidate in (name, notebook.stands_for(name)):
        if callable(found := names.get(candidate)):
            return found
    return None
