"""A text of words that mean nothing, which needs no package, no file and no network.

The words are drawn by Python's own generator with a fixed seed and by integer arithmetic alone, so
that the text is the same on every machine: its hash is tested. The r-th of 300 words has a weight
in proportion to 1/r, as in Zipf's law. One word in two, on average, is one of four that follow the
word before it more often, so that there is something to learn.
"""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate
from random import Random

SEED = 0
SOURCE = f"words that mean nothing, drawn with the seed {SEED} by dropreg.book.data.made_up"
WORDS = {"train": 20_000, "valid": 2_000, "test": 2_000}
DISTINCT, FOLLOWERS = 300, 4
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
WEIGHTS = list(accumulate(1_000_000 // rank for rank in range(1, DISTINCT + 1)))


def read() -> dict[str, bytes]:
    """Make the text.

    Returns:
        For each part its text, lines of 4 to 19 words, of which the last may be cut short.
    """
    # Of all its methods this one's bits are the same in every version of Python.
    bits = Random(SEED).getrandbits

    def any_word() -> int:
        return bisect(WEIGHTS, bits(32) * WEIGHTS[-1] >> 32)

    followers = [[any_word() for _ in range(FOLLOWERS)] for _ in range(DISTINCT)]
    texts, word = {}, 0
    for part, length in WORDS.items():
        lines: list[list[str]] = []
        while length:
            line: list[str] = []
            for _ in range(min(length, 4 + bits(4))):
                word = followers[word][bits(2)] if bits(1) else any_word()
                line.append(_spelled(word))
            lines.append(line)
            length -= len(line)
        texts[part] = "".join(" ".join(line) + "\n" for line in lines).encode()
    return texts


def _spelled(word: int) -> str:
    """The 60 most frequent words have one syllable, the others two."""
    more, last = divmod(word, len(SYLLABLES))
    return (SYLLABLES[more - 1] if more else "") + SYLLABLES[last]
