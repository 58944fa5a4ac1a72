"""Working off runs: resumable, side by side, and by as many processes as there are.

Workers share no queue. Each goes through the runs in the same order, takes the first that has not
ended and whose lock is free, trains it, and begins again. So any number of workers, started by one
command or by several, split the work among them, and a killed one leaves nothing but a lock that
the system has released and a checkpoint that the next one takes up.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dropreg.book.experiments.catalog import EXPERIMENTS
from dropreg.book.experiments.declarations import Experiment, Run
from dropreg.book.experiments.records import Record, read_record
from dropreg.book.experiments.tasks import Size, texts
from dropreg.book.experiments.training import Progress, train
from dropreg.errors import DataError, DropregError, MissingPackageError

REPORT_EVERY = 0.2
"""Seconds between two reports of a worker."""


@dataclass(frozen=True)
class Store:
    """Where runs are kept.

    Attributes:
        results: Folder of the ended runs, to be committed.
        work: Folder of checkpoints and locks.
    """

    results: Path
    work: Path

    def lookup(self, run: Run) -> Record | None:
        """What a run left, if it has ended and is still declared as it was then.

        Args:
            run: The run.

        Returns:
            Its record, or None.

        Raises:
            RecordError: If there is a file of that name that cannot be read.
        """
        record = self.latest(run)
        return record if record and record.ended else None

    def latest(self, run: Run) -> Record | None:
        """The same, also of a run that was stopped before its end.

        Args:
            run: The run.

        Returns:
            Its record, or None.

        Raises:
            RecordError: If there is a file of that name that cannot be read.
        """
        path = self.results / f"{run.name}.json"
        if not path.exists():
            return None
        record = read_record(path)
        return record if record.config == run.config else None

    def keep(self, run: Run, record: Record) -> None:
        """Write a run's record, but not over one that is further.

        Where a checkpoint is lost, a run begins anew, and may be stopped earlier than before.

        Args:
            run: The run.
            record: What it left.

        Raises:
            RecordError: If there is a file of that name that cannot be read.
        """
        before = self.latest(run)
        if record.ended or before is None or len(before.epochs) < len(record.epochs):
            record.write(self.results)

    def checkpoint(self, run: Run) -> Path:
        """The file for a run's state."""
        return self.work / f"{run.name}.pt"

    def lock(self, run: Run) -> Any:
        """The lock that a worker holds while it trains a run."""
        import filelock

        path = self.work / f"{run.name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(path, timeout=0)

    def is_running(self, run: Run) -> bool:
        """Whether a worker holds a run's lock right now."""
        import filelock

        if not (self.work / f"{run.name}.lock").exists():
            return False
        try:
            with self.lock(run):
                return False
        except filelock.Timeout:
            return True


@dataclass(frozen=True)
class Order:
    """What is to be run.

    Attributes:
        experiments: Names of experiments, each with a size, in this order.
        seeds: These seeds in place of those that are declared, which are what the ledger counts.
        begun: Only runs that have a checkpoint.
    """

    experiments: Sequence[tuple[str, Size]]
    seeds: Sequence[int] | None = None
    begun: bool = False

    def runs(self, store: Store) -> Iterator[Run]:
        """The runs that are known so far, each once; tuning makes further ones known.

        In each experiment whole seeds of all arms come one after the other.

        Args:
            store: Where the ended runs are.

        Yields:
            The runs, ended or not.
        """
        seen: set[str] = set()
        for name, size in self.experiments:
            for run in EXPERIMENTS[name].runs(size, store.lookup, self.seeds):
                if run.name in seen or (self.begun and not store.checkpoint(run).exists()):
                    continue
                seen.add(run.name)
                yield run


def without_data(experiments: Iterable[tuple[Experiment, Size]]) -> dict[str, DropregError]:
    """Load the texts of some experiments, so that one that is missing is known before any work.

    Args:
        experiments: The experiments, each with a size.

    Returns:
        For each experiment whose text cannot be had, why.
    """
    missing: dict[str, DropregError] = {}
    for experiment, size in experiments:
        for arm in experiment.arms.values():
            run = (arm.tuning_runs(size) or arm.runs(size, lambda _: None))[0]
            try:
                texts(run.setting, run.seed)
            except (DataError, MissingPackageError) as error:
                missing[experiment.name] = error
                break
    return missing


def run_one(
    run: Run,
    store: Store,
    device: str,
    stop: Callable[[float], bool] = lambda seconds: False,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Record | None:
    """Train a run, unless it has ended or somebody else is training it.

    Args:
        run: The run.
        store: Where it is kept.
        device: Where to train.
        stop: Asked after each epoch, with the seconds it took, whether to stop here.
        observe: Called now and then with how far the run is.

    Returns:
        What the run left, ended or stopped; None if there was nothing to do.

    Raises:
        DataError: If the run's text is not there.
        RecordError: If a file of results is damaged.
    """
    import filelock

    if store.lookup(run):
        return None
    try:
        with store.lock(run):
            if store.lookup(run):  # ended between the two looks
                return None
            checkpoint = store.checkpoint(run)
            record = train(
                run,
                checkpoint,
                device=device,
                stop=stop,
                observe=observe,
                observe_every=REPORT_EVERY,
            )
            store.keep(run, record)
            if record.ended:
                checkpoint.unlink(missing_ok=True)
            return record
    except filelock.Timeout:
        return None


def run_next(
    order: Order,
    store: Store,
    device: str,
    deadline: float | None,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Record | None:
    """Train the first run that has not ended and that nobody else is training.

    Args:
        order: What is to be run.
        store: Where it is kept.
        device: Where to train.
        deadline: Value of `time.monotonic` before which to stop, at the end of an epoch; if None,
            there is none.
        observe: Called now and then with how far the run is.

    Returns:
        The record of the run, ended or stopped; None if there was nothing to do, or no time.

    Raises:
        DataError: If the run's text is not there.
        RecordError: If a file of results is damaged.
    """

    def stop(seconds: float) -> bool:
        parent = multiprocessing.parent_process()
        orphaned = parent is not None and not parent.is_alive()
        return orphaned or (deadline is not None and time.monotonic() + seconds > deadline)

    if stop(0.0):
        return None
    for run in order.runs(store):
        if record := run_one(run, store, device, stop, observe):
            return record
    return None


def _worker(
    number: int, order: Order, store: Store, device: str, deadline: float | None, mailbox: Any
) -> None:
    """Train run after run, and report to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    # One thread: side by side more are slower, and the order of sums stays the same everywhere.
    torch.set_num_threads(1)
    try:
        while record := run_next(
            order, store, device, deadline, lambda progress: mailbox.put((number, progress))
        ):
            mailbox.put((number, record))
            if not record.ended:  # the time is over
                break
        mailbox.put((number, None))
    except DropregError as error:
        mailbox.put((number, str(error)))
    except Exception:
        mailbox.put((number, traceback.format_exc()))


def run_all(
    order: Order,
    store: Store,
    *,
    device: str,
    jobs: int = 1,
    max_minutes: float | None = None,
) -> bool:
    """Work off an order with some workers, and show how far they are.

    Args:
        order: What is to be run.
        store: Where it is kept.
        device: Where to train; all workers share it.
        jobs: Number of workers.
        max_minutes: When to stop, each worker at the end of its epoch.

    Returns:
        Whether no worker failed.
    """
    context = multiprocessing.get_context("spawn")
    mailbox = context.Queue()
    # The clock that workers compare with counts from the start of the machine, not of the process.
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    workers = [
        context.Process(target=_worker, args=(i, order, store, device, deadline, mailbox))
        for i in range(jobs)
    ]
    for worker in workers:
        worker.start()
    failures: list[str] = []
    with _Display(jobs) as display:
        busy = set(range(jobs))
        try:
            while busy:
                try:
                    number, message = mailbox.get(timeout=1.0)
                except queue.Empty:
                    for number in [i for i in busy if not workers[i].is_alive()]:
                        if mailbox.empty():
                            busy.discard(number)
                            failures.append(
                                f"worker {number} was killed (exit code "
                                f"{workers[number].exitcode}); `dropreg resume` continues its run"
                            )
                    continue
                if isinstance(message, Progress):
                    display.progress(number, message)
                elif isinstance(message, Record):
                    display.ended(message)
                else:
                    busy.discard(number)
                    if message is not None:
                        failures.append(message)
        finally:
            for worker in workers:
                worker.terminate()  # after an interruption; files are whole at any moment
                worker.join()
    for failure in failures:
        print(f"dropreg: {failure}", file=sys.stderr)
    return not failures


class _Display:
    """One bar a worker on a terminal, if tqdm is there, and a line for each run that ends."""

    def __init__(self, jobs: int) -> None:
        self._bars: list[Any] = []
        self._say: Callable[[str], object] = print
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:  # the work and its lines do not need the bars
            return
        self._say = tqdm.write
        self._bars = [
            tqdm(
                total=1.0,
                position=i,
                leave=False,
                disable=not sys.stderr.isatty(),
                bar_format="{desc} {percentage:3.0f}%|{bar:20}| {remaining} left{postfix}",
            )
            for i in range(jobs)
        ]
        self._shown = [""] * jobs

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self._bars:
            bar.close()

    def progress(self, number: int, progress: Progress) -> None:
        """Move a worker's bar."""
        if not self._bars:
            return
        bar = self._bars[number]
        done = (progress.epoch - 1 + progress.share) / progress.epochs
        if self._shown[number] != progress.run:
            self._shown[number] = progress.run
            bar.reset(total=1.0)
            bar.initial = done  # what an earlier session did says nothing about the speed
            bar.n = done
        bar.set_description_str(progress.run, refresh=False)
        bar.set_postfix_str(
            f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.3f}, "
            f"perplexity {progress.perplexity:.1f}",
            refresh=False,
        )
        bar.n = min(done, 1.0)
        bar.refresh()

    def ended(self, record: Record) -> None:
        """Say how a run ended."""
        if record.finished:
            outcome = f"perplexity {record.best:.1f} at best, {record.last:.1f} at the end"
        else:
            outcome = record.status
        self._say(f"{record.run}: {outcome} ({record.seconds / 60:.1f} min)")
