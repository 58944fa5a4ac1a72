"""A class of simulated students for assignment 1: good, partial, mistaken, untidy, hostile.

`.venv/bin/python tests/assignments/simulated.py FOLDER` writes the notebooks of 30 into a folder,
to be graded with `python -m assignments.grader grade`; the tests grade some of them.
"""

import copy
import json
import random
import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell
from wrong import masks

from assignments.grader import classroom

REGION = re.compile(r"[ ]*### (BEGIN|END) SOLUTION\n?")


def tags(cell):
    return cell.metadata.get("nbgrader", {})


def solutions():
    """The reference solution of each answer cell, by its grade_id."""
    source = nbformat.read(classroom.source_of("masks"), as_version=4)
    return {
        tags(c)["grade_id"]: REGION.sub("", c.source)
        for c in source.cells
        if tags(c).get("solution") and c.cell_type == "code"
    }


def answered(release, **replaced):
    """The student version with the reference solution, but for some functions."""
    notebook = copy.deepcopy(release)
    for cell in notebook.cells:
        name = tags(cell).get("grade_id")
        if name in solutions():
            cell.source = replaced.get(name, solutions()[name])
        elif tags(cell).get("solution"):
            cell.source += "\n\nBecause the mean stays and the variance does not."
    return notebook


def untouched(release):
    return copy.deepcopy(release)


def partial(release):
    """Writes the first three functions and no text."""
    notebook = copy.deepcopy(release)
    for cell in notebook.cells:
        if tags(cell).get("grade_id") in ("dropout", "moments", "mean_and_error"):
            cell.source = solutions()[cell.metadata.nbgrader.grade_id]
    return notebook


def colab(release):
    """As Colab saves: no cell ids but in the metadata, other metadata of its own, no nbgrader."""
    notebook = answered(release)
    notebook.nbformat_minor = 0
    notebook.metadata["colab"] = {"provenance": []}
    for cell in notebook.cells:
        cell["metadata"] = nbformat.from_dict({"id": cell.pop("id"), "outputId": "x"})
    return notebook


def stripped(release):
    """No metadata and no ids at all, by some tool."""
    notebook = answered(release)
    for i, cell in enumerate(notebook.cells):
        cell["metadata"], cell["id"] = nbformat.from_dict({}), f"new{i}"
    return notebook


def untidy(release):
    """Shuffled, copied, renamed, with loops, errors and magics in cells of its own."""
    notebook = answered(
        release,
        moments=solutions()["moments"]
        .replace("law", "my_table")
        .replace("(q)", "(prob)")
        .replace(" q", " prob")
        .replace("- q", "- prob"),
        power=solutions()["power"]
        .replace("def power", "def my_power")
        .replace("ks.log(), traces.log()", "log(ks), log(traces)"),
    )
    cells = notebook.cells
    given = next(c for c in cells if "import torch" in c.source)
    given.source += "\nimport math as mathematics"  # in a cell that is locked in Jupyter only
    test = next(c for c in cells if tags(c).get("grade_id") == "power-slope")
    test.source = "def log(x):\n    return x.log() + 0 * mathematics.pi\n\n\n" + test.source
    stub = copy.deepcopy(next(c for c in release.cells if tags(c).get("grade_id") == "dropout"))
    written = next(c for c in cells if tags(c).get("grade_id") == "dropout")
    pasted = new_code_cell(written.source)  # worked in a copy, and left the original empty
    written.source = stub.source
    cells.append(pasted)
    cells += [
        new_code_cell("while True:\n    pass"),
        new_code_cell("%timeit 1\n!ls\nthis is not Python"),
        new_code_cell("answer = 1 / 0"),
        copy.deepcopy(next(c for c in cells if tags(c).get("grade_id") == "noise_trace")),
    ]
    random.Random(0).shuffle(cells)
    return notebook


def tampered(release):
    """Gives itself points, empties the tests, and takes locks away."""
    notebook = untouched(release)
    for cell in notebook.cells:
        if tags(cell).get("grade"):
            cell.metadata.nbgrader["points"] = 1000
            if cell.cell_type == "code":
                cell.source = "assert True"
                cell.metadata.nbgrader["grade"] = False
    notebook.cells.append(
        new_markdown_cell("<script>alert(1)</script><img src=x onerror=alert(1)>")
    )
    return notebook


def hostile(release, target="/nowhere"):
    """Each function tries something else."""
    steal = f"""
import os, pathlib
def dropout(h, q, training=True):
    for path in ({target!r}, {str(classroom.SOURCES)!r}, {str(classroom.ROOT / "tests")!r}):
        if pathlib.Path(path).exists():
            raise SystemExit("SAW " + path)
    for path in ({target!r} + "/gradebook.db", "/tmp/.." + {target!r} + "/marks.csv"):
        try:
            open(path, "w").write("100")
            raise SystemExit("WROTE " + path)
        except OSError:
            pass
    raise ValueError("SAW " + "NOTHING")
"""
    return answered(
        release,
        dropout=steal,
        moments="import os\ndef moments(q):\n    os._exit(0)",
        mean_and_error="def mean_and_error(draws):\n    while True:\n        pass",
        output_variance="def output_variance(h, w, q, shared):\n    return torch.zeros(10**13)",
        dropout_k_loss="def dropout_k_loss(w, x, y, q, k):\n"
        "    for _ in range(10**4):\n        print('x' * 1000)\n    raise KeyError('<b>bold</b>')",
        noise_trace="import dropreg.book.checks.core as core\n"
        "def noise_trace(gradients):\n    core.expect = lambda *a, **k: None\n    return 0.0",
        power="import socket\ndef power(ks, traces):\n"
        "    socket.create_connection(('1.1.1.1', 53), 2)\n    return 0.0",
    )


def hostile_to_the_grader(release):
    """Definitions that hang, flood and allocate, outputs that a browser would run, a huge file."""
    notebook = untouched(release)
    for cell in notebook.cells:
        if tags(cell).get("grade_id") in solutions():
            name = cell.metadata.nbgrader.grade_id
            cell.source = (
                "noise = [print('x' * 10**6) for _ in range(100)]\n"
                "forever = [i for i in iter(int, 1)]\n"
                "import torch\nmemory = torch.zeros(10**13)\n"
                f"def {name}(*args):\n    return '<script>alert(2)</script>'\n"
            )
            html = {"text/html": "<script>alert(3)</script>", "text/plain": "y" * 10**6}
            code = {"application/javascript": "alert(4)"}
            cell.outputs = [nbformat.v4.new_output("display_data", data) for data in (html, code)]
        elif tags(cell).get("solution"):
            cell.source += "\n\n<script>alert(5)</script><img src=x onerror=alert(6)>"
            cell.source += "\n[link](javascript:alert(7)), [two]\n\n[two]: javascript:alert(8)"
    return notebook


def mistaken():
    """For each of some students the wrong functions: every misconception is somebody's.

    One of them has a wrong `dropout` or a wrong `dropout_k_loss`, which calls it, and at most one
    wrong version of each other function.
    """
    kinds: dict[str, list] = {}
    for wrong in masks.WRONG:
        kinds.setdefault(wrong.function, []).append(wrong)
    first = kinds.pop("dropout") + kinds.pop("dropout_k_loss")
    students = [[wrong] for wrong in first]
    for wrongs in kinds.values():
        for student, wrong in zip(students, wrongs, strict=False):
            student.append(wrong)
    return students


def write_class(release, folder, target="/nowhere"):
    """Write 30 submissions; return which test cells each should lose."""
    folder.mkdir(parents=True, exist_ok=True)
    everything = {
        tags(c)["grade_id"]
        for c in release.cells
        if tags(c).get("grade") and not tags(c)["solution"]
    }
    first = ("dropout", "moments", "mean_and_error")
    later = {name for name in everything if name.split("-")[0] not in first}
    students = {f"good_{i}": (answered(release), set()) for i in range(3)}
    students |= {f"partial_{i}": (partial(release), later) for i in range(2)}
    for i, wrongs in enumerate(mistaken()):
        notebook = answered(release, **{wrong.function: wrong.source for wrong in wrongs})
        students[f"mistaken_{i:02}"] = notebook, set().union(*(wrong.fails for wrong in wrongs))
    students |= {
        "untouched": (untouched(release), everything),
        "colab": (colab(release), set()),
        "stripped": (stripped(release), set()),
        "untidy": (untidy(release), set()),
        "tampered": (tampered(release), everything),
        "hostile_0": (hostile(release, target), everything),
        "hostile_1": (hostile_to_the_grader(release), everything),
        "empty": (nbformat.v4.new_notebook(), everything),
    }
    for student, (notebook, _) in students.items():
        (folder / f"masks_{student}.ipynb").write_text(json.dumps(notebook), "utf-8")
    (folder / "masks_broken.ipynb").write_bytes(b"%PDF-1.4 \xff\xfe not a notebook")
    return {student: lost for student, (_, lost) in students.items()} | {"broken": everything}


if __name__ == "__main__":
    course = Path(sys.argv[2] if len(sys.argv) > 2 else classroom.OUT / "course").resolve()
    release = nbformat.read(classroom.release_of(course, "masks"), as_version=4)
    print(f"{len(write_class(release, Path(sys.argv[1]), str(course)))} notebooks")
