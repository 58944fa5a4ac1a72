"""Sphinx extension: math that renders with no network, as it is written."""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.fileutil import copy_asset

# The one file of that package which renders everything: 2 MB of its 20.
MATHJAX = "mathjax/tex-svg-full.js"


class VerbatimDisplayMath(SphinxPostTransform):
    r"""Hand display math to MathJax unchanged.

    Sphinx wraps whatever contains ``\\`` in a ``split`` environment, in which ``\tag`` is an error;
    Colab and GitHub do not.
    """

    default_priority = 400
    formats = ("html",)

    def run(self, **kwargs: object) -> None:
        for block in self.document.findall(nodes.math_block):
            if not block["nowrap"]:
                block.children = [nodes.Text(f"\\[{block.astext()}\\]")]
                block["nowrap"] = True


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        import importlib.util

        package = importlib.util.find_spec("sphinx-mathjax-offline")
        source = Path(package.origin).parent / "static" / MATHJAX
        copy_asset(source, Path(app.outdir) / "_static" / "mathjax")


def setup(app: Sphinx) -> dict[str, bool]:
    app.config.mathjax_path = MATHJAX
    app.add_post_transform(VerbatimDisplayMath)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
