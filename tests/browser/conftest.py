"""A real browser with no network."""

import os
from urllib.parse import urljoin

import pytest
from playwright.sync_api import sync_playwright

from tools import build_book


@pytest.fixture(scope="module")
def browser():
    program = build_book.browser()
    if program is None:
        # In CI a test that did not run is a failure.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(build_book.HOW_TO_GET_A_BROWSER)
    quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=quiet)
        yield browser
        browser.close()


class Visit:
    """One page from the disk (of the book, or anywhere), and all that went wrong on the way."""

    def __init__(self, browser, address, *, width, scheme, scripts, touch):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            reduced_motion="reduce",  # else what is measured may still be on its way
            java_script_enabled=scripts,
            has_touch=touch,
        )
        self.page = context.new_page()
        self.problems = []
        self.page.route("**/*", self._only_local)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._hear)
        self.page.on("requestfailed", lambda r: self.problems.append(f"failed: {r.url}"))
        self.page.goto(urljoin(f"{build_book.HTML.as_uri()}/", address))
        self.page.evaluate("() => window.MathJax && MathJax.startup.promise")

    def show_everything(self):
        """Unfold what is folded, and show what waits for a vote."""
        self.page.evaluate(
            """() => {
                document.querySelectorAll('.dropreg-vote .rest button').forEach(
                    button => { if (button.textContent.startsWith('Show')) button.click(); });
                document.querySelectorAll('details').forEach(d => { d.open = true; }); }"""
        )

    def theme(self):
        return self.page.evaluate("() => document.documentElement.dataset.theme")

    def turn(self, scheme):
        """Change the theme, as the reader's machine does at night."""
        self.page.emulate_media(color_scheme=scheme)
        self.page.wait_for_function(
            "scheme => document.documentElement.dataset.theme === scheme", arg=scheme
        )
        self.page.evaluate("() => document.getAnimations().forEach(a => a.finish())")

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

    def open_page(address, *, width=1280, scheme="light", scripts=True, touch=False):
        how = {"width": width, "scheme": scheme, "scripts": scripts, "touch": touch}
        visits.append(Visit(browser, address, **how))
        return visits[-1]

    yield open_page
    for each in visits:
        each.page.context.close()
