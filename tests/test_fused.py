"""The default method's loss in one sweep over the logits."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dropreg import CrossEntropy
from dropreg.fused import pair


def test_central_keeps_two_tensors_of_the_logits_size_for_the_backward_pass() -> None:
    up, down = (torch.randn(6, 500, requires_grad=True) for _ in range(2))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    strengths = {"step": 0.1, "explicit": 1.0, "implicit": 1.0}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        pair(CrossEntropy(), up, down, torch.arange(6), **strengths)
    assert sum(numel >= 6 * 500 for numel in kept.values()) == 2


@pytest.mark.parametrize("options", [{}, {"ignore_index": 2}, {"label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 40_000)])  # in one sweep, and in several
@pytest.mark.parametrize("ruled_out", [False, True])
def test_one_sweep_is_the_sum_of_its_parts(
    options: dict[str, Any], shape: tuple[int, ...], ruled_out: bool
) -> None:
    """Values and gradients against autograd through each part by itself."""
    if ruled_out and options.get("label_smoothing"):
        pytest.skip("label smoothing gives infinity for a class that is ruled out")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    logits[1] = logits[0] + 0.1 * logits[1]
    if ruled_out:
        logits[..., 4] = -torch.inf
    up, down = (end.requires_grad_() for end in logits.unbind())
    targets = torch.randint(4, shape[:-1], generator=generator)
    targets.view(-1)[:2] = torch.tensor([1, 2])

    class Own(CrossEntropy):
        """A subclass may change any part, so it is taken apart by autograd."""

    results = []
    for criterion in (CrossEntropy(**options), Own(**options)):
        parts = pair(criterion, up, down, targets, step=0.1, explicit=0.7, implicit=1.3)
        results.append([*parts, *torch.autograd.grad(3 * parts.total, (up, down))])
    torch.testing.assert_close(*results)
