"""The built pages, read as files: nothing is missing, nothing comes from elsewhere."""

import re
from functools import cache
from urllib.parse import unquote, urlsplit

import build_book
import pytest
from bs4 import BeautifulSoup

import dropreg

HTML = build_book.HTML
PAGES = [f"{page}.html" for page in build_book.read_toc()]
# Elements whose address the browser fetches by itself; a plain link is only followed.
FETCHED = {
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src",
    "embed": "src", "object": "data", "link": "href",
}  # fmt: skip
NOT_FETCHED_LINKS = {"canonical", "author", "license", "index", "search", "next", "prev"}


@cache
def parsed(path):
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


@pytest.fixture(params=PAGES)
def page(request):
    path = HTML / request.param
    assert path.is_file(), f"{path} is not there: run `make book`"
    return path


def test_index_leads_to_the_first_page():
    assert PAGES[0] in (HTML / "index.html").read_text("utf-8")


def test_links_lead_somewhere(page):
    for element in parsed(page).find_all(["a", *FETCHED]):
        address = element.get("href") or element.get("src") or element.get("data")
        if not address or urlsplit(address).scheme:
            continue
        parts = urlsplit(address)
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        assert target.is_file(), f"{page.name} links to {address}, which is not there"
        if parts.fragment and target.suffix == ".html":
            anchor = unquote(parts.fragment)
            there = parsed(target).find(attrs={"id": anchor}) or parsed(target).find(
                attrs={"name": anchor}
            )
            assert there, f"{page.name} links to {address}: no such anchor"


def test_nothing_is_fetched_from_elsewhere(page):
    for element in parsed(page).find_all(list(FETCHED)):
        if NOT_FETCHED_LINKS & set(element.get("rel") or []):
            continue
        address = element.get(FETCHED[element.name], "")
        assert urlsplit(address).netloc == "", f"{page.name} fetches {address}"


def test_styles_fetch_nothing_from_elsewhere():
    for sheet in HTML.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text("utf-8")), (
            sheet
        )


def test_images_have_alt_text(page):
    for image in parsed(page).find("article").find_all("img"):
        assert len(image.get("alt", "")) >= 20, f"{page.name}: {image.get('src')}"


def test_chapters_open_in_colab(page):
    notebook = page.relative_to(HTML).with_suffix(".ipynb")
    if not (build_book.ROOT / notebook).exists():
        return
    buttons = [
        a["href"] for a in parsed(page).find_all("a") if "colab.research" in a.get("href", "")
    ]
    assert len(buttons) == 1
    assert buttons[0].endswith(f"/blob/main/{notebook}")


@pytest.mark.parametrize("name", dropreg.__all__)
def test_the_api_page_has_every_public_name(name):
    page = parsed(HTML / "book/reference/api.html")
    assert page.find(id=f"dropreg.{name}") or page.find(id=f"module-dropreg.{name}")
