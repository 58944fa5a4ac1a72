"""A notebook's code, and its metadata as it is committed."""

import hashlib
from typing import Any

# What editors and executors leave in a cell and no reader needs.
NOISE = ("ExecuteTime", "colab", "collapsed", "execution", "outputId", "scrolled")
# What a notebook says of itself, wherever it was written, and what it may say beside.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# executed_code and run: of what code the outputs are, and when, where and with what it ran.
# dropreg: what the functions of an assignment should write themselves.
KEPT = ("executed_code", "run", "dropreg")
# How the cell begins that brings the library where it is missing.
INSTALLS = 'import importlib.util\n\nif importlib.util.find_spec("dropreg") is None:'


def title(notebook: Any) -> str:
    """What a page is called: its first line."""
    return str(notebook.cells[0].source.splitlines()[0].removeprefix("# "))


def code_of(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def code_hash(notebook: Any) -> str:
    """Hash the code that makes the outputs: another address to install from changes none."""
    code = [source for source in code_of(notebook) if not source.startswith(INSTALLS)]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def clean(notebook: Any) -> None:
    """Take out of a notebook, of nbformat or plain JSON, what editors leave in its metadata."""
    for cell in notebook["cells"]:
        for key in NOISE:
            cell["metadata"].pop(key, None)
    kept = {key: notebook["metadata"][key] for key in KEPT if key in notebook["metadata"]}
    notebook["metadata"] = METADATA | kept
