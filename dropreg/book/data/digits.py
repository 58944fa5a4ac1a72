"""Images that come with a dependency: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dropreg.errors import InputError, needs


@dataclass(frozen=True)
class Digits:
    """A split of scikit-learn's 1,797 handwritten digits.

    Attributes:
        train_x: Training images, (n, 64), float32, pixel values in [0, 1].
        train_y: Their labels, (n,), int64.
        test_x: Test images, (797, 64).
        test_y: Their labels, (797,).
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load_digits(train_size: int = 1000, seed: int = 0) -> Digits:
    """Load scikit-learn's 8x8 digits (UCI, Alpaydin and Kaynak 1998), which come in its wheel.

    Args:
        train_size: Number of training images, from 1 to 1000. The same 797 images, drawn by the
            seed, are the test set for every size.
        seed: Seed of the split.

    Returns:
        The split.

    Raises:
        InputError: If `train_size` is out of range.
        MissingPackageError: If scikit-learn is not installed.

    >>> load_digits(train_size=200).train_x.shape
    torch.Size([200, 64])
    """
    if not 1 <= train_size <= 1000:
        raise InputError(f"train_size is {train_size}; it must lie between 1 and 1000.")
    with needs("book", "load_digits"):
        from sklearn.datasets import load_digits as bundled

    images, labels = bundled(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x = torch.tensor(images, dtype=torch.float32)[order] / 16
    y = torch.tensor(labels, dtype=torch.int64)[order]
    return Digits(x[:train_size], y[:train_size], x[1000:], y[1000:])
