"""The command line ``dropreg``: list, run, resume, watch and report the experiments."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dropreg.errors import DropregError, InputError

if TYPE_CHECKING:
    from dropreg.book.experiments.runner import Order, Store

EVIDENCE = "evidence"
DESCRIPTION = """\
The experiments of the book on dropout's two effects. Results are written to ./results, one file for
each run; checkpoints are kept in ./runs until a run has ended. A run may be stopped at any moment,
even by kill -9: the same command continues it from its last epoch.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after ``dropreg``; those of the command line if None.

    Returns:
        The exit code: 0 if all went well, 1 if not.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        return code
    except DropregError as error:
        print(f"dropreg: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndropreg: stopped; `dropreg resume` continues from the last epoch", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `dropreg list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dropreg", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, help: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=help, description=help)
        one.set_defaults(command=function)
        one.add_argument("--results", type=Path, default=Path("results"), help="folder of results")
        one.add_argument("--work", type=Path, default=Path("runs"), help="folder of checkpoints")
        return one

    def training(one: argparse.ArgumentParser) -> None:
        one.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda")
        one.add_argument(
            "--jobs",
            type=_positive,
            help="runs side by side; default: 1, or with --ray as many as there is room for",
        )
        one.add_argument(
            "--max-minutes", type=_minutes, help="stop by then, at the end of an epoch"
        )
        one.add_argument(
            "--ray",
            nargs="?",
            const="",
            metavar="ADDRESS",
            help="on all machines of a Ray cluster: auto, or HOST:PORT; on this one if left out",
        )

    sizes = ("tiny", "small", "medium", "large", "full")
    command("list", _list, "show the experiments")
    run = command("run", _run, "run experiments, or continue them")
    run.add_argument("names", nargs="*", metavar="NAME", help="experiments, in this order")
    run.add_argument("--size", choices=sizes, help="default: small")
    run.add_argument(
        "--queue",
        choices=(*sizes, EVIDENCE),
        metavar="WHAT",
        help=f"all that is pending at a size, or '{EVIDENCE}': of the second edition",
    )
    run.add_argument("--seeds", type=_seeds, help="e.g. 0,1,2; default: as declared")
    training(run)
    resume = command("resume", _resume, "continue the runs that have begun")
    training(resume)
    status = command("status", _status, "show what is done")
    status.add_argument("--size", choices=sizes, help="default: all sizes")
    report = command("report", _report, "compare the arms, and judge the paper's claims")
    report.add_argument("--size", choices=sizes, default="small", help="default: small")
    return parser


# What argparse says of a bad value names the function that refuses it, unless it says so itself.
def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 <= minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give minutes, such as 30 or 0.5")
    return minutes


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds; give them as in 0,1,2")
    seeds = [int(part) for part in parts]
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} names a seed twice")
    return seeds


def _list(options: argparse.Namespace) -> int:
    from dropreg.book.experiments import EXPERIMENTS

    for each in EXPERIMENTS.values():
        print(f"{each.name:16} {each.source:26} {each.title}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from dropreg.book.experiments import catalog
    from dropreg.book.experiments.runner import Order, without_data
    from dropreg.book.experiments.tasks import Size

    if bool(options.names) == bool(options.queue):
        raise InputError("name the experiments to run (see `dropreg list`), or pass --queue.")
    if options.queue and options.size:
        raise InputError("--queue names the size itself; leave --size out.")
    if options.queue == EVIDENCE:
        chosen = [(catalog.experiment(name), size) for name, size in catalog.EVIDENCE]
    else:
        size = Size(options.queue or options.size or "small")
        named = [catalog.experiment(name) for name in options.names]
        chosen = [(each, size) for each in named or catalog.at_size(size)]
    for each, size in chosen:
        if size not in each.sizes:
            raise InputError(f"{each.name} is run at {', '.join(each.sizes)}; pass --size.")
    missing = without_data(chosen, options.seeds)
    for name, error in missing.items():
        if not options.queue:
            raise error
        print(f"dropreg: {name} is left out: {error}", file=sys.stderr)
    for each, _ in chosen:
        declared = set.intersection(*(set(arm.seeds) for arm in each.arms.values()))
        further = [seed for seed in options.seeds or () if seed not in declared]
        if further and each.name not in missing:
            print(
                f"dropreg: {each.name} declares no seed {', '.join(map(str, further))} for all "
                "of its arms: these runs are kept, and no table or verdict counts them.",
                file=sys.stderr,
            )
    found = [(each.name, size) for each, size in chosen if each.name not in missing]
    return _work(options, Order(found, options.seeds))


def _resume(options: argparse.Namespace) -> int:
    from dropreg.book.experiments.catalog import at_size
    from dropreg.book.experiments.runner import Order
    from dropreg.book.experiments.tasks import Size

    everything = [(each.name, size) for size in Size for each in at_size(size)]
    return _work(options, Order(everything, begun=True))


def _work(options: argparse.Namespace, order: Order) -> int:
    import torch

    from dropreg.book.experiments.runner import run_all

    device = options.device
    if options.ray is not None:
        from dropreg.book.experiments.cluster import run_on_cluster

        well = run_on_cluster(
            order,
            _store(options),
            device=device,
            address=options.ray or None,
            jobs=options.jobs,
            max_minutes=options.max_minutes,
        )
        return 0 if well else 1
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} cannot be used here: {error}") from error
    well = run_all(
        order,
        _store(options),
        device=device,
        jobs=options.jobs or 1,
        max_minutes=options.max_minutes,
    )
    return 0 if well else 1


def _status(options: argparse.Namespace) -> int:
    from dropreg.book.experiments.catalog import at_size
    from dropreg.book.experiments.tasks import Size

    store = _store(options)
    for size in [Size(options.size)] if options.size else Size:
        print(f"{size}: experiment      ended / known  diverged  running  begun  minutes")
        seen: dict[str, tuple[bool, bool, bool, bool, float]] = {}
        for each in at_size(size):
            runs = list(each.runs(size, store.lookup))
            for run in runs:
                if run.name not in seen:
                    record = store.lookup(run)
                    seen[run.name] = (
                        record is not None,
                        record is not None and not record.finished,
                        store.is_running(run),
                        store.checkpoint(run).exists(),
                        record.seconds / 60 if record else 0.0,
                    )
            more = "+" if each.is_tuning(size, store.lookup) else ""
            print(_status_line(each.name, more, [seen[run.name] for run in runs]))
        print(_status_line("each run once", "", list(seen.values())))
    return 0


def _status_line(name: str, more: str, runs: list[tuple[bool, bool, bool, bool, float]]) -> str:
    ended, diverged, running, begun, minutes = map(sum, zip(*runs, strict=True))
    return (
        f"  {name:20} {ended:5} / {len(runs)}{more:<5} {diverged:7} {running:8} {begun:6} "
        f"{minutes:8.1f}"
    )


def _report(options: argparse.Namespace) -> int:
    from dropreg.book.experiments.report import report
    from dropreg.book.experiments.tasks import Size

    print(report(Size(options.size), _store(options)))
    return 0


def _store(options: argparse.Namespace) -> Store:
    from dropreg.book.experiments.runner import Store

    return Store(options.results, options.work)
