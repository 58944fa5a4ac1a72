"""How a sweep grows with its workers: ``python -m benchmarks.machines``, with the extra "cluster".

What a worker of the built-in runner and a driver of Ray's do beside training is timed, by their own
code and on runs that take no time. From these times the sweep of the page "More machines" is worked
out, from one worker to a thousand.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import heapq
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.measure import write
from dropreg.book.experiments import EXPERIMENTS, Size, Store, cluster, runner
from dropreg.book.experiments.declarations import Arm, Experiment, Run
from dropreg.book.experiments.records import Record, read_record, results_folder
from dropreg.book.experiments.runner import Order
from dropreg.updates import Rule

NAME = "no-compute"
ORDER = Order([(NAME, Size.TINY)])
RUNS, SECONDS = 10_000, 60.0
"""Of the sweep that is worked out: how many, and how long each trains."""
WORKERS = (1, 10, 100, 1000)
ENDED, HELD, DRIVEN = (100, 400, 1600), (10, 40, 160), (300, 3000)
"""At how many ended runs, held locks and runs of a driver the times are taken."""


def typical() -> Record:
    """The recorded run whose file is of median size."""
    paths = sorted(results_folder().glob("small/**/*.json"), key=lambda path: path.stat().st_size)
    return read_record(paths[len(paths) // 2])


@contextlib.contextmanager
def sweep(runs: int) -> Iterator[Store]:
    """An experiment of so many runs, and empty folders for it."""
    arm = Arm("lstm", Rule("dropout_k"), seeds=range(runs))
    made_up = Experiment(NAME, "What does it cost beside training?", "ours", {"one": arm})
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(EXPERIMENTS, {NAME: made_up}):
        yield Store(Path(folder, "results"), Path(folder, "runs"))


def end(store: Store, runs: list[Run]) -> None:
    """Write records of the usual size for runs that nobody has trained."""
    pattern = typical()
    for run in runs:
        dataclasses.replace(pattern, run=run.name, config=run.config).write(store.results)


def built_in(rounds: int) -> list[dict[str, Any]]:
    """A worker's step, from its look at the first run to the end of a run that takes no time.

    In its first step it reads what has ended before; from then on it remembers that.
    """
    pattern, rows = typical(), []

    def train(run: Run, checkpoint: Path, **options: object) -> Record:
        return dataclasses.replace(pattern, run=run.name, config=run.config)

    for ended, held in [*((n, 0) for n in ENDED), *((0, n) for n in HELD)]:
        with sweep(ended + held + rounds) as store, mock.patch.object(runner, "train", train):
            runs = list(ORDER.runs(store))
            end(store, runs[:ended])
            seconds = []
            with contextlib.ExitStack() as locks:
                for run in runs[ended : ended + held]:
                    locks.enter_context(store.lock(run))
                known: set[str] = set()
                for _ in range(rounds):
                    begun = time.process_time()
                    record = runner.run_next(ORDER, store, "cpu", None, ended=known)
                    seconds.append(time.process_time() - begun)
                    assert record is not None
        first, *later = seconds
        step = {"what": "step", "ended": ended, "held": held}
        rows.append(step | {"first": first, "seconds": statistics.median(later)})
    return rows


def driven(runs: int) -> dict[str, Any]:
    """A driver and one machine's Ray, on runs that have ended without the driver's knowledge.

    A task does all that it does for any run, but finds the record where training would begin.
    """
    with sweep(runs) as store, cluster._connected(None) as ray:
        known = list(ORDER.runs(store))
        end(store, known)
        job = cluster._Job(store, "cpu", None, cluster._code(), {}, ())
        driver = cluster._Driver(ray, job)
        driver._store.known.update({run.name: None for run in known})
        driver._look_at_nodes()
        begun, wall = time.process_time(), time.perf_counter()
        with contextlib.redirect_stdout(None):
            assert driver.work_off(ORDER, None)
        passed, wall = time.process_time() - begun, time.perf_counter() - wall
        cores = int(ray.cluster_resources()["CPU"])
    return {
        "what": "driver",
        "runs": runs,
        "cores": cores,
        "seconds_a_run": passed / runs,
        "wall_a_run": wall / runs,
    }


def slope(rows: list[dict[str, Any]], along: str, step: str = "seconds") -> float:
    """Seconds by which a step, or the first one, grows with each ended run, or each held lock."""
    found = [row for row in rows if row["what"] == "step" and row[along]]
    return statistics.linear_regression(
        [row[along] for row in found], [row[step] for row in found]
    ).slope


def worked_out(rows: list[dict[str, Any]], workers: int) -> dict[str, Any]:
    """The sweep of RUNS runs, event by event, by built-in workers; and what a driver could do.

    A worker's step passes over each run that it knows to have ended, reads each that has ended
    since, tries each lock that is held, and trains the next for SECONDS. The storage is taken to be
    as quick as this machine's, however many ask it.
    """
    passing, trying = slope(rows, "ended"), slope(rows, "held")
    reading = slope(rows, "ended", "first") - passing
    free = [(0.0, 0)] * workers  # when each worker is free, and how many ended runs it has read
    ends: list[float] = []  # of the runs at work
    ended = opens = peak = 0
    window: list[tuple[float, int]] = []  # the opened files of the last minute
    total = 0
    for _ in range(RUNS):
        now, read = heapq.heappop(free)
        while ends and ends[0] <= now:
            heapq.heappop(ends)
            ended += 1
        step = ended - read + len(ends)
        opens, total = opens + step, total + step
        window.append((now, step))
        while window[0][0] < now - 60.0:
            total -= window.pop(0)[1]
        peak = max(peak, total)
        beside = ended * passing + (ended - read) * reading + len(ends) * trying
        until = now + beside + SECONDS
        heapq.heappush(ends, until)
        heapq.heappush(free, (until, ended))
    minutes = max(ends) / 60
    driver = max((row for row in rows if row["what"] == "driver"), key=lambda row: row["runs"])
    ray = min(workers / SECONDS, 1 / driver["seconds_a_run"])
    return {
        "what": "worked out",
        "workers": workers,
        "runs": RUNS,
        "seconds": SECONDS,
        "built_in_runs_a_minute": RUNS / minutes,
        "built_in_opens_a_second": peak / 60,
        "built_in_opens": opens,
        "ray_runs_a_minute": 60 * ray,
        "ray_driver_busy": ray * driver["seconds_a_run"],
    }


def main() -> None:
    """Time the steps, work the sweep out, and record both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machines", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="of a worker's step")
    folder = results_folder() / "speed" / "machines" / "cpu"
    parser.add_argument("--results", type=Path, default=folder)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [*built_in(options.rounds), *map(driven, DRIVEN)]
    rows += [worked_out(rows, workers) for workers in WORKERS]
    for row in rows:
        print(row)
    content = {"what": "machines", "rows": rows}
    write(options.results / "machines.json", torch.device("cpu"), content, __spec__.name)


if __name__ == "__main__":
    main()
