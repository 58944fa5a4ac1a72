"""Execute the notebooks as on another processor, with two threads, and with other seeds.

A compared cell (tagged `nbval-check-output`) is to print the same wherever it runs. nbval executes
and compares; here its kernels are given other instructions of PyTorch and MKL, a second thread, or
seeds that are all shifted. Each cell that moves, or fails, is shown, and how to run it again.
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import torch

from tools import ROOT, build_book

STARTUP = Path(__file__).with_name("elsewhere_startup.py")
# Instruction sets, weakest first: PyTorch's name, and what asks PyTorch, MKL and oneDNN for each.
INSTRUCTIONS = {
    "plain": ("DEFAULT", "default", "COMPATIBLE", "SSE41"),
    "avx2": ("AVX2", "avx2", "AVX2", "AVX2"),
    "avx512": ("AVX512", "avx512", "AVX512", "AVX512_CORE"),
}
VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")
CONDITIONS = [*INSTRUCTIONS, "threads", "seeds-1", "seeds-2", "seeds-3"]


@dataclass(frozen=True)
class Moved:
    """A cell that printed something else, or failed; `report` is what nbval says of it."""

    cell: str
    report: str


def environment(condition: str) -> dict[str, str]:
    """Return the variables that put a kernel under a condition; those of `STARTUP` among them."""
    if condition in INSTRUCTIONS:
        return dict(zip(VARIABLES, INSTRUCTIONS[condition][1:], strict=True))
    if condition == "threads":
        # Threads that spin while they wait take the cores from each other: minutes become hours.
        return {"ELSEWHERE_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    shift = re.fullmatch(r"seeds-(\d+)", condition)
    if not shift:
        sys.exit(
            f"{condition!r} is none of {', '.join(INSTRUCTIONS)}, threads, seeds-1, seeds-2, …"
        )
    return {"ELSEWHERE_SHIFT": shift.group(1)}


def possible(condition: str) -> bool:
    """Say whether this processor can be put under a condition."""
    if condition not in INSTRUCTIONS:
        return True
    sets = [name for name, *_ in INSTRUCTIONS.values()]
    best = torch.backends.cpu.get_cpu_capability()
    # Processors of another make (ARM) have kernels of their own, and the plain ones.
    return sets.index(INSTRUCTIONS[condition][0]) <= (sets.index(best) if best in sets else 0)


def moved(path: Path, condition: str) -> list[Moved]:
    """Execute a notebook under a condition, and return the cells that moved."""
    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    with tempfile.TemporaryDirectory() as folder:
        startup = Path(folder, "profile_default", "startup")
        startup.mkdir(parents=True)
        shutil.copy(STARTUP, startup)
        report = Path(folder, "report.xml")
        options = [f"--nbval-cell-timeout={build_book.CELL_TIMEOUT}", f"--junitxml={report}"]
        options += ["--nbval-lax", "--color=no", "-vv", "-p", "no:cacheprovider"]
        result = subprocess.run(
            (sys.executable, "-m", "pytest", path, *options),
            env=os.environ | {"IPYTHONDIR": folder} | environment(condition),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if result.returncode not in (0, 1):  # no verdict: pytest itself failed
            return [Moved("no cell was run", result.stdout + result.stderr)]
        found = []
        for case in ElementTree.parse(report).iter("testcase"):
            for bad in (*case.iter("failure"), *case.iter("error")):
                number = int(case.attrib["name"].removeprefix("Cell "))
                found.append(Moved(f"cell {code[number].id}", bad.text or ""))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="these notebooks (default: all)")
    parser.add_argument(
        "--conditions",
        nargs="+",
        default=CONDITIONS,
        help=f"default: {' '.join(CONDITIONS)}; each seeds-N is another shift of all seeds",
    )
    parser.add_argument("--workers", type=int, default=2, help="notebooks executed side by side")
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.notebooks] or build_book.chapters()
    for condition in arguments.conditions:
        environment(condition)  # refuses an unknown one before anything runs
    conditions = list(filter(possible, arguments.conditions))
    for condition in set(arguments.conditions) - set(conditions):
        print(f"==> Without {condition}: this processor has no such instructions")
    print(f"==> {len(paths)} notebooks under {', '.join(conditions)}", flush=True)
    total = 0
    with concurrent.futures.ThreadPoolExecutor(arguments.workers) as pool:
        runs = {pool.submit(moved, path, c): (path, c) for c in conditions for path in paths}
        for run in concurrent.futures.as_completed(runs):
            path, condition = runs[run]
            name = os.path.relpath(path, ROOT)
            found = run.result()
            total += len(found)
            print(f"    {condition}: {name}: {len(found)} moved", flush=True)
            for each in found:
                print(f"==> MOVED: {name}, {each.cell}, under {condition}\n{each.report}\n")
            if found:
                again = f"{name} --conditions {condition}"
                print(f"==> Again: .venv/bin/python -m tools.elsewhere {again}")
    print(f"==> {len(runs)} executions, {total} cells moved")
    sys.exit(total > 0)


if __name__ == "__main__":
    main()
