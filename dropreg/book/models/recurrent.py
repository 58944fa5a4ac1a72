"""What the LSTM and the QRNN language model share: everything but the recurrent layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg.book.models.base import Sized
from dropreg.book.models.layers import TokenEmbedding
from dropreg.layers import LockedDropout

RecurrentState: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""Two tensors a layer."""


class RecurrentLanguageModel(Sized):
    """Embedding, recurrent layers and a decoder tied to the embedding (Merity et al. 2017).

    The last layer has the embedding's size, so that the decoder can use its table (Press and Wolf
    2017). Masks on activations are locked: one a sequence, the same at every time step (Gal and
    Ghahramani 2016).
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        hidden_size: int,
        depth: int,
        layer: Callable[[int, int, int], nn.Module],
        *,
        embedding_p: float,
        hidden_p: float,
        output_p: float,
        row_p: float,
    ) -> None:
        """Set up the parts; arguments as for `LSTMLanguageModel`.

        `layer` makes a recurrent layer from its index, its input size and its output size.
        """
        super().__init__()
        self.embedding = TokenEmbedding(vocab_size, embedding_size, row_p)
        self.embedding_dropout = LockedDropout(embedding_p)
        widths = [embedding_size, *[hidden_size] * (depth - 1), embedding_size]
        pairs = enumerate(itertools.pairwise(widths))
        self.layers = nn.ModuleList(layer(i, before, after) for i, (before, after) in pairs)
        ps = [hidden_p] * (depth - 1) + [output_p]
        self.dropouts = nn.ModuleList(map(LockedDropout, ps))
        self.decoder_bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(
        self, tokens: Tensor, state: RecurrentState | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """Predict each next word.

        Args:
            tokens: Word indices, (batch, time).
            state: What an earlier call returned, to go on from there; None at the beginning.

        Returns:
            Logits (batch, time, vocab_size), and the state after the last token.
        """
        x = self.embedding_dropout(self.embedding(tokens))
        after: list[Any] = []
        for i, (layer, dropout) in enumerate(zip(self.layers, self.dropouts, strict=True)):
            x, layer_state = layer(x, None if state is None else state[i])
            x = dropout(x)
            after.append(layer_state)
        return F.linear(x, self.embedding.weight, self.decoder_bias), tuple(after)
