"""What a forward pass draws: seen by the states of the random generators, and masks in the making.

A controlled pass must draw nothing: whoever draws has a noise that is not controlled, whether it
shows in the output of this batch or not. So the states of all generators that a model can reach are
compared before and after. Two ways in which people write dropout by hand are recognized instead,
where the pass asks for them: a mask of `bernoulli_`, and one of `torch.rand` and a threshold.
"""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dropreg.errors import NeverSupportedError

Reader = Callable[[], object]
"""Reads the state of a generator, as something that can be compared."""


def states(
    private: Sequence[tuple[str, Reader]] = (), others: list[object] | None = None
) -> list[object]:
    """The states of the random generators of torch, Python and numpy, and of a model's own.

    It is called several times in every pass, so it takes a few microseconds: public functions that
    copy a state would take a hundred.

    Args:
        private: What `private_generators` found.
        others: If given, an earlier result, of which all but torch's own states are taken.

    Returns:
        One state a generator, in the order of `names`.
    """
    now: list[object] = [_bytes(torch.default_generator.get_state())]
    if torch.cuda.is_initialized():
        now += [_bytes(g.get_state()) for g in torch.cuda.default_generators]
    if others is not None:
        return now + others[len(now) :]
    now.append(_python_state(random._inst))
    numpy = sys.modules.get("numpy.random")
    now.append(None if numpy is None else _numpy_state(numpy.mtrand._rand._bit_generator))
    return now + [read() for _, read in private]


def names(private: Sequence[tuple[str, Reader]] = ()) -> list[str]:
    """What the generators are called, in the order of `states`."""
    cuda = range(len(torch.cuda.default_generators)) if torch.cuda.is_initialized() else ()
    torchs = ["torch's generator", *(f"torch's generator of cuda:{i}" for i in cuda)]
    return [*torchs, "Python's `random`", "`numpy.random`", *(name for name, _ in private)]


def changed(
    before: list[object], after: list[object], private: Sequence[tuple[str, Reader]] = ()
) -> list[str]:
    """The names of the generators that were used between two calls of `states`."""
    # numpy and CUDA may have been loaded in between; then nothing is known of what was before.
    if len(before) != len(after):
        return []
    pairs = zip(names(private), before, after, strict=True)
    return [name for name, old, new in pairs if old is not None and old != new]


# All three are Mersenne twisters of 624 words: a draw moves the position in them, or renews them
# all. So the position and one word tell; 5000 bytes would have to be fetched from far memory.
def _bytes(state: Tensor) -> bytes:
    # Seed, position and the first word; at the end what is kept of a pair of normal numbers.
    end = min(64, state.numel())
    first = state.data_ptr()
    last = first + state.numel() - end
    return ctypes.string_at(first, end) + ctypes.string_at(last, end)


# The object itself holds the state, behind what every object has (a count of references).
_HEAD, _BODY = object.__basicsize__, 12  # the position, and two words: a new seed leaves one
_IS_CPYTHON = sys.implementation.name == "cpython"


def _python_state(generator: random.Random) -> object:
    if not _IS_CPYTHON:
        return generator.getstate()
    words = ctypes.string_at(id(generator) + _HEAD, _BODY)
    return words, generator.gauss_next  # type: ignore[attr-defined]  # half of a pair, kept


def _numpy_state(bits: Any) -> object:
    if type(bits).__name__ != "MT19937":
        return repr(bits.state)
    words = bits.ctypes.state_address
    return ctypes.string_at(words, 8) + ctypes.string_at(words + 624 * 4, 4)  # the position: last


def private_generators(model: nn.Module) -> list[tuple[str, Reader]]:
    """Random generators that a model holds itself, or that its functions name.

    Args:
        model: The model.

    Returns:
        Where each was found, and how its state is read.
    """
    found: dict[int, tuple[str, Reader]] = {}
    for path, module in model.named_modules():
        own = {**vars(module), "forward": getattr(type(module), "forward", None)}
        for name, value in own.items():
            for each in _held(value):
                if (reader := _reader(each)) is not None:
                    found[id(each)] = (f"a generator of {path or 'the model'} ({name})", reader)
    return list(found.values())


def _held(value: Any) -> Iterator[Any]:
    """A value, what a list or dict holds, and what a function closes over or names."""
    yield value
    if isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, FunctionType):
        code, cells = value.__code__, value.__closure__ or ()
        yield from (value.__globals__.get(name) for name in code.co_names)
        yield from (cell.cell_contents for cell in cells if _is_full(cell))


def _is_full(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _reader(value: Any) -> Reader | None:
    if isinstance(value, torch.Generator):
        return lambda: bytes(value.get_state().tolist())
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return value.getstate
    numpy = sys.modules.get("numpy.random")
    if numpy is not None and isinstance(value, numpy.Generator):
        return lambda: repr(value.bit_generator.state)
    if numpy is not None and isinstance(value, numpy.RandomState):
        return lambda: repr(value.get_state(legacy=False))
    return None


@contextmanager
def restored() -> Iterator[None]:
    """Set the generators of torch, Python and numpy back afterwards, whatever is drawn."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    python = random.getstate()
    numpy = sys.modules.get("numpy.random")
    of_numpy = None if numpy is None else numpy.get_state()
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.set_state(of_numpy)


class Operations(TorchDispatchMode):
    """Looks at every operation of a pass, however deep inside a fused function.

    Attributes:
        random: The operations that drew random numbers, and where they ran.
    """

    def __init__(self, where: Callable[[], str]) -> None:
        """Prepare for one pass.

        Args:
            where: Tells which module is running.
        """
        super().__init__()
        self.random: dict[str, None] = {}
        self._where = where

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note an operation that draws, and run it."""
        # PyTorch tags attention kernels as random even when nothing is dropped in them.
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in str(func):
            self.random[f"{func} (in {self._where()})"] = None
        return func(*args, **(kwargs or {}))


@contextmanager
def blaming(model: nn.Module, private: Sequence[tuple[str, Reader]]) -> Iterator[dict[str, None]]:
    """Follow a pass module by module, to see in which of them a generator is used.

    Args:
        model: The model.
        private: What `private_generators` found.

    Yields:
        Fills with "a generator (in a module)", innermost modules only.
    """
    found: dict[str, None] = {}
    entered: list[list[object]] = []
    handles = []

    def enter(_module: nn.Module, _args: Any) -> None:
        entered.append(states(private))

    def leave(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, _output: Any) -> None:
            before, now = entered.pop(), states(private)
            for name in changed(before, now, private):
                if not any(known.startswith(name) for known in found):
                    found[f"{name} (in {path or 'the model itself'})"] = None

        return hook

    try:
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave(path), always_call=True))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def refusal(sources: Sequence[str]) -> NeverSupportedError:
    """The error for a model that is random beside its dropout.

    Args:
        sources: What drew, and where.

    Returns:
        The error, to be raised.
    """
    return NeverSupportedError(
        "with every dropout site off, the model still draws random numbers, so something else is "
        f"random: {', '.join(sources)}. Write that noise with torch.nn.functional.dropout or "
        "dropreg.shared_dropout, or switch it off. (If another thread draws from the same "
        "generator while the model runs, let it use one of its own.)"
    )


# ------------------------------------------------------------------------------ masks in the making


class _Drawn:
    """Random numbers that nobody has drawn yet; everything but making a mask of them is refused."""

    def __init__(self, control: Any, like: Tensor) -> None:
        self._control, self._like = control, like

    @property
    def shape(self) -> torch.Size:
        return self._like.shape

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    @property
    def ndim(self) -> int:
        return self._like.ndim

    def _refuse(self, what: str) -> NoReturn:
        raise refusal([f"torch.rand, used by {what} (in {self._control.where()})"])

    def __getattr__(self, name: str) -> Any:
        self._refuse(f"`{name}`")

    def __bool__(self) -> bool:
        self._refuse("an `if`")

    __hash__ = object.__hash__

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name.startswith("__"):
            name = name.strip("_")
        first = next(a for a in tree_leaves((args, kwargs)) if isinstance(a, _Drawn))
        method = getattr(type(first), f"_on_{name}", None)
        if method is None or kwargs or not any(a is first for a in args):
            first._refuse(f"`{name}`")
        return method(first, *args)


_OPERATORS = (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "matmul", "rmatmul", "truediv", "rtruediv"),
    *("floordiv", "rfloordiv", "mod", "rmod", "pow", "rpow", "neg", "pos", "abs", "invert"),
    *("and", "rand", "or", "ror", "xor", "rxor", "eq", "ne", "lt", "le", "gt", "ge", "round"),
    *("getitem", "setitem", "iter", "len", "contains", "int", "float", "complex", "index", "array"),
)
"""Python looks for these in a class, past `__getattr__`, and finds some in every object."""


def _refusing(operator: str) -> Callable[..., NoReturn]:
    def refuse(self: _Drawn, *_: object) -> NoReturn:
        self._refuse(f"`{operator}`")

    return refuse


for _name in _OPERATORS:
    setattr(_Drawn, f"__{_name}__", _refusing(_name))


class Uniform(_Drawn):
    """`torch.rand` plus a number: a threshold makes a mask of it, a floor a mask of zeros and ones.

    A single number that is compared with a probability of 0 or 1 has a certain outcome: so layers
    that are skipped at random run, as long as the probability to skip is 0.
    """

    def __init__(self, control: Any, like: Tensor, offset: float = 0.0) -> None:
        super().__init__(control, like)
        self._offset = offset

    def _number(self, other: object, what: str) -> float:
        if not isinstance(other, (int, float)):
            self._refuse(what)
        return float(other)

    def __add__(self, other: object) -> Uniform:
        return Uniform(self._control, self._like, self._offset + self._number(other, "a sum"))

    __radd__ = add = __add__

    def __sub__(self, other: Any) -> Uniform:
        return self + -self._number(other, "a difference")

    def __iadd__(self, other: object) -> Uniform:
        self._offset += self._number(other, "a sum")
        return self

    add_ = __iadd__

    def item(self) -> Uniform:
        """The number, yet undrawn."""
        return self

    def to(self, *args: Any, **options: Any) -> Uniform:
        """With another type or device."""
        return Uniform(self._control, self._like.to(*args, **options), self._offset)

    def _below(self, bound: Any, *, below: bool = True) -> Any:
        is_tensor = isinstance(bound, Tensor)
        if isinstance(bound, _Drawn) or (is_tensor and bound.numel() != 1):
            self._refuse("a comparison with a tensor")
        if is_tensor and bound.requires_grad:
            self._refuse("a comparison with a number that asks for its gradient")
        p = float(bound) - self._offset
        p = min(max(p if below else 1.0 - p, 0.0), 1.0)
        if p in (0.0, 1.0):
            return torch.full(self.shape, p == 1.0, device=self.device)
        return Coin(self._control, self._like, p)

    def __lt__(self, bound: Any) -> Any:
        return self._below(bound)

    def __gt__(self, bound: Any) -> Any:
        return self._below(bound, below=False)

    lt = le = __le__ = __lt__
    gt = ge = __ge__ = __gt__

    def floor(self) -> Tensor:
        """A mask of zeros and ones."""
        if not 0.0 <= self._offset <= 1.0:
            self._refuse("`floor`")
        return Coin(self._control, self._like, self._offset).float_mask(self.dtype)

    def floor_(self) -> Tensor:
        """A mask of zeros and ones, which this object is from now on."""
        mask = self.floor()
        self.__class__, self._mask = _Floored, mask  # type: ignore[assignment]
        return mask

    def _on_floor(self, _self: Any) -> Tensor:
        return self.floor()

    def _on_floor_(self, _self: Any) -> Tensor:
        return self.floor_()

    def _on_add(self, a: Any, b: Any) -> Uniform:
        return self + (b if a is self else a)

    def _on_lt(self, a: Any, b: Any) -> Any:
        return self < b if a is self else self > a

    def _on_gt(self, a: Any, b: Any) -> Any:
        return self > b if a is self else self < a

    _on_le, _on_ge = _on_lt, _on_gt


class _Floored(_Drawn):
    """What `Uniform.floor_` has made a mask of, where it stood: all goes to the mask."""

    _mask: Tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mask, name)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map(
            lambda a: a._mask if isinstance(a, _Floored) else a, (args, kwargs or {})
        )
        return func(*args, **kwargs)


def _passed_on(operator: str) -> Callable[..., Any]:
    return lambda self, *args: getattr(self._mask, operator)(*args)


for _name in _OPERATORS:
    setattr(_Floored, f"__{_name}__", _passed_on(f"__{_name}__"))


class Coin(_Drawn):
    """A mask that is true with a probability; as numbers it is a site, as a choice it is refused.

    As numbers it is `p (1 + eta)`, with the noise of dropout of probability `1 - p`.
    """

    def __init__(self, control: Any, like: Tensor, p: float) -> None:
        super().__init__(control, like)
        self._p = p

    def float_mask(self, dtype: torch.dtype) -> Tensor:
        """The mask as zeros and ones."""
        with torch._C.DisableTorchFunction():  # our own noise is drawn here
            like = torch.empty(self.shape, dtype=dtype, device=self.device)
            mask: Tensor = self._control.mask(like, self._p)
        return mask

    def float(self) -> Tensor:
        """The mask as zeros and ones."""
        return self.float_mask(torch.float32)

    def double(self) -> Tensor:
        """The mask as zeros and ones."""
        return self.float_mask(torch.float64)

    def to(self, *args: Any, **options: Any) -> Any:
        """With another type or device."""
        return self._as(self._like.bool().to(*args, **options))

    def type(self, *args: Any, **options: Any) -> Any:
        """With another type."""
        return self._as(self._like.bool().type(*args, **options))

    def _as(self, like: Tensor) -> Any:
        coin = Coin(self._control, like, self._p)
        return coin.float_mask(like.dtype) if like.is_floating_point() else coin

    def type_as(self, other: Tensor) -> Tensor:
        """The mask as zeros and ones."""
        return self.float_mask(other.dtype)

    def __invert__(self) -> Coin:
        return Coin(self._control, self._like, 1.0 - self._p)

    logical_not = __invert__

    def _factor(self, other: Any) -> Tensor:
        """The mask in the type that a product with `other` has."""
        is_float = isinstance(other, Tensor) and other.is_floating_point()
        return self.float_mask(other.dtype if is_float else torch.get_default_dtype())

    def __mul__(self, other: Any) -> Tensor:
        return self._factor(other) * other

    __rmul__ = mul = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return self._factor(other) / other

    div = __truediv__

    def _on_mul(self, a: Any, b: Any) -> Tensor:
        return self * (b if a is self else a)

    def _on_mul_(self, a: Any, _self: Any) -> Tensor:
        return a.mul_(self._factor(a))

    def _on_logical_not(self, _self: Any) -> Coin:
        return ~self
