"""The page *Try it*: its button starts Python, with no network, and nothing is loaded before."""

import functools
import http.server
import os
import threading

import pytest

from tools import build_book, lite


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site():
    if not (build_book.HTML / lite.FOLDER).is_dir():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lite.HOW_TO_GET_IT)
    handler = functools.partial(Quiet, directory=build_book.HTML)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
def test_the_button_starts_python_in_the_browser_and_asks_nobody_else(browser, site):
    context = browser.new_context()
    asked, failed = [], []
    context.on("request", lambda request: asked.append(request.url))
    context.on("response", lambda r: failed.append(r.url) if r.status >= 400 else None)
    context.route(lambda url: not url.startswith((site, "data:", "blob:")), lambda r: r.abort())
    page = context.new_page()
    page.set_default_timeout(180_000)  # of a busy machine; alone, all of it takes a sixth
    page.goto(site + str(lite.NOTEBOOK.with_suffix(".html")))
    page.wait_for_load_state("networkidle")
    assert not any(f"/{lite.FOLDER}/" in url for url in asked)
    with context.expect_page() as opened:
        page.locator(".dropreg-button").click()
    app = opened.value
    app.set_default_timeout(180_000)
    # The set-up imports numpy, scikit-learn and matplotlib; the fourth cell checks equation (1).
    for number in range(4):
        app.locator(".jp-CodeCell").nth(number).click()
        app.keyboard.press("Shift+Enter")
    app.get_by_text("✓ (1), over all sixteen masks, q = 0.8").wait_for()
    assert [url for url in asked if not url.startswith((site, "data:", "blob:"))] == []
    assert failed == []
    context.close()
