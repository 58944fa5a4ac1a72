"""The token cache: right, never half-written, and no more than a cache."""

import io
import sys
from array import array

import pytest
import torch
from mini_corpus import TEXTS

from dropreg.book.data import tokens as module
from dropreg.book.data.tokens import EOS_ID, UNK_ID, cache_folder, cached, encode
from dropreg.errors import MissingPackageError


def same(a, b):
    return (
        a.words == b.words
        and a.sha256 == b.sha256
        and all(a.ids[part].dtype == b.ids[part].dtype == torch.int32 for part in module.PARTS)
        and all(torch.equal(a.ids[part], b.ids[part]) for part in module.PARTS)
    )


def never():
    raise AssertionError("read again, though it lies in the cache")


def test_every_line_ends_with_a_mark_and_words_keep_their_order():
    tokens = encode(TEXTS)
    spelled = {part: " ".join(tokens.words[i] for i in ids) for part, ids in tokens.ids.items()}
    assert spelled == {
        "train": "the cat saw the <unk> <eos> <eos> the dog saw it <eos>",
        "valid": "a cat <eos>",
        "test": "the zebra <eos>",
    }
    assert (tokens.words[UNK_ID], tokens.words[EOS_ID]) == ("<unk>", "<eos>")
    assert [tokens.count(part) for part in module.PARTS] == [9, 2, 2]


def test_lines_may_end_in_any_way_and_the_last_one_not_at_all():
    tokens = encode({"train": b"a b\r\nc", "valid": "é\u00a0f\n".encode(), "test": b""})
    assert tokens.words == ["<unk>", "<eos>", "a", "b", "c", "é", "f"]
    assert [tokens.ids[part].tolist() for part in module.PARTS] == [[2, 3, 1, 4, 1], [5, 6, 1], []]


def test_the_second_time_comes_from_the_cache(own_cache):
    first = cached("a", lambda: encode(TEXTS))
    assert same(cached("a", never), first)
    assert [path.name for path in own_cache.iterdir()] == ["a.tokens2"]


def in_the_numbers(data):
    return data.index(array("i", encode(TEXTS).ids["train"].tolist()).tobytes())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-30],
        lambda data: b"",
        lambda data: b"he",
        lambda data: b"hello",
        lambda data: data + b"more",
        *(
            lambda data, place=place: flipped(data, place(data))
            for place in (in_the_numbers, lambda data: data.index(b"zebra"), lambda data: 0, len)
        ),
    ],
    ids=["cut", "empty", "short", "text", "longer", "number", "word", "first byte", "last byte"],
)
def test_a_damaged_cache_file_is_made_again(own_cache, damage):
    first = cached("a", lambda: encode(TEXTS))
    path = own_cache / "a.tokens2"
    data = path.read_bytes()
    path.write_bytes(damage(data))
    assert path.read_bytes() != data
    assert same(cached("a", lambda: encode(TEXTS)), first)
    assert path.read_bytes() == data


def flipped(data, at):
    at = min(at, len(data) - 1)
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def breaking(error):
    """In place of `os.fdopen`: a file that takes half of what is written and then fails."""

    class Broken(io.FileIO):
        def write(self, content):
            super().write(content[: len(content) // 2])
            raise error

    return Broken


def test_a_failed_write_leaves_nothing_half_written(own_cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fdopen", breaking(OSError("disk full")))
        assert same(cached("a", lambda: encode(TEXTS)), encode(TEXTS))
    assert list(own_cache.iterdir()) == []
    cached("a", lambda: encode(TEXTS))
    assert same(cached("a", never), encode(TEXTS))


def test_an_interrupted_write_leaves_nothing_half_written(own_cache, monkeypatch):
    monkeypatch.setattr(module.os, "fdopen", breaking(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        cached("a", lambda: encode(TEXTS))
    assert list(own_cache.iterdir()) == []


def test_a_home_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert same(cached("a", lambda: encode(TEXTS)), encode(TEXTS))


def test_without_the_package_that_knows_the_folder_there_is_no_cache(own_cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    readings = []
    for _ in range(2):
        assert same(cached("a", lambda: readings.append(1) or encode(TEXTS)), encode(TEXTS))
    assert len(readings) == 2
    assert not own_cache.exists()
    with pytest.raises(MissingPackageError, match="The cache folder needs platformdirs"):
        cache_folder()


def test_a_package_that_is_missing_in_the_reading_is_told(own_cache, monkeypatch):
    def read():
        raise MissingPackageError("The text needs a reader")

    for _ in "with", "without":
        with pytest.raises(MissingPackageError, match="The text needs a reader"):
            cached("a", read)
        monkeypatch.setitem(sys.modules, "platformdirs", None)
