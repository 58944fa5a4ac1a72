"""One address of the repository, everywhere."""

import re

import build_book
import yaml

CONFIG = yaml.safe_load((build_book.ROOT / "_config.yml").read_text("utf-8"))
OTHERS = ["README.md", "CITATION.cff", "pyproject.toml", "intro.md", "_config.yml"]


def test_every_mention_agrees_with_the_config():
    owner, name = CONFIG["repository"]["url"].removeprefix("https://github.com/").split("/")
    files = [build_book.ROOT / name for name in OTHERS]
    files += [p for p in (build_book.ROOT / "book").rglob("*") if p.suffix in (".md", ".ipynb")]
    for path in files:
        text = path.read_text("utf-8")
        assert set(re.findall(rf"github\.com/([\w-]+)/{name}\b", text)) <= {owner}, path
        assert set(re.findall(rf"\b([\w-]+)\.github\.io/{name}\b", text)) <= {owner}, path


def test_launch_buttons_find_the_notebooks():
    assert CONFIG["repository"]["path_to_book"] == ""
    assert CONFIG["repository"]["branch"] == "main"
