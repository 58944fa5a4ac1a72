"""What the models have in common: named sizes, and a state that is carried from call to call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from torch import Tensor, nn

from dropreg.errors import InputError

State: TypeAlias = "Tensor | tuple[State, ...] | None"
"""What a model remembers: None, a tensor, or nested tuples of them."""

AnyState = TypeVar("AnyState", bound=State)


def detach(state: AnyState) -> AnyState:
    """Cut a state off from the computation it comes from, for truncated backpropagation.

    Args:
        state: The second result of a model.

    Returns:
        The same values and structure, without gradient.

    >>> import torch
    >>> detach((torch.ones(1, requires_grad=True) * 2, None))
    (tensor([2.]), None)
    """
    result: Any = state
    if isinstance(state, tuple):
        result = tuple(map(detach, state))
    elif isinstance(state, Tensor):
        result = state.detach()
    return result


class Sized(nn.Module):
    """A model whose dimensions have names; the probabilities are set apart from them.

    Attributes:
        sizes: Constructor arguments for each name: "tiny" for tests, "small" for a laptop, "full"
            for the size of the paper.
    """

    sizes: ClassVar[Mapping[str, Mapping[str, int]]]

    @classmethod
    def of_size(cls, size: str, *args: Any, **overrides: Any) -> Self:
        """Build the model with the dimensions of a name.

        Args:
            size: "tiny", "small" or "full".
            *args: What the name leaves open, such as the number of words.
            **overrides: Further arguments of the constructor; they win over the name.

        Returns:
            The model, newly initialised.

        Raises:
            InputError: If there is no such size.
        """
        if size not in cls.sizes:
            names = ", ".join(map(repr, cls.sizes))
            raise InputError(f"{cls.__name__} has no size {size!r}. Choose one of {names}.")
        return cls(*args, **{**cls.sizes[size], **overrides})
