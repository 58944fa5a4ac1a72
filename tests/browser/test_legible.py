"""What a reader sees at a desk and on a phone: nothing cut, figures that can be read."""

import pytest
from built_pages import PAGES

from dropreg.book.plots import COLORS, NEUTRAL
from tools.reading import LINES

# Of code and of what it printed, that which does not fit into its box, or the box not on the page.
CUT = """() => {
    const article = document.querySelector('article').getBoundingClientRect();
    const out = p => p.getBoundingClientRect().right > article.right + 1;
    return [...document.querySelectorAll('article pre')]
        .filter(p => p.offsetWidth > 0 && (p.scrollWidth > p.clientWidth + 1 || out(p)))
        .map(p => p.textContent.slice(0, 80)); }"""
SEEN_LINES = """() => [...document.querySelectorAll('article .cell_input pre')]
    .filter(p => p.checkVisibility()).map(p => p.textContent.trimEnd().split('\\n').length)"""
# Text of a figure: how tall its letters are on the screen, and what lies outside of the drawing.
SMALL = """() => [...document.querySelectorAll('figure.dropreg-figure svg')].flatMap(svg => {
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const room = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter(t => t.textContent.trim()).flatMap(t => {
        const box = t.getBoundingClientRect();
        const sizes = [t, ...t.querySelectorAll('tspan')].filter(e =>
            [...e.childNodes].some(n => n.nodeType === 3 && /\\w{2}/.test(n.textContent)));
        const small = sizes.map(e => parseFloat(getComputedStyle(e).fontSize) * scale)
            .filter(size => size < 10.95);
        const outside = box.left < room.left - 2 || box.right > room.right + 2
            || box.top < room.top - 2 || box.bottom > room.bottom + 2;
        return [...small.map(size => [svg.closest('figure').id, t.textContent, size.toFixed(1)]),
            ...(outside ? [[svg.closest('figure').id, t.textContent, 'outside']] : [])]; }); })"""
# Where a thick line of data, as far as it is shown, runs through the letters of a label.
THROUGH = """() => [...document.querySelectorAll('figure.dropreg-figure svg')].flatMap(svg => {
    const data = /--dr-(none|dropout|explicit|implicit|both|ink|mid)/;
    const lines = [...svg.querySelectorAll('path, line, polyline')].filter(path => {
        const style = getComputedStyle(path);
        return style.fill === 'none' && style.stroke !== 'none' && !path.closest('defs')
            && parseFloat(style.strokeWidth) > 1.1
            && data.test(path.getAttribute('style')); });
    const shown = (path, point) => {
        const name = path.closest('[clip-path]')?.getAttribute('clip-path').match(/#([^)]+)/)[1];
        if (!name) return true;
        const of = key => Number(document.querySelector(`[id="${name}"] rect`).getAttribute(key));
        return point.x >= of('x') && point.x <= of('x') + of('width')
            && point.y >= of('y') && point.y <= of('y') + of('height'); };
    return [...svg.querySelectorAll('text')].filter(t => t.textContent.trim()).flatMap(t => {
        const box = t.getBoundingClientRect();
        const points = [];
        for (let i = 1; i < 12; i += 1)
            for (const j of [0.4, 0.5, 0.6])
                points.push([box.left + box.width * i / 12, box.top + box.height * j]);
        return lines.some(path => {
            const other = path.getBoundingClientRect();
            if (other.right < box.left || other.left > box.right || other.bottom < box.top - 1
                || other.top > box.bottom + 1) return false;
            const back = path.getScreenCTM().inverse();
            return points.some(([x, y]) => {
                const point = new DOMPoint(x, y).matrixTransform(back);
                return path.isPointInStroke(point) && shown(path, point); }); })
            ? [[svg.closest('figure').id, t.textContent]] : []; }); })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_a_figure_is_there_in_both_themes(visit, scheme):
    page = visit(PAGES[0], scheme=scheme).page
    for name in (*COLORS, *NEUTRAL, "paper"):
        value = page.evaluate(
            "name => getComputedStyle(document.querySelector('figure svg')).getPropertyValue(name)",
            f"--dr-{name}",
        )
        assert value.strip(), f"--dr-{name}: the theme has taken it"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("address", PAGES)
def test_nothing_is_cut_and_every_figure_can_be_read(visit, address, width):
    opened = visit(address, width=width)
    page = opened.page
    assert [lines for lines in page.evaluate(SEEN_LINES) if lines > LINES] == []
    opened.show_everything()
    assert page.evaluate(CUT) == []
    assert page.evaluate(SMALL) == []
    assert page.evaluate(THROUGH) == []
