"""The quasi-recurrent network of Bradbury et al. (2017) as a language model."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropreg.book.models.recurrent import RecurrentLanguageModel
from dropreg.noise import check_probability, shared_dropout


class QRNNLayer(nn.Module):
    r"""A convolution over time and a recurrence without weights (fo-pooling, Section 2).

    With :math:`z_t, f_t, o_t` from a linear map of the last `window` inputs, through tanh and two
    sigmoids:

    .. math:: c_t = f_t \odot c_{t-1} + (1 - f_t) \odot z_t, \qquad h_t = o_t \odot c_t
    """

    def __init__(self, input_size: int, hidden_size: int, window: int, weight_p: float) -> None:
        """Set up the layer, with PyTorch's initialisation of a linear map.

        Args:
            input_size: Features of an input.
            hidden_size: Units H.
            window: How many inputs the convolution sees, this one included.
            weight_p: Probability to drop an entry of the (3 H, window * input_size) weights.

        Raises:
            ProbabilityError: If `weight_p` is outside [0, 1).
        """
        super().__init__()
        check_probability(weight_p)
        self.hidden_size, self.window, self.weight_p = hidden_size, window, weight_p
        self.linear = nn.Linear(window * input_size, 3 * hidden_size)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run over a sequence.

        Args:
            x: Inputs, (batch, time, input_size).
            state: The cell, (batch, hidden_size), and the inputs that the window still sees,
                (batch, window - 1, input_size); zero if None.

        Returns:
            Outputs (batch, time, hidden_size), and the state after the last of them.
        """
        batch, time, features = x.shape
        if state is None:
            cell = x.new_zeros(batch, self.hidden_size)
            past = x.new_zeros(batch, self.window - 1, features)
        else:
            cell, past = state
        padded = torch.cat([past, x], 1)
        windows = torch.cat([padded[:, lag : lag + time] for lag in range(self.window)], -1)
        weight = shared_dropout(self.linear.weight, self.weight_p, self.training)
        z, f, o = F.linear(windows, weight, self.linear.bias).chunk(3, -1)
        z, f, o = z.tanh(), f.sigmoid(), o.sigmoid()
        cells = []
        for forget, new in zip(f.unbind(1), ((1 - f) * z).unbind(1), strict=True):
            cell = forget * cell + new
            cells.append(cell)
        return o * torch.stack(cells, 1), (cell, padded[:, time:])


class QRNNLanguageModel(RecurrentLanguageModel):
    """QRNN layers in Merity's language model, as in Merity, Keskar and Socher (2018).

    The first layer sees two words at a time and the others one. "full" is their network for
    WikiText-103, which Wei, Kakade and Ma (2020) train; the default probabilities are the latter's,
    who drop neither weights nor rows. The adaptive softmax of both is left out: it saves time by
    not computing all logits, and the regularizers need them.

    >>> model = QRNNLanguageModel.of_size("tiny", 100)
    >>> logits, state = model(torch.randint(100, (2, 7)))
    >>> logits.shape
    torch.Size([2, 7, 100])
    """

    sizes: ClassVar = {
        "tiny": {"embedding_size": 8, "hidden_size": 12, "depth": 2},
        "small": {"embedding_size": 200, "hidden_size": 200, "depth": 2},
        "full": {"embedding_size": 400, "hidden_size": 2500, "depth": 4},
    }

    def __init__(
        self,
        vocab_size: int,
        *,
        embedding_size: int = 400,
        hidden_size: int = 2500,
        depth: int = 4,
        embedding_p: float = 0.1,
        hidden_p: float = 0.1,
        output_p: float = 0.1,
        weight_p: float = 0.0,
        row_p: float = 0.0,
    ) -> None:
        """Set up the layers.

        Args:
            vocab_size: Number of words.
            embedding_size: Size of a word vector, and of the last layer.
            hidden_size: Units of the other layers.
            depth: Number of QRNN layers, at least 1.
            embedding_p: Probability of the locked dropout on the word vectors.
            hidden_p: Probability of the locked dropout between two layers.
            output_p: Probability of the locked dropout on the last layer's output.
            weight_p: Probability to drop a weight of the convolutions.
            row_p: Probability to drop a word's row of the embedding table.

        Raises:
            ProbabilityError: If a probability is outside [0, 1).
        """
        super().__init__(
            vocab_size,
            embedding_size,
            hidden_size,
            depth,
            lambda i, before, after: QRNNLayer(before, after, 2 if i == 0 else 1, weight_p),
            embedding_p=embedding_p,
            hidden_p=hidden_p,
            output_p=output_p,
            row_p=row_p,
        )
