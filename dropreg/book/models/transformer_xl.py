r"""Transformer-XL (Dai et al. 2019): attention that reaches back into earlier segments.

A text is read in segments. Each layer keeps its inputs of the segments before, and attends to them
as well. Positions enter as distances (Section 3.3): with query :math:`q_i`, key :math:`k_j` and a
vector :math:`r_{i-j}` for the distance, the score is

.. math:: (q_i + u)^\top k_j + (q_i + v)^\top r_{i-j}
"""

from __future__ import annotations

import math
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg.book.models.base import Sized
from dropreg.book.models.layers import (
    TokenEmbedding,
    check_attention,
    feed_forward,
    init_normal,
    merge_heads,
    sinusoids,
    split_heads,
)

Memory: TypeAlias = tuple[Tensor, ...]
"""The latest inputs of each block, (batch, at most memory_length, width)."""


def relative_shift(scores: Tensor) -> Tensor:
    """Move each row of scores by distance to where its keys stand (Dai et al. 2019, Appendix B).

    The columns that come in belong to distances from large to 0. Row i of T must move T - 1 - i
    columns to the left; padding by one column and reading the rows anew does that for all at once.
    What runs over the end of a row lands on keys in the future, which are masked anyway.

    Args:
        scores: Scores by distance, (..., T, K).

    Returns:
        Scores by key, (..., T, K).
    """
    *batch, queries, keys = scores.shape
    padded = F.pad(scores, (1, 0)).reshape(*batch, keys + 1, queries)
    return padded[..., 1:, :].reshape(*batch, queries, keys)


class XLBlock(nn.Module):
    """Self-attention over memory and segment, and a feed-forward part, each with a norm after."""

    def __init__(self, width: int, heads: int, inner: int, p: float, attention_p: float) -> None:
        """Set up the parts; arguments as for `TransformerXL`."""
        super().__init__()
        self.heads, self.attention_p = heads, attention_p
        self.query, self.position, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(3)
        )
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.dropout = nn.Dropout(p)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed_forward = feed_forward(width, inner, p, nn.ReLU())

    def forward(self, x: Tensor, joined: Tensor, distances: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Let each position look at itself, at those before it and at the memory.

        Args:
            x: Features of the segment, (batch, T, width).
            joined: The memory and the segment after it, (batch, K, width).
            distances: Features of the distances K - 1, ..., 0, (K, width).
            u: Bias of the queries against contents, (heads, 1, width / heads).
            v: Bias of the queries against distances, of the same shape.

        Returns:
            Features of the segment, (batch, T, width).
        """
        query = split_heads(self.query(x), self.heads)
        key, value = (split_heads(t, self.heads) for t in self.key_value(joined).chunk(2, -1))
        by_distance = split_heads(self.position(distances), self.heads)
        scores = relative_shift((query + v) @ by_distance.transpose(-2, -1))
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(
            joined.shape[1] - x.shape[1] + 1
        )
        attended = F.scaled_dot_product_attention(
            query + u,
            key,
            value,
            attn_mask=(scores / math.sqrt(query.shape[-1])).masked_fill(future, -math.inf),
            dropout_p=self.attention_p if self.training else 0.0,
        )
        x = self.attention_norm(x + self.dropout(self.out(merge_heads(attended))))
        return self.feed_forward_norm(x + self.feed_forward(x))


class TransformerXL(Sized):
    """Transformer-XL with post-norm blocks, as its authors publish it, and tied weights.

    "full" is their base network for WikiText-103, which Wei, Kakade and Ma (2020) train; the
    default probabilities are the same in both. Dropout acts where their code has it: on the word
    vectors, the features of the distances, what each part of a block adds, inside the feed-forward
    parts, and on the output. The adaptive softmax is left out: it saves time by not computing
    all logits, and the regularizers need them. Initialised by
    `dropreg.book.models.layers.init_normal`.

    The memory keeps its gradient until `dropreg.book.models.detach` takes it away. Do that between
    two segments, as the paper does.

    >>> model = TransformerXL.of_size("tiny", 100)
    >>> logits, memory = model(torch.randint(100, (2, 7)))
    >>> logits.shape, memory[0].shape
    (torch.Size([2, 7, 100]), torch.Size([2, 6, 8]))
    """

    sizes: ClassVar = {
        "tiny": {"width": 8, "heads": 2, "inner": 16, "depth": 2, "memory_length": 6},
        "small": {"width": 128, "heads": 4, "inner": 512, "depth": 4, "memory_length": 64},
        "full": {"width": 410, "heads": 10, "inner": 2100, "depth": 16, "memory_length": 150},
    }

    def __init__(
        self,
        vocab_size: int,
        *,
        width: int = 410,
        heads: int = 10,
        inner: int = 2100,
        depth: int = 16,
        memory_length: int = 150,
        p: float = 0.1,
        attention_p: float = 0.0,
    ) -> None:
        """Set up the layers.

        Args:
            vocab_size: Number of words.
            width: Size of the features, even and a multiple of `heads`.
            heads: Number of attention heads.
            inner: Size inside the feed-forward parts.
            depth: Number of blocks.
            memory_length: How many positions before the segment each block remembers.
            p: Dropout probability of everything but the attention weights; see the class.
            attention_p: Dropout probability of the attention weights.

        Raises:
            InputError: If the width does not fit the heads.
            ProbabilityError: If a probability is outside [0, 1).
        """
        super().__init__()
        check_attention(width, heads, p, attention_p)
        self.memory_length = memory_length
        self.embedding = TokenEmbedding(vocab_size, width)
        self.dropout = nn.Dropout(p)
        self.blocks = nn.ModuleList(
            XLBlock(width, heads, inner, p, attention_p) for _ in range(depth)
        )
        self.u, self.v = (nn.Parameter(torch.empty(heads, 1, width // heads)) for _ in range(2))
        self.decoder_bias = nn.Parameter(torch.zeros(vocab_size))
        init_normal(self)
        for bias in (self.u, self.v):
            nn.init.normal_(bias, std=0.02)

    def forward(self, tokens: Tensor, state: Memory | None = None) -> tuple[Tensor, Memory]:
        """Predict each next word of a segment.

        Args:
            tokens: Word indices, (batch, time).
            state: The memory that the call for the segment before returned; None at the beginning.

        Returns:
            Logits (batch, time, vocab_size), and the memory for the next segment.
        """
        x = self.embedding(tokens)
        batch, time, width = x.shape
        if state is None:
            state = (x.new_zeros(batch, 0, width),) * len(self.blocks)
        keys = state[0].shape[1] + time
        distances = torch.arange(keys - 1, -1, -1, device=x.device, dtype=x.dtype)
        x = self.dropout(math.sqrt(width) * x)
        distances = self.dropout(sinusoids(distances, width))
        memory = []
        for block, before in zip(self.blocks, state, strict=True):
            joined = torch.cat([before, x], 1)
            memory.append(joined[:, max(0, keys - self.memory_length) :])
            x = block(x, joined, distances, self.u, self.v)
        return F.linear(self.dropout(x), self.embedding.weight, self.decoder_bias), tuple(memory)
