"""One forward pass of anybody's model under control, and what goes in and comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dropreg.control import draws
from dropreg.control.buffers import scratch_attributes, scratch_buffers
from dropreg.control.control import Control
from dropreg.control.kernels import exclusive
from dropreg.errors import (
    EvalModeError,
    LogitsError,
    NoSitesError,
    ZeroProbabilityError,
    values_are_checked,
)
from dropreg.probes import clean

Output = Callable[[Any], Tensor]
"""Picks the logits out of what a model returns."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a model."""


def forward(
    model: nn.Module,
    arguments: Arguments,
    control: Control,
    *,
    scratch: bool,
    attributes: bool = False,
) -> Any:
    r"""One forward pass in which every site computes :math:`h + \eta \odot h` with our noise.

    Args:
        model: A model that `dropreg.find_sites` accepts.
        arguments: Its arguments; see `call_arguments`.
        control: Gives the noise, and keeps the sites that the pass meets. For one pass.
        scratch: Whether the pass works on copies of the buffers (batch-norm statistics, ...), so
            that they stay as they are.
        attributes: Whether the attributes of the modules are set back, too.

    Returns:
        What the model returns.

    Raises:
        UnsupportedError: If the model draws random numbers itself.
    """
    args, kwargs = arguments
    with (
        exclusive(),  # nobody writes to buffers while others have theirs in place
        scratch_buffers(model) if scratch else nullcontext(),
        scratch_attributes(model) if scratch and attributes else nullcontext(),
    ):
        with control:
            output = model(*args, **kwargs)
        if control.drawn:
            error = draws.refusal(_who_drew(model, arguments, control))
            raise error
    return output


def _who_drew(model: nn.Module, arguments: Arguments, control: Control) -> list[str]:
    """Run the model once more, to name the operations and modules that draw."""
    args, kwargs = arguments
    again = Control(clean, paths=control.paths, adapted=control.adapted)
    operations = draws.Operations(again.where)
    with (
        draws.restored(),
        scratch_buffers(model),
        scratch_attributes(model),
        draws.blaming(model, control.private) as modules,
        operations,
        again,
    ):
        model(*args, **kwargs)
    others = [m for m in modules if not (operations.random and m.startswith("torch's"))]
    return [*operations.random, *others] or list(control.drawn)


def require_sites(model: nn.Module, control: Control) -> None:
    """Say why, if a pass met no site.

    Args:
        model: The model that was run.
        control: What controlled it.

    Raises:
        EvalModeError: If dropout is there and switched off.
        ZeroProbabilityError: If its probability is 0 everywhere.
        NoSitesError: If there is none.
    """
    if control.sites:
        return
    if any(p > 0.0 for p in control.inactive_p):
        raise EvalModeError(
            "every dropout of the model is in eval mode, where it does nothing: call "
            "model.train() first."
        )
    if control.inactive_p:
        raise ZeroProbabilityError(
            "every dropout of the model has probability 0: its regularizer and its noise are zero. "
            "Set a probability between 0 and 1."
        )
    if not model.training:
        raise EvalModeError(
            "no dropout was met, and the model is in eval mode: call model.train() first."
        )
    raise NoSitesError(
        "no dropout was met in the forward pass. Add nn.Dropout, F.dropout, "
        "dropreg.shared_dropout or another dropout where the noise should act."
    )


def call_arguments(inputs: Any) -> Arguments:
    """Positional and keyword arguments of the model from `inputs`."""
    if isinstance(inputs, Mapping):  # a dict, or for instance a tokenizer's BatchEncoding
        return (), dict(inputs)
    # Only plain tuples: a PackedSequence is a named tuple and one argument.
    return (inputs if type(inputs) is tuple else (inputs,)), {}


def everything(output: Any) -> Tensor:
    """All floating-point numbers that a model returned, in one row.

    Args:
        output: What the model returned.

    Returns:
        A tensor of one dimension.

    Raises:
        LogitsError: If there are none.
    """
    leaves = tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    objects = [x for x in leaves if not isinstance(x, Tensor) and hasattr(x, "__dict__")]
    leaves += tree_leaves([vars(x) for x in objects])
    floats = [x.flatten() for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
    if not floats:
        find_logits(output)  # has the words
    return torch.cat([x.to(floats[0]) for x in floats])


def find_logits(output: Any) -> Tensor:
    """The logits in what a model returned.

    Args:
        output: A tensor, an object with an attribute `logits`, a mapping with that key, or a tuple
            or list that begins with the logits.

    Returns:
        The logits.

    Raises:
        LogitsError: If none are found, they are not of a floating-point type, or hold NaN (unless
            within `dropreg.errors.values_unchecked`).
    """
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise LogitsError(
            f"the model returned {type(output).__name__}; expected logits as a tensor, as the "
            "attribute or key 'logits', or as the first item of a tuple. Where they are elsewhere, "
            "say so: output=lambda returned: returned.start_logits."
        )
    if not output.is_floating_point():
        raise LogitsError(
            f"the model returned {output.dtype}; expected floating-point logits, not class labels."
        )
    # A sum is quicker than a mask of the NaNs; it is NaN, too, where infinities cancel.
    looks = values_are_checked()
    if looks and output.detach().sum().isnan() and torch.isnan(output).any():
        raise LogitsError(
            "the model's logits hold NaN: look at the inputs, the weights and the learning rate."
        )
    return output
