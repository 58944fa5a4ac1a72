"""Layers that several models share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg.errors import InputError
from dropreg.noise import check_probability, shared_dropout


class TokenEmbedding(nn.Embedding):
    """Word vectors, with dropout of whole rows: a word is gone wherever it stands in the batch.

    Embedding dropout is due to Gal and Ghahramani (2016); Merity et al. (2017) use it so. The mask
    has one value a word and multiplies the table, so the table is a site of the model. A decoder
    that is tied to `weight` does not see the noise.
    """

    def __init__(self, vocab_size: int, width: int, row_p: float = 0.0) -> None:
        """Set up the table, uniform in [-0.1, 0.1] (Merity et al. 2017).

        Args:
            vocab_size: Number of words.
            width: Size of a word vector.
            row_p: Probability to drop a word's row.

        Raises:
            ProbabilityError: If `row_p` is outside [0, 1).
        """
        super().__init__(vocab_size, width)
        check_probability(row_p)
        self.row_p = row_p
        nn.init.uniform_(self.weight, -0.1, 0.1)

    def forward(self, input: Tensor) -> Tensor:
        """Look words up.

        Args:
            input: Word indices, (batch, time).

        Returns:
            Their vectors, (batch, time, width).

        Raises:
            InputError: If the indices have another shape.
        """
        if input.ndim != 2:
            raise InputError(
                f"tokens need the shape (batch, time), got {tuple(input.shape)}. For one sequence "
                "add a batch dimension: tokens[None]."
            )
        return F.embedding(input, shared_dropout(self.weight, self.row_p, self.training, (1,)))


def feed_forward(width: int, inner: int, p: float, activation: nn.Module) -> nn.Sequential:
    """The two layers that a Transformer applies at each position (Vaswani et al. 2017, eq. 2).

    Args:
        width: Size of input and output.
        inner: Size in between.
        p: Dropout probability, in between and at the end.
        activation: The nonlinearity in between.

    Returns:
        A module from (..., width) to (..., width).
    """
    return nn.Sequential(
        nn.Linear(width, inner), activation, nn.Dropout(p), nn.Linear(inner, width), nn.Dropout(p)
    )


def sinusoids(positions: Tensor, width: int) -> Tensor:
    r"""Waves of geometrically growing length, one a position (Vaswani et al. 2017, Section 3.5).

    The sines come first and then the cosines, where that paper takes them in turn: the same numbers
    in another order.

    Args:
        positions: Positions or distances, (n,), in a floating-point type.
        width: An even number.

    Returns:
        :math:`\sin(p\,/\,10000^{2i/width})` and the cosines, (n, width).
    """
    steps = torch.arange(0, width, 2, device=positions.device, dtype=positions.dtype)
    angles = positions[:, None] / 10000 ** (steps / width)
    return torch.cat([angles.sin(), angles.cos()], -1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Give each attention head its share of the features.

    Args:
        x: Features, (batch, time, width).
        heads: A divisor of the width.

    Returns:
        A view, (batch, heads, time, width / heads).
    """
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """Put the heads' features side by side again; the inverse of `split_heads`.

    Args:
        x: Features, (batch, heads, time, width / heads).

    Returns:
        Features, (batch, time, width).
    """
    return x.transpose(-3, -2).flatten(-2)


def check_attention(width: int, heads: int, *ps: float) -> None:
    """Refuse dimensions and probabilities with which attention cannot work.

    Args:
        width: Size of the model.
        heads: Number of attention heads.
        *ps: Dropout probabilities.

    Raises:
        InputError: If the width is odd or no multiple of the heads.
        ProbabilityError: If a probability is outside [0, 1).
    """
    for p in ps:
        check_probability(p)
    if width % heads or width % 2:
        raise InputError(
            f"width {width} must be even (half sines, half cosines) and a multiple of the "
            f"{heads} heads."
        )


def init_normal(model: nn.Module) -> None:
    """Initialise as GPT-2 and the code of Transformer-XL do: normal weights, zero biases.

    Weights are normal with standard deviation 0.02 (Radford et al. 2019; Dai et al. 2019, training
    scripts). Norms start as the identity.

    Args:
        model: A model with parameters of linear layers, embeddings and norms.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
