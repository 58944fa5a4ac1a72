"""Real data: what comes with a dependency, and the corpora of the paper.

`load_digits` and `load_corpus("kjv")` need no network. The other corpora are taken from the folder
that the environment variable DROPREG_DATA names, where they lie as downloaded or unpacked, and else
fetched once and kept in the user's cache folder. All of it needs the extra `dropreg[book]`.
"""

from dropreg.data.batches import Batch, windows
from dropreg.data.corpora import Corpus, CorpusName, Provenance, load_corpus
from dropreg.data.digits import Digits, load_digits

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
