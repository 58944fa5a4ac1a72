"""Every page in a real browser with no network: math, figures, width, both themes."""

import build_book
import pytest

from dropreg.plots import INTERACTIVE_KINDS

PAGES = [f"{page}.html" for page in build_book.read_toc()]
# Where each kind of figure that can be moved stands.
MOVING = {
    "noise-law": "book/what/noise.html",
    "masks": "book/what/noise.html",
    "masks-k": "book/apart/dropout_k.html",
    "strengths": "book/apart/even_odd.html",
    "simplex": "book/derive/explicit.html",
}


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


def test_the_probabilities_can_be_dragged(visit):
    page = visit(MOVING["simplex"]).page
    figure = page.locator('figure[data-kind="simplex"]')
    figure.scroll_into_view_if_needed()
    before = figure.locator(".says").text_content()
    handle = figure.locator("circle").bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30, y - 30)
    page.mouse.up()
    assert figure.locator(".says").text_content() != before
    values = [float(each.input_value()) for each in figure.locator("input").all()]
    assert sum(values) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", MOVING)
def test_without_scripts_the_fallback_is_shown(visit, kind):
    figure = visit(MOVING[kind], scripts=False).page.locator(f'figure[data-kind="{kind}"]')
    fallback = figure.locator(".fallback :is(table, img)")
    assert fallback.is_visible()
    text = fallback.get_attribute("alt") or fallback.inner_text()
    assert len(text) > 20
    assert figure.locator(".moving").count() == 0
