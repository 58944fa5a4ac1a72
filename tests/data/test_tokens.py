"""The token cache: right, never half-written, and no more than a cache."""

import numpy as np
import pytest
from mini_corpus import TEXTS

from dropreg.data import tokens as module
from dropreg.data.tokens import EOS_ID, UNK_ID, cached, encode


def same(a, b):
    return (
        a.words == b.words
        and a.sha256 == b.sha256
        and all(np.array_equal(a.ids[part], b.ids[part]) for part in module.PARTS)
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
    assert [path.name for path in own_cache.iterdir()] == ["a.tokens1.npz"]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
def test_a_damaged_cache_file_is_made_again(own_cache, damage):
    first = cached("a", lambda: encode(TEXTS))
    path = own_cache / "a.tokens1.npz"
    data = path.read_bytes()
    at = data.index(first.ids["train"].tobytes())
    flipped = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
    path.write_bytes(
        {"cut": data[:-30], "empty": b"", "text": b"hello", "flipped": flipped}[damage]
    )
    assert same(cached("a", lambda: encode(TEXTS)), first)
    assert path.read_bytes() == data


def test_a_failed_write_leaves_nothing_half_written(own_cache, monkeypatch):
    def fail(file, **_):
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(module.np, "savez", fail)
        assert same(cached("a", lambda: encode(TEXTS)), encode(TEXTS))
    assert list(own_cache.iterdir()) == []
    cached("a", lambda: encode(TEXTS))
    assert same(cached("a", never), encode(TEXTS))


def test_an_interrupted_write_leaves_nothing_half_written(own_cache, monkeypatch):
    def interrupt(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module.np, "savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cached("a", lambda: encode(TEXTS))
    assert list(own_cache.iterdir()) == []


def test_a_home_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert same(cached("a", lambda: encode(TEXTS)), encode(TEXTS))
