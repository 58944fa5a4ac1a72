"""One address and one version, everywhere; names that are nobody else's; workflows and packages."""

import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
import yaml
from markdown_it import MarkdownIt

import dropreg
from tools import build_book

CONFIG = yaml.safe_load((build_book.ROOT / "_config.yml").read_text("utf-8"))
OTHERS = [
    "README.md",
    "CITATION.cff",
    "pyproject.toml",
    "intro.md",
    "_config.yml",
    "recipe/recipe.yaml",
]
PYPROJECT = tomllib.loads((build_book.ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]


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


def test_one_version_everywhere():
    version = PROJECT["version"]
    assert dropreg.__version__ == version
    for name, key in (("CITATION.cff", "version"), ("recipe/recipe.yaml", "context")):
        said = yaml.safe_load((build_book.ROOT / name).read_text("utf-8"))[key]
        assert said in (version, {"version": version, "python_min": "3.11"}), name
    assert f"(`v{version}`)" in (build_book.ROOT / "book/teach/guide.md").read_text("utf-8")
    assignments = list((build_book.ROOT / "assignments").glob("s*/**/*.ipynb"))
    assert len(assignments) == 10
    for path in assignments:
        code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert f'/dropreg@v{version}"' in code[0], f"{path}: `make assignments`"


def test_the_conda_recipe_asks_for_what_the_package_asks_for():
    recipe = yaml.safe_load((build_book.ROOT / "recipe" / "recipe.yaml").read_text("utf-8"))

    def conda(requirements):
        names = (each.replace("torch>", "pytorch>") for each in requirements)
        return [re.sub(r"([<>=])", r" \1", name, count=1) for name in names]

    host, run = (recipe["requirements"][part] for part in ("host", "run"))
    assert host[2:] == conda(PYPROJECT["build-system"]["requires"])
    assert run[1:] == conda(PROJECT["dependencies"])
    assert PROJECT["requires-python"] == f">={recipe['context']['python_min']}"
    about = recipe["about"]
    assert (about["summary"], about["license"]) == (PROJECT["description"], PROJECT["license"])
    scripts = [f"{name} = {place}" for name, place in PROJECT["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts


def test_pythons_that_the_weekly_tests_run_are_those_that_the_package_names():
    weekly = yaml.safe_load((WORKFLOWS[0].parent / "colab.yml").read_text("utf-8"))
    tested = [
        each["python"] for each in weekly["jobs"]["versions"]["strategy"]["matrix"]["include"]
    ]
    start = "Programming Language :: Python :: 3."
    named = [each.split()[-1] for each in PROJECT["classifiers"] if each.startswith(start)]
    # 3.14 waits until the weekly job has passed with it: here no interpreter of it can be had.
    assert tested == [*named, "3.14"]
    badge = f"Python {', '.join(named[:-1])} and {named[-1]}"
    assert f"[![{badge}]" in (build_book.ROOT / "README.md").read_text("utf-8")


def test_the_licence_of_the_text_is_there_word_by_word():
    """The plain text that Creative Commons publishes, as choosealicense.com has it."""
    text = (build_book.ROOT / "LICENSES" / "CC-BY-4.0.txt").read_bytes()
    assert hashlib.sha256(text).hexdigest().startswith("f5b745ef98087f53")


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """What PyPI would know of a wheel of this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", folder]
    subprocess.run(command, cwd=build_book.ROOT, check=True, capture_output=True)
    (wheel,) = folder.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode())


def test_what_pypi_shows_leads_to_files_of_the_release(metadata):
    shown = metadata.get_payload()
    addresses = [
        str(token.attrs.get("href") or token.attrs.get("src"))
        for block in MarkdownIt().parse(shown)
        for token in block.children or []
        if token.type in ("link_open", "image")
    ]
    release = f"{CONFIG['repository']['url']}/(?:blob|raw)/v{re.escape(PROJECT['version'])}/"
    paths = [re.sub(release, "", each) for each in addresses if re.match(release, each)]
    assert {"book/_static/finding.png", "CONTRIBUTING.md", "LICENSE"} <= set(paths)
    for path in paths:
        assert (build_book.ROOT / path).exists(), path
    assert all(each.startswith(("https://", "http://localhost", "#")) for each in addresses)
    # And installs what is on PyPI.
    assert 'pip install "dropreg"' in shown
    assert "git+" not in shown


def test_pypi_knows_whose_it_is_and_under_which_licence(metadata):
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    kinds = {each.split(",")[0] for each in metadata.get_all("Project-URL")}
    assert kinds >= {"Homepage", "Documentation", "Repository", "Issues", "Changelog"}


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
        "pypi": {"id-token": "write"},
        "release": {"contents": "write"},
    }
    for name, job in workflow["jobs"].items():
        assert job.get("permissions") == allowed.get(name), name
        assert job["timeout-minutes"] <= 120
    assert "pull_request_target" not in text
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")


def test_only_a_tag_releases_and_only_where_an_owner_is_set():
    workflows = {path.stem: path.read_text("utf-8") for path in WORKFLOWS}
    assert [name for name, text in workflows.items() if "gh-action-pypi-publish" in text] == [
        "release"
    ]
    release = yaml.safe_load(workflows["release"])
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML takes `on` for a truth value
    assert release["jobs"]["pypi"]["needs"] == "build"
    assert release["jobs"]["release"]["needs"] == "pypi"
    for name, job in (("release", "build"), ("ci", "publish")):
        steps = [
            each.get("run", "") for each in yaml.safe_load(workflows[name])["jobs"][job]["steps"]
        ]
        assert any("-m tools.owner --check\n" in f"{run}\n" for run in steps), name
