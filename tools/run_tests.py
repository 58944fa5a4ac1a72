"""Run everything that is tested, part by part, and say at the end which part failed.

A part that fails does not keep the others from running. `make test ONLY="lint book"` runs some.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# Kernels that every processor of this kind has. The book is executed with this machine's own: so
# what a notebook prints is compared on two instruction sets.
PLAIN_KERNELS = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}


def parts(workers: str) -> dict[str, tuple[str, list[list[str]], dict[str, str]]]:
    """For each part what it does, its commands, and what is set for them."""
    side_by_side = ["-n", workers, "--dist", "loadfile"]
    return {
        "lint": (
            "Style, docstrings and types",
            [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
            {},
        ),
        "book": (
            "Every notebook executed, every page rendered",
            [["python", "tools/build_book.py", "build", "--workers", workers]],
            {},
        ),
        "notebooks": (
            "Notebooks against their committed outputs, with plain kernels",
            [["pytest", "book", "--nbval-lax", *side_by_side]],
            PLAIN_KERNELS,
        ),
        "assignments": (
            "Assignments: solution and empty notebook, from the source to the marks",
            [["python", "tools/classroom.py", "build", "--check"]],
            {},
        ),
        "tests": (
            "Library, tools, built book, browser",
            [["pytest", *side_by_side, "--cov"]],
            {},
        ),
    }


def run(commands: list[list[str]], settings: dict[str, str]) -> bool:
    """Run all commands of a part, whichever of them fails."""
    environment = {"OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    environment |= dict(os.environ) | settings
    codes = [
        subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, env=environment).returncode
        for command in commands
    ]
    return not any(codes)


def main() -> None:
    known = parts("2")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", metavar="PART", help=f"of {', '.join(known)}")
    parser.add_argument("--workers", default="2", help="side by side")
    options = parser.parse_args()
    if unknown := set(options.only) - known.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = options.only or list(known)
    if chosen == list(known):
        print("==> About 20 minutes on two cores; less where notebooks are executed already")
    lines, failed = [], False
    for name in chosen:
        what, commands, settings = parts(options.workers)[name]
        print(f"==> {name}: {what}", flush=True)
        begun = time.monotonic()
        well = run(commands, settings)
        failed |= not well
        minutes, seconds = divmod(round(time.monotonic() - begun), 60)
        verdict = "passed" if well else "FAILED"
        lines.append(f"    {verdict}  {name:12} {minutes:2}:{seconds:02}  make test ONLY={name}")
    print("==> Each part, how long it took, and how to run it alone", *lines, sep="\n", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
