"""Run all families, or those whose name or package has one of the words given, one process each.

Without words it writes `rows.json` beside this file, from which `tools.families` makes the page.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
import warnings
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from compare import DRAWS, Row, compare
from families import FAMILIES, Family

ROWS = Path(__file__).with_name("rows.json")
SECONDS = 300


def _child(family: Family, pipe: Connection) -> None:
    warnings.simplefilter("ignore")  # of the packages
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        for row in compare(family.build()):
            pipe.send(row)
    except Exception as error:
        traceback.print_exc(limit=-4)
        pipe.send(Row(crashed=[f"{type(error).__name__}: {str(error)[:200]}"]))
    pipe.send(None)


def run(family: Family) -> Row:
    """The row of a family, in a process of its own: it may be killed by a signal."""
    context = multiprocessing.get_context("fork")  # what was imported once stays imported
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(family, sender))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of torch that hold nothing
        process.start()
    sender.close()
    row, end = Row(), time.monotonic() + SECONDS
    try:
        while receiver.poll(end - time.monotonic()):
            so_far = receiver.recv()
            if so_far is None:
                process.join()
                return row
            row = so_far
        process.kill()
        row.crashed.append(f"not done after {SECONDS} seconds")
    except EOFError:
        process.join()
        done = ", ".join([*row.errors, *row.refused]) or "anything"
        row.crashed.append(f"the process ended by signal {-(process.exitcode or 0)} after {done}")
    return row


def by_words(refused: dict[str, str]) -> dict[str, list[str]]:
    """The methods that were refused with the same words."""
    grouped: dict[str, list[str]] = {}
    for method, text in refused.items():
        grouped.setdefault(text, []).append(method)
    return grouped


def as_json(family: Family, row: Row) -> dict[str, Any]:
    """A row as it is kept; an error's first digit is enough."""
    errors = {name: float(f"{error:.0e}") for name, error in row.errors.items()}
    head = {"family": family.name, "package": family.package, "version": version(family.package)}
    head |= {"expected": family.expected, "verdict": row.verdict}
    refused = [{"methods": m, "words": text} for text, m in by_words(row.refused).items()]
    return head | asdict(row) | {"errors": errors, "refused": refused}


def provide_operators() -> None:
    """Have torchvision import where its compiled operators do not fit PyTorch's build.

    From PyPI they are compiled for CUDA, and beside a CPU build of PyTorch they do not load. No
    classifier uses them, but importing torchvision registers something for these two.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou) -> Tensor"
            )
        for name in [each for each in sys.modules if each.startswith("torchvision")]:
            del sys.modules[name]


def main(words: list[str]) -> int:
    """Run, print a line for each family, and write the rows.

    Args:
        words: Parts of names.

    Returns:
        The exit status: 1 where a family crashed or is wrong.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # configurations only: nothing is fetched
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    warnings.simplefilter("ignore")
    provide_operators()
    titles = {f"{family.package}: {family.name}": family for family in FAMILIES}
    chosen = {
        title: family
        for title, family in titles.items()
        if not words or any(word.lower() in title.lower() for word in words)
    }
    # Imported once, for all processes; the first use of forward mode imports much, too.
    for package in {family.package for family in chosen.values()}:
        importlib.import_module(package)
    torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))
    rows = []
    for title, family in chosen.items():
        begun = time.monotonic()
        row = run(family)
        rows.append(as_json(family, row))
        worst = max((e for n, e in row.errors.items() if n != "sampled_labels"), default=0.0)
        print(
            f"{row.verdict:8} {title}: {row.sites} sites, {len(row.errors)} methods within "
            f"{worst:.0e}, {time.monotonic() - begun:.1f} s",
            flush=True,
        )
        for line in (*row.crashed, *row.wrong):
            print(f"         {line}", flush=True)
        for text, methods in by_words(row.refused).items():
            print(f"         refused {', '.join(methods)}: {text}", flush=True)
        for method, text in row.not_compared.items():
            print(f"         not compared {method}: {text}", flush=True)
    failed = [row for row in rows if row["verdict"] in ("CRASH", "WRONG")]
    print(f"{len(rows)} families, of which {len(failed)} crashed or are wrong")
    if not words:
        made = {"python": platform.python_version(), "draws": DRAWS}
        text = json.dumps({"made": made, "rows": rows}, indent=1, ensure_ascii=False)
        ROWS.write_text(text + "\n", "utf-8")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
