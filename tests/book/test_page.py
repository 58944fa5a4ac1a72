"""What cells put on a page: checks that stop, votes with three outcomes."""

import time

import pytest
import torch

from dropreg.book.page import CheckFailed, came_out, holds, spent


@pytest.mark.parametrize("true", [True, torch.tensor(True), torch.tensor([1.0])])
def test_what_holds_is_printed(true, capsys):
    holds("it does", true)
    assert capsys.readouterr().out == "✓ it does\n"


@pytest.mark.parametrize("false", [False, torch.tensor(False), 0, None])
def test_what_does_not_hold_stops_the_page(false, capsys):
    with pytest.raises(CheckFailed, match="does not hold here: it does"):
        holds("it does", false)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("vote", "option", "said"),
    [
        ("", "up", "What came out: up. n"),
        (None, "up", "What came out: up. n"),
        ("up", "up", "You chose: up; just so.\nWhat came out: up. n"),
        ("down", "up", "You chose: down; it came out otherwise.\nWhat came out: up. n"),
        ("", None, "These runs do not decide: n"),
        (
            "the same",
            None,
            "You chose: the same. Nobody can be right or wrong yet.\nThese runs do not decide: n",
        ),
    ],
)
def test_a_vote_has_three_outcomes(vote, option, said):
    outcome = came_out(vote, option, "n")
    assert repr(outcome) == said
    assert ("data-option" in outcome._repr_html_()) == (option is not None)


def test_an_outcome_is_text_not_markup():
    shown = came_out("<b>", '"<script>', "a < b")._repr_html_()
    assert "<script>" not in shown
    assert 'data-option="&quot;&lt;script&gt;"' in shown


def test_the_cost_of_a_page_is_said(capsys):
    spent(time.process_time() - 7.2, "seeds 0 to 3")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "7 s of one core"
    assert last == "seeds 0 to 3"
