"""Language-model windows: nothing is lost, nothing occurs twice, the state can be carried."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dropreg.book.data import windows
from dropreg.book.data.batches import IGNORED
from dropreg.errors import InputError

settings.register_profile("dropreg", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("dropreg")


def seeded(seed):
    return None if seed is None else torch.Generator().manual_seed(seed)


@st.composite
def cases(draw):
    batch_size = draw(st.integers(1, 9))
    n = draw(st.integers(batch_size + 1, 300))
    return n, batch_size, draw(st.integers(1, 40)), draw(st.none() | st.integers(0, 1000))


@given(cases())
def test_the_streams_end_to_end_are_the_text(case):
    n, batch_size, length, seed = case
    tokens = torch.arange(1000, 1000 + n)
    got = list(windows(tokens, batch_size, length, generator=seeded(seed)))
    inputs = torch.cat([each.inputs for each in got], 1).flatten()
    targets = torch.cat([each.targets for each in got], 1).flatten()
    counted = targets != IGNORED
    assert torch.equal(inputs[counted], tokens[:-1])
    assert torch.equal(targets[counted], tokens[1:])
    assert int((~counted).sum()) == -(n - 1) % batch_size


@given(cases())
def test_only_the_very_last_column_may_have_gaps(case):
    n, batch_size, length, seed = case
    *before, last = windows(torch.arange(n), batch_size, length, generator=seeded(seed))
    for each in before:
        assert each.inputs.shape == each.targets.shape == (batch_size, each.inputs.shape[1])
        assert (each.targets != IGNORED).all()
        assert each.inputs.shape[1] == length if seed is None else each.inputs.shape[1] >= 5
    assert (last.targets[:, :-1] != IGNORED).all()
    assert (last.targets[:, -1] != IGNORED).any()
    assert torch.all((last.inputs >= 0) & (last.inputs < n))  # safe to look up


def test_a_seed_fixes_the_lengths():
    def lengths(seed):
        got = windows(torch.arange(5000), 2, 30, generator=seeded(seed))
        return [each.inputs.shape[1] for each in got]

    assert lengths(1) == lengths(1)
    assert lengths(1) != lengths(2)


def test_lengths_follow_their_law():
    got = windows(torch.zeros(400_000, dtype=torch.int64), 1, 70, generator=seeded(0))
    lengths = torch.tensor([each.inputs.shape[1] for each in got][:-1], dtype=torch.float64)
    n = len(lengths)
    # int() takes half a token away on average; a normal law mixed from two bases.
    mean = 0.95 * 70 + 0.05 * 35 - 0.5
    deviation = (25 + 0.95 * 0.05 * 35**2) ** 0.5
    assert abs(lengths.mean() - mean) < 4 * deviation / n**0.5  # 4 standard errors
    short = (lengths < 52).double().mean()  # 3.5 deviations from either base
    assert abs(short - 0.05) < 4 * (0.05 * 0.95 / n) ** 0.5


@torch.no_grad()
def test_a_carried_state_gives_the_loss_of_the_whole_text():
    torch.manual_seed(0)
    embedding, lstm = nn.Embedding(11, 4).double(), nn.LSTM(4, 6, batch_first=True).double()
    out = nn.Linear(6, 11).double()
    tokens = torch.randint(11, (101,))
    whole = F.cross_entropy(out(lstm(embedding(tokens[:-1])[None])[0])[0], tokens[1:])

    def mean_loss(batch_size):
        state, total, count = None, 0.0, 0
        for inputs, targets in windows(tokens, batch_size, 7):
            hidden, state = lstm(embedding(inputs), state)
            total += F.cross_entropy(
                out(hidden).flatten(0, 1), targets.flatten(), reduction="sum"
            ).item()
            count += int((targets != IGNORED).sum())
        assert count == 100
        return total / count

    assert mean_loss(1) == pytest.approx(whole.item(), rel=1e-12)
    # Three streams start anew at two more places: another loss, and the same number of targets.
    assert mean_loss(3) != pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("tokens", "batch_size", "length", "says"),
    [
        (torch.zeros(2, 3), 1, 1, r"shape \(2, 3\); it must be a vector"),
        (torch.zeros(9), 0, 1, "batch_size=0"),
        (torch.zeros(9), 1, 0, "length=0"),
        (torch.zeros(4), 4, 1, "4 tokens make 3 pairs, which do not fill 4 streams"),
        (torch.zeros(0), 1, 1, "0 tokens make 0 pairs"),
    ],
)
def test_bad_input_is_refused(tokens, batch_size, length, says):
    with pytest.raises(InputError, match=says):
        next(windows(tokens, batch_size, length))
