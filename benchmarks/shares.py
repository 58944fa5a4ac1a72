"""How small a share of the batch may be: trainings on digits, and what a share adds to the noise.

A fifth of 200 training images carry a random label, so that regularization decides. All arms of a
seed see the same images, first weights and batches, and are compared seed by seed. The variances
are those of one update's gradient on a network that was trained with dropout: of the clean loss
(over batches), of the regularizer (over share and probe), and of the gradient noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import write
from benchmarks.workloads import CNN
from dropreg import NoisyLoss, Rule, Update
from dropreg.book.data import load_digits
from dropreg.book.models import MLP
from dropreg.probes import clean

BATCH = 32
SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
CLIPS = (0.25, 1.0, math.inf)
SEEDS = {"tiny": range(2), "small": range(8), "full": range(8)}
STEPS = {"tiny": 4, "small": 400, "full": 400}
DRAWS = {"tiny": 4, "small": 200, "full": 1000}
BOTH = Rule("explicit", noise="analytic")
ARMS: dict[str, Rule] = {"none": Rule("none"), "dropout": Rule("dropout_k")}
ARMS |= {f"share {share:g}": replace(BOTH, share=share) for share in SHARES}
EVEN_ODD = Rule("even", noise="odd")
ARMS |= {f"even-odd, share {share:g}": replace(EVEN_ODD, share=share) for share in (1.0, 0.25)}


def _mlp(size: str) -> nn.Module:
    return MLP(64, 10, width=8 if size == "tiny" else 128, input_p=0.0, hidden_p=0.5)


def _cnn(size: str) -> nn.Module:
    images = nn.Unflatten(1, (1, 8, 8))
    return nn.Sequential(images, CNN(4 if size == "tiny" else 16, 10, 0.3, channels=1))


MODELS: dict[str, Callable[[str], nn.Module]] = {"mlp": _mlp, "cnn": _cnn}


def _data(seed: int) -> tuple[Any, Tensor]:
    """Digits, and labels of which a fifth are random."""
    digits, generator = load_digits(200, seed=seed), torch.Generator().manual_seed(seed)
    is_random = torch.rand(200, generator=generator) < 0.2
    return digits, torch.where(is_random, torch.randint(10, (200,), generator=generator),
                               digits.train_y)  # fmt: skip


def _batches(seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    digits, labels = _data(seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(labels), (BATCH,), generator=generator)
        yield digits.train_x[rows], labels[rows]


def _train(name: str, rule: Rule, clip: float, seed: int, size: str) -> tuple[nn.Module, Any]:
    """A trained network, and its test loss, in nats, at every twentieth step."""
    digits, labels = _data(seed)
    torch.manual_seed(seed)
    model = MODELS[name](size)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    update = Update(rule, generator=torch.Generator().manual_seed(1_000_000 + seed))
    looks = []
    for step, (x, y) in enumerate(_batches(seed, STEPS[size]), 1):
        optimizer.zero_grad()
        update.backward(NoisyLoss(model.train(), x, "cross_entropy", y))
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if step % 20 == 0 or step == STEPS[size]:
            looks.append(_loss(model, digits.test_x, digits.test_y))
    return model, {"test": looks, "train": _loss(model, digits.train_x, labels)}


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return F.cross_entropy(model.eval()(x), y).item()


def _gradient(model: nn.Module, scalar: Tensor) -> Tensor:
    grads = torch.autograd.grad(scalar, list(model.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in grads]).double()


def _spread(draws: list[Tensor]) -> float:
    """Sum of the variances of a gradient's entries."""
    return torch.stack(draws).var(0).sum().item()


def _variances(name: str, size: str) -> Iterator[dict[str, Any]]:
    model, _ = _train(name, ARMS["dropout"], math.inf, 0, size)
    model.train()
    batches = list(_batches(1, DRAWS[size]))
    losses = [NoisyLoss(model, x, "cross_entropy", y)(clean) for x, y in batches]
    yield {"model": name, "of": "clean", "share": None, "draws": len(batches),
           "variance": _spread([_gradient(model, loss) for loss in losses])}  # fmt: skip
    x, y = batches[0]
    for of, strength, noise_scale in (("explicit", 1.0, 0.0), ("implicit", 0.0, 1.0)):
        for share in SHARES:
            rule = replace(BOTH, strength=strength, noise_scale=noise_scale, share=share)
            update = Update(rule, generator=torch.Generator().manual_seed(0))
            draws, values = [], []
            for _ in range(DRAWS[size]):
                draws.append(_gradient(model, update.loss(NoisyLoss(model, x, "cross_entropy", y))))
                values.append(update.parts[of].item())
            spread = torch.tensor(values).var().item()
            yield {"model": name, "of": of, "share": share, "draws": len(draws),
                   "variance": _spread(draws), "value_variance": spread,
                   "value": sum(values) / len(values)}  # fmt: skip


def shares(size: str, device: torch.device, folder: Path) -> None:
    """Train, and measure the variances."""
    for name in MODELS:
        rows = list(_variances(name, size))
        write(folder / f"share-variance-{name}.json", device,
              {"what": "variance of an update's gradient", "size": size, "rows": rows})  # fmt: skip
        trained = [
            {"model": name, "arm": arm, "clip": str(clip), "seed": seed,
             **_train(name, rule, clip, seed, size)[1]}
            for seed in SEEDS[size] for clip in CLIPS for arm, rule in ARMS.items()
        ]  # fmt: skip
        write(folder / f"shares-{name}.json", device,
              {"what": "trainings by share", "size": size, "steps": STEPS[size],
               "batch": BATCH, "rows": trained})  # fmt: skip
