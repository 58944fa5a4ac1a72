"""Run everything that is tested, part by part, and say at the end which part failed.

A part that fails does not keep the others from running. `make test ONLY="lint book"` runs some.
`make check`, for while one works, runs what of it takes no two minutes. `make thorough` runs what
takes too long for every time, as a workflow does each week: all cases of a kind of which
`make test` tries some.
Parts that use one core run beside those that leave one idle at times; what they print is shown when
they have ended.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools import ROOT, elsewhere

BIN = Path(sys.executable).parent

CHECK, THOROUGH = "check", "thorough"
BESIDE = ("lint", "assignments", "trainers")
ALONE = "tests"  # some of them look at the clock
NOT_OF_THE_LIBRARY = ("assignments", "browser", "colab", "pages", "tools")


def parts(workers: int) -> dict[str, tuple[str, list[list[str]], dict[str, str]]]:
    """For each part what it does, its commands, and what is set for them."""
    lint = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]]
    side_by_side = ["-n", str(workers), "--dist", "loadfile"]
    others = [f"tests/{folder}" for folder in NOT_OF_THE_LIBRARY]
    library = [f"--ignore={folder}" for folder in others]
    quick = ["pytest", *side_by_side, "-q", *library, "-m", "not slow and not thorough"]
    return {
        CHECK: (
            "Style, types, the library's tests but the slow ones, the examples of docstrings",
            [*lint, quick],
            {},
        ),
        THOROUGH: (
            "Every case, where the other parts try some",
            [["pytest", *side_by_side, "-m", "thorough"]],
            {},
        ),
        "lint": ("Style, docstrings and types", lint, {}),
        "book": (
            "What has changed is executed, every page rendered",
            [["python", "-m", "tools.build_book", "build", "--workers", str(workers)]],
            {},
        ),
        "notebooks": (
            "Notebooks against their committed outputs, with plain kernels",
            [["pytest", "book", "--nbval-lax", *side_by_side]],
            # The stored outputs are of a machine's own: so two instruction sets are compared.
            elsewhere.environment("plain"),
        ),
        "assignments": (
            "Assignments: solution and empty notebook, from the source to the marks",
            [["python", "-m", "assignments.grader", "build", "--check"]],
            {},
        ),
        "trainers": (
            "In transformers, Lightning, Accelerate, Keras and Ray, in an environment of their own",
            [["python", "-m", "tools.trainers"]],
            {},
        ),
        "library": (
            "The library's quick tests, and how much of it they reach",
            [[*quick, "--cov"]],
            {},
        ),
        "tests": (
            "What is slow of the library's tests; tools, assignments, built book, browser",
            # Without coverage, which makes them take half as long again.
            [
                ["pytest", *side_by_side, *library, "-m", "slow and not thorough"],
                # Not the files of most tests first: those of few take longest.
                ["pytest", *side_by_side, "--no-loadscope-reorder", *others, "-m", "not thorough"],
            ],
            {},
        ),
    }


def run(
    commands: list[list[str]], settings: dict[str, str], *, quietly: bool = False
) -> tuple[bool, str]:
    """Run all commands of a part, whichever of them fails.

    Returns:
        Whether all went well, and what they printed, if it has not been shown.
    """
    environment = {"OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    environment |= dict(os.environ) | settings
    out, error = (subprocess.PIPE, subprocess.STDOUT) if quietly else (None, None)
    done = []
    for program, *words in commands:
        command = [str(BIN / program), *words]
        done.append(
            subprocess.run(command, cwd=ROOT, env=environment, text=True, stdout=out, stderr=error)
        )
    return not any(each.returncode for each in done), "".join(each.stdout or "" for each in done)


def part(name: str, workers: int, *, quietly: bool = False) -> tuple[str, str]:
    """Run a part; returns what is said of it at the end, and what it printed."""
    _, commands, settings = parts(workers)[name]
    begun = time.monotonic()
    well, printed = run(commands, settings, quietly=quietly)
    minutes, seconds = divmod(round(time.monotonic() - begun), 60)
    verdict = "passed" if well else "FAILED"
    again = f"make {name}" if name in (CHECK, THOROUGH) else f"make test ONLY={name}"
    return f"    {verdict}  {name:12} {minutes:2}:{seconds:02}  {again}", printed


def main() -> None:
    known = parts(2)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", metavar="PART", help=f"of {', '.join(known)}")
    parser.add_argument("--workers", type=int, default=2, help="side by side")
    options = parser.parse_args()
    if unknown := set(options.only) - known.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    everything = [name for name in known if name not in (CHECK, THOROUGH)]
    chosen = [name for name in known if name in (options.only or everything)]
    if not options.only:
        print("==> An hour or less on two cores; more where notebooks have changed")
    lines: dict[str, str] = {}

    def show(name: str, result: tuple[str, str]) -> None:
        lines[name], printed = result
        print(f"==> {name}: {known[name][0]}", printed, sep="\n", end="", flush=True)

    with ThreadPoolExecutor(1) as pool:
        beside = {
            name: pool.submit(part, name, options.workers, quietly=True)
            for name in chosen
            if name in BESIDE
        }
        for name in chosen:
            if name == ALONE:
                for other in list(beside):
                    show(other, beside.pop(other).result())
            if name not in BESIDE:
                print(f"==> {name}: {known[name][0]}", flush=True)
                lines[name], _ = part(name, options.workers)
        for name, result in beside.items():
            show(name, result.result())
    print("==> Each part, how long it took, and how to run it alone", flush=True)
    print(*(lines[name] for name in chosen), sep="\n", flush=True)
    sys.exit(any("FAILED" in each for each in lines.values()))


if __name__ == "__main__":
    main()
