"""The default method's loss in one sweep over the logits."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dropreg import CrossEntropy, replace_dropout
from dropreg.errors import InputError
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


OPTIONS: list[dict[str, Any]] = [
    {},
    {"ignore_index": 2},
    {"label_smoothing": 0.1},
    {"reduction": "sum", "ignore_index": 2},
    {"normalizer": torch.tensor(11.0)},
    {"shift": True, "label_smoothing": 0.1},
    {"class_dim": 1},
    {"weight": "random"},
    {"weight": "random", "ignore_index": 2, "class_dim": 1},
    {"weight": "random", "label_smoothing": 0.1},  # which is left to autograd
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
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
    if options.get("class_dim") == 1 and len(shape) > 2:
        logits = logits.movedim(-1, 2)
    if options.get("shift") and len(shape) == 2:
        logits = logits[:, None]
    up, down = (end.requires_grad_() for end in logits.unbind())
    if options.get("weight"):
        options = options | {"weight": torch.rand(shape[-1], generator=generator)}
    targets = torch.randint(4, shape[:-1], generator=generator)
    targets.view(-1)[:2] = torch.tensor([1, 2])
    targets = targets[None] if options.get("shift") and len(shape) == 2 else targets

    class Own(CrossEntropy):
        """A subclass may change any part, so it is taken apart by autograd."""

    results = []
    for criterion in (CrossEntropy(**options), Own(**options)):
        parts = pair(criterion, up, down, targets, step=0.1, explicit=0.7, implicit=1.3)
        results.append([*parts, *torch.autograd.grad(3 * parts.total, (up, down))])
    torch.testing.assert_close(*results)


NETWORK = torch.nn.Sequential(
    torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3)
).double()
X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double(), torch.arange(6) % 3


def penalty(loss: Any) -> Tensor:
    """The squared norm of the gradient of the default method's loss."""
    total = replace_dropout(NETWORK, loss=loss, generator=torch.Generator().manual_seed(0))
    grads = torch.autograd.grad(
        total.loss(X, Y), list(NETWORK.parameters()), create_graph=not isinstance(loss, str)
    )
    return sum((grad.square().sum() for grad in grads), torch.zeros(()))


def test_a_second_derivative_is_right_or_refused() -> None:
    """Against finite differences of the fused gradient, which is right."""
    with pytest.raises(InputError, match=r"differentiated once.*CrossEntropy\(fused=False\)"):
        penalty(CrossEntropy())
    params = list(NETWORK.parameters())
    slopes = torch.autograd.grad(penalty(CrossEntropy(fused=False)), params)
    for parameter, slope in zip(params, slopes, strict=True):
        flat, numeric = parameter.detach().view(-1), torch.zeros_like(slope).view(-1)
        for i in range(len(flat)):
            ends = []
            for step in (1e-5, -2e-5):
                flat[i] += step
                ends.append(penalty("cross_entropy").detach())
            flat[i] += 1e-5
            numeric[i] = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(slope.view(-1), numeric, rtol=1e-5, atol=1e-6)


def test_probabilities_are_left_to_autograd() -> None:
    up, down = torch.randn(2, 5, 3).double().unbind()
    soft = torch.rand(5, 3).double().softmax(-1)
    parts = pair(CrossEntropy(), up, down, soft, step=0.1, explicit=0.0, implicit=1.0)
    ends = [torch.nn.functional.cross_entropy(end, soft) for end in (up, down)]
    torch.testing.assert_close(parts.implicit, (ends[0] - ends[1]) / 0.2)
