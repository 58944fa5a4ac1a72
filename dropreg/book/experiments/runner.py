"""Working off runs: resumable, side by side, and by as many processes as there are.

Workers share no queue. Each goes through the runs in the same order, takes the first that has not
ended and whose lock is free, trains it, and begins again. So any number of workers, started by one
command or by several, split the work among them, and a killed one leaves nothing but a lock that
the system has released and a checkpoint that the next one takes up.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from dropreg.book.experiments.catalog import EXPERIMENTS
from dropreg.book.experiments.declarations import Experiment, Run
from dropreg.book.experiments.records import (
    Record,
    StorageError,
    cannot,
    prepare,
    read_record,
)
from dropreg.book.experiments.tasks import Size, texts
from dropreg.book.experiments.training import Progress, train
from dropreg.errors import DataError, DropregError, MissingPackageError

REPORT_EVERY = 0.2
"""Seconds between two reports of a worker."""
LINE_EVERY = 180.0
"""Seconds between two lines on a run, where no terminal shows its bar."""


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
        path = self.row(run)
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

    def row(self, run: Run) -> Path:
        """The file for a run's record."""
        return self.results / f"{run.name}.json"

    def checkpoint(self, run: Run) -> Path:
        """The file for a run's state."""
        return self.work / f"{run.name}.pt"

    def prepare(self) -> None:
        """See that both folders can be written, before any work.

        Raises:
            StorageError: If one cannot.
        """
        for folder in (self.results, self.work):
            prepare(folder / "any")

    @contextlib.contextmanager
    def lock(self, run: Run) -> Iterator[bool]:
        """The lock that a worker holds while it trains a run.

        Args:
            run: The run.

        Yields:
            Whether we hold it; if not, somebody else does.

        Raises:
            StorageError: If the lock's file cannot be made.
        """
        import filelock

        path = self.work / f"{run.name}.lock"
        lock = filelock.FileLock(path, timeout=0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            yield False
            return
        except OSError as error:
            raise StorageError(cannot(path, error)) from error
        try:
            yield True
        finally:
            lock.release()

    def is_running(self, run: Run) -> bool:
        """Whether a worker holds a run's lock right now."""
        if not (self.work / f"{run.name}.lock").exists():
            return False
        with self.lock(run) as free:
            return not free


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

    def summary(self, store: Store) -> tuple[int, str]:
        """How far it is.

        Args:
            store: Where the ended runs are.

        Returns:
            How many of the known runs are left, and a phrase for what has ended.

        Raises:
            RecordError: If a file of results is damaged.
        """
        known = list(self.runs(store))
        ended = sum(store.lookup(run) is not None for run in known)
        waiting = not self.begun and any(
            EXPERIMENTS[name].is_tuning(size, store.lookup) for name, size in self.experiments
        )
        more = " (a strength is being tuned, which will make more runs known)" if waiting else ""
        return len(known) - ended, f"{ended} of {len(known)} runs have ended{more}"


def without_data(
    experiments: Iterable[tuple[Experiment, Size]], seeds: Sequence[int] | None = None
) -> dict[str, DropregError]:
    """Load the texts of some experiments, so that one that is missing is known before any work.

    Args:
        experiments: The experiments, each with a size.
        seeds: The seeds that are asked for, of which each may have a piece of its own; as declared
            if None.

    Returns:
        For each experiment whose text cannot be had, why.
    """
    missing: dict[str, DropregError] = {}
    for experiment, size in experiments:
        for arm in experiment.arms.values():
            run = (arm.tuning_runs(size) or arm.runs(size, lambda _: None))[0]
            try:
                for seed in seeds or [run.seed]:
                    texts(run.setting, seed)
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
        StorageError: If its files cannot be written, which is tried before the training.
    """
    if store.lookup(run):
        return None
    with store.lock(run) as free:
        if not free or store.lookup(run):  # it may have ended between the two looks
            return None
        checkpoint = store.checkpoint(run)
        prepare(checkpoint)
        prepare(store.row(run))
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


def run_next(
    order: Order,
    store: Store,
    device: str,
    deadline: float | None,
    observe: Callable[[Progress], None] = lambda progress: None,
    ended: set[str] | None = None,
) -> Record | None:
    """Train the first run that has not ended and that nobody else is training.

    Args:
        order: What is to be run.
        store: Where it is kept.
        device: Where to train.
        deadline: Value of `time.monotonic` before which to stop, at the end of an epoch; if None,
            there is none.
        observe: Called now and then with how far the run is.
        ended: Names of runs that are known to have ended; others that have are added. Who keeps it
            from call to call reads each record once, not all of them before each run.

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
    ended = set() if ended is None else ended
    for run in order.runs(store):
        if run.name in ended:
            continue
        if store.lookup(run):
            ended.add(run.name)
        elif record := run_one(run, store, device, stop, observe):
            return record
    return None


def _worker(
    order: Order, store: Store, device: str, deadline: float | None, parent: Connection
) -> None:
    """Train run after run, and report to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    # One thread: side by side more are slower, and the order of sums stays the same everywhere.
    torch.set_num_threads(1)

    def tell(message: Progress | Record | str) -> None:
        # Whose parent is gone stops at the end of the epoch; see `run_next`.
        with contextlib.suppress(BrokenPipeError):
            parent.send(message)

    ended: set[str] = set()
    try:
        while record := run_next(order, store, device, deadline, tell, ended):
            tell(record)
            if not record.ended:  # the time is over
                break
    except DropregError as error:
        tell(str(error))
    except Exception:
        tell(traceback.format_exc())


def run_all(
    order: Order,
    store: Store,
    *,
    device: str,
    jobs: int = 1,
    max_minutes: float | None = None,
) -> bool:
    """Work off an order with some workers, and say how far they are.

    Args:
        order: What is to be run.
        store: Where it is kept.
        device: Where to train; all workers share it.
        jobs: Number of workers.
        max_minutes: When to stop, each worker at the end of its epoch.

    Returns:
        Whether no worker failed.

    Raises:
        RecordError: If a file of results is damaged.
        StorageError: If a folder cannot be written.
    """
    if not begin(order, store):
        return True
    context = multiprocessing.get_context("spawn")
    # The clock that workers compare with counts from the start of the machine, not of the process.
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    # A pipe for each, whose other end the worker alone holds: so both see when the other is gone.
    workers: dict[Connection, Any] = {}
    for _ in range(jobs):
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_worker, args=(order, store, device, deadline, theirs))
        worker.start()
        theirs.close()
        workers[ours] = worker
    numbers = {pipe: number for number, pipe in enumerate(workers)}
    failures: list[str] = []
    with _Display(jobs) as display:
        try:
            busy = set(workers)
            while busy:
                for pipe in wait(busy):
                    assert isinstance(pipe, Connection)
                    try:
                        message = pipe.recv()
                    except (EOFError, OSError):  # it has ended, or was killed while it sent
                        busy.remove(pipe)
                        workers[pipe].join()
                        if code := workers[pipe].exitcode:
                            failures.append(
                                f"worker {numbers[pipe]} was killed (exit code {code}); the same "
                                "command continues its run"
                            )
                        continue
                    if isinstance(message, Progress):
                        display.progress(numbers[pipe], message)
                    elif isinstance(message, Record):
                        display.ended(message)
                    else:
                        failures.append(message)
        finally:
            for worker in workers.values():
                worker.terminate()  # after an interruption; files are whole at any moment
                worker.join()
    for failure in failures:
        print(f"dropreg: {failure}", file=sys.stderr)
    close(order, store)
    return not failures


def begin(order: Order, store: Store) -> bool:
    """Say how far an order is, and see that what comes of it can be kept.

    Args:
        order: What is to be run.
        store: Where it is kept.

    Returns:
        Whether a run is left.

    Raises:
        RecordError: If a file of results is damaged.
        StorageError: If a folder cannot be written.
    """
    left, summary = order.summary(store)
    print(f"{summary}; results: {store.results}, checkpoints: {store.work}", flush=True)
    if left:
        store.prepare()
    return left > 0


def close(order: Order, store: Store) -> None:
    """Say how far an order is now, and what is left.

    Args:
        order: What was to be run.
        store: Where it is kept.
    """
    left, summary = order.summary(store)
    rest = f"; {left} left, for which the same command goes on" if left else ""
    print(f"{summary}{rest}", flush=True)


class _Display:
    """How far the workers are: a bar for each on a terminal, if tqdm is there; else some lines."""

    def __init__(self, jobs: int) -> None:
        self._bars: list[Any] = []
        self._say: Callable[[str], object] = lambda line: print(line, flush=True)
        self._said = [time.monotonic()] * jobs
        self._shown = [""] * jobs
        if not sys.stderr.isatty():
            return
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
                bar_format="{desc} {percentage:3.0f}%|{bar:20}| {remaining} left{postfix}",
            )
            for i in range(jobs)
        ]

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self._bars:
            bar.close()

    def progress(self, number: int, progress: Progress) -> None:
        """Move a worker's bar, or say now and then where it is."""
        place = (
            f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.3f}, "
            f"perplexity {progress.perplexity:.1f}"
        )
        if not self._bars:
            if time.monotonic() - self._said[number] >= LINE_EVERY:
                self._said[number] = time.monotonic()
                self._say(f"{progress.run}: {place}")
            return
        bar = self._bars[number]
        done = (progress.epoch - 1 + progress.share) / progress.epochs
        if self._shown[number] != progress.run:
            self._shown[number] = progress.run
            bar.reset(total=1.0)
            bar.initial = done  # what an earlier session did says nothing about the speed
            bar.n = done
        bar.set_description_str(progress.run, refresh=False)
        bar.set_postfix_str(place, refresh=False)
        bar.n = min(done, 1.0)
        bar.refresh()

    def ended(self, record: Record) -> None:
        """Say how a run ended."""
        self._say(outcome(record))


def outcome(record: Record) -> str:
    """What a run left, in one line.

    Args:
        record: Its record.

    Returns:
        The line.
    """
    how = record.status
    if record.finished:
        how = f"perplexity {record.best:.1f} at best, {record.last:.1f} at the end"
    return f"{record.run}: {how} ({record.seconds / 60:.1f} min)"
