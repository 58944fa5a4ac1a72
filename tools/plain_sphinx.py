"""Sphinx's settings, made from Jupyter Book's: so that the book does not depend on Jupyter Book.

Its version 1 is in maintenance, and version 2 is another program. What version 1 does is little: it
translates `_config.yml` for Sphinx, and extensions of other packages do the rest. The part of the
translation that this book needs stands here. `build_book.py` writes what comes out as `conf.py`
beside the staged sources, and from these `sphinx-build` makes the same files, byte for byte.
Jupyter Book itself does not read that file.
"""

from pathlib import Path
from pprint import pformat
from typing import Any

# The first only declares two settings of Jupyter Book's; the second is off unless it is asked for.
JUPYTER_BOOKS_OWN = ("jupyter_book", "sphinx_comments")


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """Translate what `_config.yml` says, and what Jupyter Book adds where it says nothing.

    What stands there under `sphinx: config:` is Sphinx's own already, and has the last word.
    """
    html, repository = config["html"], config["repository"]
    for_sphinx = config["sphinx"]["config"]
    return {
        "project": config["project"],
        "author": config["author"],
        "copyright": config["copyright"],
        "exclude_patterns": ["**.ipynb_checkpoints", ".DS_Store", "Thumbs.db", "_build"],
        "external_toc_path": "_toc.yml",
        "external_toc_exclude_missing": config["only_build_toc_files"],
        "numfig": True,
        "pygments_style": "sphinx",
        "suppress_warnings": ["myst.domains"],
        "html_title": config["title"],
        "html_favicon": html["favicon"],
        "html_baseurl": html["baseurl"],
        "html_sourcelink_suffix": "",
        "html_theme": "sphinx_book_theme",
        "html_theme_options": {
            "search_bar_text": "Search this book...",
            "home_page_in_toc": True,
            "launch_buttons": config["launch_buttons"],
            "repository_url": repository["url"],
            "repository_branch": repository["branch"],
            "path_to_docs": repository["path_to_book"],
            "use_repository_button": html["use_repository_button"],
            "use_edit_page_button": html["use_edit_page_button"],
            "use_issues_button": html["use_issues_button"],
        },
        "myst_enable_extensions": config["parse"]["myst_enable_extensions"],
        "myst_url_schemes": ["mailto", "http", "https"],
        "nb_execution_mode": config["execute"]["execute_notebooks"],
        "nb_output_stderr": config["execute"]["stderr_output"],
        "bibtex_bibfiles": config["bibtex_bibfiles"],
        **for_sphinx,
        "extensions": [each for each in for_sphinx["extensions"] if each not in JUPYTER_BOOKS_OWN],
    }


def write_conf(config: dict[str, Any], source: Path) -> None:
    """Write `conf.py` where Sphinx looks for it: beside the pages that it reads."""
    folders = sorted(set(config["sphinx"]["local_extensions"].values()))
    lines = [
        "# Made by tools/plain_sphinx.py out of _config.yml.",
        "import sys",
        "from pathlib import Path",
        "",
        f"sys.path += [str(Path(__file__).parent / folder) for folder in {folders}]",
        *(f"{name} = {pformat(value)}" for name, value in settings(config).items()),
    ]
    (source / "conf.py").write_text("\n".join(lines) + "\n", "utf-8")
