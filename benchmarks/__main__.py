"""The command: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import measure, report
from benchmarks.methods import METHODS, VALUES
from benchmarks.workloads import SIZES, WORKLOADS
from dropreg.book.experiments.records import results_folder
from dropreg.book.experiments.tasks import Size

PARTS = (*WORKLOADS, "growth", "import", "fidelity", "shares", "gradients", "rules")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for, and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small", help="of every workload")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    every = (*METHODS, *VALUES)
    parser.add_argument("--methods", nargs="+", choices=every, default=every, metavar="METHOD")
    parser.add_argument("--rounds", type=int, default=5, help="repeats, taken in turns")
    parser.add_argument("--results", type=Path, default=results_folder() / "speed")
    parser.add_argument("--report", action="store_true", help="print what is recorded, run nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    device = torch.device(options.device)
    folder = options.results / options.size / device.type
    for part in () if options.report else options.only:
        begun = time.perf_counter()
        if part == "growth":
            measure.growth(options.size, device, options.rounds, folder)
        elif part == "import":
            measure.imports(options.size, device, options.rounds, folder)
        elif part == "fidelity":
            from benchmarks import fidelity

            fidelity.fidelity(options.size, device, folder)
        elif part == "shares":
            from benchmarks import shares

            shares.shares(options.size, device, folder)
        elif part in ("gradients", "rules"):
            from benchmarks import rules

            measured = rules.gradients if part == "gradients" else rules.cost
            measured(Size(options.size), device, folder)
        else:
            measure.cost(part, options.size, device, options.rounds, folder, options.methods)
        print(f"{part}: {time.perf_counter() - begun:.0f} s", flush=True)
    report.report(folder)


if __name__ == "__main__":
    main()
