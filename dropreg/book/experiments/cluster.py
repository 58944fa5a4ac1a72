"""Working off runs on many machines, by Ray.

A run owns its state: a lock, a checkpoint, a record, all in folders that every machine sees. So a
task of the cluster is one run, and Ray has nothing to keep. A task that is started again, after its
machine has died, goes on from the checkpoint; one that finds the lock held asks again later; one
that finds the run ended hands over its record. The driver, where the command was given, knows which
runs there are, submits each, and may itself be killed and started again.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import dropreg
from dropreg.book.data.fetch import VARIABLE as DATA
from dropreg.book.experiments.declarations import Run
from dropreg.book.experiments.records import CHANGED, COMMIT, Record, commit
from dropreg.book.experiments.runner import Order, Store, begin, close, outcome, run_one
from dropreg.book.experiments.training import Progress
from dropreg.errors import DropregError, InputError, needs

LOOK_EVERY = 30.0
"""Seconds between two tables of who is at work, and two looks for machines that have joined."""
REPORT_EVERY = 5.0
"""Seconds between two reports of a task."""
LINES = 12
"""Of such a table; a cluster may work at a thousand runs at once."""
AGAIN_AFTER = 10.0
"""Seconds until a run whose lock somebody else held is tried again."""


class ClusterError(DropregError):
    """A machine of the cluster cannot do its part; the message names it, and what it lacks."""


@dataclass(frozen=True)
class _Known(Store):
    """A store that reads each record once.

    The driver learns from its tasks what has ended since. To read all records at each end would
    cost time in the square of the runs, and a shared folder may show a new file only later.

    Attributes:
        known: For the name of each run that was looked up, its record if it has ended.
    """

    known: dict[str, Record | None] = field(default_factory=dict)

    def lookup(self, run: Run) -> Record | None:
        if run.name not in self.known:
            self.known[run.name] = super().lookup(run)
        return self.known[run.name]


@dataclass(frozen=True)
class _Job:
    """What all tasks of a driver are told.

    Attributes:
        store: Where runs are kept, by absolute paths.
        device: Where to train.
        deadline: Value of `time.time` before which to stop, at an epoch's end, if there is one.
        code: The driver's `_code`.
        environment: Variables of its environment that decide what a run reads and records.
        arguments: The words of its command line, which records name.
    """

    store: Store
    device: str
    deadline: float | None
    code: str
    environment: Mapping[str, str]
    arguments: Sequence[str]

    def over(self, seconds: float = 0.0) -> bool:
        """Whether the deadline is nearer than some seconds."""
        return self.deadline is not None and time.time() + seconds > self.deadline


class _Board:
    """An actor beside the driver, to whom all tasks say how far they are."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[str, Progress]] = {}

    def report(self, node: str, progress: Progress) -> None:
        self._latest[progress.run] = node, progress

    def take(self) -> dict[str, tuple[str, Progress]]:
        """What was said since this was last asked: who has died is not in it."""
        latest, self._latest = self._latest, {}
        return latest


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
    with needs("cluster", "--ray"):
        import ray
    return ray


@functools.cache
def _code() -> str:
    """A digest of what decides a run's numbers: all code of the package, and torch's version.

    A commit would not do: where the package is installed nobody knows it, and of code that has been
    changed it does not say how.

    Returns:
        The digest.
    """
    package = Path(dropreg.__file__).parent
    digest = hashlib.sha256(torch.__version__.split("+")[0].encode())
    for path in sorted(package.rglob("*.py")):
        digest.update(f"\0{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _node(ray: Any) -> str:
    """A name for the machine that this process runs on; one may be several of Ray's nodes."""
    return f"{platform.node()}/{ray.get_runtime_context().get_node_id()[:6]}"


def _require_same_code(job: _Job, node: str) -> None:
    if _code() != job.code:
        raise ClusterError(
            f"node {node} has other code than the driver: dropreg {dropreg.__version__} in "
            f"{Path(dropreg.__file__).parent}, torch {torch.__version__}. Install the same commit "
            "and the same torch on all nodes, and start Ray there again."
        )


def _look(job: _Job, marker: str) -> None:
    """On a node: see what the driver sees."""
    node = _node(_ray())
    _require_same_code(job, node)
    for option, folder in (("--results", job.store.results), ("--work", job.store.work)):
        if not (folder / marker).exists():
            raise ClusterError(
                f"node {node} does not see what the driver writes to {folder}. Pass as {option} a "
                "folder on storage that all nodes mount under the same path."
            )
        if not os.access(folder, os.W_OK):
            raise ClusterError(f"node {node} may not write to {folder}, the folder of {option}.")
    data = job.environment.get(DATA)
    if data and not Path(data).is_dir():
        raise ClusterError(f"node {node} has no folder {data}, which {DATA} names.")


def _train(run: Run, job: _Job, board: Any) -> Record | None:
    """On a node: train a run to its end, or take up where it is.

    Args:
        run: The run.
        job: What it is part of.
        board: Who is told how far it is.

    Returns:
        What it left; None if somebody else holds its lock, or the time was over before it began.

    Raises:
        ClusterError: If this node, which has joined since the driver looked, has other code.
    """
    node = _node(_ray())
    _require_same_code(job, node)
    os.environ.update(job.environment)
    sys.argv = ["dropreg", *job.arguments]
    # As the built-in workers: so a run's numbers are the same to the last bit.
    torch.set_num_threads(1)
    if job.over():
        return None
    reported = -REPORT_EVERY

    def observe(progress: Progress) -> None:
        nonlocal reported
        if time.monotonic() - reported >= REPORT_EVERY:
            reported = time.monotonic()
            board.report.remote(node, progress)

    # Where there was nothing to do the run has ended, or somebody else is at it.
    return run_one(run, job.store, job.device, job.over, observe) or job.store.lookup(run)


def run_on_cluster(
    order: Order,
    store: Store,
    *,
    device: str,
    address: str | None = None,
    jobs: int | None = None,
    max_minutes: float | None = None,
) -> bool:
    """Work off an order with all machines of a Ray cluster, and show how far they are.

    Args:
        order: What is to be run.
        store: Where it is kept, in folders that all machines share.
        device: Where to train: "cpu", "cuda", or "auto", which is "cuda" if the cluster has GPUs.
            A run takes one CPU, and on "cuda" one GPU.
        address: The cluster's, or "auto" for the one that runs on this machine; if None, Ray is
            started on this machine alone.
        jobs: At most so many runs at once; as many as there is room for if None.
        max_minutes: When to stop, each run at the end of its epoch.

    Returns:
        Whether no run failed.

    Raises:
        InputError: If there is no such cluster, or no GPU in it where one is asked for.
        ClusterError: If a machine does not share the folders, or has other code.
        MissingPackageError: If Ray is not installed.
        RecordError: If a file of results is damaged.
        StorageError: If a folder cannot be written here.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(
            f"--device {device}: with --ray say auto, cpu or cuda; Ray deals out GPUs."
        )
    if not begin(order, store):
        return True
    with _connected(address) as ray:
        gpus = ray.cluster_resources().get("GPU", 0)
        if device == "auto":
            device = "cuda" if gpus else "cpu"
        if device == "cuda" and not gpus:
            raise InputError(f"--device {device}: no node of the cluster has a GPU for Ray.")
        known, data = commit(), os.environ.get(DATA)
        job = _Job(
            store=Store(store.results.absolute(), store.work.absolute()),
            device=device,
            deadline=None if max_minutes is None else time.time() + 60 * max_minutes,
            code=_code(),
            environment={
                COMMIT: known["commit"] + (CHANGED if known["changed"] else ""),
                **({DATA: str(Path(data).absolute())} if data else {}),
            },
            arguments=sys.argv[1:],
        )
        well = _Driver(ray, job).work_off(order, jobs)
    close(order, store)
    return well


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, as long as the block runs."""
    ray = _ray()
    if address and not re.fullmatch(r"auto|[^:/]+:\d+", address):
        raise InputError(
            f"--ray {address}: say auto, on a node of the cluster, or HOST:PORT, where its Ray "
            "listens. To use this machine alone, put --ray last, with nothing behind it."
        )
    if ray.is_initialized():
        raise InputError("this process is connected to Ray already; call ray.shutdown() first.")
    try:
        if address and address != "auto":  # Ray itself would try for minutes
            host, _, port = address.partition(":")
            socket.create_connection((host, int(port)), timeout=10.0).close()
        # What a task prints stays in Ray's logs: its reports say more, in fewer lines.
        alone = {} if address else {"include_dashboard": False}
        ray.init(address or "local", logging_level="warning", log_to_driver=False, **alone)
    except (
        *(OSError, OverflowError, RuntimeError, ValueError),
        ray.exceptions.RayError,  # a token that is not the cluster's
    ) as error:
        raise InputError(
            f"--ray {address or ''}: {error}\nStart Ray on this machine, too (`ray start "
            "--address=HOST:PORT`), or leave the address out to use this machine alone."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()  # ends what tasks are left; files are whole at any moment


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: raised in the middle of Ray's code it may get lost there.

    Pressed twice it is raised at once. Outside the main thread Python leaves signals as they are.

    Yields:
        The question.
    """
    heard: list[int] = []

    def hear(number: int, frame: object) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: bool(heard)
    finally:
        signal.signal(signal.SIGINT, before)


class _Driver:
    """Knows which runs there are, submits them, and says how far they are."""

    def __init__(self, ray: Any, job: _Job) -> None:
        self._ray, self._job = ray, job
        self._store = _Known(job.store.results, job.store.work)
        here = ray.get_runtime_context().get_node_id()
        self._board = ray.remote(num_cpus=0, scheduling_strategy=self._on(here))(_Board).remote()
        # Without limit: a task that is started again goes on from the last epoch. What a run itself
        # raises is not tried again.
        options = {"num_cpus": 1, "num_gpus": int(job.device != "cpu"), "max_retries": -1}
        self._train = ray.remote(**options)(_train)
        self._seen: set[str] = set()  # nodes that have looked
        self._runs: dict[str, Run] = {}  # all that are known
        self._pending: dict[Any, Run] = {}  # by the reference to what its task will return
        self._not_before: dict[str, float] = {}  # infinite once submitted, unless a lock was held
        self._failures = 0

    def _on(self, node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node, soft=False)

    def _look_at_nodes(self) -> None:
        """Have each node that is new look at the folders and at its code."""
        alive = {n["NodeID"]: n["NodeManagerHostname"] for n in self._ray.nodes() if n["Alive"]}
        new = alive.keys() - self._seen
        if not new:
            return
        marker = f".seen-by-all-{uuid.uuid4().hex}"
        paths = [folder / marker for folder in (self._store.results, self._store.work)]
        look = self._ray.remote(num_cpus=0, max_retries=0)(_look)
        try:
            for path in paths:
                path.touch()
            asked = {
                look.options(scheduling_strategy=self._on(node)).remote(self._job, marker): node
                for node in new
            }
            for reference, node in asked.items():
                name = f"{alive[node]}/{node[:6]}"
                try:
                    self._ray.get(reference)
                except self._ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, ClusterError):
                        raise error.cause from None
                    raise ClusterError(f"node {name} cannot work: {error.cause!r}") from error
                except self._ray.exceptions.RayError as error:
                    print(f"node {name} was lost: {type(error).__name__}", file=sys.stderr)
                    continue
                self._seen.add(node)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)

    def work_off(self, order: Order, jobs: int | None) -> bool:
        """Submit runs until none is left, or the time is over, or Ctrl-C is pressed."""
        with _ctrl_c() as pressed:
            self._look_at_nodes()
            self._go_on(order, jobs, pressed)
            if pressed():
                raise KeyboardInterrupt
        self._show()
        return not self._failures

    def _go_on(self, order: Order, jobs: int | None, pressed: Callable[[], bool]) -> None:
        looked, changed = time.monotonic(), True
        while not pressed():
            due = [name for name, when in self._not_before.items() if when <= time.monotonic()]
            if (changed or due) and not self._job.over():
                self._submit(order, jobs)
            if not self._pending and (self._job.over() or not self._held()):
                break
            changed = self._collect()
            if time.monotonic() - looked > LOOK_EVERY:
                looked = time.monotonic()
                self._look_at_nodes()
                self._show()

    def _submit(self, order: Order, jobs: int | None) -> None:
        """Submit the runs that are known by now, each once until its task has ended."""
        for run in order.runs(self._store):
            self._runs[run.name] = run
            room = jobs is None or len(self._pending) < jobs
            free = self._not_before.get(run.name, 0.0) <= time.monotonic()
            if room and free and not self._store.lookup(run):
                self._pending[self._train.remote(run, self._job, self._board)] = run
                self._not_before[run.name] = math.inf

    def _held(self) -> bool:
        """Whether somebody else was at a run that is to be tried again."""
        return any(when < math.inf for when in self._not_before.values())

    def _collect(self) -> bool:
        """Wait a second for tasks to end; returns whether one has."""
        if not self._pending:
            time.sleep(1.0)
            return False
        done, _ = self._ray.wait(list(self._pending), timeout=1.0)
        if done:  # and all others that have ended meanwhile, so that many cost one look
            done, _ = self._ray.wait(
                list(self._pending), num_returns=len(self._pending), timeout=0.0
            )
        for reference in done:
            run = self._pending.pop(reference)
            try:
                record = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                cause = getattr(error, "cause", error)  # what the run itself raised, if it did
                if isinstance(cause, ClusterError):
                    raise cause from None
                self._failures += 1
                what = cause if isinstance(cause, DropregError) else error
                print(f"dropreg: {run.name}: {what}", file=sys.stderr, flush=True)
                continue
            if record is None:
                self._not_before[run.name] = time.monotonic() + AGAIN_AFTER
            else:
                if record.ended:
                    self._store.known[run.name] = record
                print(outcome(record), flush=True)
        return bool(done)

    def _at_work(self) -> list[tuple[str, Progress]]:
        """The runs that were heard of since the last time, and where they are, node by node."""
        heard = self._ray.get(self._board.take.remote())
        pending = {run.name for run in self._pending.values()}
        found = [said for name, said in heard.items() if name in pending]
        return sorted(found, key=lambda said: (said[0], said[1].run))

    def _show(self) -> None:
        """Say how many runs have ended, and which are at work where."""
        at_work = self._at_work()
        ended = sum(self._store.lookup(run) is not None for run in self._runs.values())
        parts = [f"{ended} of {len(self._runs)} known runs have ended", f"{len(at_work)} at work"]
        parts += [f"{self._failures} failed"] if self._failures else []
        print(", ".join(parts), flush=True)
        lines = [
            f"  {node}  {p.run}: epoch {p.epoch}/{p.epochs}, loss {p.loss:.3f}"
            for node, p in at_work
        ]
        more = [f"  and {len(lines) - LINES} more"] if len(lines) > LINES else []
        print(*lines[:LINES], *more, sep="\n", flush=True)
