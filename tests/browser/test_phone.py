"""Every page on a narrow screen, in both themes."""

import pytest
from built_pages import PAGES


@pytest.mark.parametrize("address", PAGES)
def test_page_fits_a_phone_in_both_themes(visit, address):
    opened = visit(address, width=360, scheme="dark")
    page = opened.page
    assert opened.theme() == "dark"
    opened.show_everything()
    fits_and_can_be_read(page)
    opened.turn("light")
    fits_and_can_be_read(page)
    assert opened.problems == []


def fits_and_can_be_read(page):
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
    # Text and math against what is behind them, by the formula of WCAG: 4.5 is its level AA.
    contrasts = page.evaluate(
        """() => {
            const rgb = s => s.match(/[\\d.]+/g).slice(0, 3).map(Number);
            const light = c => { const [r, g, b] = rgb(c).map(v => v / 255).map(
                v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            const ground = e => getComputedStyle(e).backgroundColor;
            const behind = e => !ground(e).endsWith(', 0)') ? light(ground(e))
                : e.parentElement ? behind(e.parentElement) : 1;
            return [...document.querySelectorAll('article :is(p, a, mjx-container)')]
                .filter(e => !e.closest('.headerlink, .cell, .admonition, pre'))
                .map(e => {
                    const fore = light(getComputedStyle(e).color), back = behind(e);
                    const [high, low] = [Math.max(fore, back), Math.min(fore, back)];
                    return [(high + 0.05) / (low + 0.05), e.textContent.slice(0, 60)]; }); }"""
    )
    assert [low for low in contrasts if low[0] < 4.5] == []
