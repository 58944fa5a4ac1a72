"""Dropout that PyTorch has no layer for: masks that are shared along some dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from dropreg.errors import InputError
from dropreg.noise import Law, check_probability, sample


def shared_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, shared_dims: Sequence[int] = ()
) -> Tensor:
    r"""Dropout whose mask is shared along some dimensions (locked dropout, weight rows, ...).

    Outside this package's control it is ordinary inverted dropout: zero with probability `p`, else
    the input over :math:`1-p`. Under it, it is a site like `torch.nn.functional.dropout`.

    Args:
        input: Tensor of any shape: an activation, a weight or an embedding table.
        p: Dropout probability.
        training: Whether to drop at all.
        shared_dims: Dimensions along which one mask value is used for all entries. Locked
            (variational) dropout of a sequence of shape (batch, time, features) shares dimension 1.

    Returns:
        A tensor of the shape of `input`.

    Raises:
        ProbabilityError: If `p` is outside [0, 1).
        InputError: If a dimension in `shared_dims` does not exist.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> shared_dropout(torch.ones(1, 2, 4), p=0.5, shared_dims=[1])
    tensor([[[0., 2., 0., 0.],
             [0., 2., 0., 0.]]])
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            shared_dropout, (input,), input, p=p, training=training, shared_dims=shared_dims
        )
    mask_shape = shared_mask_shape(input, shared_dims)
    if not training or p == 0.0:
        return input
    eta = sample(Law.BERNOULLI, mask_shape, p, device=input.device, dtype=input.dtype)
    return input + eta * input


def shared_mask_shape(input: Tensor, shared_dims: Sequence[int]) -> tuple[int, ...]:
    """Shape of a mask with one value along each of `shared_dims`."""
    shape = list(input.shape)
    for dim in shared_dims:
        if not -input.ndim <= dim < input.ndim:
            raise InputError(
                f"shared_dims names dimension {dim}, but the input has {input.ndim} dimensions."
            )
        shape[dim] = 1
    return tuple(shape)


class LockedDropout(nn.Module):
    """Dropout with one mask per sequence, used at every time step.

    >>> import torch
    >>> LockedDropout(0.5, shared_dims=(1,)).eval()(torch.ones(1, 2, 2))
    tensor([[[1., 1.],
             [1., 1.]]])
    """

    def __init__(self, p: float = 0.5, shared_dims: Sequence[int] = (1,)) -> None:
        """Set up the layer.

        Args:
            p: Dropout probability, in [0, 1).
            shared_dims: Dimensions that share a mask; (1,) is time in (batch, time, features).

        Raises:
            ProbabilityError: If `p` is outside [0, 1).
        """
        super().__init__()
        check_probability(p)
        self.p, self.shared_dims = p, tuple(shared_dims)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the mask; see `shared_dropout`."""
        return shared_dropout(input, self.p, self.training, self.shared_dims)

    def extra_repr(self) -> str:
        """Show the settings in the module's printed form."""
        return f"p={self.p}, shared_dims={self.shared_dims}"


class DropPath(nn.Module):
    """Dropout of whole examples: a residual branch is there or not (Huang et al. 2016).

    >>> import torch
    >>> DropPath(0.2).eval()(torch.ones(1, 2))
    tensor([[1., 1.]])
    """

    def __init__(self, p: float = 0.5) -> None:
        """Set up the layer.

        Args:
            p: Probability to drop an example, in [0, 1).

        Raises:
            ProbabilityError: If `p` is outside [0, 1).
        """
        super().__init__()
        check_probability(p)
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        """Drop examples of a batch (batch, ...); see `shared_dropout`."""
        return shared_dropout(input, self.p, self.training, range(1, input.ndim))

    def extra_repr(self) -> str:
        """Show the setting in the module's printed form."""
        return f"p={self.p}"
