"""What students and markers see in a browser: nothing runs, nothing is fetched, nothing is cut."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
import simulated
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output, new_raw_cell
from nbgrader.api import Gradebook
from playwright.sync_api import sync_playwright

from assignments.grader import classroom, feedback, marking
from assignments.grader.sandbox import isolation_works
from tools import build_book

CHROMIUM = build_book.browser()
RUN = "window.RAN = true"
ATTACKS = [
    f"[link](javascript:{RUN})", f"[link]( java\tscript:{RUN})", f"[link](\x01javascript:{RUN})",
    f"[link](&#106;avascript:{RUN})", f"[link](java&NewLine;script:{RUN})",
    f"[link](<javascript:{RUN}>)", f"<javascript:{RUN}>", f"[ref]\n\n[ref]: javascript:{RUN}",
    f"[ref][two]\n\n[two]:\n  javascript:{RUN}", f"[link](vbscript:{RUN})", "[link](//tracker/a)",
    "[link](data:text/html;base64,PHNjcmlwdD4=)", f"![x](javascript:{RUN})",
    "![x](http://tracker.example/a.png)", "![x](//tracker.example/b.png)", "![x][pic]\n\n"
    "[pic]: http://tracker.example/c.png", "![x\n](http://tracker.example/d.png 'title')",
    "[![x](http://tracker.example/e.png)](https://example.org)", "![x](attachment:gone.png)",
    "![x](data:image/svg+xml;base64,PHN2Zz4=)", f"<script>{RUN}</script>",
    f"<img src=x onerror='{RUN}'>", f"<svg/onload='{RUN}'>", f"<a href='javascript:{RUN}'>x</a>",
    "<link rel=stylesheet href=http://tracker.example/x.css>", "<style>@import '//t';</style>",
    "<iframe src=http://tracker.example/f></iframe>", f"<details open ontoggle='{RUN}'>",
    rf"$\href{{javascript:{RUN}}}{{x}}$", rf"$$\href{{javascript:{RUN}}}{{x}}$$",
    rf"\\(\href{{javascript:{RUN}}}{{x}}\\)", rf"\$\href{{javascript:{RUN}}}{{x}}\$",
    rf"$\text{{<img src=x onerror='{RUN}'>}}$", rf"$\text{{<script>{RUN}</script>}}$",
    rf"$\let\x\href \x{{javascript:{RUN}}}{{x}}$", rf"$\def\x{{\href}}\x{{javascript:{RUN}}}{{x}}$",
    r"$\style{background:url(http://tracker.example/m)}{x}$", r"$\class{a}{x}$ $\cssId{b}{x}$",
    r"$\unicode[url(http://tracker.example/u)]{60}$", r"$\require{html}$",
    r"\begin{align}\href{javascript:window.RAN=true}{x}\end{align}",
    rf"`{{.class onclick={RUN}}}`", f"```html\n<script>{RUN}</script>\n```",
    f"| a |\n|---|\n| [b](javascript:{RUN}) |", f"# [h](javascript:{RUN})",
    f"\x1b]8;;javascript:{RUN}\x07link\x1b]8;;\x07", f"www.tracker.example javascript:{RUN}",
]  # fmt: skip


def hostile(release):
    """Every attack as an answer, as a text, in code, in outputs, in an error, in a picture."""
    notebook = simulated.answered(
        release,
        dropout=f"def dropout(h, q, training=True):\n    raise ValueError({' '.join(ATTACKS)!r})",
        moments="def moments(q):\n    raise ValueError('[x](javascript:window.RAN=true)')",
        power="def power(ks, traces):\n    raise ValueError('half ' + chr(0xD83D) + ' a letter')",
    )
    for cell in notebook.cells:
        if simulated.tags(cell).get("solution") and cell.cell_type == "markdown":
            cell.source += "\n\n" + "\n\n".join(ATTACKS)
            cell["attachments"] = {"p.png": {"image/png": PICTURE}}
            cell.source += "\n\n![photo](attachment:p.png)"
    for new in (new_markdown_cell, new_raw_cell, new_code_cell):
        notebook.cells += [new(attack) for attack in ATTACKS]
    notebook.cells[-1].outputs = [
        new_output("stream", name="stdout", text="\n".join(ATTACKS)),
        new_output("error", ename=f"<script>{RUN}</script>", evalue=ATTACKS[0], traceback=ATTACKS),
        new_output("display_data", {"text/html": f"<script>{RUN}</script>", "text/plain": "x"}),
        new_output("display_data", {"image/svg+xml": f"<svg onload='{RUN}'/>"}),
        new_output("display_data", {"application/javascript": RUN}),
        new_output("display_data", {"image/png": PICTURE}),
    ]
    return notebook


PICTURE = (  # a single dot
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9Q"
    "DwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course with a good, a partial, an untouched and a hostile submission, partly marked."""
    folder, course = (tmp_path_factory.mktemp(name) for name in ("downloads", "course"))
    classroom.set_up(course, ["masks"])
    release = nbformat.read(classroom.release_of(course, "masks"), as_version=4)
    wrong = simulated.solutions()["moments"].replace("(1, 2, 3)", "(1, 2, 2)")
    good = simulated.answered(release)
    cell = next(c for c in good.cells if c.id == "scaling")
    cell["attachments"] = {"p.png": {"image/png": PICTURE}}
    cell.source += "\n\n![photo](attachment:p.png)"
    partial = simulated.partial(release)
    next(c for c in partial.cells if c.id == "moments").source = wrong
    students = {
        "good": good,
        "partial": partial,
        "untouched": release,
        "hostile": hostile(release),
    }
    for student, notebook in students.items():
        name = f"masks_{student}.ipynb"
        (folder / name).write_text(json.dumps(notebook), "utf-8")
    marking.grade(course, "masks", folder, isolated=isolation_works())
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "dropreg") as book:
        grade = book.find_grade("scaling", "masks", "masks", "good")
        grade.manual_score, grade.needs_manual_grade = 4, False
        book.find_comment("scaling", "masks", "masks", "good").manual_comment = "Well <b>said</b>."
        book.find_comment("power", "masks", "masks", "good").manual_comment = "A nice formula."
        book.db.commit()
        for student in students:
            feedback.write(book, course, "masks", student)
    return course


def page_of(course, student):
    return course / "feedback" / student / "masks" / "masks.html"


def soup_of(course, student):
    return BeautifulSoup(page_of(course, student).read_text("utf-8"), "html.parser")


def said(element):
    return " ".join(element.get_text(" ").split())


# --- The page as text -----------------------------------------------------------------------------


def test_what_waits_is_not_counted_as_lost(course):
    assert "34 of 35 points so far" in said(soup_of(course, "good").header)
    assert "5 points wait to be marked; the assignment has 40 in all." in said(
        soup_of(course, "good").header
    )
    assert "13 of 40 points" in said(soup_of(course, "partial").header)


def test_tests_are_named_by_what_they_say_and_lead_to_their_place(course):
    soup = soup_of(course, "partial")
    rows = {said(row.a): row for row in soup.select(".marks tbody tr")}
    assert len(rows) == 14
    row = rows["moments The third moment of the noise is right, with its sign"]
    assert said(row.select_one(".points")) == "✗ 0 of 2"
    assert said(rows["moments Mean and variance of the noise are 0 and q/(1-q)"]).endswith(
        "✓ 2 of 2"
    )
    place = soup.find(id=row.a["href"].removeprefix("#"))
    assert "E η³: that is not what theory says." in said(place)
    assert "Question 2" in rows


def test_marks_and_comments_of_a_person_stand_under_the_answer(course):
    soup = soup_of(course, "good")
    answer = soup.find(id="scaling")
    assert "◐ 4 of 5 Well <b>said</b>." in said(answer)
    assert answer.find("b") is None
    assert "A nice formula." in said(soup.find(id="power"))
    assert "waits to be marked (5)" in said(soup.find(id="law"))


def test_pictures_of_a_text_are_shown(course):
    (shown,) = soup_of(course, "good").find(id="scaling").find_all("img")
    assert shown["src"] == f"data:image/png;base64,{PICTURE}"
    assert shown["alt"] == "photo"


def test_hidden_tests_and_their_seed_are_nowhere(course):
    seed = (course / "fresh_seed").read_text().strip()
    for student in ("good", "partial", "hostile"):
        page = page_of(course, student).read_text("utf-8")
        code = soup_of(course, student).find(id="dropout-mean").pre.get_text()
        assert code.strip() == "check.mean(dropout)"
        assert "FRESH" not in page
        assert seed not in page
        assert "HIDDEN" not in page


def test_half_a_letter_in_an_error_stops_nothing(course):
    assert "half \ufffd a letter" in said(soup_of(course, "hostile").find(id="power-slope"))


def test_notes_are_text():
    note = f"cell 3: [x](javascript:{RUN}) <b>bold</b> `code`"
    notebook = nbformat.v4.new_notebook()
    soup = BeautifulSoup(
        feedback.render(notebook, [], student="<i>", title="&", notes=[note]), "html.parser"
    )
    assert [said(item) for item in soup.select("li")] == [note]
    assert not soup.select("a, b, i")


@pytest.mark.parametrize("attack", ATTACKS)
def test_markdown_becomes_nothing_that_runs_links_or_loads(attack):
    """Before `harmless`, too: the converter alone is safe."""
    soup = BeautifulSoup(feedback.markdown(attack), "html.parser")
    allowed = {"p", "a", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "div", "span",
               "details", "h1", *feedback.ELEMENTS}  # fmt: skip
    for element in soup.find_all(True):
        assert element.name in allowed
        attributes = {"class", "rel", "href", "tabindex", *feedback.ATTRIBUTES}
        assert set(element.attrs) <= attributes
        if "href" in element.attrs:
            assert element["href"].startswith(("http://", "https://"))


@pytest.mark.parametrize("latex", [
    "", "\\", "{" * 5000, "\\frac", "\\sqrt" * 800, "x" * 100_000, "\\begin{array}{c}a", "a&b",
    "x^2^3", "\\def\\a{\\a\\a}\\a", "\\newcommand{\\a}{b}\\a", "\\color{red\" onclick=\"x}{y}",
    "\\text{</math><b>}",
])  # fmt: skip
def test_any_formula_is_typeset_or_shown_as_it_is(latex):
    shown = BeautifulSoup(feedback.mathml(latex, display=False), "html.parser")
    (outer,) = shown.find_all(recursive=False)
    assert outer.name in ("math", "code")
    if outer.name == "code":
        assert outer.get_text() == latex
    assert shown.find("b") is None


def test_every_formula_of_the_assignments_is_typeset():
    for name in classroom.assignments():
        for cell in nbformat.read(classroom.source_of(name), as_version=4).cells:
            if cell.cell_type == "markdown":
                shown = BeautifulSoup(feedback.markdown(cell.source), "html.parser")
                assert not shown.select(".tex"), cell.source
                for code in shown.select("code"):
                    code.extract()
                assert "$" not in shown.get_text(), cell.source


# --- In a browser ---------------------------------------------------------------------------------


needs_browser = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true", reason="needs chromium"
)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


def looked_at(page, address, home):
    """Open a page, hover and click all there is; what it asked for elsewhere, and what ran."""
    asked, ran = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
    page.context.route(lambda url: not url.startswith((home, "data:")), lambda route: route.abort())
    page.goto(address, wait_until="load")
    links = page.locator("a[href]")
    addresses = [links.nth(i).get_attribute("href") for i in range(links.count())]
    ran += [a for a in addresses if not a.startswith(("#", "/", "http://", "https://"))]
    page.wait_for_timeout(500)
    # What the page itself loads; a click may lead elsewhere, as links do.
    loaded = [url for url in asked if not url.startswith((home, "data:"))]
    for i in range(links.count()):
        link = links.nth(i)
        if (link.get_attribute("href") or "").startswith(("http", "#")) and link.is_visible():
            link.hover()
            page.evaluate("a => a.addEventListener('click', e => e.preventDefault())",
                          link.element_handle())  # fmt: skip
            link.click(force=True)
    page.mouse.wheel(0, 100_000)
    page.wait_for_timeout(300)
    if page.evaluate("window.RAN === true"):
        ran.append("a script")
    return loaded, ran


@needs_browser
@pytest.mark.parametrize(("body", "what"), [
    ("<a href='javascript:1'>x</a>", (0, 1)),
    ("<script>window.RAN = true</script>", (0, 1)),
    ("<script>alert(1)</script>", (0, 1)),
    ("<img src='http://tracker.example/a.png'>", (1, 0)),
    ("<a href='https://example.org'>x</a>", (0, 0)),
])  # fmt: skip
def test_the_browser_would_notice(browser, tmp_path, body, what):
    path = tmp_path / "page.html"
    path.write_text(body)
    page = browser.new_page()
    assert tuple(map(len, looked_at(page, path.as_uri(), path.as_uri()))) == what
    page.close()


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("student", ["good", "hostile"])
def test_a_page_runs_nothing_and_loads_nothing(course, browser, student):
    address = page_of(course, student).as_uri()
    page = browser.new_page()
    loaded, ran = looked_at(page, address, address)
    assert (loaded, ran) == ([], [])
    # And if there were a script, it would not run: the policy holds.
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=RAN=true>')")
    page.wait_for_timeout(200)
    assert page.evaluate("window.RAN") is None
    page.close()


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_a_page_is_not_cut_and_everybody_can_read_it(course, browser, width, scheme):
    for student in ("good", "partial", "hostile"):
        size = {"width": width, "height": 740}
        page = browser.new_page(viewport=size, color_scheme=scheme, bypass_csp=True)
        page.goto(page_of(course, student).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if student != "hostile":  # whose headings are in any order
            found = Axe().run(page)
            assert found.response["violations"] == [], found.generate_report()
        page.close()


@pytest.fixture(scope="module")
def formgrader(course):
    """The address of a notebook server that was started in the course folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "ServerApp.port": port, "ServerApp.ip": "127.0.0.1", "ServerApp.root_dir": str(course),
        "IdentityProvider.token": "", "ServerApp.open_browser": False, "ServerApp.allow_root": True,
        "ServerApp.jpserver_extensions": '{"nbgrader.server_extensions.formgrader": True}',
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyter_server", *(f"--{k}={v}" for k, v in options.items())]
    log = (course.parent / "server.log").open("w")
    server = subprocess.Popen(command, cwd=course, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api")
                break
            assert server.poll() is None, Path(log.name).read_text()
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("student", ["good", "hostile"])
def test_the_formgrader_runs_nothing_of_a_student_and_loads_nothing(
    course, browser, formgrader, student
):
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "dropreg") as book:
        (notebook,) = book.find_submission("masks", student).notebooks
        number = notebook.id
    page = browser.new_page()
    loaded, ran = looked_at(page, f"{formgrader}/formgrader/submissions/{number}/", formgrader)
    # MathJax is the formgrader's own, and is kept away from what we show.
    assert [url for url in loaded if "/mathjax/" not in url] == []
    assert ran == []
    shown = page.content()
    assert "Because the mean stays" in shown
    assert "<math" in shown
    assert f"data:image/png;base64,{PICTURE}" in shown
    page.close()
