"""The sites as a reader meets them: a table."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropreg
from dropreg import Sites, find_sites


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Classifier(nn.Module):
    """One dropout of each kind, one of them called twice, one shared by two owners."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)
        self.block = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Dropout1d(0.25), self.drop)
        self.rnn = nn.GRU(3, 4, num_layers=2, dropout=0.5, batch_first=True)
        self.locked = dropreg.LockedDropout(0.2)
        self.off = nn.Dropout(0.0)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:  # (batch, time, 2)
        h = self.block(self.drop(x).transpose(1, 2)).transpose(1, 2)
        h = self.off(self.locked(self.rnn(h[..., :3])[0]))
        return self.head(F.dropout(h, 0.3, self.training)[:, -1])


def test_the_table() -> None:
    torch.manual_seed(0)
    sites = find_sites(Classifier(), randn(5, 7, 2))
    assert repr(sites).splitlines() == [
        "site        kind                shape      p     mask shared",
        "drop        dropout             (5, 7, 2)  0.1   none",
        "block.1     channel dropout     (5, 4, 7)  0.25  over dim 2",
        "drop#2      dropout             (5, 4, 7)  0.1   none",
        "rnn         between GRU layers  (5, 7, 4)  0.5   none",
        "locked      shared dropout      (5, 7, 4)  0.2   over dim 1",
        "Classifier  dropout             (5, 7, 4)  0.3   none",
    ]
    assert len(sites) == 6
    assert [s.variance for s in sites[:2]] == [0.1 / 0.9, 0.25 / 0.75]
    assert isinstance(sites[1:3], Sites)
    assert repr(sites[1:2]).splitlines()[1].startswith("block.1  channel dropout")
    assert sites[-1].name == "Classifier"
    assert sites[3] in sites
    with pytest.raises(IndexError):
        sites[6]
    assert sites[0].dtype == torch.float32
    assert sites[0].device == torch.device("cpu")


def test_sharing_is_said_in_words() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return dropreg.shared_dropout(x, 0.5, self.training, shared_dims=(0, 2))

    (site,) = find_sites(Net(), randn(5, 4, 3))
    assert site.sharing == "over dim 0, 2"
    # A dimension of one entry has nothing to share.
    (site,) = find_sites(Net(), randn(1, 4, 1))
    assert site.sharing == "none"


def test_names_count_calls_from_functional_dropout_too() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for p in (0.1, 0.2, 0.3):
                x = F.dropout(x, p, self.training)
            return x

    assert [s.name for s in find_sites(Net(), randn(6, 4))] == ["Net", "Net#2", "Net#3"]


def test_keyword_arguments_reach_the_model() -> None:
    class Net(nn.Module):
        def forward(self, *, x: Tensor, scale: float = 1.0) -> Tensor:
            return F.dropout(scale * x, 0.5, self.training)

    assert len(find_sites(Net(), x=randn(6, 4), scale=2.0)) == 1
