"""A small language model that reads the Bible, on which estimates can be computed by hand.

Two LSTM layers with three sites of locked dropout: small enough for an exact value, and with what
makes estimates hard, many classes and a mask that is shared over time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg.book.data import load_corpus, windows
from dropreg.layers import LockedDropout

WORDS, UNITS, SITES = 200, 32, 3
Q = 0.4
"""Dropout probability at each site."""


class Reader(nn.Module):
    """Words to the logits of each next word.

    The sites are the word vectors, what the first layer gives to the second, and the output; at
    each, one mask serves all times of a sequence.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, UNITS)
        self.first = nn.LSTM(UNITS, UNITS, batch_first=True)
        self.second = nn.LSTM(UNITS, UNITS, batch_first=True)
        self.out = nn.Linear(UNITS, WORDS)
        self.drop = LockedDropout(Q)

    def forward(self, words: Tensor) -> Tensor:
        """Map words (sequences, times) to logits (sequences, times, 200)."""
        h = self.drop(self.table(words))
        h = self.drop(self.first(h)[0])
        h = self.drop(self.second(h)[0])
        logits: Tensor = self.out(h)
        return logits


@dataclass(frozen=True)
class Reading:
    """A trained reader, and what it has read.

    Attributes:
        model: The reader, in training mode.
        inputs: Words, (batches, 20 sequences, 20 times).
        targets: The words that follow each, likewise.
    """

    model: Reader
    inputs: Tensor
    targets: Tensor


def read(seed: int = 0, *, epochs: int = 4) -> Reading:
    """Train a reader on 60,000 words of the King James Bible, for some seconds.

    Args:
        seed: Of its initial weights and masks.
        epochs: How often it reads them.

    Returns:
        The reader and its words.

    Raises:
        MissingPackageError: If the package with the text is not installed.

    >>> read(epochs=0).inputs.shape
    torch.Size([150, 20, 20])
    """
    torch.manual_seed(seed)
    corpus = load_corpus("kjv", max_train_tokens=60_000, vocab_size=WORDS)
    batches = list(windows(corpus.train, 20, 20))
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten()).backward()
            optimizer.step()
    return Reading(
        model,
        torch.stack([batch.inputs for batch in batches]),
        torch.stack([batch.targets for batch in batches]),
    )
