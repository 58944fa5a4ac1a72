"""One call that makes the most of one GPU for some minutes: is it right, what does it cost, train.

On a machine with PyTorch and nothing of ours, from the top of the repository:

    DROPREG_DATA=FOLDER DROPREG_COMMIT=HASH python -m tools.gpu --minutes 9 --out OUT

FOLDER holds ptb.zip. HASH is the commit; where git can be asked it is not needed. Back home:

    .venv/bin/python -m tools.gpu take OUT

checks what has come back and puts it where it belongs: measurements to results/, to be committed,
checkpoints to runs/. `--resume FOLDER` goes on from the checkpoints that lie in or below FOLDER.

Each part has its share of the time, and has ended before the next begins. What there is of it lies
in OUT from then on: at most eight files of at most 16 MiB. The runs of the training take turns
epoch by epoch, so that however early the call is cut all have equally many. In the first turn they
are trained one after the other, in the second all at once, each in a process of its own; after
that, in the way that took less time.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from dropreg.book.experiments import EXPERIMENTS, Record, Run, Size, Store, train
from dropreg.book.experiments.records import commit, read_record, results_folder, write_whole
from dropreg.book.experiments.tasks import texts
from dropreg.errors import DropregError
from tools import ROOT

EXPERIMENT = EXPERIMENTS["first-epochs"]
# Of the whole time, and the most and the fewest seconds; training has the rest.
SHARES = {"tests": (0.10, 35.0), "gradients": (0.10, 25.0), "cost": (0.25, 120.0)}
FEWEST = 20.0
TESTS = ("test_devices", "test_explicit", "control/test_passes", "test_integration")
ROWS, README = "results.zip", "README.md"
# What a lender lets come back.
MAX_FILES, MAX_BYTES = 8, 16 * 2**20


class Refused(DropregError):
    """What is asked for cannot be done here, or what has come back is not what it should be."""


class Call:
    """One call: its time, and what it brings back."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.out: Path = options.out
        self.device: str = options.device
        self.size = Size(options.size)
        self.seconds = 60 * options.minutes
        self.deadline = time.monotonic() + self.seconds
        self.work = work
        self.store = Store(work / "results", work / "runs")
        self.log: list[str] = []

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.deadline - time.monotonic()

    def say(self, line: str) -> None:
        """Note what has happened, and put all that there is into the folder that comes back."""
        print(f"==> {line}", flush=True)
        self.log.append(line)
        with zipfile.ZipFile(self.work / ROWS, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(self.work.rglob("*")):
                if path.suffix in (".json", ".txt"):
                    archive.write(path, path.relative_to(self.work))
        files = {ROWS: self.work / ROWS}
        for path in sorted(self.store.work.rglob("*.pt")):
            name = "_".join(path.relative_to(self.store.work).parts)
            files[re.sub(r"[^\w.-]", "-", name)] = path  # a lender may refuse odd names
        for old in self.out.glob("*.pt"):
            if old.name not in files:  # of a run that has ended
                old.unlink()
        for name, path in files.items():
            write(self.out / name, path.read_bytes())
        write(self.out / README, self._readme(list(files)).encode())

    def _readme(self, files: list[str]) -> str:
        what = {ROWS: "rows of runs and of benchmarks, and what the parts printed"}
        return "\n".join(
            [
                f"# {self.size} on {self.device}, commit {commit()['commit']}",
                "",
                *(f"- `{name}`: {what.get(name, 'a run, to go on from')}" for name in files),
                "",
                *(f"1. {line}" for line in self.log),
                "",
            ]
        )


def write(path: Path, content: bytes) -> None:
    write_whole(path, lambda file: file.write(content))


def part(call: Call, name: str, *command: str | Path) -> None:
    """Run a part in a process of its own, and end it when its share of the time is over."""
    share, most = SHARES[name]
    seconds = max(FEWEST, min(share * call.seconds, most))
    begun, log = time.monotonic(), call.work / "log" / f"{name}.txt"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as file:
        try:
            done = subprocess.run(
                [sys.executable, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                timeout=seconds, check=False,
            )  # fmt: skip
            ended = f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"ended when its {seconds:.0f} s were over, with what it had"
    last = log.read_text().strip().splitlines()[-1:] or ["nothing printed"]
    call.say(f"{name}: {ended}, {time.monotonic() - begun:.0f} s; {last[0]}")


def right_and_cost(call: Call) -> None:
    """Whether it is right on this device, and then what it costs at the paper's size."""
    if find_spec("pytest"):
        files = [f"tests/{name}.py" for name in TESTS]
        kind = torch.device(call.device).type
        # Each by name, in case they are cut. Warnings are shown, not raised: another PyTorch warns
        # of other things.
        options = ("-v", "-k", kind, "-W", "default", "-p", "no:cacheprovider")
        part(call, "tests", "-m", "pytest", *files, *options)
    else:
        call.say("tests: left out, as there is no pytest here")
    size = Size.TINY if call.size is Size.TINY else Size.FULL
    where = ("--device", call.device, "--results", call.work / "results" / "speed")
    for name, what in (("gradients", "gradients"), ("cost", "rules")):
        part(call, name, "-m", "benchmarks", "--size", size, *where, "--only", what)


def follow_parent() -> None:
    """In a worker: end when the call is killed, in the middle of an epoch, too."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(1)


def one_epoch(run: Run, store: Store, device: str) -> tuple[Record, float, float]:
    """In a worker: train a run for an epoch; its record, and the time at both ends."""
    begun, checkpoint = time.time(), store.checkpoint(run)
    record = train(run, checkpoint, device=device, stop=lambda seconds: True)
    store.keep(run, record)
    if record.ended:
        checkpoint.unlink(missing_ok=True)
    return record, begun, time.time()


def training(call: Call, epochs: dict[str, int]) -> None:
    """Turn after turn, as long as the next one fits.

    Args:
        call: The call.
        epochs: How many epochs each run has behind it, where there is a checkpoint of it.
    """
    took: dict[int, float] = {}  # for so many at once the time of a turn
    whole: dict[int, float] = {}  # the same with the start of the processes
    with contextlib.ExitStack() as stack:
        pools: dict[int, ProcessPoolExecutor] = {}
        while runs := next_turn(call, epochs):
            ways = sorted({1, len(runs)})
            jobs = min(ways, key=lambda n: took.get(n, 0.0))  # each is tried once
            if call.left < 1.1 * whole.get(jobs, max(whole.values(), default=0.0)):
                call.say(f"training: no time for another turn, {call.left:.0f} s left")
                return
            if jobs not in pools:
                pools[jobs] = stack.enter_context(
                    ProcessPoolExecutor(
                        jobs, multiprocessing.get_context("spawn"), initializer=follow_parent
                    )
                )
            begun = time.monotonic()
            todo = [pools[jobs].submit(one_epoch, r, call.store, call.device) for r in runs]
            try:
                done = [each.result() for each in todo]
            except (RuntimeError, BrokenProcessPool) as error:
                if jobs == 1:
                    raise
                # Memory for one at a time only, or a GPU that takes one process. Those that are
                # now ahead wait for the others.
                call.say(f"training: {jobs} at once failed: {error}")
                took[jobs] = float("inf")
                epochs |= {r.name: len(rec.epochs) for r in runs if (rec := call.store.latest(r))}
                continue
            whole[jobs] = time.monotonic() - begun
            took[jobs] = max(end for _, _, end in done) - min(start for _, start, _ in done)
            records = [record for record, _, _ in done]
            epochs |= {record.run: len(record.epochs) for record in records}
            looks = ", ".join(
                f"{r.last:.1f}" if r.column("valid_perplexity") else r.status for r in records
            )
            call.say(
                f"training: epoch {len(records[0].epochs)} of seed {runs[0].seed}, {jobs} at once: "
                f"{took[jobs]:.1f} s; validation perplexity {looks}"
            )
    call.say("training: every run has ended")


def next_turn(call: Call, epochs: dict[str, int]) -> list[Run]:
    """Of the first seed that is not done, the runs that are furthest behind."""
    recorded = Store(results_folder(), call.work)
    left = [
        run
        for run in EXPERIMENT.runs(call.size, call.store.lookup)
        if not call.store.lookup(run) and not recorded.lookup(run)
    ]
    runs = [run for run in left if run.seed == left[0].seed]
    fewest = min((epochs.get(run.name, 0) for run in runs), default=0)
    return [run for run in runs if epochs.get(run.name, 0) == fewest]


def run_call(options: argparse.Namespace) -> None:
    """Refuse what cannot be done before any time is spent, and then do it part by part."""
    if options.out.exists() and any(options.out.iterdir()):
        raise Refused(f"{options.out} is not empty: name a new folder.")
    known = commit()
    if len(known["commit"]) != 40 or known["changed"]:
        raise Refused(
            "the rows could not say which code they are of: commit it first or, where there is no "
            "git, name the commit in DROPREG_COMMIT."
        )
    probe = f"import torch; torch.zeros(1, device={options.device!r}).item()"
    if subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode:
        raise Refused(f"--device {options.device} cannot be used here.")
    with tempfile.TemporaryDirectory() as folder:
        call = Call(options, Path(folder))
        texts(next(EXPERIMENT.runs(call.size, call.store.lookup)).setting)  # or says why not
        epochs: dict[str, int] = {}
        for run, path, done in checkpoints(options.resume) if options.resume else []:
            if run.size is call.size:
                call.store.checkpoint(run).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, call.store.checkpoint(run))
                epochs[run.name] = len(done)
        right_and_cost(call)
        training(call, epochs)


def checkpoints(folder: Path) -> list[tuple[Run, Path, list[dict[str, Any]]]]:
    """For each checkpoint in or below a folder its run, its file, and the epochs it has.

    Raises:
        Refused: If one is of a run that is not declared, or no longer.
    """
    found = []
    for path in sorted(folder.rglob("*.pt")):
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found.append((declared(saved["config"], path), path, saved["epochs"]))
    return found


def declared(config: Any, where: object) -> Run:
    """The run of a configuration.

    Raises:
        Refused: If there is none.
    """
    for size in EXPERIMENT.sizes:
        for run in EXPERIMENT.runs(size, lambda _: None):
            if run.config == config:
                return run
    raise Refused(f"{where} is of a run that {EXPERIMENT.name!r} does not declare, or no longer.")


def take(folder: Path, results: Path, runs: Path) -> None:
    """Check all that has come back, and only then put it where it belongs.

    Raises:
        Refused: If something is missing or not what it should be; then nothing is changed.
    """
    if not (folder / ROWS).is_file():
        raise Refused(f"{folder} holds no {ROWS}: name the folder that --out named.")
    home = Store(results, runs)
    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(folder / ROWS) as archive:
            archive.extractall(unpacked)
        came = Path(unpacked) / "results"
        new: list[tuple[Path, Path]] = []
        for path in sorted(came.rglob("*.json")):
            inside = path.relative_to(came)
            if inside.parts[0] == "speed":
                require_provenance([json.loads(path.read_bytes())["session"]], inside)
            elif not is_news(read_record(path), home, inside):
                continue
            if "tiny" in inside.parts and results == results_folder():
                raise Refused(f"{inside} is of size tiny, which means nothing: not for {results}.")
            new.append((path, results / inside))
        for run, path, epochs in checkpoints(folder):
            there = home.checkpoint(run)
            before = checkpoints(there.parent) if there.exists() else []
            if not any(len(done) >= len(epochs) for _, at, done in before if at == there):
                new.append((path, there))
        for path, to in new:
            write(to, path.read_bytes())
            print(to)
    print(f"==> {len(new)} files taken. Look at them, and commit those in {results}.")


def is_news(record: Record, home: Store, where: Path) -> bool:
    """Whether a record goes beyond what is here.

    Raises:
        Refused: If it is of another run, does not say where it comes from, or contradicts what is
            recorded.
    """
    run = declared(record.config, where)
    if where != Path(f"{run.name}.json") or record.run != run.name:
        raise Refused(f"{where} is the record of {run.name}.")
    require_provenance(record.sessions, where)
    before = home.latest(run)
    if before is None:
        return True
    shorter, longer = sorted((before.epochs, record.epochs), key=len)
    if longer[: len(shorter)] != shorter:
        raise Refused(
            f"{where} differs from the row that is recorded: it was begun anew. Recorded rows "
            "stay: leave it out, or remove the old one in a commit that says why."
        )
    return not before.ended and (record.ended or len(record.epochs) > len(before.epochs))


def require_provenance(sessions: list[dict[str, Any]], where: object) -> None:
    """Refuse what is not of committed code."""
    for session in sessions:
        if not re.fullmatch("[0-9a-f]{40}", session["commit"]) or session["changed"]:
            raise Refused(f"{where} is of code that was not committed: {session['commit']}.")


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    try:
        if words[:1] == ["take"]:
            parser.add_argument("folder", type=Path, help="what --out named")
            parser.add_argument("--results", type=Path, default=results_folder())
            parser.add_argument("--runs", type=Path, default=ROOT / "runs")
            given = parser.parse_args(words[1:])
            take(given.folder, given.results, given.runs)
        else:
            parser.add_argument("--minutes", type=float, required=True, help="in all")
            parser.add_argument("--out", type=Path, required=True, help="an empty or new folder")
            parser.add_argument("--device", default="cuda", help="default: cuda")
            parser.add_argument("--size", default="large", choices=EXPERIMENT.sizes)
            parser.add_argument(
                "--resume", type=Path, help="folder of an earlier call's checkpoints"
            )
            run_call(parser.parse_args(words))
    except DropregError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
