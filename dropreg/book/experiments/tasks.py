"""Tasks: a model, a text and a way of training, fixed beforehand and the same for every rule."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dropreg.book.data.corpora import Corpus, load_corpus
from dropreg.book.models.base import Sized
from dropreg.book.models.lstm import LSTMLanguageModel
from dropreg.book.models.qrnn import QRNNLanguageModel
from dropreg.book.models.transformer_xl import TransformerXL
from dropreg.errors import Choice


class Size(Choice):
    """How large an experiment is run; the code is the same."""

    TINY = "tiny"
    """Seconds, with torch alone: for tests, and to see a run live. What comes out means nothing."""
    SMALL = "small"
    """About a minute for a run with one mask, on a laptop's CPU."""
    LARGE = "large"
    """All of Penn Treebank and a third of the paper's units: about ten seconds an epoch on a GPU.
    The LSTM only."""
    FULL = "full"
    """The paper's own model and text, on a GPU."""


@dataclass(frozen=True)
class Setting:
    """A task at one size. What is not named here is the same for every run.

    Attributes:
        model: Arguments of the model's constructor, its dropout probabilities among them.
        corpus: The text.
        train_tokens: How many tokens of the training part are used; all if None.
        valid_tokens: The same for the validation and test parts; all, except at "tiny".
        vocab_size: Number of words; see `dropreg.book.data.load_corpus`.
        epochs: Passes over the text.
        batch_size: Number of streams.
        length: Length of a window; see `dropreg.book.data.windows`.
        vary_length: Whether the windows' lengths vary, and the learning rate with them.
        optimizer: "sgd" or "adam".
        lr: Learning rate for a window of full length.
        lr_scale: Factor on it, for runs that differ from the rest by it.
        clip: Largest norm of an update's gradient, noise included; none if infinite.
        weight_decay: As the optimizers of PyTorch have it, for every rule.
        evaluate_every: How many epochs lie between two looks at the validation part.
    """

    model: Mapping[str, Any]
    corpus: str
    train_tokens: int | None
    vocab_size: int | None
    epochs: int
    batch_size: int
    length: int
    lr: float
    lr_scale: float = 1.0
    optimizer: str = "sgd"
    vary_length: bool = True
    clip: float = 0.25
    weight_decay: float = 0.0
    valid_tokens: int | None = None
    evaluate_every: int = 1


@dataclass(frozen=True)
class Task:
    """A model and a text.

    Attributes:
        name: Short name.
        model: Its class; made from the number of words and the setting's arguments.
        settings: The setting for each size that it has.
        dropout: Names of the model's arguments that are dropout probabilities.
    """

    name: str
    model: type[Sized]
    settings: Mapping[Size, Setting]
    dropout: tuple[str, ...]


@functools.lru_cache(maxsize=2)
def corpus_of(name: str, train_tokens: int | None, vocab_size: int | None) -> Corpus:
    """A corpus, kept in memory as the runs of a process share few of them."""
    return load_corpus(name, max_train_tokens=train_tokens, vocab_size=vocab_size)


def texts(setting: Setting) -> tuple[dict[str, Tensor], int]:
    """The three parts of a setting's text, and its number of words.

    Args:
        setting: The setting.

    Returns:
        For each part its word numbers, (n,), int64; and the size of the vocabulary.

    Raises:
        DataError: If the text is not there and cannot be fetched.
    """
    corpus = corpus_of(setting.corpus, setting.train_tokens, setting.vocab_size)
    shorter = setting.valid_tokens
    parts = {"train": corpus.train, "valid": corpus.valid[:shorter], "test": corpus.test[:shorter]}
    return parts, len(corpus.vocabulary)


TINY: dict[str, Any] = {
    "corpus": "made-up",
    "train_tokens": 1_500,
    "valid_tokens": 1_000,
    "vocab_size": 100,
    "epochs": 2,
    "batch_size": 10,
    "length": 20,
}
# Chosen so that all of it fits a night on two cores, and that a network without dropout overfits
# after a third of the epochs: there is where the effects show.
SMALL: dict[str, Any] = {
    "train_tokens": 20_000,
    "vocab_size": 1_000,
    "epochs": 28,
    "batch_size": 10,
    "length": 35,
    "evaluate_every": 2,
}
LARGE_LSTM = {"embedding_size": 200, "hidden_size": 300, "depth": 2}
"""Three million weights: 11.5 MiB."""
MERITY: dict[str, Any] = {"optimizer": "sgd", "clip": 0.25, "weight_decay": 1.2e-6}


ADAM: dict[str, Any] = {"optimizer": "adam", "clip": 0.25, "vary_length": False}


def _task(
    name: str,
    model: type[Sized],
    dropout: tuple[str, ...],
    q: Mapping[Size, float],
    small: Mapping[str, int],
    settings: Mapping[Size, Mapping[str, Any]],
) -> Task:
    """A task from the model's dimensions, its dropout probability and the rest, by size."""
    dimensions = {**model.sizes, "small": small, "large": LARGE_LSTM}
    return Task(
        name,
        model,
        {
            size: Setting({**dimensions[size], **dict.fromkeys(dropout, q[size])}, **setting)
            for size, setting in settings.items()
        },
        dropout,
    )


def _lstm() -> Task:
    whole_treebank: dict[str, Any] = {
        "corpus": "ptb",
        "train_tokens": None,
        "vocab_size": None,
        "epochs": 40,
        "batch_size": 20,
        "length": 70,
    }
    return _task(
        "lstm",
        LSTMLanguageModel,
        ("embedding_p", "hidden_p", "output_p", "weight_p"),
        dict.fromkeys(Size, 0.4),
        {"embedding_size": 128, "hidden_size": 128, "depth": 2},
        {
            Size.TINY: {**TINY, **MERITY, "lr": 10},
            Size.SMALL: {**SMALL, **MERITY, "corpus": "ptb", "lr": 10},
            Size.LARGE: {**MERITY, **whole_treebank, "lr": 20},
            Size.FULL: {**MERITY, **whole_treebank, "lr": 30},
        },
    )


# Two amounts of text, and as many updates on either: the second is seen less often.
_LESS: Mapping[Size, Mapping[str, Any]] = {
    Size.TINY: {},
    Size.SMALL: {},
    Size.FULL: {"train_tokens": 20_645_404, "epochs": 20},
}
_MORE: Mapping[Size, Mapping[str, Any]] = {
    Size.TINY: {"train_tokens": 3_000, "epochs": 1},
    Size.SMALL: {"train_tokens": 80_000, "epochs": 7, "evaluate_every": 1},
    Size.FULL: {"train_tokens": None, "epochs": 4},
}
_WIKITEXT: dict[str, Any] = {"corpus": "wikitext-103", "vocab_size": None}
_WEAK = {Size.TINY: 0.2, Size.SMALL: 0.2, Size.FULL: 0.1}
"""Dropout probabilities of the tasks after the LSTM: the paper's at "full"."""


def _transformer_xl(name: str, text: Mapping[Size, Mapping[str, Any]]) -> Task:
    small = {"width": 64, "heads": 4, "inner": 256, "depth": 3, "memory_length": 35}
    full = {"length": 150, "lr": 2.5e-4}
    return _at_scale(name, TransformerXL, ("p",), small, 1e-3, full, text)


def _qrnn(name: str, text: Mapping[Size, Mapping[str, Any]]) -> Task:
    small = {"embedding_size": 128, "hidden_size": 128, "depth": 2}
    full = {"length": 140, "lr": 1e-3}
    dropout = ("embedding_p", "hidden_p", "output_p")
    return _at_scale(name, QRNNLanguageModel, dropout, small, 2e-3, full, text)


def _at_scale(
    name: str,
    model: type[Sized],
    dropout: tuple[str, ...],
    small: Mapping[str, int],
    small_lr: float,
    full: Mapping[str, Any],
    text: Mapping[Size, Mapping[str, Any]],
) -> Task:
    """A task of the paper's Table 2, on one of two amounts of text."""
    settings: dict[Size, dict[str, Any]] = {
        Size.TINY: {**TINY, "lr": 1e-3},
        Size.SMALL: {**SMALL, "corpus": "kjv", "lr": small_lr},
        Size.FULL: {**_WIKITEXT, "batch_size": 60, **full},
    }
    by_size = {size: {**ADAM, **setting, **text[size]} for size, setting in settings.items()}
    return _task(name, model, dropout, _WEAK, small, by_size)


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        _lstm(),
        _transformer_xl("transformer-xl", _LESS),
        _transformer_xl("transformer-xl-more-text", _MORE),
        _qrnn("qrnn", _LESS),
        _qrnn("qrnn-more-text", _MORE),
    )
}
"""Every task by its name."""
