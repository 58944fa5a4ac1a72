"""One small mistake at a time: the changes by which `mutants.py` tries the checks.

An operator takes a node of a function's syntax tree and yields what may stand in its place. Each is
a slip that students make, done without looking at what the function means.
"""

import ast
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

FUNCTION = ast.FunctionDef
OTHER_OPERATION: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
}
OTHER_COMPARISON: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
OTHER_NAME = {
    "mean": ("sum",),
    "sum": ("mean",),
    "std": ("var",),
    "var": ("std",),
    "stdev": ("pstdev", "variance"),
    "norm": ("sum",),
    "square": ("abs",),
    "min": ("max",),
    "max": ("min",),
    "stack": ("cat",),
    "cat": ("stack",),
    "exp": ("log",),
    "log": ("exp",),
    "softmax": ("log_softmax",),
    "log_softmax": ("softmax",),
    "sigmoid": ("tanh",),
    "zeros": ("ones",),
    "zeros_like": ("ones_like",),
    "ones_like": ("zeros_like",),
    "eye": ("ones",),
    "rand_like": ("randn_like", "zeros_like"),
    "train": ("eval",),
    "eval": ("train",),
}
REDUCTIONS = {"mean", "sum", "std", "var", "norm"}
SPREADS = {"std", "var"}
DIFFERENTIATE = {"grad", "backward", "requires_grad_", "jacrev", "jvp"}
FACTORS = ("-1", "2", "0.5", "2 ** 0.5", "0")
IN_PLACE = {ast.Add: "add_", ast.Sub: "sub_", ast.Mult: "mul_", ast.Div: "div_"}


@dataclass(frozen=True)
class Mutant:
    """A function with one change.

    Attributes:
        function: Its name.
        operator: What kind of change it is.
        line: The first line that differs; the function's first is 1, and its docstring counts.
        old: The lines that were there, from that one to the last that differs.
        new: Those that are there instead.
        source: The cell as it is now.
    """

    function: str
    operator: str
    line: int
    old: str
    new: str
    source: str


class Context:
    """What an operator may ask of the function that it changes."""

    def __init__(self, function: FUNCTION, modules: Iterable[str]) -> None:
        nodes = list(ast.walk(function))
        self.modules = set(modules)
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.modules |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        self.parameters = [a.arg for a in function.args.args]
        self.locals = [
            node.id
            for statement in function.body
            for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
        self.strings = [
            node.value
            for statement in body_of(function)
            for node in ast.walk(statement)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        self.complements = {complemented(node) for node in nodes} - {""}
        self.differentiates = any(
            isinstance(n, ast.Attribute | ast.Name) and last_name(n) in DIFFERENTIATE for n in nodes
        )
        inside = ast.BinOp | ast.Subscript | ast.Slice
        within = {id(c) for n in nodes if isinstance(n, inside) for c in ast.iter_child_nodes(n)}
        # Arithmetic that is no part of other arithmetic nor an index, and what is returned.
        self.outermost = {id(n) for n in nodes if isinstance(n, ast.BinOp) and id(n) not in within}
        self.outermost |= {
            id(value)
            for node in nodes
            if isinstance(node, ast.Return) and node.value
            for value in parts_of(node.value)
        }


class Operator(Protocol):
    __name__: str

    def __call__(self, node: ast.AST, context: Context, /) -> Iterator[ast.AST]: ...


def body_of(function: FUNCTION) -> list[ast.stmt]:
    """The statements of a function without its docstring."""
    return function.body[ast.get_docstring(function) is not None :]


def parts_of(value: ast.expr) -> list[ast.expr]:
    return value.elts if isinstance(value, ast.List | ast.Tuple) else [value]


def last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def loaded(node: ast.AST) -> str:
    """The variable that a node reads, if it is one."""
    return node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else ""


def complemented(node: ast.AST) -> str:
    """The variable q of a node that is 1 − q."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        return loaded(node.right) if ast.unparse(node.left) == "1" else ""
    return ""


def expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def changed(node: ast.AST, **fields: object) -> ast.AST:
    """A node with other fields."""
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


def spliced(statements: list[ast.stmt]) -> ast.If:
    """Several statements in the place of one."""
    return ast.If(ast.Constant(True), statements or [ast.Pass()], [])


def names_in(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


# --- The operators, each with the slip that it makes ----------------------------------------------


def operation(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """+ for −, × for ÷, and back; a power or a matrix product made a product."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OTHER_OPERATION:
        yield changed(node, op=OTHER_OPERATION[type(node.op)]())


def operand_dropped(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """A term, a factor or an exponent left out."""
    if isinstance(node, ast.BinOp):
        yield from (node.left, node.right)


def operands_exchanged(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """b − a for a − b; the same for quotients, powers and matrix products."""
    if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Add | ast.Mult):
        yield changed(node, left=node.right, right=node.left)


def complement(node: ast.AST, context: Context) -> Iterator[ast.AST]:
    """1 − q for q, wherever the function has a 1 − q. (q for 1 − q is an operand dropped.)"""
    if isinstance(node, ast.expr) and loaded(node) in context.complements:
        yield ast.BinOp(ast.Constant(1), ast.Sub(), node)


def factor(node: ast.AST, context: Context) -> Iterator[ast.AST]:
    """A factor of −1, 2, ½, √2 or 0 at a whole expression, or at what is returned."""
    if id(node) in context.outermost and isinstance(node, ast.expr):
        yield from (ast.BinOp(expression(text), ast.Mult(), node) for text in FACTORS)


def sign(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """A minus sign left out."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand


def constant(node: ast.AST, context: Context) -> Iterator[ast.AST]:
    """Another number, the other truth value, another of the function's texts."""
    if not isinstance(node, ast.Constant):
        return
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int | float):
        whole = isinstance(node.value, int)
        near = [node.value + 1, node.value - 1] if whole else [node.value / 2]
        yield from map(ast.Constant, [*near, 2 * node.value])
    elif node.value in context.strings:
        yield from (ast.Constant(s) for s in sorted(set(context.strings) - {node.value}))


def axis(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """Another dimension, none, or a kept one; other letters of einsum."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return
    first = node.args[0] if node.args else None
    if last_name(node.func) == "einsum" and isinstance(first, ast.Constant):
        letters = str(first.value)
        for i in range(1, len(letters)):
            if letters[i - 1].isalpha() and letters[i].isalpha():
                turned = letters[: i - 1] + letters[i] + letters[i - 1] + letters[i + 1 :]
                yield changed(node, args=[ast.Constant(turned), *node.args[1:]])
        return
    plain = first.operand if isinstance(first, ast.UnaryOp) else first
    if isinstance(plain, ast.Constant) and isinstance(plain.value, int):
        others = [text for text in ("0", "1", "-1") if text != ast.unparse(first or node)]
        for text in others:
            yield changed(node, args=[expression(text), *node.args[1:]])
        if last_name(node.func) in REDUCTIONS:
            yield changed(node, args=node.args[1:])
            keep = ast.keyword("keepdim", ast.Constant(True))
            yield changed(node, keywords=[*node.keywords, keep])
    elif not node.args and last_name(node.func) in REDUCTIONS:
        yield changed(node, args=[ast.Constant(0)])


def other_function(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """sum for mean, var for std, exp for log, train for eval, and the like."""
    if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
        for name in OTHER_NAME.get(last_name(node), ()):
            yield changed(node, **{"attr" if isinstance(node, ast.Attribute) else "id": name})


def divided_by_n(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """n for n − 1 in a variance."""
    if isinstance(node, ast.Call) and last_name(node.func) in SPREADS:
        yield changed(node, keywords=[*node.keywords, ast.keyword("correction", ast.Constant(0))])


def call_dropped(node: ast.AST, context: Context) -> Iterator[ast.AST]:
    """A square, a root, a mean, a detach, any function: its argument as it is."""
    if isinstance(node, ast.Call):
        of_object = isinstance(node.func, ast.Attribute) and not (
            isinstance(node.func.value, ast.Name) and node.func.value.id in context.modules
        )
        if of_object and isinstance(node.func, ast.Attribute):
            yield node.func.value
        elif node.args and not isinstance(node.args[0], ast.Starred):
            yield node.args[0]


def argument(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """Two arguments exchanged, or one left out."""
    if not isinstance(node, ast.Call):
        return
    for i in range(len(node.args) - 1):
        args = list(node.args)
        args[i], args[i + 1] = args[i + 1], args[i]
        yield changed(node, args=args)
    for i in range(len(node.keywords) - 1):
        first, second = node.keywords[i : i + 2]
        turned = [ast.keyword(first.arg, second.value), ast.keyword(second.arg, first.value)]
        yield changed(node, keywords=[*node.keywords[:i], *turned, *node.keywords[i + 2 :]])
    for i in range(len(node.keywords)):
        yield changed(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
    if node.args:
        yield changed(node, args=node.args[:-1])


def other_variable(node: ast.AST, context: Context) -> Iterator[ast.AST]:
    """The parameter before or after it."""
    if (name := loaded(node)) in context.parameters:
        at = context.parameters.index(name)
        around = context.parameters[max(at - 1, 0) : at + 2]
        yield from (ast.Name(other, ast.Load()) for other in around if other != name)


def comparison(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """< for ≤, > for <."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in OTHER_COMPARISON.get(type(node.ops[0]), ()):
            yield changed(node, ops=[other()])


def condition(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """A condition negated; and for or; one branch for both."""
    if isinstance(node, ast.If | ast.IfExp):
        negated = isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
        test = node.test.operand if negated else ast.UnaryOp(ast.Not(), node.test)  # type: ignore[attr-defined]
        yield changed(node, test=test)
        yield from (changed(node, test=ast.Constant(value)) for value in (True, False))
    elif isinstance(node, ast.BoolOp):
        yield changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        yield from node.values


def off_by_one(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """One more or one less in a range, an index or a slice, or a beginning at 1."""

    def near(value: ast.expr) -> Iterator[ast.expr]:
        for op in (ast.Add(), ast.Sub()):
            yield ast.BinOp(value, op, ast.Constant(1))

    if isinstance(node, ast.Call) and last_name(node.func) == "range" and len(node.args) == 1:
        yield from (changed(node, args=[value]) for value in near(node.args[0]))
        yield changed(node, args=[ast.Constant(1), *node.args])
    elif isinstance(node, ast.Subscript):
        if isinstance(node.slice, ast.Slice):
            bounds = [name for name in ("lower", "upper") if getattr(node.slice, name)]
            for name in bounds:
                for value in near(getattr(node.slice, name)):
                    yield changed(node, slice=changed(node.slice, **{name: value}))
        elif isinstance(node.slice, ast.Name | ast.BinOp):
            yield from (changed(node, slice=value) for value in near(node.slice))


def statement_deleted(node: ast.AST, context: Context) -> Iterator[ast.AST]:
    """A statement left out, unless its name is then missing."""
    if isinstance(node, ast.Expr | ast.AugAssign):
        yield ast.Pass()
    elif isinstance(node, ast.Assign):
        bound = names_in(node, ast.Store)
        elsewhere = [*context.parameters, *context.locals]
        if all(elsewhere.count(name) > 1 for name in bound):
            yield ast.Pass()
    elif isinstance(node, ast.If | ast.For):
        yield spliced(node.body) if isinstance(node, ast.If) and node.orelse else ast.Pass()


def with_removed(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """What stands under no_grad, without it."""
    if isinstance(node, ast.With):
        yield spliced(node.body)


def moved_out(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """The first statement of a loop before it: drawn, or set, once for all."""
    if isinstance(node, ast.For) and len(node.body) > 1:
        first, *rest = node.body
        if not names_in(node.target, ast.Store) & names_in(first, ast.Load):
            yield spliced([first, changed(node, body=rest)])  # type: ignore[list-item]
    elif isinstance(node, ast.ListComp):
        (loop, *others) = node.generators
        if not others and not names_in(loop.target, ast.Store) & names_in(node.elt, ast.Load):
            length = ast.Call(expression("len"), [loop.iter], [])
            yield ast.BinOp(ast.List([node.elt], ast.Load()), ast.Mult(), length)


def moved_in(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """The statement before a loop as its first: begun anew each time."""
    body = getattr(node, "body", None)
    if isinstance(node, ast.For | FUNCTION) and isinstance(body, list):
        for i in range(len(body) - 1):
            first, loop = body[i : i + 2]
            if isinstance(loop, ast.For) and isinstance(first, ast.Assign):
                inside = changed(loop, body=[first, *loop.body])
                yield changed(node, body=[*body[:i], inside, *body[i + 2 :]])


def exchanged(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """Two statements in the other order, where one of them acts on something."""
    body = getattr(node, "body", None)
    if isinstance(node, ast.stmt) and isinstance(body, list):
        for i in range(len(body) - 1):
            first, second = body[i : i + 2]
            acts = [s for s in (first, second) if isinstance(s, ast.Expr)]
            texts = [s for s in acts if isinstance(s.value, ast.Constant)]
            needed = names_in(first, ast.Store) & names_in(second, ast.Load)
            if acts and not texts and not needed:
                yield changed(node, body=[*body[:i], second, first, *body[i + 2 :]])


def intermediate(node: ast.AST, context: Context) -> Iterator[ast.AST]:
    """Something returned that was computed on the way."""
    if isinstance(node, ast.Return) and node.value:
        for name in dict.fromkeys(context.locals):
            yield ast.Return(ast.Name(name, ast.Load()))


def part_returned(node: ast.AST, _: Context) -> Iterator[ast.AST]:
    """Two results in the other order."""
    if isinstance(node, ast.Return) and isinstance(node.value, ast.List | ast.Tuple):
        yield ast.Return(changed(node.value, elts=node.value.elts[::-1]))  # type: ignore[arg-type]


def detached(node: ast.AST, context: Context) -> Iterator[ast.AST]:
    """A detach where something is differentiated."""
    if isinstance(node, ast.expr) and context.differentiates and loaded(node) in context.locals:
        yield ast.Call(ast.Attribute(node, "detach", ast.Load()), [], [])


def in_place(node: ast.AST, context: Context) -> Iterator[ast.AST]:
    """An argument or an earlier value changed where it lies."""
    if (
        isinstance(node, ast.BinOp)
        and isinstance(node.left, ast.Name)
        and type(node.op) in IN_PLACE
    ):
        values = {*context.parameters, *context.locals}
        if node.left.id in values and not isinstance(node.right, ast.Constant):
            method = ast.Attribute(node.left, IN_PLACE[type(node.op)], ast.Load())
            yield ast.Call(method, [node.right], [])


OPERATORS: tuple[Operator, ...] = (
    operation,
    operand_dropped,
    operands_exchanged,
    complement,
    factor,
    sign,
    constant,
    axis,
    other_function,
    divided_by_n,
    call_dropped,
    argument,
    other_variable,
    comparison,
    condition,
    off_by_one,
    statement_deleted,
    with_removed,
    moved_out,
    moved_in,
    exchanged,
    intermediate,
    part_returned,
    detached,
    in_place,
)


def name_of(operator: Operator) -> str:
    return operator.__name__.replace("_", " ")


def mutants_of(cell: str, name: str, modules: Iterable[str] = ()) -> list[Mutant]:
    """Every function that differs from one in a cell by one change, each once.

    Args:
        cell: A cell that defines the function.
        name: Its name.
        modules: Names of modules, whose functions are no methods.

    Returns:
        The mutants in the order of the operators and of the source. What does not compile, or reads
        as the function itself or as an earlier mutant, is left out.
    """
    tree = ast.parse(cell)
    (function,) = (n for n in tree.body if isinstance(n, FUNCTION) and n.name == name)
    context, found = Context(function, modules), []
    original = ast.unparse(function)
    seen = {original}
    nodes = [n for part in (function.args, *body_of(function)) for n in ast.walk(part)]
    for operator in OPERATORS:
        for node in [function, *nodes]:
            for new in operator(node, context):
                # A deep copy that takes `new` for the copy of `node`.
                mutated = copy.deepcopy(tree, {id(node): new})
                source = ast.unparse(ast.fix_missing_locations(mutated))
                (written,) = (n for n in ast.parse(source).body if isinstance(n, FUNCTION))
                text = ast.unparse(written)
                try:
                    compile(source, "<mutant>", "exec")
                except SyntaxError:
                    continue
                if text not in seen:
                    seen.add(text)
                    change = difference(original, text)
                    found.append(Mutant(name, name_of(operator), *change, source))
    return found


def difference(old: str, new: str) -> tuple[int, str, str]:
    """Where two texts begin to differ, and their lines from there to where they are one again."""
    first, second, line = old.splitlines(), new.splitlines(), 1
    while first and second and first[0] == second[0]:
        first, second, line = first[1:], second[1:], line + 1
    while first and second and first[-1] == second[-1]:
        first, second = first[:-1], second[:-1]
    return line, shown(first), shown(second)


def shown(lines: list[str]) -> str:
    """Lines on one."""
    return " ¶ ".join(line.strip() for line in lines)
