"""What checks hand to a student's function and cannot send as numbers: models, text."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["tiny_network"]

TINY_Q = 0.4


def tiny_network(seed: int) -> nn.Sequential:
    """A network whose masks can all be gone through, in train mode.

    Args:
        seed: Seed of its weights.

    Returns:
        3 inputs, 4 tanh units with dropout of probability 0.4, 3 classes, in float64.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(TINY_Q), nn.Linear(4, 3))
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    return model.double()
