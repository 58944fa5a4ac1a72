"""One run: a task trained by a rule, epoch by epoch, so that it can stop and go on."""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg.data.batches import windows
from dropreg.errors import LogitsError
from dropreg.experiments.catalog import Run
from dropreg.experiments.records import Record, session, write_whole
from dropreg.experiments.rules import Step
from dropreg.experiments.tasks import Setting, texts
from dropreg.models.base import State, detach

EVALUATION_STREAMS, EVALUATION_LENGTH = 20, 70


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        run: Its name.
        epoch: The running epoch, counted from 1.
        epochs: How many there are.
        share: Share of the running epoch that is done, from 0 to 1.
        loss: Objective of the latest update, in nats.
        perplexity: Latest validation perplexity, NaN before the first.
    """

    run: str
    epoch: int
    epochs: int
    share: float
    loss: float
    perplexity: float


class Divergence(Exception):
    """The run has left what can be computed with."""


def evaluate(model: nn.Module, tokens: Tensor) -> float:
    """The mean loss over a whole text, with the state carried from window to window.

    Args:
        model: One of `dropreg.models`.
        tokens: The text, (n,).

    Returns:
        The loss of the network without noise, in nats per token.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    state: State = None
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    with torch.no_grad():
        for inputs, targets in windows(tokens, EVALUATION_STREAMS, EVALUATION_LENGTH):
            logits, state = model(inputs.to(device), state)
            total += F.cross_entropy(
                logits.flatten(0, 1), targets.flatten().to(device), reduction="sum"
            )
            count += int((targets >= 0).sum())
    model.train(training)
    return total.item() / count


def train(
    run: Run,
    checkpoint: Path,
    *,
    device: torch.device | str = "cpu",
    stop: Callable[[float], bool] = lambda seconds: False,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Record | None:
    """Train from the beginning, or from the checkpoint if there is one of this very run.

    On one device and one number of threads the outcome is the same to the last bit, however often
    the run is stopped and taken up again.

    Args:
        run: What to train.
        checkpoint: File for the state after each epoch; removed by the caller.
        device: Where to train.
        stop: Asked after each epoch, with the seconds it took, whether to stop here.
        observe: Told after each update how far the run is.

    Returns:
        The record of the finished or diverged run; None if it was stopped before.

    Raises:
        DataError: If the text is not there and cannot be fetched.
    """
    device = torch.device(device)
    setting, config = run.setting, run.config
    parts, vocab_size = texts(setting)
    torch.manual_seed(run.seed)
    model = run.task.model(vocab_size, **setting.model).to(device)
    optimizer = _optimizer(setting, model)
    noise = torch.Generator(device).manual_seed(1_000_000 + run.seed)
    epochs: list[dict[str, Any]] = []
    sessions: list[dict[str, Any]] = []
    saved = _load(checkpoint, config, device)
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        noise.set_state(saved["noise"])
        epochs, sessions = saved["epochs"], saved["sessions"]
    sessions.append({"from_epoch": len(epochs) + 1, **session(device)})

    def record(status: str, final: dict[str, float]) -> Record:
        return Record(run.name, config, status, sessions, epochs, final)

    def tell(share: float, loss: float) -> None:
        latest = [row["valid_perplexity"] for row in epochs if "valid_perplexity" in row]
        ppl = latest[-1] if latest else math.nan
        observe(Progress(run.name, len(epochs) + 1, setting.epochs, share, loss, ppl))

    try:
        while len(epochs) < setting.epochs:
            started = time.perf_counter()
            epoch = len(epochs) + 1
            row = {
                "epoch": epoch,
                **_epoch(run, model, optimizer, parts["train"], epoch, noise, tell),
            }
            row["seconds"] = time.perf_counter() - started
            if epoch % setting.evaluate_every == 0 or epoch == setting.epochs:
                row["valid_loss"] = evaluate(model, parts["valid"])
                row["valid_perplexity"] = _perplexity(row["valid_loss"])
            epochs.append(row)
            state = {
                "config": config,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "noise": noise.get_state(),
                "epochs": epochs,
                "sessions": sessions,
            }
            write_whole(checkpoint, functools.partial(torch.save, state))
            if stop(time.perf_counter() - started) and epoch < setting.epochs:
                return None
        final = {
            f"{part}_perplexity": _perplexity(evaluate(model, parts[part]))
            for part in ("train", "valid", "test")
        }
    except (Divergence, LogitsError) as error:
        return record(f"diverged: epoch {len(epochs) + 1}, {error}", {})
    return record("finished", final)


def _epoch(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    text: Tensor,
    epoch: int,
    noise: torch.Generator,
    tell: Callable[[float, float], None],
) -> dict[str, float]:
    """One pass over the text; returns the means over its updates, of a part where it was taken."""
    setting, device = run.setting, next(model.parameters()).device
    # Of seed and epoch only: every rule sees the same windows.
    lengths = torch.Generator().manual_seed(1_000 * run.seed + epoch)
    cuts = windows(
        text,
        setting.batch_size,
        setting.length,
        generator=lengths if setting.vary_length else None,
    )
    stream = math.ceil((len(text) - 1) / setting.batch_size)
    sums: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, int] = defaultdict(int)  # an update may lack a part
    state: State = None
    done = updates = 0
    model.train()
    for inputs, targets in cuts:
        rule = run.rule.at(updates)  # counted from the epoch's first
        step = Step(rule, model, inputs.to(device), targets.to(device), state, noise)
        optimizer.zero_grad()
        step.backward()
        state = detach(step.state)
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), setting.clip))
        if not math.isfinite(norm):
            raise Divergence(f"the gradient's norm is {norm}")
        length = inputs.shape[1]
        for group in optimizer.param_groups:
            # Merity et al. 2017: as much for a word in a short window as for one in a long one.
            group["lr"] = setting.lr * setting.lr_scale * length / setting.length
        optimizer.step()
        done, updates = done + length, updates + 1
        for name, value in step.parts.items():
            sums[name] += value
            counts[name] += 1
        sums["gradient_norm"] += norm
        sums["clipped"] += norm > setting.clip
        tell(done / stream, step.parts["objective"])
    means = {name: total / counts.get(name, updates) for name, total in sums.items()}
    return {"updates": updates, **means}


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        raise Divergence(f"the loss is {loss:.0f} nats") from None


def _optimizer(setting: Setting, model: nn.Module) -> torch.optim.Optimizer:
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    return kinds[setting.optimizer](
        model.parameters(), lr=setting.lr, weight_decay=setting.weight_decay
    )


def _load(path: Path, config: dict[str, Any], device: torch.device) -> dict[str, Any] | None:
    """A checkpoint, if there is one and it is of this configuration."""
    if not path.exists():
        return None
    saved = torch.load(path, map_location=device, weights_only=True)
    saved["noise"] = saved["noise"].cpu()  # a generator's state lies there, whatever its device
    return saved if saved["config"] == config else None
