"""What every check is made of: comparisons, messages, and what a student's function may do."""

import pickle
import re

import numpy as np
import pytest
import torch

from dropreg.book.checks import Answer, Mistake, Numbers, check, expect, rounds
from dropreg.book.checks.core import as_numbers


def failing(body, *args):
    """The mistake that a function shows."""
    with pytest.raises(Mistake) as caught:
        Answer("f", lambda seed, given: body(*given))(*args)
    return caught.value


class TestMistake:
    def test_words_and_numbers_are_apart(self):
        mistake = Mistake("too large.", "(You have 3.)")
        assert str(mistake) == "too large. (You have 3.)"
        assert mistake.public == "too large."
        assert mistake._render_traceback_() == ["✗ too large. (You have 3.)"]

    def test_it_comes_through_a_pipe(self):
        mistake = pickle.loads(pickle.dumps(Mistake("too large.", "(You have 3.)")))
        assert (str(mistake), mistake.public) == ("too large. (You have 3.)", "too large.")

    def test_a_check_says_which_numbers_showed_it(self):
        @check
        def one(answer: Answer, n: Numbers) -> None:
            """It is one."""
            expect("the value", answer(), 1.0)

        for seed in (0, 5):
            with pytest.raises(Mistake) as caught:
                one(lambda: 2.0, seed=seed)
            assert caught.value.seed == seed

    def test_the_text_of_an_error_is_not_public(self):
        def body(q):
            raise ValueError(f"q is {q}")

        mistake = failing(body, 0.321)
        assert "q is 0.321" in str(mistake)
        assert mistake.public == "`f` stopped with an error: ValueError."

    def test_it_is_said_in_which_given_function_an_error_arose(self):
        from dropreg.book.data import load_corpus

        def f():
            return load_corpus("no such text")

        with pytest.raises(Mistake) as caught:
            Answer.local(f)()
        assert re.search(r"in `\w+`, which it calls", str(caught.value))
        assert "which it calls" not in caught.value.public

    def test_the_name_of_an_own_error_is_not_public(self):
        def body(q):
            raise type(f"E{q}", (Exception,), {})

        mistake = failing(body, 0.321)
        assert "E0.321" in str(mistake)
        assert "321" not in mistake.public


class TestUnwritten:
    def test_the_function_itself(self):
        def f():
            raise NotImplementedError

        with pytest.raises(Mistake, match="`f` is not written yet"):
            Answer.local(f)()

    def test_a_function_that_it_calls(self):
        def helper():
            raise NotImplementedError()

        def f():
            return helper()

        with pytest.raises(Mistake, match="`f` calls a function that is not written") as caught:
            Answer.local(f)()
        assert "`helper`" in str(caught.value)
        assert "helper" not in caught.value.public

    def test_an_operation_that_pytorch_lacks_is_an_error_like_others(self):
        def f():
            raise NotImplementedError("not implemented for 'Bool'")

        with pytest.raises(Mistake, match="stopped with an error: NotImplementedError"):
            Answer.local(f)()


class TestExpect:
    def test_the_public_words_hold_no_number_of_the_case(self):
        with pytest.raises(Mistake) as caught:
            expect("the mean", 2.25, 1.125, at="q = 0.375")
        assert "2.25" in str(caught.value)
        assert "at q = 0.375" in str(caught.value)
        assert caught.value.public == "the mean: that is not what theory says."

    def test_a_mistake_is_named_where_it_is_near_and_not_at_the_edge(self):
        for value, named in ((2.0, True), (2.3, True), (2.45, False), (5.0, False)):
            with pytest.raises(Mistake) as caught:
                expect("x", value, 0.0, error=0.1, mistakes={"it is doubled.": 2.0})
            assert ("doubled" in str(caught.value)) is named, value

    def test_a_mistake_has_an_error_of_its_own(self):
        with pytest.raises(Mistake, match="doubled"):
            expect("x", 2.9, 0.0, error=0.1, mistakes={"it is doubled.": (2.0, 0.3)})

    def test_two_mistakes_that_cannot_be_told_apart_are_both_named(self):
        with pytest.raises(Mistake, match=r"one\. Or: two\."):
            expect("x", 2.0, 0.0, error=0.1, mistakes={"two.": 2.1, "one.": 2.0})

    def test_what_follows_from_an_earlier_mistake_passes(self):
        expect("x", 2.0, 1.0, follows=[3.0, 2.0])
        with pytest.raises(Mistake):
            expect("x", 2.5, 1.0, follows=[3.0, 2.0])

    def test_rounding_is_relative_to_a_size(self):
        expect("a mean of 0", 1e-5, 0.0, size=1.0)
        with pytest.raises(Mistake):
            expect("a mean of 0", 1e-5, 0.0)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, -float("inf")]])
    def test_what_is_no_number_passes_nowhere(self, value):
        with pytest.raises(Mistake):
            expect("x", value, value, error=float("inf"))


class TestNumbers:
    @pytest.mark.parametrize(
        "value", [2, 2.0, True + 1, np.float32(2), torch.tensor([2.0]), [[2.0]], np.array([2.0])]
    )
    def test_one_number_may_be_an_array_of_one(self, value):
        assert as_numbers("x", value, shape=()) == 2

    def test_lists_of_tensors_of_any_depth(self):
        rows = [torch.ones(2, requires_grad=True), torch.zeros(2)]
        assert as_numbers("x", (rows, rows), shape=(2, 2, 2)).tolist() == [[[1, 1], [0, 0]]] * 2

    @pytest.mark.parametrize(
        "value", [None, "2", {}, object(), [1, [2]], [torch.ones(2), torch.ones(3)], 1j]
    )
    def test_what_is_none_is_refused(self, value):
        with pytest.raises(Mistake):
            as_numbers("x", value)

    def test_a_function_may_change_what_it_is_given(self):
        given = torch.ones(3).expand(2, 3), [torch.ones(2)]

        def f(first, rest):
            first.zero_()
            rest[0].requires_grad_().detach().zero_()
            rest.clear()
            return first

        assert Answer.local(f)(*given).sum() == 0
        assert given[0].sum() == 6
        assert given[1][0].sum() == 2


def test_a_check_of_several_rounds_draws_new_numbers_for_each():
    drawn = []

    @rounds(3)
    def three(answer: Answer, n: Numbers) -> None:
        """Three rounds."""
        drawn.append(n.uniform(0, 1))
        answer()

    three(lambda: None)
    assert len(set(drawn)) == 3
