"""The addresses of the built book."""

from tools import build_book

PAGES = [f"{page}.html" for page in build_book.read_toc()]
# Where each kind of figure that can be moved stands.
MOVING = {
    "fit": "book/start/stories.html",
    "thinned": "book/start/stories.html",
    "two-weights": "book/what/two_weights.html",
    "noise-law": "book/what/noise.html",
    "masks": "book/what/noise.html",
    "masks-k": "book/apart/dropout_k.html",
    "strengths": "book/apart/even_odd.html",
    "simplex": "book/derive/explicit.html",
}
