"""That the comparison agrees on plain PyTorch models, and sees what is wrong."""

import families
import pytest
import torch
from compare import Case, Row, compare
from test_reference import Hidden, P, linear
from torch import nn


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
    assert len(row.errors) == 8


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
