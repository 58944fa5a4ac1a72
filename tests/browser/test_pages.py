"""Every page in a real browser with no network: math, figures, width, both themes."""

import os
import shutil

import build_book
import pytest
from playwright.sync_api import sync_playwright

PAGES = [f"{page}.html" for page in build_book.read_toc()]
HOW_TO_INSTALL = (
    "no Chromium or Chrome found: on Debian and Ubuntu run `apt-get install chromium`; "
    "elsewhere put one of the two on the PATH"
)


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if program is None:
        # In CI a test that did not run is a failure.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(HOW_TO_INSTALL)
    quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=quiet)
        yield browser
        browser.close()


class Visit:
    """One page, opened from the disk, with everything that went wrong on the way."""

    def __init__(self, browser, address, *, width, scheme):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = context.new_page()
        self.problems = []
        self.page.route("**/*", self._only_local)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._hear)
        self.page.on("requestfailed", lambda r: self.problems.append(f"failed: {r.url}"))
        self.page.goto(f"{build_book.HTML.as_uri()}/{address}")
        self.page.evaluate("() => window.MathJax && MathJax.startup.promise")

    def _only_local(self, route):
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            self.problems.append(f"asks the network for {route.request.url}")
            route.abort()

    def _hear(self, message):
        if message.type == "error":
            self.problems.append(message.text)


@pytest.fixture
def visit(browser):
    visits = []

    def open_page(address, *, width=1280, scheme="light"):
        visits.append(Visit(browser, address, width=width, scheme=scheme))
        return visits[-1]

    yield open_page
    for each in visits:
        each.page.context.close()


@pytest.mark.parametrize("address", PAGES)
def test_page_is_complete(visit, address):
    opened = visit(address)
    page = opened.page
    page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    # Every piece of math became exactly one picture, with a size, and none of it red.
    math = page.evaluate(
        """() => [...document.querySelectorAll('.math')].map(m => [
            m.textContent.slice(0, 80),
            m.querySelectorAll('mjx-container').length,
            m.querySelector('svg')?.getBoundingClientRect().width ?? 0])"""
    )
    assert [m for m in math if m[1] != 1 or m[2] == 0] == []
    errors = page.evaluate(
        """() => [...document.querySelectorAll('[data-mml-node="merror"]')].map(
            e => e.getAttribute('data-mjx-error') ?? e.textContent)"""
    )
    assert errors == []
    # … and none was left as source.
    text = page.evaluate(
        """() => {
            const copy = document.querySelector('article').cloneNode(true);
            copy.querySelectorAll('pre, code, mjx-container').forEach(e => e.remove());
            return copy.textContent; }"""
    )
    assert not any(mark in text for mark in ("$", r"\(", r"\[", r"\begin")), text
    images = page.evaluate("() => [...document.images].map(i => [i.src, i.naturalWidth])")
    assert [source for source, width in images if width == 0] == []
    assert opened.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", PAGES)
def test_page_fits_a_phone_in_both_themes(visit, address, scheme):
    opened = visit(address, width=360, scheme=scheme)
    page = opened.page
    assert page.evaluate("() => document.documentElement.dataset.theme") == scheme
    page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    page.evaluate("() => window.scrollTo(1000, 0)")
    assert page.evaluate("() => window.scrollX") == 0
    # A formula that is too wide scrolls by itself, and from its beginning.
    beheaded = page.evaluate(
        """() => [...document.querySelectorAll('div.math')].filter(d => d.offsetWidth > 0
                && d.querySelector('mjx-container').getBoundingClientRect().left
                   < d.getBoundingClientRect().left - 1)
            .map(d => d.textContent.slice(0, 60))"""
    )
    assert beheaded == []
    # Text and math against the page, by the formula of WCAG: 4.5 is its level AA.
    contrasts = page.evaluate(
        """() => {
            const rgb = s => s.match(/[\\d.]+/g).slice(0, 3).map(Number);
            const light = c => { const [r, g, b] = rgb(c).map(v => v / 255).map(
                v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            const back = light(getComputedStyle(document.body).backgroundColor);
            return [...document.querySelectorAll('article :is(p, a, mjx-container)')]
                .filter(e => !e.closest('.headerlink, .cell, .admonition, pre'))
                .map(e => {
                    const fore = light(getComputedStyle(e).color);
                    const [high, low] = [Math.max(fore, back), Math.min(fore, back)];
                    return [(high + 0.05) / (low + 0.05), e.textContent.slice(0, 60)]; }); }"""
    )
    assert [low for low in contrasts if low[0] < 4.5] == []
    assert opened.problems == []


def test_search_finds_with_no_server(visit):
    opened = visit("search.html?q=dropout")
    opened.page.wait_for_selector("#search-results li a")
    # The excerpts under the results are fetched, which a browser refuses to pages from the disk.
    assert not [problem for problem in opened.problems if problem.startswith("asks the network")]
