"""One run: a task trained by a rule, epoch by epoch, so that it can stop and go on."""

from __future__ import annotations

import copy
import functools
import io
import math
import os
import sys
import time
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg.book.data.batches import windows
from dropreg.book.experiments.declarations import Run
from dropreg.book.experiments.records import Record, StorageError, session, write_whole
from dropreg.book.experiments.tasks import Setting, texts
from dropreg.book.models.base import State, detach
from dropreg.control.kernels import float32_precision
from dropreg.errors import values_unchecked
from dropreg.noisy_loss import NoisyLoss
from dropreg.updates import Update

EVALUATION_STREAMS, EVALUATION_LENGTH = 20, 70
FIT_TOKENS = 20_000
"""How much of the training text, from its beginning, each look measures the fit on."""
DECAY = 0.99
"""Of the averaged weights, an update: they are a mean over about the last hundred."""
FORGOTTEN = 0.01
"""Weight of all updates before an epoch at its end, below which the average may begin anew."""
LOOK_EVERY = 50
"""Updates between two looks at whether the gradient is finite; each waits for a GPU."""
CHECKPOINT = {"config", "model", "optimizer", "noise", "average", "epochs", "sessions"}
"""What a checkpoint holds."""


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
        model: One of `dropreg.book.models`.
        tokens: The text, (n,).

    Returns:
        The loss of the network without noise, in nats per token.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    state: State = None
    total = torch.zeros((), dtype=torch.float64, device=device)
    with torch.no_grad():
        for inputs, targets in windows(tokens.to(device), EVALUATION_STREAMS, EVALUATION_LENGTH):
            logits, state = model(inputs, state)
            total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    model.train(training)
    return total.item() / (len(tokens) - 1)


class Average:
    """The exponential average of a model's weights, kept beside it.

    After update n the weights of update i count in proportion to DECAY^(n - i).

    Attributes:
        model: A copy of the model, with the averaged weights.
    """

    def __init__(self, model: nn.Module) -> None:
        """Begin with nothing averaged.

        Args:
            model: The model that is trained.
        """
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take a model's present weights in.

        Args:
            model: The model that is trained.
        """
        self._updates += 1
        share = (1 - DECAY) / (1 - DECAY**self._updates)  # the first takes the average over
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), share)

    def end_epoch(self, updates: int) -> None:
        """Begin anew, if hardly anything of what came before the epoch is left.

        So a checkpoint need not hold the average, which would double it.

        Args:
            updates: How many there were in the epoch.
        """
        if DECAY**updates < FORGOTTEN:
            self._updates = 0

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint has to hold; None if nothing."""
        if not self._updates:
            return None
        return {"updates": self._updates, "model": self.model.state_dict()}

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state` gave.
        """
        if state:
            self._updates = state["updates"]
            self.model.load_state_dict(state["model"])


@contextmanager
def _conditions() -> Iterator[None]:
    """What a training takes place under."""
    with float32_precision(), values_unchecked(), warnings.catch_warnings():
        # cuDNN wants weights in one piece of memory; dropped weights are new at each update.
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous")
        yield


@_conditions()
def train(
    run: Run,
    checkpoint: Path,
    *,
    device: torch.device | str = "cpu",
    stop: Callable[[float], bool] = lambda seconds: False,
    observe: Callable[[Progress], None] = lambda progress: None,
    observe_every: float = 0.0,
) -> Record:
    """Train from the beginning, or from the checkpoint if there is one of this very run.

    A checkpoint that is damaged is named on standard error and set aside, as `NAME.damaged`.

    On a CPU, with one number of threads, the outcome is the same to the last bit, however often the
    run is stopped and taken up again; a GPU adds some numbers up in another order each time. All
    rules are computed in the same precision, on a GPU too, where PyTorch's default for an LSTM is a
    lower one than the derived rules need.

    Args:
        run: What to train.
        checkpoint: File for the state after each epoch; removed by the caller.
        device: Where to train.
        stop: Asked after each epoch, with the seconds it took, whether to stop here.
        observe: Called after updates with how far the run is.
        observe_every: Seconds between two such reports, each of which waits for a GPU.

    Returns:
        The record of the run: finished, diverged, or stopped.

    Raises:
        DataError: If the text is not there and cannot be fetched.
        StorageError: If the checkpoint cannot be written or read.
    """
    device = torch.device(device)
    setting, config = run.setting, run.config
    parts, vocab_size = texts(setting, run.seed)
    parts = {name: tokens.to(device) for name, tokens in parts.items()}
    torch.manual_seed(run.seed)
    model = run.task.model(vocab_size, **setting.model).to(device)
    optimizer = _optimizer(setting, model)
    average = Average(model)
    noise = torch.Generator(device).manual_seed(1_000_000 + run.seed)
    epochs: list[dict[str, Any]] = []
    sessions: list[dict[str, Any]] = []
    saved = _load(checkpoint, config)
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        noise.set_state(saved["noise"])
        average.load(saved["average"])
        epochs, sessions = saved["epochs"], saved["sessions"]
    precision = {} if device.type == "cpu" else {"precision": "float32, no TF32"}
    sessions.append({"from_epoch": len(epochs) + 1, **session(device), **precision})

    reported = -math.inf

    def record(status: str, final: dict[str, float]) -> Record:
        return Record(run.name, config, status, sessions, epochs, final)

    def report(share: float, loss: Tensor) -> None:
        nonlocal reported
        if time.monotonic() - reported < observe_every:
            return
        reported = time.monotonic()
        looks = [row["valid_perplexity"] for row in epochs if "valid_perplexity" in row]
        ppl = looks[-1] if looks else math.nan
        observe(Progress(run.name, len(epochs) + 1, setting.epochs, share, loss.item(), ppl))

    try:
        while len(epochs) < setting.epochs:
            started = time.perf_counter()
            epoch = len(epochs) + 1
            row = {
                "epoch": epoch,
                **_epoch(run, model, average, optimizer, parts["train"], epoch, noise, report),
            }
            row["seconds"] = time.perf_counter() - started
            if epoch % setting.evaluate_every == 0 or epoch == setting.epochs:
                row |= _look(model, parts) | {
                    f"averaged_{name}": value for name, value in _look(average.model, parts).items()
                }
            epochs.append(row)
            average.end_epoch(int(row["updates"]))
            state = {
                "config": config,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "noise": noise.get_state(),
                "average": average.state(),
                "epochs": epochs,
                "sessions": sessions,
            }
            write_whole(checkpoint, functools.partial(torch.save, state))
            if stop(time.perf_counter() - started) and epoch < setting.epochs:
                return record(f"stopped after epoch {epoch}", {})
        final = {
            f"{part}_perplexity": _perplexity(evaluate(model, parts[part]))
            for part in ("train", "valid", "test")
        }
    except Divergence as error:
        return record(f"diverged: epoch {len(epochs) + 1}, {error}", {})
    return record("finished", final)


def _look(model: nn.Module, parts: dict[str, Tensor]) -> dict[str, float]:
    """How well a network without noise does: its fit, and its prediction of unseen text."""
    fit = evaluate(model, parts["train"][:FIT_TOKENS])
    valid, test = (evaluate(model, parts[part]) for part in ("valid", "test"))
    return {
        "train_loss": fit,
        "valid_loss": valid,
        "valid_perplexity": _perplexity(valid),
        "test_perplexity": _perplexity(test),
    }


def _epoch(
    run: Run,
    model: nn.Module,
    average: Average,
    optimizer: torch.optim.Optimizer,
    text: Tensor,
    epoch: int,
    noise: torch.Generator,
    report: Callable[[float, Tensor], None],
) -> dict[str, float]:
    """One pass over the text; returns the means over its updates, of a part where it was taken."""
    setting = run.setting
    # Of seed and epoch only: every rule sees the same windows.
    lengths = torch.Generator().manual_seed(1_000 * run.seed + epoch)
    cuts = windows(
        text,
        setting.batch_size,
        setting.length,
        generator=lengths if setting.vary_length else None,
    )
    stream = math.ceil((len(text) - 1) / setting.batch_size)
    left = (setting.epochs - epoch + 1) / setting.epochs  # from 1 to 1/epochs
    rate = setting.lr * setting.lr_scale * (left if setting.lr_falls else 1.0)
    sums: defaultdict[str, Tensor | float] = defaultdict(float)  # on the device, in float64
    counts: defaultdict[str, int] = defaultdict(int)  # an update may lack a part
    state: State = None
    done = updates = 0
    model.train()
    update = Update(run.rule, generator=noise, carry=True)  # counts from the epoch's first
    for inputs, targets in cuts:
        optimizer.zero_grad()
        update.backward(NoisyLoss(model, (inputs, state), "cross_entropy", targets))
        state = detach(update.output[1])
        norm = nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
        length = inputs.shape[1]
        for group in optimizer.param_groups:
            # Merity et al. 2017: as much for a word in a short window as for one in a long one.
            group["lr"] = rate * length / setting.length
        optimizer.step()
        average.update(model)
        done, updates = done + length, updates + 1
        for name, value in update.parts.items():
            sums[name] += value.double()
            counts[name] += 1
        sums["gradient_norm"] += norm.double()
        sums["clipped"] += norm > setting.clip
        if updates % LOOK_EVERY == 0:
            _require_finite(sums["gradient_norm"])
        report(done / stream, update.parts["objective"])
    _require_finite(sums["gradient_norm"])
    means = {name: float(total) / counts.get(name, updates) for name, total in sums.items()}
    return {"updates": updates, **means}


def _require_finite(norms: Tensor | float) -> None:
    if not math.isfinite(float(norms)):
        raise Divergence("the gradient's norm is not finite")


def _perplexity(loss: float) -> float:
    if not loss < 700:  # NaN, or its exponential overflows
        raise Divergence(f"the loss is {loss:.0f} nats")
    return math.exp(loss)


def _optimizer(setting: Setting, model: nn.Module) -> torch.optim.Optimizer:
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    return kinds[setting.optimizer](
        model.parameters(), lr=setting.lr, weight_decay=setting.weight_decay
    )


def _load(path: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """A checkpoint, if there is one and it is of this configuration; one that is damaged goes."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError.of(path, error) from error
    try:
        # `torch.load` believes numbers whose bits have changed on the disk.
        damaged = zipfile.ZipFile(io.BytesIO(content)).testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} in it has changed since it was written")
        saved: dict[str, Any] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
        saved.setdefault("average", None)  # of an older version
        if missing := CHECKPOINT - saved.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except MemoryError:
        raise
    except Exception as error:  # readers of damaged files raise whatever they stumble over
        aside = path.with_name(f"{path.name}.damaged")
        os.replace(path, aside)
        print(
            f"dropreg: {path} is damaged ({error or repr(error)}); it is set aside as "
            f"{aside.name}, and its run begins anew.",
            file=sys.stderr,
        )
        return None
    return saved if saved["config"] == config else None
