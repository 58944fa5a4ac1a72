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


@pytest.mark.parametrize("address", sorted({page for page, _ in VOTES}))
def test_votes_by_the_keyboard_unfold_their_results_and_are_kept(visit, address):
    opened = visit(address)
    page = opened.page
    votes = [Vote(page, name) for where, name in VOTES if where == address]
    for vote in votes:
        assert vote.options.count() >= 2
        assert not vote.shown()
        chosen = vote.options.nth(1).text_content()
        vote.options.nth(1).focus()
        page.keyboard.press("Enter")
        assert vote.shown()
        option = vote.option()
        if option is None:
            assert "do not decide" in vote.status.text_content()
        else:
            said = "Just so." if option == chosen else "It came out otherwise."
            assert said in vote.status.text_content()
            names = [vote.options.nth(i).text_content() for i in range(vote.options.count())]
            assert option in names
    reload_with(page, votes)
    for vote in votes:
        assert vote.options.nth(1).get_attribute("aria-pressed") == "true"
        assert vote.shown()
        vote.box.get_by_text("Take the vote back").click()
        assert not vote.shown()
        assert vote.status.text_content() == ""
        vote.box.get_by_text("Show the result without a vote").click()
        assert vote.shown()
    page.reload()
    assert not any(vote.shown() for vote in votes)
    assert opened.problems == []


def reload_with(page, votes):
    """Reload, and vote once more where the browser has lost what it was given to keep.

    On a busy machine Chromium's local storage loses the first writes of a new context: with a page
    of three lines and no more than one write, one in sixty, also a whole second after the write.
    """
    for _ in range(4):
        page.reload()
        lost = [vote for vote in votes if vote.kept() is None]
        if not lost:
            return
        for vote in lost:
            vote.options.nth(1).click()


# Asked of the page itself: Playwright's own selectors search all the formulas for it.
RESULT = """name => {
    let next = document.querySelector(`.dropreg-vote[data-name="${name}"]`);
    while (!next.querySelector('.dropreg-outcome')) next = next.nextElementSibling;
    return [!next.hasAttribute('hidden'),
        next.querySelector('.dropreg-outcome').getAttribute('data-option')]; }"""


class Vote:
    """A vote on a page that is open, and what answers it."""

    def __init__(self, page, name):
        self.page, self.name = page, name
        self.box = page.locator(f'.dropreg-vote[data-name="{name}"]')
        self.options = self.box.locator(".options button")
        self.status = self.box.locator("[role=status]")

    def shown(self):
        return self.page.evaluate(RESULT, self.name)[0]

    def kept(self):
        key = "name => localStorage.getItem(`dropreg-vote:${location.pathname}:${name}`)"
        return self.page.evaluate(key, self.name)

    def option(self):
        return self.page.evaluate(RESULT, self.name)[1]


@pytest.mark.parametrize("address", sorted({page for page, _ in VOTES}))
def test_a_link_into_a_result_shows_it(visit, address):
    page = visit(address).page
    inside = page.evaluate(
        "() => document.querySelector('[hidden=until-found] [id], [hidden=until-found][id]')?.id"
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
