"""The LSTM language model of Merity, Keskar and Socher (2017), on which the paper experiments."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from dropreg.book.models.recurrent import RecurrentLanguageModel
from dropreg.noise import check_probability, shared_dropout


class WeightDropLSTM(nn.LSTM):
    r"""One LSTM layer with dropout on its hidden-to-hidden weights (DropConnect, Wan et al. 2013).

    One mask holds for all sequences and time steps of a call, so the layer still runs as PyTorch's
    fused kernel. Weights are uniform in :math:`\pm 1/\sqrt{H}`, PyTorch's own way and that of
    Merity et al.
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def __init__(self, input_size: int, hidden_size: int, weight_p: float) -> None:
        """Set up the layer.

        Args:
            input_size: Features of an input.
            hidden_size: Units H.
            weight_p: Probability to drop an entry of the (4 H, H) hidden-to-hidden matrix.

        Raises:
            ProbabilityError: If `weight_p` is outside [0, 1).
        """
        super().__init__(input_size, hidden_size, batch_first=True)
        check_probability(weight_p)
        self.weight_p = weight_p

    def forward(  # type: ignore[override]
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run over a sequence.

        Args:
            x: Inputs, (batch, time, input_size).
            state: Hidden and cell state, each (1, batch, hidden_size); zero if None.

        Returns:
            Outputs (batch, time, hidden_size), and the state after the last of them.
        """
        if state is None:
            zero = x.new_zeros(1, x.shape[0], self.hidden_size)
            state = (zero, zero)
        self.check_forward_args(x, state, None)
        weights = [
            self.weight_ih_l0,
            shared_dropout(self.weight_hh_l0, self.weight_p, self.training),
            self.bias_ih_l0,
            self.bias_hh_l0,
        ]
        # nn.LSTM keeps its weights in a list of its own, so we call what it calls. The constants
        # are: with biases, one layer, no dropout between layers, in training or not, one direction,
        # batch first.
        output, hidden, cell = torch.lstm(
            x, state, weights, True, 1, 0.0, self.training, False, True
        )
        return output, (hidden, cell)


class LSTMLanguageModel(RecurrentLanguageModel):
    """Merity's LSTM: tied weights, locked dropout, weight drop and embedding-row dropout.

    "full" is the paper's size. Its probabilities, the defaults here, are those of Wei, Kakade and
    Ma (2020), all 0.4 and no rows dropped; Merity et al. (2017) use 0.4 on the word vectors, 0.3
    between layers, 0.4 at the output, 0.5 on the weights and 0.1 on the rows.

    >>> model = LSTMLanguageModel.of_size("tiny", 100)
    >>> logits, state = model(torch.randint(100, (2, 7)))
    >>> logits.shape, len(state)
    (torch.Size([2, 7, 100]), 2)
    """

    sizes: ClassVar = {
        "tiny": {"embedding_size": 8, "hidden_size": 12, "depth": 2},
        "small": {"embedding_size": 200, "hidden_size": 200, "depth": 2},
        "full": {"embedding_size": 400, "hidden_size": 1150, "depth": 3},
    }

    def __init__(
        self,
        vocab_size: int,
        *,
        embedding_size: int = 400,
        hidden_size: int = 1150,
        depth: int = 3,
        embedding_p: float = 0.4,
        hidden_p: float = 0.4,
        output_p: float = 0.4,
        weight_p: float = 0.4,
        row_p: float = 0.0,
    ) -> None:
        """Set up the layers.

        Args:
            vocab_size: Number of words.
            embedding_size: Size of a word vector, and of the last layer.
            hidden_size: Units of the other layers.
            depth: Number of LSTM layers, at least 1.
            embedding_p: Probability of the locked dropout on the word vectors.
            hidden_p: Probability of the locked dropout between two layers.
            output_p: Probability of the locked dropout on the last layer's output.
            weight_p: Probability to drop a hidden-to-hidden weight.
            row_p: Probability to drop a word's row of the embedding table.

        Raises:
            ProbabilityError: If a probability is outside [0, 1).
        """
        super().__init__(
            vocab_size,
            embedding_size,
            hidden_size,
            depth,
            lambda _, before, after: WeightDropLSTM(before, after, weight_p),
            embedding_p=embedding_p,
            hidden_p=hidden_p,
            output_p=output_p,
            row_p=row_p,
        )
