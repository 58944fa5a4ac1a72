"""Text and network of assignment 5, the project: what its notebook gives, and no answer."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg.book.data import load_corpus, windows
from dropreg.book.models import LSTMLanguageModel

WORDS, UNITS, Q = 300, 64, 0.4
LEARNING_RATE, CLIP = 10.0, 0.25


@functools.lru_cache(maxsize=1)
def text() -> tuple[Tensor, Tensor, Tensor]:
    """A little of the King James Bible.

    Returns:
        Word numbers for training (8,000), validation (5,000) and test (5,000).
    """
    corpus = load_corpus("kjv", max_train_tokens=8_000, vocab_size=WORDS)
    return corpus.train, corpus.valid[:5_000], corpus.test[:5_000]


def new_model(seed: int) -> LSTMLanguageModel:
    """The network of the project: one LSTM layer, locked dropout before and after it.

    Args:
        seed: Weights of the same seed are equal, whatever was drawn before.

    Returns:
        The network, in train mode.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return LSTMLanguageModel(
            WORDS,
            embedding_size=UNITS,
            hidden_size=UNITS,
            depth=1,
            embedding_p=Q,
            output_p=Q,
            weight_p=0.0,
        )


def training_windows() -> list[tuple[Tensor, Tensor]]:
    """The training text, in 10 streams cut into windows of 35 words.

    Returns:
        Inputs and targets of each window, in order: carry the state from one to the next.
    """
    return [(batch.inputs, batch.targets) for batch in windows(text()[0], 10, 35)]


def window_losses(model: nn.Module, tokens: Tensor) -> tuple[list[float], list[int]]:
    """Read a text with the network as it is: in train mode with dropout, in eval mode without.

    Args:
        model: The network.
        tokens: The text, (n,). It is sent to the device of the network.

    Returns:
        For each window the mean loss, in nats, and the number of words predicted.
    """
    losses, counts, state = [], [], None
    tokens = tokens.to(next(model.parameters()).device)
    with torch.no_grad():
        for batch in windows(tokens, 10, 50):
            logits, state = model(batch.inputs, state)
            losses.append(F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).item())
            counts.append(int((batch.targets >= 0).sum()))
    return losses, counts
