"""DistributedDataParallel on two processes: gradients of one large batch, each with its noise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DistributedSampler

import dropreg

pytest.importorskip("transformers")
pytest.importorskip("lightning")
pytest.importorskip("accelerate")
import test_accelerate as accelerating
import test_lightning as lightning
import test_transformers as hugging

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("two_processes.py")
ROOT = SCRIPT.parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *launch, str(SCRIPT), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def both(folder, name):
    return [torch.load(folder / f"{name}_{rank}.pt") for rank in range(2)]


def shares(data, update):
    """The batches of each process in an update of transformers: they are dealt out in turn."""
    size = 2 * hugging.MICRO * hugging.ACCUMULATED
    rows = data[update * size : (update + 1) * size]
    batches = [hugging.batch(rows[i : i + hugging.MICRO]) for i in range(0, size, hugging.MICRO)]
    return batches[::2], batches[1::2]


def test_transformers_without_effects(results):
    torch.manual_seed(0)
    model, data = hugging.gpt2(3).double().eval(), hugging.examples("gpt2", 24)
    for seen, logs in both(results, "clean"):
        for update in range(2):
            rows = data[12 * update : 12 * update + 12]
            loss = F.cross_entropy(*hugging.logits_and_labels("gpt2", model, rows))
            wanted = list(torch.autograd.grad(loss, list(model.parameters())))
            torch.testing.assert_close(seen[update], wanted, rtol=1e-9, atol=1e-12)
            assert logs[update]["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_transformers_with_both_effects(results):
    torch.manual_seed(0)
    model, data = hugging.gpt2(3).double(), hugging.examples("gpt2", 24)
    criterion = dropreg.CrossEntropy(shift=True)
    objectives = [
        dropreg.replace_dropout(
            model, loss=criterion, generator=torch.Generator().manual_seed(9 + rank)
        )
        for rank in range(2)
    ]
    found = both(results, "both")
    for update in range(2):
        dealt = shares(data, update)
        counts = [criterion.counted(b["labels"]).sum() for share in dealt for b in share]
        criterion.normalizer = sum(counts)
        model.zero_grad()
        clean = 0.0
        for objective, share in zip(objectives, dealt, strict=True):
            for inputs in share:
                labels = inputs.pop("labels")
                objective.loss(inputs, labels).backward()
                clean += objective.parts["clean"].item()
        wanted = [p.grad for p in model.parameters()]
        for seen, logs in found:
            torch.testing.assert_close(seen[update], wanted)
            assert logs[update]["loss_clean"] == pytest.approx(clean, rel=1e-6)


@pytest.mark.parametrize(
    "path", ["both/checkpoint-2/dropreg_noise_{}.pth", "accelerate/noise_{}.pt"]
)
def test_each_process_saves_its_own_noise(results, path):
    states = [torch.load(results / path.format(rank)) for rank in range(2)]
    assert states[0]["done"] == states[1]["done"] > 0
    assert not torch.equal(states[0]["generator"], states[1]["generator"])


def in_one_process(net, batches, seed):
    """Two halves of each batch, each with its noise: gradients in a plain loop."""
    noises = [torch.Generator().manual_seed(seed + rank) for rank in range(2)]
    objectives = [dropreg.replace_dropout(net, generator=noise) for noise in noises]
    optimizer, gradients = torch.optim.SGD(net.parameters(), lr=0.1), []
    for halves in batches:
        optimizer.zero_grad()
        for objective, half in zip(objectives, halves, strict=True):
            (objective.loss(*half) / 2).backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
        optimizer.step()
    return gradients


def test_lightning(results):
    """Its sampler, PyTorch's own, shuffles rows and deals them out."""
    inputs, targets = lightning.INPUTS.double(), lightning.TARGETS
    samplers = [DistributedSampler(inputs, num_replicas=2, rank=rank) for rank in range(2)]
    dealt = [torch.tensor(list(sampler)).split(lightning.SIZE) for sampler in samplers]
    rows = zip(*dealt, strict=True)
    batches = [[(inputs[half], targets[half]) for half in halves] for halves in rows]
    torch.set_default_dtype(torch.float64)
    try:
        wanted = in_one_process(lightning.network(), batches, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    for found in both(results, "lightning"):
        torch.testing.assert_close(found, wanted)


def test_accelerate(results):
    """Its sampler deals out batches."""
    rows = [[slice(s + 4 * rank, s + 4 * rank + 4) for rank in range(2)] for s in (0, 8, 16)]
    inputs, targets = accelerating.INPUTS, accelerating.TARGETS
    net = accelerating.network()
    in_one_process(net, [[(inputs[h], targets[h]) for h in halves] for halves in rows], 42)
    for found in both(results, "accelerate"):
        torch.testing.assert_close(found, [p.detach() for p in net.parameters()])
