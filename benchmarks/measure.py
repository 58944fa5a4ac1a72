"""Time and memory of steps, and the files that they are written to."""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # noqa: F401 (any optimizer brings it in a training: here it is not timed)

from benchmarks.methods import METHODS, SLOW, Step, methods_of
from benchmarks.workloads import GROWTH, STACK, WORKLOADS, Workload
from dropreg.book.experiments.records import session, write_whole

SCHEMA = 1
SHORTEST = 0.02
"""A step is repeated within a round until this many seconds have passed."""


def write(
    path: Path, device: torch.device, content: Mapping[str, Any], module: str = "benchmarks"
) -> None:
    """Write a result with its provenance, one row a line."""
    where = {**session(device), "command": " ".join(["python -m", module, *sys.argv[1:]])}
    head = {"schema": SCHEMA, "session": where, **content}
    rows = head.pop("rows")
    lines = [f'"{name}": {json.dumps(value)}' for name, value in head.items()]
    lines.append('"rows": [\n  ' + ",\n  ".join(json.dumps(row) for row in rows) + "\n ]")
    text = "{" + ",\n ".join(lines) + "}\n"
    write_whole(path, lambda file: file.write(text.encode()))


def _once(step: Step, device: torch.device) -> tuple[float, float]:
    """Processor time and wall time of one step, in seconds."""
    times, begun = 0, (time.process_time(), time.perf_counter())
    while True:
        step()
        times += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        passed = (time.process_time() - begun[0], time.perf_counter() - begun[1])
        if passed[1] > SHORTEST:
            return passed[0] / times, passed[1] / times


def times(
    steps: Mapping[str, Step], device: torch.device, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Time all steps in turns, so that what else the machine does meets all of them alike."""
    found: dict[str, dict[str, list[float]]] = {n: {"cpu": [], "wall": []} for n in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            if turn > 1 and name in SLOW:
                continue
            if turn == 0:  # finds the sites, looks at the batch twice, and warms up
                for _ in range(0 if name in SLOW else 2):
                    step()
                continue
            cpu, wall = _once(step, device)
            found[name]["cpu"].append(cpu)
            found[name]["wall"].append(wall)
    return found


def _peak(build: Any, workload: Workload, device_name: str, pipe: Any) -> None:
    """In a process of its own: the most memory that a step needs beside the model and its batch."""
    torch.set_num_threads(1)
    device = torch.device(device_name)
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, mmap.PAGESIZE)  # M_MMAP_THRESHOLD: what is freed goes back, and no gap counts
    step = build(workload, device)
    for _ in range(2):  # finds the sites, looks at the batch, lets the libraries set themselves up
        step()
    _forget(step)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        pipe.send(torch.cuda.max_memory_allocated(device) - before)
        return
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    step()
    pipe.send(max(_status("VmHWM") - before, mmap.PAGESIZE))  # it sees no less than a page


def _forget(step: Step) -> None:
    """Drop the gradients of the step before."""
    for cell in step.__closure__ or ():
        if isinstance(cell.cell_contents, torch.nn.Module):
            cell.cell_contents.zero_grad(set_to_none=True)
    gc.collect()


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x.split()[1] for x in lines if x.startswith(field)))


def peak(name: str, method: str, workload: Workload, device: torch.device) -> int:
    """Peak memory of one step in bytes: activations, gradients and what is used on the way."""
    # Forking saves the imports; a process that has used CUDA cannot be forked.
    context = multiprocessing.get_context("spawn" if device.type == "cuda" else "fork")
    ours, theirs = context.Pipe(duplex=False)
    arguments = (_Build(name, method), workload, str(device), theirs)
    process = context.Process(target=_peak, args=arguments)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        process.join()
        how = f"exit code {process.exitcode}"
        raise RuntimeError(f"the process of {method} on {name} ended early: {how}") from error
    finally:
        process.join()


class _Build:
    """A method by its name, which can be sent to another process."""

    def __init__(self, name: str, method: str) -> None:
        self.name, self.method = name, method

    def __call__(self, workload: Workload, device: torch.device) -> Step:
        return methods_of(self.name)[self.method](workload, device)


def row(method: str, found: Mapping[str, list[float]], **more: Any) -> dict[str, Any]:
    """One line of a result."""
    return {
        "method": method,
        "seconds": statistics.median(found["cpu"]),
        "wall": statistics.median(found["wall"]),
        "rounds": len(found["cpu"]),
        **more,
        "all_seconds": [round(x, 6) for x in found["cpu"]],
    }


def cost(
    name: str, size: str, device: torch.device, rounds: int, folder: Path, only: Container[str]
) -> None:
    """Time and memory of the methods on one workload."""
    workload = WORKLOADS[name][size]
    builders = {m: build for m, build in methods_of(name).items() if m == "dropout" or m in only}
    peaks = {method: peak(name, method, workload, device) for method in builders}
    found = times({m: build(workload, device) for m, build in builders.items()}, device, rounds)
    parameters = sum(p.numel() for p in workload.build(device)[0].parameters())
    content = {
        "what": "cost", "workload": name, "size": size, "dims": dict(workload.dims),
        "p": workload.p, "parameters": parameters,
        "rows": [row(m, found[m], peak=peaks[m]) for m in builders],
    }  # fmt: skip
    write(folder / f"{name}.json", device, content)


GROWING = ("dropout", "both/central", "both/even_odd", "both/published")
MASKS = ("dropout", "dropout_2", "dropout_4", "dropout_8", "dropout_32")


def growth(size: str, device: torch.device, rounds: int, folder: Path) -> None:
    """How time and memory grow with one dimension at a time, and with k."""
    rows = []

    def measure(along: str, value: int | None, name: str, workload: Workload, which: Any) -> None:
        peaks = {m: peak(name, m, workload, device) for m in which}
        found = times({m: METHODS[m](workload, device) for m in which}, device, rounds)
        for m in which:
            at = value if value is not None else int(m.partition("_")[2] or 1)
            more = {"along": along, "at": at, "workload": name, "peak": peaks[m]}
            rows.append(row(m, found[m], **more))

    for along, (name, values) in GROWTH.items():
        base = STACK if name == "stack" else WORKLOADS[name][size]
        for value in values if size != "tiny" else values[:2]:
            measure(along, value, name, base.changed(**{along: value}), GROWING)
    measure("k", None, "lstm-small", WORKLOADS["lstm-small"][size], MASKS)
    write(folder / "growth.json", device, {"what": "growth", "size": size, "rows": rows})


def imports(size: str, device: torch.device, rounds: int, folder: Path) -> None:
    """What `import dropreg` adds to `import torch`, in seconds."""
    rows = []
    for _ in range(rounds):
        command = [sys.executable, "-X", "importtime", "-c", "import torch; import dropreg"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        cumulative = {
            name.strip(): int(total) / 1e6
            for _, total, name in (line.split("|") for line in shown.splitlines()[1:])
        }
        rows.append({name: cumulative[name] for name in ("torch", "dropreg")})
    write(folder / "import.json", device, {"what": "import", "size": size, "rows": rows})
