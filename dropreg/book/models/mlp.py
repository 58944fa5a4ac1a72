"""A multilayer perceptron with two hidden layers."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from dropreg.book.models.base import Sized
from dropreg.noise import check_probability


class MLP(Sized):
    """Two hidden ReLU layers of one width, dropout on the input and on both.

    "full" is one of the networks that Srivastava et al. (2014) train on MNIST. Weights are normal
    with variance 2 / fan-in, biases 0 (He et al. 2015).

    >>> import torch
    >>> MLP(64, 10, width=32)(torch.rand(5, 64)).shape
    torch.Size([5, 10])
    """

    sizes: ClassVar = {"tiny": {"width": 8}, "small": {"width": 64}, "full": {"width": 1024}}

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        width: int = 64,
        input_p: float = 0.2,
        hidden_p: float = 0.5,
    ) -> None:
        """Set up the layers.

        Args:
            inputs: Number of features of an example.
            classes: Number of logits.
            width: Units of each hidden layer.
            input_p: Dropout probability of the features; Srivastava et al. use 0.2.
            hidden_p: Dropout probability of the hidden units; Srivastava et al. use 0.5.

        Raises:
            ProbabilityError: If a probability is outside [0, 1).
        """
        super().__init__()
        for p in (input_p, hidden_p):
            check_probability(p)
        self.layers = nn.Sequential(
            nn.Dropout(input_p),
            nn.Linear(inputs, width),
            nn.ReLU(),
            nn.Dropout(hidden_p),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(hidden_p),
            nn.Linear(width, classes),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Classify examples.

        Args:
            x: Examples, (batch, inputs).

        Returns:
            Logits, (batch, classes).
        """
        return self.layers(x)
