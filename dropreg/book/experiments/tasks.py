"""Tasks: a model, a text and a way of training, fixed beforehand and the same for every rule."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    MEDIUM = "medium"
    """Five times the text and twice the units of "small", the LSTM only: up to an hour a run."""
    LARGE = "large"
    """All of Penn Treebank and a third of the paper's units: about ten seconds an epoch on a GPU.
    The LSTM only."""
    FULL = "full"
    """The paper's own model and text, on a GPU."""


@dataclass(frozen=True, kw_only=True)
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
        pieces: Whether the run of seed s sees piece s of the training part, in place of the first.
        lr_falls: Whether the learning rate falls in equal steps, an epoch each, towards zero.
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
    optimizer: str
    vary_length: bool
    clip: float
    weight_decay: float
    valid_tokens: int | None = None
    evaluate_every: int = 1
    pieces: bool = False
    lr_falls: bool = False


@dataclass(frozen=True, kw_only=True)
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
def corpus_of(
    name: str, train_tokens: int | None, vocab_size: int | None, piece: int = 0
) -> Corpus:
    """A corpus, kept in memory as the runs of a process share few of them."""
    return load_corpus(name, max_train_tokens=train_tokens, vocab_size=vocab_size, piece=piece)


def texts(setting: Setting, seed: int = 0) -> tuple[dict[str, Tensor], int]:
    """The three parts of a setting's text, and its number of words.

    Args:
        setting: The setting.
        seed: Seed of the run, which chooses the piece of the training part if there are pieces.

    Returns:
        For each part its word numbers, (n,), int64; and the size of the vocabulary.

    Raises:
        DataError: If the text is not there and cannot be fetched.
    """
    piece = seed if setting.pieces else 0
    corpus = corpus_of(setting.corpus, setting.train_tokens, setting.vocab_size, piece)
    shorter = setting.valid_tokens
    parts = {"train": corpus.train, "valid": corpus.valid[:shorter], "test": corpus.test[:shorter]}
    return parts, len(corpus.vocabulary)


# Below the model's arguments a line for the text, one for the passes over it and one for the
# optimizer.
#
# "small" is chosen so that all of it fits into a night on two cores, and so that a network without
# dropout overfits after a third of the epochs, which is where the effects show.
FIRST: Mapping[str, Task] = {
    task.name: task
    for task in (
        # The optimizer is that of Merity et al. (2017).
        Task(
            name="lstm",
            model=LSTMLanguageModel,
            dropout=("embedding_p", "hidden_p", "output_p", "weight_p"),
            settings={
                Size.TINY: Setting(
                    model={
                        "embedding_size": 8, "hidden_size": 12, "depth": 2,
                        "embedding_p": 0.4, "hidden_p": 0.4, "output_p": 0.4, "weight_p": 0.4,
                    },
                    corpus="made-up", train_tokens=1_500, vocab_size=100, valid_tokens=1_000,
                    epochs=2, batch_size=10, length=20, vary_length=True,
                    optimizer="sgd", lr=10, clip=0.25, weight_decay=1.2e-6,
                ),
                Size.SMALL: Setting(
                    model={
                        "embedding_size": 128, "hidden_size": 128, "depth": 2,
                        "embedding_p": 0.4, "hidden_p": 0.4, "output_p": 0.4, "weight_p": 0.4,
                    },
                    corpus="ptb", train_tokens=20_000, vocab_size=1_000,
                    epochs=28, evaluate_every=2, batch_size=10, length=35, vary_length=True,
                    optimizer="sgd", lr=10, clip=0.25, weight_decay=1.2e-6,
                ),
                # Three million weights: 11.5 MiB.
                Size.LARGE: Setting(
                    model={
                        "embedding_size": 200, "hidden_size": 300, "depth": 2,
                        "embedding_p": 0.4, "hidden_p": 0.4, "output_p": 0.4, "weight_p": 0.4,
                    },
                    corpus="ptb", train_tokens=None, vocab_size=None,
                    epochs=40, batch_size=20, length=70, vary_length=True,
                    optimizer="sgd", lr=20, clip=0.25, weight_decay=1.2e-6,
                ),
                Size.FULL: Setting(
                    model={
                        "embedding_size": 400, "hidden_size": 1150, "depth": 3,
                        "embedding_p": 0.4, "hidden_p": 0.4, "output_p": 0.4, "weight_p": 0.4,
                    },
                    corpus="ptb", train_tokens=None, vocab_size=None,
                    epochs=40, batch_size=20, length=70, vary_length=True,
                    optimizer="sgd", lr=30, clip=0.25, weight_decay=1.2e-6,
                ),
            },
        ),
        # From here on each network has two amounts of text, and as many updates on either: the
        # larger is seen less often. At "full" the dropout probabilities are the paper's.
        Task(
            name="transformer-xl",
            model=TransformerXL,
            dropout=("p",),
            settings={
                Size.TINY: Setting(
                    model={
                        "width": 8, "heads": 2, "inner": 16, "depth": 2, "memory_length": 6,
                        "p": 0.2,
                    },
                    corpus="made-up", train_tokens=1_500, vocab_size=100, valid_tokens=1_000,
                    epochs=2, batch_size=10, length=20, vary_length=False,
                    optimizer="adam", lr=1e-3, clip=0.25, weight_decay=0.0,
                ),
                Size.SMALL: Setting(
                    model={
                        "width": 64, "heads": 4, "inner": 256, "depth": 3, "memory_length": 35,
                        "p": 0.2,
                    },
                    corpus="kjv", train_tokens=20_000, vocab_size=1_000,
                    epochs=28, evaluate_every=2, batch_size=10, length=35, vary_length=False,
                    optimizer="adam", lr=1e-3, clip=0.25, weight_decay=0.0,
                ),
                Size.FULL: Setting(
                    model={
                        "width": 410, "heads": 10, "inner": 2100, "depth": 16, "memory_length": 150,
                        "p": 0.1,
                    },
                    corpus="wikitext-103", train_tokens=20_645_404, vocab_size=None,
                    epochs=20, batch_size=60, length=150, vary_length=False,
                    optimizer="adam", lr=2.5e-4, clip=0.25, weight_decay=0.0,
                ),
            },
        ),
        Task(
            name="transformer-xl-more-text",
            model=TransformerXL,
            dropout=("p",),
            settings={
                Size.TINY: Setting(
                    model={
                        "width": 8, "heads": 2, "inner": 16, "depth": 2, "memory_length": 6,
                        "p": 0.2,
                    },
                    corpus="made-up", train_tokens=3_000, vocab_size=100, valid_tokens=1_000,
                    epochs=1, batch_size=10, length=20, vary_length=False,
                    optimizer="adam", lr=1e-3, clip=0.25, weight_decay=0.0,
                ),
                Size.SMALL: Setting(
                    model={
                        "width": 64, "heads": 4, "inner": 256, "depth": 3, "memory_length": 35,
                        "p": 0.2,
                    },
                    corpus="kjv", train_tokens=80_000, vocab_size=1_000,
                    epochs=7, batch_size=10, length=35, vary_length=False,
                    optimizer="adam", lr=1e-3, clip=0.25, weight_decay=0.0,
                ),
                Size.FULL: Setting(
                    model={
                        "width": 410, "heads": 10, "inner": 2100, "depth": 16, "memory_length": 150,
                        "p": 0.1,
                    },
                    corpus="wikitext-103", train_tokens=None, vocab_size=None,
                    epochs=4, batch_size=60, length=150, vary_length=False,
                    optimizer="adam", lr=2.5e-4, clip=0.25, weight_decay=0.0,
                ),
            },
        ),
        Task(
            name="qrnn",
            model=QRNNLanguageModel,
            dropout=("embedding_p", "hidden_p", "output_p"),
            settings={
                Size.TINY: Setting(
                    model={
                        "embedding_size": 8, "hidden_size": 12, "depth": 2,
                        "embedding_p": 0.2, "hidden_p": 0.2, "output_p": 0.2,
                    },
                    corpus="made-up", train_tokens=1_500, vocab_size=100, valid_tokens=1_000,
                    epochs=2, batch_size=10, length=20, vary_length=False,
                    optimizer="adam", lr=1e-3, clip=0.25, weight_decay=0.0,
                ),
                Size.SMALL: Setting(
                    model={
                        "embedding_size": 128, "hidden_size": 128, "depth": 2,
                        "embedding_p": 0.2, "hidden_p": 0.2, "output_p": 0.2,
                    },
                    corpus="kjv", train_tokens=20_000, vocab_size=1_000,
                    epochs=28, evaluate_every=2, batch_size=10, length=35, vary_length=False,
                    optimizer="adam", lr=2e-3, clip=0.25, weight_decay=0.0,
                ),
                Size.FULL: Setting(
                    model={
                        "embedding_size": 400, "hidden_size": 2500, "depth": 4,
                        "embedding_p": 0.1, "hidden_p": 0.1, "output_p": 0.1,
                    },
                    corpus="wikitext-103", train_tokens=20_645_404, vocab_size=None,
                    epochs=20, batch_size=60, length=140, vary_length=False,
                    optimizer="adam", lr=1e-3, clip=0.25, weight_decay=0.0,
                ),
            },
        ),
        Task(
            name="qrnn-more-text",
            model=QRNNLanguageModel,
            dropout=("embedding_p", "hidden_p", "output_p"),
            settings={
                Size.TINY: Setting(
                    model={
                        "embedding_size": 8, "hidden_size": 12, "depth": 2,
                        "embedding_p": 0.2, "hidden_p": 0.2, "output_p": 0.2,
                    },
                    corpus="made-up", train_tokens=3_000, vocab_size=100, valid_tokens=1_000,
                    epochs=1, batch_size=10, length=20, vary_length=False,
                    optimizer="adam", lr=1e-3, clip=0.25, weight_decay=0.0,
                ),
                Size.SMALL: Setting(
                    model={
                        "embedding_size": 128, "hidden_size": 128, "depth": 2,
                        "embedding_p": 0.2, "hidden_p": 0.2, "output_p": 0.2,
                    },
                    corpus="kjv", train_tokens=80_000, vocab_size=1_000,
                    epochs=7, batch_size=10, length=35, vary_length=False,
                    optimizer="adam", lr=2e-3, clip=0.25, weight_decay=0.0,
                ),
                Size.FULL: Setting(
                    model={
                        "embedding_size": 400, "hidden_size": 2500, "depth": 4,
                        "embedding_p": 0.1, "hidden_p": 0.1, "output_p": 0.1,
                    },
                    corpus="wikitext-103", train_tokens=None, vocab_size=None,
                    epochs=4, batch_size=60, length=140, vary_length=False,
                    optimizer="adam", lr=1e-3, clip=0.25, weight_decay=0.0,
                ),
            },
        ),
    )
}  # fmt: skip
"""The tasks of the first edition's runs, and of `large` and `full`, on the beginning of a text."""

# What all runs of the second edition share: a piece of text for each seed, so that a finding is not
# one text's; and shorter parts to look at, as a look at two networks, with the weights as they are
# and averaged, would else take longer than the training between two looks.
_PIECES: dict[str, Any] = {"pieces": True, "valid_tokens": 30_000, "evaluate_every": 2}
_FALLING: dict[str, Any] = {"epochs": 28, "lr_falls": True}
_TINY: dict[str, Any] = {"pieces": True, "train_tokens": 400}


def _on_pieces(
    name: str, of: str, small: dict[str, Any], further: Mapping[Size, Setting] | None = None
) -> Task:
    """A first task on pieces of a text, with changes at "small"."""
    first = FIRST[of]
    at = {
        Size.TINY: replace(first.settings[Size.TINY], **_TINY),
        Size.SMALL: replace(first.settings[Size.SMALL], **_PIECES | small),
    }
    return replace(first, name=name, settings={**at, **(further or {})})


_MEDIUM_LSTM = Setting(
    model={
        "embedding_size": 128, "hidden_size": 256, "depth": 2,
        "embedding_p": 0.4, "hidden_p": 0.4, "output_p": 0.4, "weight_p": 0.4,
    },
    corpus="ptb", train_tokens=100_000, vocab_size=2_000,
    epochs=40, batch_size=10, length=35, vary_length=True,
    optimizer="sgd", lr=10, clip=0.25, weight_decay=1.2e-6, **_PIECES,
)  # fmt: skip

SECOND: Mapping[str, Task] = {
    task.name: task
    for task in (
        # Long enough that dropout's best look is not its last.
        _on_pieces("lstm-ptb", "lstm", {"epochs": 40}, {Size.MEDIUM: _MEDIUM_LSTM}),
        # A text on which nothing was tuned.
        _on_pieces("lstm-kjv", "lstm", {"epochs": 40, "corpus": "kjv"}),
        # More text is seen as often as less, and the learning rate falls, so that training
        # converges on both.
        _on_pieces("transformer-xl-kjv", "transformer-xl", _FALLING),
        _on_pieces("transformer-xl-kjv-more-text", "transformer-xl-more-text", _FALLING),
        _on_pieces("qrnn-kjv", "qrnn", _FALLING),
        _on_pieces("qrnn-kjv-more-text", "qrnn-more-text", _FALLING),
    )
}
"""The tasks of the second edition's runs, on pieces of a text."""

TASKS: Mapping[str, Task] = {**FIRST, **SECOND}
"""Every task by its name."""
