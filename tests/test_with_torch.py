"""Training steps together with the rest of PyTorch: compile, DDP, accumulation, and its memory."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dropreg
from dropreg import dropout_k_loss, replace_dropout
from dropreg.book.models import LSTMLanguageModel

METHODS = ("central", "even_odd")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 3))


def batch(rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 4, generator=generator)[rows], (torch.arange(8) % 3)[rows]


HALVES = (slice(0, 4), slice(4, 8))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    assert all(g is not None for g in found)
    return found


def loss_of(model: nn.Module, method: str, seed: int, rows: slice) -> Tensor:
    if method == "dropout_k":
        return dropout_k_loss(model, *batch(rows), 4, chunk=2, generator=seeded(seed))
    return replace_dropout(model, method=method, generator=seeded(seed)).loss(*batch(rows))


# PyTorch warns of its own parts while it traces (jit, .grad of a loss), and takes it for an error.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", [*METHODS, "sampled_labels", "dropout_k"])
def test_whole_step_compiled(method: str) -> None:
    """The same loss and the same weights after three steps, forward, backward and optimizer."""
    losses, weights = [], []
    for compiled in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        generator = seeded(2)
        replacement = replace_dropout(
            model, method="central" if method == "dropout_k" else method, generator=generator
        )
        x, y = batch()

        def step(
            model=model, optimizer=optimizer, replacement=replacement, generator=generator, x=x, y=y
        ) -> Tensor:
            optimizer.zero_grad()
            if method == "dropout_k":
                loss = dropout_k_loss(model, x * 1.5, y, 4, chunk=2, generator=generator)
            else:
                loss = replacement.loss(x * 1.5, y)
            (2 * loss).backward()
            optimizer.step()
            return loss.detach()

        run = torch.compile(step, backend="eager") if compiled else step
        losses.append(torch.stack([run() for _ in range(3)]))
        weights.append(list(model.parameters()))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("method", [*METHODS, "dropout_k"])
def test_gradients_accumulate(method: str) -> None:
    """Two micro-batches give the gradient of the mean of their losses."""
    model = network()
    whole = sum(loss_of(model, method, i, rows) for i, rows in enumerate(HALVES)) / 2
    whole.backward()
    expected = gradients(model)
    for i, rows in enumerate(HALVES):
        (loss_of(model, method, i, rows) / 2).backward()
    torch.testing.assert_close(gradients(model), expected)


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    model = nn.parallel.DistributedDataParallel(network())
    found = {}
    for method in (*METHODS, "sampled_labels", "dropout_k"):
        for _ in range(2):  # the reducer rebuilds its buckets after the first step
            model.zero_grad()
            loss_of(model, method, rank, HALVES[rank]).backward()
        found[method] = gradients(model)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    ours = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for method, found in ours[0].items():
        model = network()
        (sum(loss_of(model, method, i, rows) for i, rows in enumerate(HALVES)) / 2).backward()
        expected = gradients(model)
        torch.testing.assert_close(found, expected, msg=lambda m, name=method: f"{name}: {m}")
        torch.testing.assert_close(ours[1][method], expected)


@pytest.mark.parametrize("method", ["even_odd", "sampled_labels", "dropout_k"])
def test_autocast(method: str) -> None:
    """Losses and weights' gradients are float32, and those of float32 to bf16's three digits."""
    model = network()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(batch()[0]).dtype == torch.bfloat16
        low = loss_of(model, method, 0, slice(None))
    low.backward()
    found = gradients(model)
    full = loss_of(model, method, 0, slice(None))
    full.backward()
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full, rtol=2e-2, atol=0)
    for low_grad, grad in zip(found, gradients(model), strict=True):
        assert low_grad.dtype == torch.float32
        assert (low_grad - grad).norm() < 0.03 * grad.norm()


# ------------------------------------------------------------------------------------------ memory


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, forward and backward."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("method", [*METHODS, "sampled_labels", "jvp", "dropout_k"])
def test_no_tensor_is_larger_than_the_logits(method: str) -> None:
    """Nothing of tokens x vocabulary x sites either: the logits are the largest by far."""
    torch.manual_seed(0)
    model = LSTMLanguageModel.of_size("tiny", 3000)
    text = torch.randint(3000, (4, 21))
    tokens, targets = text[:, :-1], text[:, 1:]
    assert all(p.numel() < 80 * 3000 for p in model.parameters())
    with _Largest() as largest:
        if method == "dropout_k":
            dropout_k_loss(model, tokens, targets, 4, chunk=2).backward()
        else:
            replace_dropout(model, method=method, share=1).loss(tokens, targets).backward()
    assert largest.numel == 80 * 3000
    if method in METHODS:
        with _Largest() as largest:
            replace_dropout(model, method=method, share=0.25).loss(tokens, targets).backward()
        more = {"central": 0.25, "even_odd": 0.5}[method]  # rows of the share, once or twice more
        assert largest.numel == (1 + more) * 80 * 3000


def test_chunked_loss_says_that_it_is_differentiated_once() -> None:
    model = network()
    loss = dropout_k_loss(model, *batch(), 4, chunk=2)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


# ------------------------------------------------------------------------------------------ import

HEAVY = (
    "torch._dynamo", "torch._inductor", "torch.onnx", "sympy", "pandas", "matplotlib", "scipy",
    "sklearn", "seaborn", "pooch", "dropreg.book",
)  # fmt: skip


def test_import_brings_nothing_heavy() -> None:
    """What `import torch` has not loaded already stays out, but for dropreg's own few modules."""
    code = (
        "import sys, torch; before = set(sys.modules); import dropreg;"
        "print(*sorted(set(sys.modules) - before))"
    )
    folder = Path(dropreg.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    new = shown.stdout.split()
    assert "dropreg.updates" in new
    assert not [name for name in new if name.startswith(HEAVY)]
    assert len([name for name in new if not name.startswith("dropreg")]) < 30, new
