"""Finding one's way: by the keyboard, and by the search."""

import pytest
from bs4 import BeautifulSoup
from built_pages import MOVING, PAGES

from tools import build_book


@pytest.mark.parametrize("address", [PAGES[0], MOVING["strengths"]])
def test_the_tab_key_reaches_everything_in_the_order_of_the_page(visit, address):
    page = visit(address).page
    stops = []
    for _ in range(500):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => {
                const e = document.activeElement;
                document.getAnimations().forEach(a => a.finish());
                const box = e.getBoundingClientRect();
                return [[...document.querySelectorAll('*')].indexOf(e), e.outerHTML.slice(0, 120),
                    box.width > 0 && box.bottom > 0 && box.top < innerHeight,
                    e === document.body]; }"""
        )
        if stop[3]:
            break
        stops.append(stop)
    else:
        pytest.fail("the focus does not leave the page")
    order = [stop[0] for stop in stops]
    assert order == sorted(set(order))
    assert [stop[1] for stop in stops if not stop[2]] == []
    # Every link, button and control of the text can be reached.
    expected = page.evaluate(
        """() => [...document.querySelectorAll('*')].flatMap((e, i) =>
            e.matches('article :is(a[href], button, input, select, summary)')
            && e.checkVisibility({visibilityProperty: true})
            ? [[i, e.outerHTML.slice(0, 120)]] : [])"""
    )
    assert [html for index, html in expected if index not in order] == []


def test_the_first_stop_skips_to_the_text(visit):
    page = visit(PAGES[0]).page
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent.trim()") == (
        "Skip to main content"
    )
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("() => !!document.activeElement.closest('main')")


@pytest.mark.parametrize("word", ["Rademacher", "simplex"])
def test_search_finds_a_word_with_no_server(visit, word):
    opened = visit(f"search.html?q={word}")
    opened.page.wait_for_function(
        "() => /found|did not match/.test(document.querySelector('#search-results p')?.textContent)"
    )
    links = opened.page.locator("#search-results li > a").all()
    found = {each.get_attribute("href").partition("?")[0].partition("#")[0] for each in links}
    having = {
        page
        for page in PAGES
        if word.lower()
        in BeautifulSoup((build_book.HTML / page).read_text("utf-8"), "html.parser")
        .article.get_text()
        .lower()
    }
    assert found & having
    # The excerpts under the results are fetched, which a browser refuses to pages from the disk.
    assert not [problem for problem in opened.problems if problem.startswith("asks the network")]
