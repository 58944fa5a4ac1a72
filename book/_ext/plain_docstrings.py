"""Sphinx extension: in a docstring's Returns, and under an attribute, a colon is just a colon.

Google style takes what stands before the first colon there for a type. This library's types stand
in its signatures, so that its prose need not keep clear of colons.
"""

from sphinx.application import Sphinx
from sphinx.ext import napoleon


class PlainDocstring(napoleon.GoogleDocstring):
    def _consume_returns_section(
        self, preprocess_types: bool = False
    ) -> list[tuple[str, str, list[str]]]:
        lines = self._dedent(self._consume_to_next_section())
        return [("", "", PlainDocstring(lines, self._config).lines())] if lines else []

    def _consume_inline_attribute(self) -> tuple[str, list[str]]:
        return "", self._dedent(self._consume_to_end())


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.napoleon")
    # The name that napoleon looks up when it processes a docstring: it has no setting for this.
    napoleon.GoogleDocstring = PlainDocstring
    return {"parallel_read_safe": True, "parallel_write_safe": True}
