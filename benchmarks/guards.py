"""What the guards cost: a training step with them, and with them patched out, in turns.

``python -m benchmarks.guards``
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import torch
from torch import nn

from dropreg import replace_dropout

WIDTH, BATCH, LAYERS, ROUNDS = 256, 128, 3, 300


def step() -> Callable[[], None]:
    """Forward and backward pass of one training step."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.3)]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    x, y = torch.randn(BATCH, WIDTH), torch.randint(10, (BATCH,))
    replacement = replace_dropout(model)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        replacement.loss(x, y).backward()

    return run


def _no_states(*_: object) -> list[object]:
    return []


def seconds(run: Callable[[], None], *, guarded: bool) -> float:
    """Processor time of one step."""
    with ExitStack() as patches:
        if not guarded:
            patches.enter_context(mock.patch("dropreg.control.draws.states", _no_states))
            for name, result in (("_enter_checkpoints", False), ("_name", "")):
                where = f"dropreg.control.control.Control.{name}"
                patches.enter_context(mock.patch(where, lambda *_, r=result: r))
            patches.enter_context(mock.patch("dropreg.control.audit.Audit.has_met", bool))
        begun = time.process_time()
        run()
        return time.process_time() - begun


def main() -> None:
    """Print the ratio of the two, the median over pairs that are taken in turns."""
    torch.set_num_threads(1)
    run = step()
    pairs = [[seconds(run, guarded=g) for g in (True, False)] for _ in range(ROUNDS)]
    ratio = statistics.median(a / b for a, b in pairs)
    best = [min(times) for times in zip(*pairs, strict=True)]
    print(f"a step of {1e3 * statistics.median(b for _, b in pairs):.2f} ms at width {WIDTH}")
    print(
        f"guards: {ratio - 1:+.1%} (median of {ROUNDS} pairs), {best[0] / best[1] - 1:+.1%} (best)"
    )


if __name__ == "__main__":
    main()
