"""What an update of each rule costs, and whether it is right on this device.

An update is a whole one: noise, passes, clipping, optimizer, averaged weights, as `dropreg run`
makes it. Its model and batch are those of the task "lstm"; the words are random.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import write
from dropreg import NoisyLoss, Rule, Update
from dropreg.book.experiments import TASKS, Size
from dropreg.book.experiments.training import Average
from dropreg.book.models.base import detach
from dropreg.control.kernels import float32_precision
from dropreg.errors import values_unchecked

TASK = TASKS["lstm"]
WORDS = {Size.TINY: 100, Size.SMALL: 1_000, Size.LARGE: 10_000, Size.FULL: 10_000}
PUBLISHED = Rule("explicit", "analytic", method="sampled_labels")
BOTH = Rule("explicit", "analytic")
TIMED = (
    Rule("none"), Rule("dropout_k"), Rule("dropout_k", k=4), Rule("even", "odd"), BOTH, PUBLISHED,
)  # fmt: skip
"""What is timed: the clean loss, dropout, and the ways to put something in its place."""
CHECKED = (
    *TIMED,
    Rule("dropout_k", "dropout_pair", 4),
    Rule("dropout_k", "analytic", 4),
    Rule("none", "odd"),
    Rule("l2", strength=1e-3),
    Rule("explicit", method="identity"),
    Rule("explicit", method="loss_jacobian"),
)
"""Every objective and every noise."""
UPDATES, UPDATES_PUBLISHED = 30, 5
"""How many updates are timed; 3 at tiny."""
CHECKED_BATCH = (16, 5)
"""Streams and words of the check: few, as its yardstick is float64 on the CPU."""


def _model(size: Size) -> nn.Module:
    torch.manual_seed(0)
    return TASK.model(WORDS[size], **TASK.settings[size].model)


def _batch(size: Size, streams: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(WORDS[size], (streams, length + 1), generator=generator).to(device)
    return text[:, :-1], text[:, 1:]


def updates(rule: Rule, size: Size, device: torch.device) -> Callable[[], None]:
    """One update after the other of a model, each from the state that the one before has left."""
    setting = TASK.settings[size]
    model = _model(size).to(device)
    inputs, targets = _batch(size, setting.batch_size, setting.length, device)
    optimizer = torch.optim.SGD(model.parameters(), setting.lr, weight_decay=setting.weight_decay)
    average, noise = Average(model), torch.Generator(device).manual_seed(0)
    update, state = Update(rule, generator=noise, carry=True), None

    def one() -> None:
        nonlocal state
        optimizer.zero_grad()
        update.backward(NoisyLoss(model, (inputs, state), "cross_entropy", targets))
        state = detach(update.output[1])
        nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
        optimizer.step()
        average.update(model)

    return one


def cost(size: Size, device: torch.device, folder: Path) -> None:
    """Time and memory of an update, and a profile of one; written anew after each rule."""
    rows: list[dict[str, Any]] = []
    content = {"what": "rules", "size": str(size), "words": WORDS[size], "rows": rows}
    for tf32 in (False, True) if device.type == "cuda" else (False,):
        for rule in TIMED:
            with float32_precision(tf32=tf32), values_unchecked(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "RNN module weights")
                rows.append(_timed(rule, size, device, tf32=tf32))
            write(folder / "rules.json", device, content)


def _timed(rule: Rule, size: Size, device: torch.device, *, tf32: bool) -> dict[str, Any]:
    update = updates(rule, size, device)
    update()  # finds the sites, and lets the libraries set themselves up
    gpu = device.type == "cuda"
    row: dict[str, Any] = {"method": rule.label, "tf32": tf32}
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    count = UPDATES_PUBLISHED if rule == PUBLISHED else UPDATES
    times = list(_times(update, 3 if size is Size.TINY else count, device))
    row |= {
        "seconds": statistics.median(cpu for cpu, _ in times),
        "wall": statistics.median(wall for _, wall in times),
        "rounds": len(times),
    }
    if gpu:
        row |= {
            "peak": torch.cuda.max_memory_allocated(device),
            "waits": _waits(update),
        }
    if rule == BOTH:
        row |= _profile(update, gpu=gpu)
    return {**row, "all_seconds": [round(wall, 6) for _, wall in times]}


def _times(
    update: Callable[[], None], count: int, device: torch.device
) -> Iterator[tuple[float, float]]:
    """Processor time and wall time of each update, in seconds; on a GPU by its own clock."""
    if device.type != "cuda":
        for _ in range(count):
            cpu, wall = time.process_time(), time.perf_counter()
            update()
            yield time.process_time() - cpu, time.perf_counter() - wall
        return
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    cpu = [time.process_time()]
    marks[0].record()
    for mark in marks[1:]:
        update()
        mark.record()
        cpu.append(time.process_time())
    torch.cuda.synchronize(device)
    for i in range(count):
        yield cpu[i + 1] - cpu[i], marks[i].elapsed_time(marks[i + 1]) / 1000


def _waits(update: Callable[[], None]) -> int:
    """How often the processor waits for the GPU in an update."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(each.message) for each in caught)


def _profile(update: Callable[[], None], *, gpu: bool) -> dict[str, Any]:
    """Of one update: kernels launched, and the share of the time that is spent in our own loss."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as profiled:
        update()
        if gpu:
            torch.cuda.synchronize()
    events = profiled.key_averages()
    column = "device_time_total" if gpu else "cpu_time_total"
    # A kernel is an event of the GPU, and its time stands once more at the operation it is of.
    where = DeviceType.CUDA if gpu else DeviceType.CPU
    kernels = [(getattr(e, f"self_{column}"), e) for e in events if e.device_type == where]
    total = sum(spent for spent, _ in kernels)
    ours = sum(getattr(e, column) for e in events if e.key.startswith("CrossEntropyPair"))
    return {
        "launches": sum(e.count for e in events if "LaunchKernel" in e.key),
        "loss_share": ours / total,
        "slowest": [
            {"name": e.key[:80], "share": spent / total, "count": e.count}
            for spent, e in sorted(kernels, key=lambda each: each[0], reverse=True)[:12]
        ],
    }


def gradients(size: Size, device: torch.device, folder: Path) -> None:
    """The gradient of every rule on this device against float64 on the CPU, at the same noise.

    Raises:
        AssertionError: If one is off by more than its precision explains.
    """
    if size is Size.FULL:  # the yardstick takes all cores a while
        torch.set_num_threads(os.cpu_count() or 1)
    rows: list[dict[str, Any]] = []
    for rule in CHECKED:
        yardstick = _gradient(rule, size, torch.device("cpu"), torch.float64)
        for dtype in (torch.float64, torch.float32):
            if rule == PUBLISHED and dtype is torch.float32:
                continue  # where two labels are nearly as likely, rounding may sample the other
            found = _gradient(rule, size, device, dtype)
            off = (found - yardstick).norm() / yardstick.norm()
            rows.append(
                {"method": rule.label, "dtype": str(dtype).removeprefix("torch."),
                 "parameters": len(found), "relative_error": off.item()}
            )  # fmt: skip
            write(
                folder / "gradients.json",
                device,
                {"what": "gradients", "size": str(size), "rows": rows},
            )
    for row in rows:
        assert row["relative_error"] < BOUNDS[row["dtype"]], row


BOUNDS = {"float64": 1e-9, "float32": 5e-5}
"""Rounding gives less than 1e-6 in float32 on a CPU; TF32, with 10 bits, would give some 5e-4."""


def _gradient(rule: Rule, size: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The gradient of one update, brought to the CPU in float64."""
    model = _model(size).to(device, dtype)
    inputs, targets = _batch(size, *CHECKED_BATCH, device)
    noise = torch.Generator().manual_seed(0)  # of the CPU: the same masks on every device
    with float32_precision(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "RNN module weights")
        noisy = NoisyLoss(model, (inputs, None), "cross_entropy", targets)
        Update(rule, generator=noise).backward(noisy)
    grads = (p.grad for p in model.parameters() if p.grad is not None)
    return torch.cat([g.detach().flatten().double().cpu() for g in grads])
