"""Sphinx extension: what a page says about the book, and some repairs of what others put on it.

The build passes in `book_version` (version, commit, date), `book_pdf` (the name of the PDF beside
the first page; empty where none is made) and `generated_pages`.
"""

import re
from html import escape
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

TIMES = "book/reference/times"
KAGGLE = "https://kaggle.com/kernels/welcome?src=https://github.com/"


def show_logo(app: Sphinx, config: Config) -> None:
    """Jupyter Book passes one logo on; the theme takes one for each of its two looks."""
    looks = {f"image_{look}": f"book/_static/logo-{look}.svg" for look in ("light", "dark")}
    config.html_theme_options["logo"] = {**looks, "text": config.project, "alt_text": ""}


def say_version(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Fill the theme's footer, the links relative to the page that shows it."""
    pathto = context["pathto"]
    parts = [escape(app.config.book_version), f'<a href="{pathto(TIMES)}">Execution times</a>']
    if app.config.book_pdf:
        parts.append(f'<a href="{pathto(app.config.book_pdf, 1)}">The whole book as a PDF</a>')
    context["theme_extra_footer"] = f"<p>{' · '.join(parts)}</p>"


def no_editing_of_what_is_made(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """A page that the build makes has no file in the repository: it cannot be edited there."""
    if pagename in app.config.generated_pages:
        for group in context["header_buttons"]:
            if "buttons" in group:
                group["buttons"] = [
                    each for each in group["buttons"] if each["label"] != "source-edit-button"
                ]


def offer_kaggle(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Put a button for Kaggle, which the theme does not know, behind Colab's."""
    for group in context["header_buttons"]:
        if group.get("label") == "launch-buttons":
            (colab,) = (each["url"] for each in group["buttons"] if each["text"] == "Colab")
            kaggle = {
                "type": "link",
                "text": "Kaggle",
                "tooltip": "Launch on Kaggle; switch the Internet on there, in the settings",
                "icon": "fab fa-kaggle",
                "url": KAGGLE + colab.partition("/github/")[2],
            }
            group["buttons"].append(kaggle)


def list_the_bibliography(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Docutils gives the entries of its list a role that ARIA has withdrawn, and no list has."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def name_what_is_folded(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """A line that unfolds a cell is read aloud as it stands, not as "Toggle hidden content"."""
    if "body" in context:
        context["body"] = context["body"].replace(
            '<summary aria-label="Toggle hidden content">', "<summary>"
        )


def plain_previews(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """What a link to the page shows is text: of `R_{\\text{approx}}` it says `R_approx`."""
    if "metatags" in context:
        context["metatags"] = re.sub(r"\\[a-zA-Z]+|[\\{}]", "", context["metatags"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("book_version", "", "html")
    app.add_config_value("book_pdf", "", "html")
    app.add_config_value("generated_pages", [], "html")
    app.connect("config-inited", show_logo)
    app.connect("html-page-context", say_version)
    app.connect("html-page-context", list_the_bibliography)
    app.connect("html-page-context", name_what_is_folded)
    # After the handlers of others have added what is changed here.
    app.connect("html-page-context", no_editing_of_what_is_made, priority=900)
    app.connect("html-page-context", offer_kaggle, priority=900)
    app.connect("html-page-context", plain_previews, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
