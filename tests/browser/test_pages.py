"""Every page in a real browser with no network: math, figures, width, both themes."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup

from dropreg.book.interactive import INTERACTIVE_KINDS
from tools import build_book

PAGES = [f"{page}.html" for page in build_book.read_toc()]
# Where each kind of figure that can be moved stands.
MOVING = {
    "noise-law": "book/what/noise.html",
    "masks": "book/what/noise.html",
    "masks-k": "book/apart/dropout_k.html",
    "strengths": "book/apart/even_odd.html",
    "simplex": "book/derive/explicit.html",
}
WITH_SEARCH = [*PAGES, "search.html"]


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


# What axe need not look at 10,000 times: of code, each kind of word once; of math, nothing, as the
# two tests above look at its colour and at its shape.
ONE_OF_A_KIND = """() => {
    document.querySelectorAll('details').forEach(d => d.open = true);
    document.querySelectorAll('mjx-container').forEach(m => m.replaceChildren());
    document.getAnimations().forEach(a => a.finish());
    const seen = new Set();
    document.querySelectorAll('pre span').forEach(word => {
        const kind = word.className + (word.closest('.cell_output') ? ' printed' : '');
        if (seen.has(kind)) word.replaceWith(word.textContent);
        seen.add(kind); }); }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", WITH_SEARCH)
def test_axe_finds_nothing_serious(visit, address, scheme):
    page = visit(address, scheme=scheme).page
    page.evaluate(ONE_OF_A_KIND)
    options = {"resultTypes": ["violations"]}
    if scheme == "dark":  # the same page in other colours
        options["runOnly"] = {"type": "rule", "values": ["color-contrast"]}
    found = [
        (violation["id"], node["html"][:120], node["failureSummary"])
        for violation in Axe().run(page, options=options).response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
    assert found == []


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


def test_every_moving_figure_is_tested():
    assert set(MOVING) == set(INTERACTIVE_KINDS)


@pytest.mark.parametrize("kind", MOVING)
def test_a_figure_moves_by_the_keyboard(visit, kind):
    opened = visit(MOVING[kind])
    figure = opened.page.locator(f'figure[data-kind="{kind}"]')
    assert figure.locator(".fallback").is_hidden()
    assert figure.locator("svg").is_visible()
    words = figure.locator('[aria-live="polite"]')
    controls = figure.locator("input, select, button")
    assert controls.count() > 0
    for index in range(controls.count()):
        control = controls.nth(index)
        tag = control.evaluate("e => e.tagName")
        name = control.evaluate("e => (e.labels?.[0] ?? e).textContent")
        assert name.strip(), f"{kind}: a control without a name"
        said, drawn = words.text_content(), figure.locator("svg").inner_html()
        assert any(character.isdigit() for character in said)
        control.focus()
        if tag == "INPUT":
            key = "ArrowLeft" if control.evaluate("e => e.value === e.max") else "ArrowRight"
        else:
            key = "ArrowDown" if tag == "SELECT" else "Enter"
        opened.page.keyboard.press(key)
        assert words.text_content() != said, f"{kind}: {name} changes nothing"
        assert figure.locator("svg").inner_html() != drawn
    assert opened.problems == []


@pytest.mark.parametrize("kind", MOVING)
def test_a_figure_begins_the_same_each_time(visit, kind):
    first, second = (
        visit(MOVING[kind]).page.locator(f'figure[data-kind="{kind}"] svg').inner_html()
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", MOVING)
def test_a_figure_fits_the_narrowest_phone_and_can_be_read(visit, kind, scheme):
    page = visit(MOVING[kind], width=320, scheme=scheme).page
    figure = page.locator(f'figure[data-kind="{kind}"]')
    reach = figure.evaluate(
        """f => Math.max(...[...f.querySelectorAll('.moving, .moving *')].map(
            e => e.getBoundingClientRect().right))"""
    )
    assert reach <= 320
    # Text against what lies behind it by the formula of WCAG, drawn text by what it is filled with.
    contrasts = figure.evaluate(
        """f => {
            const pen = document.createElement('canvas').getContext('2d');
            const rgb = s => {
                pen.clearRect(0, 0, 1, 1);
                pen.fillStyle = s;
                pen.fillRect(0, 0, 1, 1);
                return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3); };
            const light = c => { const [r, g, b] = rgb(c).map(v => v / 255).map(
                v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            const ground = e => {
                const color = getComputedStyle(e).backgroundColor;
                return /, 0\\)$/.test(color) ? ground(e.parentElement) : color; };
            const texts = 'svg text, label, .value, .says, select, button';
            return [...f.querySelectorAll(texts)].map(e => {
                const style = getComputedStyle(e);
                const back = light(ground(e));
                const fore = light(e.closest('svg') ? style.fill : style.color);
                const [high, low] = [Math.max(fore, back), Math.min(fore, back)];
                return [(high + 0.05) / (low + 0.05), e.textContent]; }); }"""
    )
    assert [low for low in contrasts if low[0] < 4.5] == []


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "finger"])
def test_the_probabilities_can_be_dragged(visit, touch):
    page = visit(MOVING["simplex"], touch=touch).page
    figure = page.locator('figure[data-kind="simplex"]')
    figure.scroll_into_view_if_needed()
    scrolled = page.evaluate("() => window.scrollY")
    before = figure.locator(".says").text_content()
    handle = figure.locator("circle").bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    path = [(x + step, y - step) for step in (0, 10, 20, 30)]
    if touch:
        device = page.context.new_cdp_session(page)
        for kind, at in zip(
            ("touchStart", "touchMove", "touchMove", "touchMove"), path, strict=True
        ):
            points = [{"x": at[0], "y": at[1]}]
            device.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        device.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    else:
        page.mouse.move(*path[0])
        page.mouse.down()
        for at in path[1:]:
            page.mouse.move(*at)
        page.mouse.up()
    assert figure.locator(".says").text_content() != before
    moved = figure.locator("circle").bounding_box()
    assert moved["x"] > handle["x"] + 15
    assert moved["y"] < handle["y"] - 15
    assert page.evaluate("() => window.scrollY") == scrolled
    values = [float(each.input_value()) for each in figure.locator("input").all()]
    assert sum(values) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", [kind for kind in MOVING if kind != "simplex"])
def test_a_finger_moves_a_figure(visit, kind):
    page = visit(MOVING[kind], width=360, touch=True).page
    figure = page.locator(f'figure[data-kind="{kind}"]')
    control = figure.locator("input[type=range], button").first
    said = figure.locator('[aria-live="polite"]').text_content()
    control.scroll_into_view_if_needed()
    box = control.bounding_box()
    assert box["height"] >= 24  # WCAG's target size
    page.touchscreen.tap(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2)
    assert figure.locator('[aria-live="polite"]').text_content() != said


@pytest.mark.parametrize("kind", MOVING)
def test_without_scripts_the_fallback_is_shown(visit, kind):
    figure = visit(MOVING[kind], scripts=False).page.locator(f'figure[data-kind="{kind}"]')
    fallback = figure.locator(".fallback :is(table, img)")
    assert fallback.is_visible()
    text = fallback.get_attribute("alt") or fallback.inner_text()
    assert len(text) > 20
    assert figure.locator(".moving").count() == 0
