"""That the comparison agrees on plain PyTorch models, and sees what is wrong."""

import families
import pytest
import torch
from compare import Case, Row, compare
from test_reference import Hidden, P, linear
from torch import Tensor, nn


def last(case: Case) -> Row:
    *_, row = compare(case)
    return row


@pytest.mark.parametrize(
    "build",
    [families.lstm, families.multihead_attention, families.convolutional],
    ids=lambda build: build.__name__,
)
def test_the_library_agrees_with_the_reference(build):
    row = last(build())
    assert (row.verdict, row.wrong, row.crashed) == ("agrees", [], [])
    in_norm = "examples meet in batch norm, whose statistics a share changes"
    assert row.not_compared in ({}, {"share": in_norm})
    assert len(row.errors) + len(row.not_compared) == 9


def test_what_is_not_described_has_to_be_refused():
    row = last(Case(Hidden("noise").double().train(), torch.randn(4, 3, dtype=torch.float64)))
    assert row.verdict == "refused"
    assert set(row.refused) == {"find_sites", "exact", "analytic noise", "replace_dropout"}


def test_another_probability_and_another_weight_are_seen():
    case = linear()
    torch.manual_seed(0)
    other = nn.Sequential(nn.Dropout(P + 0.1), nn.Linear(3, 3)).double().train()
    row = last(Case(case.model, case.inputs, other))
    assert row.verdict == "WRONG"
    assert any(line.startswith("find_sites found") for line in row.wrong)
    assert any(line.startswith("exact") for line in row.wrong)
    with torch.no_grad():
        other[0].p = P
        other[1].weight[0, 0] += 1e-4
    named = {line.partition(":")[0] for line in last(Case(case.model, case.inputs, other)).wrong}
    assert named >= {"exact", "jvp", "central", "analytic noise", "central noise", "even_odd"}


class Routed(nn.Module):
    """Drops once more where the noise is strong."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(P), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(x)
        return self.head(self.drop(h) if (h - x).abs().max() > 0.1 else h)


def test_a_way_that_full_noise_changes_is_not_compared_there():
    x = torch.ones(2, 1, dtype=torch.float64)
    row = last(Case(Routed().double().train(), x))
    assert (row.wrong, row.crashed) == ([], [])
    assert set(row.refused) == {"share"}  # it is tried with noise that is strong, too
    assert set(row.not_compared) == {"even_odd"}
    assert len(row.errors) == 7


def test_a_detached_noise_has_to_be_refused_by_what_differentiates():
    row = last(Case(Hidden("detached").double().train(), torch.randn(4, 3, dtype=torch.float64)))
    assert row.verdict == "refused"
    assert set(row.refused) == {"exact", "analytic noise"}
