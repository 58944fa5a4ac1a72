"""The built pages, read as files: nothing is missing, nothing comes from elsewhere."""

import os
import re
from functools import cache
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from pypdf import PdfReader

import dropreg
from tools import build_book, times

HTML = build_book.HTML
PAGES = [f"{page}.html" for page in build_book.read_toc()]
# Elements whose address the browser fetches by itself; a plain link is only followed.
FETCHED = {
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src",
    "embed": "src", "object": "data", "link": "href",
}  # fmt: skip
# What a page may weigh beyond what all pages share.
LIGHT = 1_500_000
REPOSITORY = build_book.moved(
    yaml.safe_load((build_book.ROOT / "_config.yml").read_text("utf-8"))["repository"]["url"],
    os.environ.get("GITHUB_REPOSITORY"),
)
# In Markdown: code, but not a directive's text; and math.
CODE = re.compile(r"(?P<fence>`{3,}|~{3,})(?!\{).*?(?P=fence)|`[^`\n]+`", re.DOTALL)
MATH = re.compile(r"\$\$.+?\$\$|(?<!\\)\$[^$\n]+(?:\n[^$\n]+)*\$", re.DOTALL)
NOT_FETCHED_LINKS = {"canonical", "author", "license", "index", "search", "next", "prev"}


@cache
def parsed(path):
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


@cache
def anchors(path):
    return {element.get(name) for element in parsed(path)(True) for name in ("id", "name")}


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
            there = unquote(parts.fragment) in anchors(target)
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


def test_every_formula_of_the_source_is_on_the_page(page):
    name = page.relative_to(HTML).with_suffix("").as_posix()
    (source,) = (HTML / "_sources").glob(f"{name}.*")
    if source.suffix == ".ipynb":
        cells = nbformat.read(source, as_version=4).cells
        texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    else:
        texts = [source.read_text("utf-8")]
    written = sum(len(MATH.findall(CODE.sub("", text))) for text in texts)
    shown = [
        m for m in parsed(page).select("article .math") if not m.find_parent(class_="cell_output")
    ]
    if "eval-rst" in texts[0]:  # the docstrings have formulas of their own
        assert len(shown) > written
    else:
        assert len(shown) == written


def test_the_page_is_light(page):
    own = {page}
    for element in parsed(page).find_all(list(FETCHED)):
        address = urlsplit(element.get(FETCHED[element.name], ""))
        file = (page.parent / unquote(address.path)).resolve()
        if not address.scheme and file.is_file() and "_static" not in file.parts:
            own.add(file)
    own = {file for file in own if file.suffix != ".html" or file == page}  # next, previous
    assert sum(file.stat().st_size for file in own) <= LIGHT


def test_no_table_is_left_as_markdown(page):
    seen = "".join(
        text
        for text in parsed(page).find("article").find_all(string=True)
        if not text.find_parent("pre")  # code may make a table
    )
    assert "|---|" not in seen.replace("—", "---")


def test_a_link_has_words_beside_its_formula(page):
    """A formula is drawn by a script, and is no name of a link before."""
    for link in parsed(page).select("article a[href]:has(.math)"):
        texts = [text for text in link.find_all(string=True) if not text.find_parent(class_="math")]
        assert re.search(r"\w", "".join(texts)), link["href"]


def test_links_to_elsewhere_are_well_formed(page):
    for link in parsed(page).select("article a[href]"):
        parts = urlsplit(link["href"])
        if parts.scheme:
            assert parts.scheme == "https", link["href"]
            assert re.fullmatch(r"([\w-]+\.)+[a-z]{2,}", parts.netloc), link["href"]
            assert not re.search(r"\s|[.,;]$", link["href"]), link["href"]


def test_links_into_the_repository_name_what_is_there(page):
    """The buttons for Colab, Kaggle, Binder and editing, and whatever the text names."""
    named = re.compile(
        rf"(?:{REPOSITORY}/(?:blob|edit|tree)/main/|"
        rf"colab\.research\.google\.com/github/{REPOSITORY.removeprefix('https://github.com/')}"
        rf"/blob/main/|mybinder\.org/v2/gh/{REPOSITORY.removeprefix('https://github.com/')}"
        r"/main\?urlpath=lab/tree/)([^?#]+)"
    )
    addresses = [link["href"] for link in parsed(page).find_all("a", href=True)]
    paths = [unquote(found.group(1)) for found in map(named.search, addresses) if found]
    for path in paths:
        assert (build_book.ROOT / path).exists(), path
    if page.relative_to(HTML).with_suffix("").as_posix() in build_book.GENERATED:
        assert not [address for address in addresses if "/edit/" in address]
    else:
        assert paths
    for host in ("colab.research.google.com/github", "kaggle.com/kernels", "mybinder.org/v2"):
        assert all(named.search(each) for each in addresses if host in each)


def test_chapters_open_in_colab_and_on_kaggle(page):
    notebook = page.relative_to(HTML).with_suffix(".ipynb")
    if not (build_book.ROOT / notebook).exists():
        return
    article = parsed(page).find(class_="article-header-buttons")
    links = [a["href"] for a in article.find_all("a", href=True)]
    (colab,) = (link for link in links if "colab.research" in link)
    assert colab.endswith(f"/blob/main/{notebook}")
    (kaggle,) = (link for link in links if "kaggle.com" in link)
    source = f"{REPOSITORY}/blob/main/{notebook}"
    assert kaggle == f"https://kaggle.com/kernels/welcome?src={source}"


def test_the_foot_of_the_page_says_which_book_this_is(page):
    said = parsed(page).find(class_="extra_footer").get_text(" ", strip=True)
    assert re.match(r"dropreg \d[\w.]*, (commit \w+ of|built on) \d{4}-\d\d-\d\d", said), said


def test_a_link_to_the_page_has_a_preview(page):
    said = {m["property"]: m["content"] for m in parsed(page).find_all("meta", property=True)}
    assert said["og:title"]
    # A sentence, with no formula's source in it.
    assert len(said["og:description"]) > 20
    assert "\\" not in said["og:description"]
    site = said["og:url"].removesuffix(page.relative_to(HTML).as_posix())
    assert (HTML / unquote(said["og:image"].removeprefix(site))).is_file()


def test_a_problem_can_be_reported_from_the_page(page):
    assert [a for a in parsed(page).find_all("a", href=True) if "/issues/new" in a["href"]]


def test_the_pdf_holds_the_book():
    if build_book.browser() is None and not os.environ.get("CI"):
        pytest.skip(build_book.HOW_TO_GET_A_BROWSER)
    book = PdfReader(HTML / build_book.PDF)
    headings = []

    def read(outline):
        for item in outline:
            read(item) if isinstance(item, list) else headings.append(item.title)

    read(book.outline)
    for page in PAGES:
        title = parsed(HTML / page).find("h1").find(string=True)
        assert title.strip() in headings
    # No link leads to a file of the machine that printed it.
    for sheet in book.pages:
        for note in sheet.get("/Annots", []):
            target = note.get_object().get("/A", {}).get("/URI", "")
            assert not target.startswith("file:"), target
    assert (HTML / build_book.PDF).stat().st_size < 30_000_000


def test_the_page_of_times_has_every_chapter():
    rows = parsed(HTML / f"{times.PAGE}.html").find("article").find_all("tr")
    shown = {row.find("a")["href"]: row.find_all("td")[1].get_text() for row in rows if row.a}
    notebooks = {path.relative_to(build_book.ROOT) for path in build_book.chapters()}
    assert len(shown) == len(notebooks)
    for seconds in shown.values():
        assert seconds.isdigit(), shown


@pytest.mark.parametrize("name", dropreg.__all__)
def test_the_api_page_has_every_public_name(name):
    page = parsed(HTML / "book/reference/api.html")
    assert page.find(id=f"dropreg.{name}") or page.find(id=f"module-dropreg.{name}")
