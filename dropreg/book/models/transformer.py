"""A causal Transformer language model."""

from __future__ import annotations

import math
from typing import ClassVar

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


class Block(nn.Module):
    """Self-attention and a feed-forward part, each added to its input.

    As in GPT-2 (Radford et al. 2019) the norm comes before each part and the nonlinearity is GELU.
    Pre-norm trains without a warm-up of the learning rate (Xiong et al. 2020), so one schedule
    serves all update rules; and a smooth nonlinearity has no kinks for central differences to hit.
    """

    def __init__(self, width: int, heads: int, inner: int, p: float, attention_p: float) -> None:
        """Set up the parts; arguments as for `TransformerLanguageModel`."""
        super().__init__()
        self.heads, self.attention_p = heads, attention_p
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout = nn.Dropout(p)
        self.feed_forward = feed_forward(width, inner, p, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """Let each position look at itself and at those before it.

        Args:
            x: Features, (batch, time, width).

        Returns:
            Features of the same shape.
        """
        qkv = self.qkv(self.attention_norm(x)).chunk(3, -1)
        query, key, value = (split_heads(part, self.heads) for part in qkv)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            dropout_p=self.attention_p if self.training else 0.0,
        )
        x = x + self.dropout(self.out(merge_heads(attended)))
        return x + self.feed_forward(self.feed_forward_norm(x))


class TransformerLanguageModel(Sized):
    """Pre-norm Transformer (Vaswani et al. 2017) with sinusoidal positions and tied weights.

    It has no memory: a sequence is all it sees. "full" has the dimensions and the probabilities of
    Transformer-XL on WikiText-103, so that the two differ by the recurrence. Initialised by
    `dropreg.book.models.layers.init_normal`.

    >>> model = TransformerLanguageModel.of_size("tiny", 100)
    >>> logits, _ = model(torch.randint(100, (2, 7)))
    >>> logits.shape
    torch.Size([2, 7, 100])
    """

    sizes: ClassVar = {
        "tiny": {"width": 8, "heads": 2, "inner": 16, "depth": 2},
        "small": {"width": 128, "heads": 4, "inner": 512, "depth": 4},
        "full": {"width": 410, "heads": 10, "inner": 2100, "depth": 16},
    }

    def __init__(
        self,
        vocab_size: int,
        *,
        width: int = 410,
        heads: int = 10,
        inner: int = 2100,
        depth: int = 16,
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
            p: Dropout probability of the embedded input, of what each part of a block adds, and
                inside the feed-forward parts.
            attention_p: Dropout probability of the attention weights.

        Raises:
            InputError: If the width does not fit the heads.
            ProbabilityError: If a probability is outside [0, 1).
        """
        super().__init__()
        check_attention(width, heads, p, attention_p)
        self.embedding = TokenEmbedding(vocab_size, width)
        self.dropout = nn.Dropout(p)
        self.blocks = nn.ModuleList(
            Block(width, heads, inner, p, attention_p) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.decoder_bias = nn.Parameter(torch.zeros(vocab_size))
        init_normal(self)

    def forward(self, tokens: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Predict each next word.

        Args:
            tokens: Word indices, (batch, time).
            state: None; here as in the other models, so that all are called alike.

        Returns:
            Logits (batch, time, vocab_size), and None.
        """
        x = self.embedding(tokens)
        width = x.shape[-1]
        positions = torch.arange(tokens.shape[1], device=x.device, dtype=x.dtype)
        x = self.dropout(math.sqrt(width) * x + sinusoids(positions, width))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight, self.decoder_bias), None
