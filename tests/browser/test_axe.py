"""Every page as axe sees it, which finds what keeps people from using one."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from built_pages import PAGES

# What axe need not look at 10,000 times: of code, each kind of word once; of math, nothing, as
# test_phone.py looks at its colour and test_complete.py at its shape.
ONE_OF_A_KIND = """() => {
    document.querySelectorAll('mjx-container').forEach(m => m.replaceChildren());
    document.getAnimations().forEach(a => a.finish());
    const seen = new Set();
    document.querySelectorAll('pre span').forEach(word => {
        const kind = word.className + (word.closest('.cell_output') ? ' printed' : '');
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


@pytest.mark.parametrize("address", [*PAGES, "search.html"])
def test_axe_finds_nothing_serious_in_both_themes(visit, address):
    opened = visit(address)
    opened.show_everything()
    opened.page.evaluate(ONE_OF_A_KIND)
    assert serious(opened.page) == []
    opened.turn("dark")  # the same page in other colours
    contrast = {"type": "rule", "values": ["color-contrast"]}
    assert serious(opened.page, runOnly=contrast) == []
