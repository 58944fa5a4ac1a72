"""What is timed: models with a batch of random data, at three sizes of the same code."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg import shared_dropout
from dropreg.book.models import MLP, LSTMLanguageModel, TransformerLanguageModel

SIZES = ("tiny", "small", "full")


class CNN(nn.Module):
    """Three convolutions with batch norm, each followed by dropout of whole channels."""

    def __init__(self, width: int, classes: int, p: float, channels: int = 3) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 2 * width)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, widths[1:]))
        self.dropout, self.head = nn.Dropout2d(p), nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.max_pool2d(self.dropout(norm(convolution(x)).relu()), 2)
        return self.head(x.mean((2, 3)))


class WeightMLP(nn.Module):
    """A perceptron with dropout on its weights: there R_approx is a sum of GGN diagonals."""

    def __init__(self, inputs: int, width: int, classes: int, p: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, classes),
        )  # fmt: skip
        self.p = p

    def weights(self) -> list[Tensor]:
        """What is dropped: all but the biases."""
        return [layer.weight for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                weight = shared_dropout(layer.weight, self.p, self.training)
                x = F.linear(x, weight, layer.bias)
            else:
                x = layer(x)
        return x


class Stack(nn.Module):
    """As many sites as asked for, in layers that differ in nothing else."""

    def __init__(self, width: int, depth: int, sites: int, p: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.dropout, self.sites = nn.Dropout(p), sites

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x).tanh()
            x = self.dropout(x) if i < self.sites else x
        return x


@dataclass(frozen=True)
class Workload:
    """A model and the shape of its batch.

    Attributes:
        kind: Which model; a key of the table below.
        dims: Its dimensions, and those of the batch.
        p: Dropout probability of every site.
    """

    kind: str
    dims: Mapping[str, int]
    p: float = 0.4

    def changed(self, **dims: int) -> Workload:
        """The same workload with other dimensions."""
        return replace(self, dims={**self.dims, **dims})

    def build(self, device: torch.device, *, noisy: bool = True) -> tuple[nn.Module, Any, Tensor]:
        """The model in train mode, its inputs and its targets; without dropout if not `noisy`."""
        torch.manual_seed(0)
        model, inputs, targets = _KINDS[self.kind](self.dims, self.p if noisy else 0.0)
        return model.to(device).train(), inputs.to(device), targets.to(device)


Built = tuple[nn.Module, Tensor, Tensor]


def _mlp(d: Mapping[str, int], p: float) -> Built:
    model = MLP(d["inputs"], 10, width=d["width"], input_p=p, hidden_p=p)
    return model, torch.rand(d["batch"], d["inputs"]), torch.randint(10, (d["batch"],))


def _weight_mlp(d: Mapping[str, int], p: float) -> Built:
    model = WeightMLP(d["inputs"], d["width"], 10, p)
    return model, torch.rand(d["batch"], d["inputs"]), torch.randint(10, (d["batch"],))


def _cnn(d: Mapping[str, int], p: float) -> Built:
    x = torch.randn(d["batch"], 3, d["pixels"], d["pixels"])
    return CNN(d["width"], 10, p), x, torch.randint(10, (d["batch"],))


def _stack(d: Mapping[str, int], p: float) -> Built:
    x = torch.randn(d["batch"], d["width"])
    y = torch.randint(d["width"], (d["batch"],))
    return Stack(d["width"], d["depth"], d["sites"], p), x, y


def _text(d: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    text = torch.randint(d["vocab"], (d["batch"], d["length"] + 1))
    return text[:, :-1], text[:, 1:]


def _lstm(d: Mapping[str, int], p: float) -> Built:
    ps = dict.fromkeys(("embedding_p", "hidden_p", "output_p", "weight_p"), p)
    sizes = {"embedding_size": d["embedding"], "hidden_size": d["width"], "depth": d["depth"]}
    return LSTMLanguageModel(d["vocab"], **sizes, **ps), *_text(d)


def _transformer(d: Mapping[str, int], p: float) -> Built:
    sizes = {"width": d["width"], "heads": d["heads"], "inner": 4 * d["width"], "depth": d["depth"]}
    return TransformerLanguageModel(d["vocab"], **sizes, p=p, attention_p=p), *_text(d)


_KINDS: Mapping[str, Callable[[Mapping[str, int], float], Built]] = {
    "mlp": _mlp,
    "weight-mlp": _weight_mlp,
    "cnn": _cnn,
    "stack": _stack,
    "lstm": _lstm,
    "transformer": _transformer,
}


def _transformers(words: int, **tiny: int) -> dict[str, Workload]:
    base = {"heads": 8, "depth": 6, "vocab": words}
    dims = {
        "tiny": {"width": 8, "heads": 2, "depth": 2, "batch": 2, "length": 6, **tiny},
        "small": {**base, "width": 128, "vocab": words // 5, "batch": 4, "length": 64},
        "full": {**base, "width": 512, "batch": 2, "length": 256},
    }
    return {size: Workload("transformer", dims[size], 0.1) for size in SIZES}


def _lstms(small: Mapping[str, int], full: Mapping[str, int]) -> dict[str, Workload]:
    tiny = {"embedding": 8, "width": 12, "depth": 2, "vocab": 40, "batch": 2, "length": 6}
    dims = {"tiny": tiny, "small": small, "full": full}
    return {size: Workload("lstm", dims[size]) for size in SIZES}


_RECORDED_LSTM = {
    "embedding": 128, "width": 128, "depth": 2, "vocab": 1000, "batch": 10, "length": 35,
}  # fmt: skip
"""The model of the recorded trainings at size small."""

WORKLOADS: Mapping[str, Mapping[str, Workload]] = {
    "mlp": {
        "tiny": Workload("mlp", {"inputs": 12, "width": 8, "batch": 4}),
        "small": Workload("mlp", {"inputs": 784, "width": 256, "batch": 128}),
        "full": Workload("mlp", {"inputs": 784, "width": 1024, "batch": 512}),
    },
    "weight-mlp": {
        "tiny": Workload("weight-mlp", {"inputs": 12, "width": 8, "batch": 4}),
        "small": Workload("weight-mlp", {"inputs": 64, "width": 64, "batch": 64}),
        "full": Workload("weight-mlp", {"inputs": 784, "width": 256, "batch": 128}),
    },
    "cnn": {
        "tiny": Workload("cnn", {"width": 4, "pixels": 8, "batch": 4}, 0.2),
        "small": Workload("cnn", {"width": 16, "pixels": 16, "batch": 32}, 0.2),
        "full": Workload("cnn", {"width": 64, "pixels": 32, "batch": 64}, 0.2),
    },
    "lstm-small": _lstms(_RECORDED_LSTM, _RECORDED_LSTM),
    "lstm-paper": _lstms(
        {"embedding": 200, "width": 400, "depth": 3, "vocab": 2000, "batch": 10, "length": 35},
        {"embedding": 400, "width": 1150, "depth": 3, "vocab": 10_000, "batch": 20, "length": 70},
    ),
    "transformer-10k": _transformers(10_000, vocab=40),
    "transformer-50k": _transformers(50_000, vocab=60),
}
"""For each name the workload at each size. The issue's own sizes are "full"."""

GROWTH: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "batch": ("mlp", (32, 128, 512, 2048)),
    "width": ("mlp", (64, 256, 1024)),
    "length": ("lstm-small", (10, 35, 140)),
    "vocab": ("lstm-small", (1000, 5000, 20_000)),
    "sites": ("stack", (1, 4, 16)),
}
"""For each dimension the workload at size small whose dimension is changed, and its values."""

STACK = Workload("stack", {"width": 256, "depth": 16, "sites": 1, "batch": 128})
"""The workload of the growth with the number of sites."""
