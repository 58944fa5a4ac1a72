"""One address of the repository, everywhere; and names that are nobody else's."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tools import build_book

CONFIG = yaml.safe_load((build_book.ROOT / "_config.yml").read_text("utf-8"))
OTHERS = ["README.md", "CITATION.cff", "pyproject.toml", "intro.md", "_config.yml"]


def test_every_mention_agrees_with_the_config():
    owner, name = CONFIG["repository"]["url"].removeprefix("https://github.com/").split("/")
    files = [build_book.ROOT / name for name in OTHERS]
    for folder in ("book", ".github", "paper"):
        found = (build_book.ROOT / folder).rglob("*")
        files += [p for p in found if p.suffix in (".md", ".ipynb", ".yml", ".bib")]
    for path in files:
        text = path.read_text("utf-8")
        assert set(re.findall(rf"github\.com/([\w-]+)/{name}\b", text)) <= {owner}, path
        assert set(re.findall(rf"\b([\w-]+)\.github\.io/{name}\b", text)) <= {owner}, path


def test_launch_buttons_find_the_notebooks():
    assert CONFIG["repository"]["path_to_book"] == ""
    assert CONFIG["repository"]["branch"] == "main"


@pytest.mark.parametrize("folder", ["tools", "assignments/grader"])
def test_modules_are_found_in_their_package_only(folder):
    """`import grading` or `import times` by anybody's code must not find ours."""
    for path in (build_book.ROOT / folder).glob("[!_]*.py"):
        found = find_spec(path.stem)
        assert found is None or Path(str(found.origin)) != path


WORKFLOWS = sorted((build_book.ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_pinned_actions_with_least_permissions(path):
    text = path.read_text("utf-8")
    for action in re.findall(r"uses: *(.*)", text):
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    allowed = {
        "publish": {"contents": "read", "pages": "write", "id-token": "write"},
        "report": {"issues": "write"},
    }
    for name, job in workflow["jobs"].items():
        assert job.get("permissions") == allowed.get(name), name
        assert job["timeout-minutes"] <= 120
    assert "pull_request_target" not in text
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
