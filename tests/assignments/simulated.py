"""A class of simulated students for assignment 1: good, partial, mistaken, unusual, damaged, …

`.venv/bin/python tests/assignments/simulated.py` writes all of their notebooks, grades them by the
one command, and says whose row is not what it should be; the tests grade some of them.
"""

import copy
import csv
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell
from wrong import masks
from wrong.cheats import WRITTEN as WRITTEN_FOR
from wrong.unusual import UNUSUAL

from assignments.grader import classroom

WRITTEN = 2  # questions to be answered in words
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


@dataclass(frozen=True)
class Student:
    """What somebody hands in, and what their row should be.

    Attributes:
        content: The file.
        lost: The test cells that get no points; None if the file cannot be graded.
        waiting: How many written answers wait for a person.
        noticed: Words of the row's notes or status.
    """

    content: bytes
    lost: set[str] | None
    waiting: int
    noticed: str = ""


def unusual(release):
    """Right solutions, written as few would write them; each of them is somebody's.

    But for `dropout`, which `dropout_k_loss` calls: who returns arrays there must go on with them.
    """
    ways = {name: codes for name, codes in UNUSUAL["masks"].items() if name != "dropout"}
    for i in range(max(map(len, ways.values()))):
        yield answered(release, **{n: list(w.values())[i % len(w)] for n, w in ways.items()})


def cheats(release):
    """Notebooks that know nothing: zeros, constants, and what satisfies the form of a check."""
    blank = "def {}(*args, **kwargs):\n    return {}"
    for name, value in {"zeros": "0.0", "ones": "1.0", "nan": "float('nan')"}.items():
        yield name, answered(release, **{n: blank.format(n, value) for n in solutions()})
    for i, functions in enumerate(WRITTEN_FOR["masks"].values()):
        zeros = {n: blank.format(n, 0.0) for n in solutions()}
        yield str(i), answered(release, **(zeros | functions))


def imports(release):
    """Takes the result from where it is."""
    return answered(
        release,
        dropout="def dropout(h, q, training=True):\n"
        "    return torch.nn.functional.dropout(h, q, training)",
        moments="from dropreg.book.checks.masks import *\nimport dropreg\n"
        "def moments(q):\n    return dropreg.Bernoulli(q).variance",
    )


def as_bytes(notebook):
    return json.dumps(notebook).encode()


def damaged(release):
    """Files that a program, a phone or a mean hand left so; each by name, with what it costs."""

    def answers(change):
        content = json.loads(json.dumps(answered(release)))
        change(content)
        return Student(json.dumps(content).encode(), set(), WRITTEN)

    def cell(**fields):
        base = {"cell_type": "code", "metadata": {}, "source": "", "outputs": [],
                "execution_count": None, "id": "more"}  # fmt: skip
        return answers(lambda n: n["cells"].append({**base, **fields}))

    def output(**fields):
        base = {"output_type": "display_data", "metadata": {}, "data": {}}
        return cell(source="1", outputs=[{**base, **fields}])

    def without_type(notebook):
        notebook["cells"].append({"source": "x", "metadata": {}, "id": "more"})

    def everywhere(notebook):
        for each in notebook["cells"]:
            each["source"] += "" if "nbgrader" in each["metadata"] else "\n### BEGIN HIDDEN TESTS"

    fine = {
        "half_an_emoji": cell(cell_type="markdown", source="so \ud83d happy"),
        "half_an_emoji_shown": output(data={"text/plain": "\udc00"}),
        "half_an_emoji_in_code": cell(source="print('\ud83d')"),
        "outputs_a_number": cell(outputs=5),
        "outputs_of_text": cell(outputs=["text", None, 3, [], {}]),
        "data_a_list": output(data=["text/plain"]),
        "data_of_numbers": output(data={"text/plain": 5, "image/png": {"a": 1}}),
        "text_a_table": cell(
            outputs=[{"output_type": "stream", "name": "stdout", "text": {"a": 1}}]
        ),
        "evalue_a_number": cell(
            outputs=[{"output_type": "error", "ename": 1, "evalue": 2, "traceback": 3}]
        ),
        "attachments_a_list": cell(cell_type="markdown", source="text", attachments=["a.png"]),
        "no_cell_type": answers(without_type),
        "metadata_a_list": cell(metadata=["tags"]),
        "cells_not_cells": answers(lambda n: n["cells"].extend([None, 3, "text", []])),
        "deep_signs": cell(source="x = " + "-" * 200_000 + "1"),
        "deep_lambdas": cell(source="x = " + "lambda: " * 20_000 + "1"),
        "deep_brackets": cell(source="x = " + "(" * 50_000 + ")" * 50_000),
        "marker_in_text": cell(cell_type="markdown", source="### BEGIN HIDDEN TESTS"),
        "marker_in_code": cell(source="### END HIDDEN TESTS\n### BEGIN SOLUTION"),
        "markers_everywhere": answers(everywhere),
        "ids_alike": answers(lambda n: [each.update(id="same") for each in n["cells"]]),
    }
    refused = {
        "cut_off": as_bytes(answered(release))[:3000],
        "pdf": b"%PDF-1.4 \xff\xfe not a notebook",
        "nothing": b"",
        "another_zip": b"PK\x03\x04" + bytes(200),
        "too_large": b" " * 25_000_000,
        "deep_json": b"[" * 100_000,
    }
    return fine | {name: Student(content, None, 0, "could not be graded")
                   for name, content in refused.items()}  # fmt: skip


def the_class(release, target="/nowhere"):
    """All students, by name."""
    everything = {
        tags(c)["grade_id"]
        for c in release.cells
        if tags(c).get("grade") and not tags(c)["solution"]
    }
    first = ("dropout", "moments", "mean_and_error")
    later = {name for name in everything if name.split("-")[0] not in first}
    students = {f"good_{i}": Student(as_bytes(answered(release)), set(), WRITTEN) for i in range(3)}
    students |= {f"partial_{i}": Student(as_bytes(partial(release)), later, 0) for i in range(2)}
    for i, wrongs in enumerate(mistaken()):
        notebook = answered(release, **{wrong.function: wrong.source for wrong in wrongs})
        lost = set().union(*(wrong.fails for wrong in wrongs))
        students[f"mistaken_{i:02}"] = Student(as_bytes(notebook), lost, WRITTEN)
    others = {
        "untouched": (untouched(release), everything, 0),
        "colab": (colab(release), set(), WRITTEN),
        "stripped": (stripped(release), set(), WRITTEN),
        "untidy": (untidy(release), set(), WRITTEN),
        "tampered": (tampered(release), everything, 2),
        "hostile_0": (hostile(release, target), everything, WRITTEN),
        "hostile_1": (hostile_to_the_grader(release), everything, WRITTEN),
        "empty": (nbformat.v4.new_notebook(), everything, 0),
    }
    students |= {name: Student(as_bytes(n), lost, w) for name, (n, lost, w) in others.items()}
    students |= {
        f"unusual_{i}": Student(as_bytes(notebook), set(), WRITTEN)
        for i, notebook in enumerate(unusual(release))
    }
    students |= {
        # To leave things alone in evaluation is right.
        f"cheat_{name}": Student(
            as_bytes(notebook),
            everything - ({"dropout-evaluation"} if name.isdigit() else set()),
            WRITTEN,
        )
        for name, notebook in cheats(release)
    }
    moments = {name for name in everything if name.startswith("moments")}
    students["imports"] = Student(as_bytes(imports(release)), moments, WRITTEN, "dropout")
    return students | {f"damaged_{name}": student for name, student in damaged(release).items()}


def write_class(students, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, student in students.items():
        (folder / f"masks_{name}.ipynb").write_bytes(student.content)


def wrong_in(row, student):
    """What is not as it should be in a row of the table."""
    points = {name for name, value in row.items() if "-" in name and float(value or 0) == 0}
    if student.lost is None:
        return [] if student.noticed in row["status"] and row["score"] == "" else [dict(row)]
    return [
        text
        for text, wrong in {
            f"status {row['status']}": row["status"] != "graded",
            f"lost {sorted(points)}, not {sorted(student.lost)}": points != student.lost,
            f"{row['to_grade_by_hand']} to read": row["to_grade_by_hand"] != str(student.waiting),
            f"notes {row['notes']}": student.noticed not in row["notes"],
        }.items()
        if wrong
    ]


def main():
    """Grade the whole class."""
    with tempfile.TemporaryDirectory() as temporary:
        course, folder = Path(temporary) / "course", Path(temporary) / "in"
        classroom.set_up(course, ["masks"])
        release = nbformat.read(classroom.release_of(course, "masks"), as_version=4)
        students = the_class(release, str(course))
        write_class(students, folder)
        begin = time.monotonic()
        command = (sys.executable, "-m", "assignments.grader", "grade", course, "masks", folder)
        subprocess.run((*command, *sys.argv[1:]), cwd=classroom.ROOT, check=False)
        seconds = time.monotonic() - begin
        with (course / "marks_masks.csv").open(newline="", encoding="utf-8-sig") as file:
            rows = {row["student"]: row for row in csv.DictReader(file)}
    wrong = {n: wrong_in(rows[n], s) if n in rows else ["no row"] for n, s in students.items()}
    for name, texts in wrong.items():
        print(*(f"WRONG {name}: {text}" for text in texts), sep="\n", end="\n" if texts else "")
    print(
        f"{len(students)} submissions, {sum(map(bool, wrong.values()))} rows wrong, {seconds:.0f} s"
    )
    sys.exit(any(wrong.values()))


if __name__ == "__main__":
    main()
