"""Votes: the result waits for the reader, who may look without one, and whose choice is kept."""

import pytest
from bs4 import BeautifulSoup
from built_pages import PAGES

from tools import build_book

VOTES = [
    (page, vote["data-name"])
    for page in PAGES
    if (build_book.HTML / page).is_file()
    for vote in BeautifulSoup((build_book.HTML / page).read_text("utf-8"), "html.parser").select(
        ".dropreg-vote"
    )
]


def test_the_book_asks():
    assert len(VOTES) >= 10


@pytest.mark.parametrize(("address", "name"), VOTES)
def test_a_vote_by_the_keyboard_unfolds_the_result_and_is_kept(visit, address, name):
    opened = visit(address)
    page = opened.page
    vote = page.locator(f'.dropreg-vote[data-name="{name}"]')
    options = vote.get_by_role("group").get_by_role("button")
    status = vote.get_by_role("status")
    result = page.locator(f'.dropreg-vote[data-name="{name}"] ~ :has(.dropreg-outcome)').first
    assert options.count() >= 2
    assert result.get_attribute("hidden") is not None
    chosen = options.nth(1).text_content()
    options.nth(1).focus()
    page.keyboard.press("Enter")
    assert result.get_attribute("hidden") is None
    assert options.nth(1).get_attribute("aria-pressed") == "true"
    option = result.locator(".dropreg-outcome").get_attribute("data-option")
    said = status.text_content()
    if option is None:
        assert "do not decide" in said
    else:
        assert ("Just so." if option == chosen else "It came out otherwise.") in said
        assert option in [options.nth(i).text_content() for i in range(options.count())]
    page.reload()
    assert options.nth(1).get_attribute("aria-pressed") == "true"
    assert result.get_attribute("hidden") is None
    vote.get_by_role("button", name="Take the vote back").click()
    assert result.get_attribute("hidden") is not None
    assert status.text_content() == ""
    vote.get_by_role("button", name="Show the result without a vote").click()
    assert result.get_attribute("hidden") is None
    page.reload()
    assert result.get_attribute("hidden") is not None
    assert opened.problems == []


@pytest.mark.parametrize("address", sorted({page for page, _ in VOTES}))
def test_a_link_into_a_result_shows_it(visit, address):
    page = visit(address).page
    inside = page.evaluate(
        "() => [...document.querySelectorAll('[hidden] [id], [hidden][id]')].map(e => e.id)[0]"
    )
    if inside is None:
        pytest.skip("nothing in a result has an address")
    page.evaluate("id => { location.hash = id; }", inside)
    page.wait_for_function("id => !document.getElementById(id).closest('[hidden]')", arg=inside)


def test_without_scripts_and_on_paper_nothing_is_hidden(visit):
    address, name = VOTES[0]
    plain = visit(address, scripts=False).page
    assert plain.locator(f'.dropreg-vote[data-name="{name}"] li').count() >= 2
    assert plain.locator("[hidden]").count() == 0
    assert plain.locator(".dropreg-outcome").first.is_visible()
    paper = visit(address).page
    paper.emulate_media(media="print")
    shown = paper.evaluate(
        """() => [...document.querySelectorAll('.dropreg-outcome')].map(
            e => e.getBoundingClientRect().height > 0
                && !e.closest('[hidden]')?.matches('[hidden]:not([hidden="until-found"])'))"""
    )
    assert all(shown)


def test_where_the_browser_keeps_nothing_one_can_vote_all_the_same(visit):
    address, name = VOTES[0]
    opened = visit(address)
    opened.page.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }})"
    )
    opened.page.reload()
    vote = opened.page.locator(f'.dropreg-vote[data-name="{name}"]')
    vote.get_by_role("group").get_by_role("button").first.click()
    assert "You chose" in vote.get_by_role("status").text_content()
