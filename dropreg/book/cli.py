"""The command line ``dropreg``: list, run, resume, watch and report the experiments."""

from __future__ import annotations

import argparse
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
        one.add_argument("--max-minutes", type=float, help="stop by then, at the end of an epoch")
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


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _seeds(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


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
    missing = without_data(chosen)
    for name, error in missing.items():
        if not options.queue:
            raise error
        print(f"dropreg: {name} is left out: {error}", file=sys.stderr)
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
        for each in at_size(size):
            runs = list(each.runs(size, store.lookup))
            ended = [record for record in map(store.lookup, runs) if record]
            diverged = sum(not record.finished for record in ended)
            begun = sum(store.checkpoint(run).exists() for run in runs)
            running = sum(map(store.is_running, runs))
            minutes = sum(record.seconds for record in ended) / 60
            more = "" if all(arm.chosen(size, store.lookup) for arm in each.arms.values()) else "+"
            print(
                f"  {each.name:20} {len(ended):5} / {len(runs)}{more:<5} {diverged:7} {running:8} "
                f"{begun:6} {minutes:8.1f}"
            )
    return 0


def _report(options: argparse.Namespace) -> int:
    from dropreg.book.experiments.report import report
    from dropreg.book.experiments.tasks import Size

    print(report(Size(options.size), _store(options)))
    return 0


def _store(options: argparse.Namespace) -> Store:
    from dropreg.book.experiments.runner import Store

    return Store(options.results, options.work)
