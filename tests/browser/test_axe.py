"""Every page as axe sees it, which finds what keeps people from using one."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from built_pages import PAGES

# What axe need not look at 10,000 times: of code, also in signatures, each kind of word once; of a
# table its first rows; of math, nothing, as test_phone.py looks at its colour and test_complete.py
# at its shape.
ONE_OF_A_KIND = """() => {
    document.querySelectorAll('mjx-container').forEach(m => m.replaceChildren());
    document.getAnimations().forEach(a => a.finish());
    const seen = new Set();
    document.querySelectorAll('tbody tr:nth-child(n + 9)').forEach(row => row.remove());
    document.querySelectorAll('pre span, .sig span').forEach(word => {
        const place = word.closest('.cell_output, .sig');
        const kind = word.className + ' ' + (place ? place.className : '');
        if (seen.has(kind)) word.replaceWith(word.textContent);
        seen.add(kind); }); }"""


def serious(page, **options):
    found = Axe().run(page, options={"resultTypes": ["violations"], **options}).response
    return [
        (violation["id"], node["html"][:120], node["failureSummary"])
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


@pytest.fixture
def whole(visit):
    """A page with all that it hides."""

    def open_page(address):
        opened = visit(address)
        opened.show_everything()
        opened.page.evaluate(ONE_OF_A_KIND)
        return opened

    return open_page


@pytest.mark.parametrize("address", [*PAGES, "search.html"])
def test_axe_finds_nothing_serious(whole, address):
    assert serious(whole(address).page) == []


# The colours are the theme's, the same on all pages.
@pytest.mark.parametrize(
    "address",
    [page if i % 6 == 0 else pytest.param(page, marks=pytest.mark.thorough)
     for i, page in enumerate(["search.html", *PAGES])],
)  # fmt: skip
def test_axe_finds_no_faint_text_in_the_dark(whole, address):
    opened = whole(address)
    opened.turn("dark")
    contrast = {"type": "rule", "values": ["color-contrast"]}
    assert serious(opened.page, runOnly=contrast) == []
