"""Every page in a real browser with no network: math, pictures, and nothing that fails."""

import pytest
from built_pages import PAGES


@pytest.mark.parametrize("address", PAGES)
def test_page_is_complete(visit, address):
    opened = visit(address)
    page = opened.page
    opened.show_everything()
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
