"""The models of the experiments: an MLP, and four kinds of language model.

Each is an ordinary ``nn.Module`` that drops through `torch.nn.Dropout`, the ``dropout_p`` of
`torch.nn.functional.scaled_dot_product_attention`, `dropreg.LockedDropout` and
`dropreg.shared_dropout` (on weights and embedding rows). Nothing in it knows of regularizers or of
masks; `dropreg` finds its sites as it finds those of any other model.

The MLP returns logits. A language model returns ``(logits, state)`` from ``model(tokens,
state=None)``: pass the state, detached, to the next call to go on where this one ended. One without
memory returns None for it.
"""

from dropreg.book.models.base import Sized, State, detach
from dropreg.book.models.lstm import LSTMLanguageModel
from dropreg.book.models.mlp import MLP
from dropreg.book.models.qrnn import QRNNLanguageModel
from dropreg.book.models.transformer import TransformerLanguageModel
from dropreg.book.models.transformer_xl import TransformerXL

__all__ = [
    "MLP",
    "LSTMLanguageModel",
    "QRNNLanguageModel",
    "Sized",
    "State",
    "TransformerLanguageModel",
    "TransformerXL",
    "detach",
]
