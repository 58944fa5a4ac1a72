"""The HTML of figures that can be moved."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup

from dropreg.book.interactive import INTERACTIVE_KINDS, interactive
from dropreg.errors import InputError


def made(*arguments):
    return BeautifulSoup(interactive(*arguments)._repr_html_(), "html.parser")


def test_data_travel_unchanged_and_cannot_leave_their_element():
    arrays = {"array": np.eye(2), "tensor": torch.eye(2)}
    data = {"text": "</script><!-- & <b>", "list": [1, 2.5], **arrays}
    page = made("masks", data, {"a": [1]}, "A table")
    (script,) = page.find_all("script")
    assert script["type"] == "application/json"
    assert not set("<>&") & set(script.string)
    expected = data | {name: [[1, 0], [0, 1]] for name in arrays}
    assert json.loads(script.string) == expected
    assert page.figure["data-kind"] == "masks"


def test_a_table_is_the_fallback():
    page = made("noise-law", {}, {"q & p": ["<0.1>", 2], "v": [3, 4]}, "What < it says")
    assert page.caption.text == "What < it says"
    assert [cell.text for cell in page.find_all("th")] == ["q & p", "v"]
    assert [cell.text for cell in page.find_all("td")] == ["<0.1>", "3", "2", "4"]


def test_a_picture_is_the_fallback():
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot([0, 1])
    axes.set_title("a finding")
    page = made("simplex", {}, figure, 'A line that says "up"')
    (picture,) = page.find_all("svg")
    assert picture["role"] == "img"
    assert picture["aria-label"] == 'A line that says "up"'
    assert "a finding" in [text.text for text in picture.find_all("text")]
    assert picture.find(["style", "metadata"]) is None  # they would speak for the whole page
    assert not plt.fignum_exists(figure.number)


def test_the_same_picture_is_the_same_file():
    def drawn():
        figure, axes = plt.subplots(figsize=(1, 1))
        axes.plot([0, 1], "o-")
        return interactive("fit", {}, figure, "A line")._repr_html_()

    assert drawn() == drawn()


def test_as_text_it_says_what_it_shows():
    shown = repr(interactive("masks", {}, {"a": [1]}, "Masks of four kinds"))
    assert "masks" in shown
    assert "Masks of four kinds" in shown


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'piano' is not an interactive figure.*'noise-law'"):
        interactive("piano", {}, {"a": [1]}, "A table")


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_what_is_no_json_is_refused(value):
    with pytest.raises(InputError, match=r"data of 'masks' cannot be written as JSON"):
        interactive("masks", {"value": value}, {"a": [1]}, "A table")


def test_the_script_knows_every_kind(request):
    script = (request.config.rootpath / "book/_static/interactive.js").read_text("utf-8")
    for kind in INTERACTIVE_KINDS:
        assert f"\n    {kind}(figure" in script or f'\n    "{kind}"(figure' in script
