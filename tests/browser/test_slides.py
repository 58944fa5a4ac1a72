"""The slides: made from the committed outputs, each looked at in a browser with no network."""

import re

import nbformat
import pytest

from tools import build_slides

LECTURES = ["lecture1", "lecture2", "lecture3"]


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    build_slides.stage(build_slides.stored(), folder / "source")
    build_slides.render(folder / "source", folder / "slides")
    return folder / "slides"


def test_no_result_is_typed():
    for name in LECTURES:
        text = (build_slides.SOURCES / f"{name}.md").read_text("utf-8")
        assert re.findall(r"\d\s*±|\d+\.\d+ nats", re.sub(r"<<.*?>>", "", text)) == []


@pytest.mark.parametrize("name", ["index", *LECTURES])
def test_every_slide_is_whole(visit, slides, name):
    opened = visit((slides / f"{name}.html").as_uri(), width=1200)
    page = opened.page
    page.set_viewport_size({"width": 1200, "height": 675})
    found = []
    for number in range(page.evaluate("() => Reveal.getTotalSlides()")):
        page.evaluate("number => Reveal.slide(number)", number)
        found.append(
            page.evaluate(
                """() => {
                const slide = Reveal.getCurrentSlide();
                const room = document.querySelector('.slides').getBoundingClientRect();
                const box = e => e.getBoundingClientRect();
                const source = slide.querySelector('.source');
                const floor = source ? box(source).top : room.bottom;
                const seen = [...slide.querySelectorAll(':not(aside, aside *, .source, .source *)')]
                    .filter(e => box(e).width > 0);
                return {
                    title: slide.querySelector('h1, h2').textContent,
                    notes: (slide.querySelector('aside.notes')?.textContent ?? '').trim().length,
                    votes: slide.querySelectorAll('.vote').length,
                    outside: seen.filter(e => box(e).right > room.right + 1
                        || box(e).bottom > floor + 1 || e.scrollWidth > e.clientWidth + 1
                        && getComputedStyle(e).overflowX !== 'visible')
                        .map(e => e.outerHTML.slice(0, 80)),
                    math: [...slide.querySelectorAll('.math')].filter(m =>
                        m.querySelectorAll('mjx-container').length !== 1
                        || !(box(m.querySelector('svg')).width > 0)
                        || m.querySelector('[data-mml-node="merror"]'))
                        .map(m => m.textContent.slice(0, 80)),
                    pictures: [...slide.querySelectorAll('img')]
                        .filter(i => i.naturalWidth === 0 || i.alt.length < 20).map(i => i.src),
                    raw: seen.filter(e => !e.closest('pre, code, mjx-container')
                        && /[$<>{}]|\\\\[a-z(\\[]/.test(
                            [...e.childNodes].filter(n => n.nodeType === 3)
                            .map(n => n.data).join(' '))).map(e => e.textContent.slice(0, 80)),
                }; }"""
            )
        )
    for slide in found:
        for what in ("outside", "math", "pictures", "raw"):
            assert slide[what] == [], (slide["title"], what)
    assert opened.problems == []
    if name in LECTURES:
        assert 15 <= len(found) <= 20
        assert [slide["title"] for slide in found if slide["notes"] < 10] == []
        asked = [number for number, slide in enumerate(found) if slide["votes"]]
        assert max(b - a for a, b in zip([0, *asked], [*asked, len(found)], strict=True)) <= 6


def test_the_speakers_notes_open_from_the_disk(visit, slides):
    page = visit((slides / "lecture1.html").as_uri(), width=1200).page
    page.evaluate("() => Reveal.slide(7)")
    with page.expect_popup() as popup:
        page.keyboard.press("s")
    popup.value.wait_for_function(
        """() => document.querySelector('.speaker-controls-notes .value')
            .textContent.includes('Shift')"""
    )


@pytest.fixture
def chapters(tmp_path):
    return build_slides.Chapters(build_slides.stored(), tmp_path)


@pytest.mark.parametrize(
    ("ask", "problem"),
    [
        (lambda c: c.figure("what/nothing", "x"), "no chapter what/nothing"),
        (lambda c: c.figure("start/quickstart", "x"), "no code cell x"),
        (lambda c: c.figure("start/quickstart", "quickstart-12"), r"0 outputs of image/svg\+xml"),
        (lambda c: c.says("start/quickstart", "quickstart-21", "purple {}"), "is 0 times"),
        (lambda c: c.says("start/quickstart", "quickstart-21", "below no dropout"), "is 2 times"),
        (
            lambda c: c.holds(
                "start/quickstart", "quickstart-21", "✓ dropout ends above no dropout"
            ),
            "is 0 times",
        ),
        (lambda c: c.table("start/quickstart", "quickstart-17", rows=["x"]), "no rows {'x'}"),
        (lambda c: c.table("start/quickstart", "quickstart-17", columns=["x"]), "no column 'x'"),
        (lambda c: c.equation("start/quickstart", 99), r"no equation \(99\)"),
        (lambda c: c.source("start/quickstart", "x"), "no code cell x"),
    ],
)
def test_what_is_not_there_is_refused(chapters, ask, problem):
    with pytest.raises(build_slides.Missing, match=problem):
        ask(chapters)


def test_what_is_there_comes_as_it_stands(chapters):
    for cell in chapters.notebooks["start/quickstart"].cells:
        if cell.id == "quickstart-21":
            cell.outputs = [
                {"output_type": "stream", "name": "stdout", "text": "minus: -0.5 ± 0.1\n"}
            ]
    notebook = chapters.notebooks["start/quickstart"]
    for cell in notebook.cells:
        cell.outputs = [type(notebook)(o) for o in cell.get("outputs", [])]
    assert chapters.says("start/quickstart", "quickstart-21", "minus: {}") == "−0.5\xa0±\xa00.1"
    assert chapters.says("start/quickstart", "quickstart-21", "… ± {*}") == "0.1"
    assert chapters.holds("start/quickstart", "quickstart-21", "minus: -0.5 ± 0.1") == ""
    table = chapters.table("start/quickstart", "quickstart-17", rows=["dropout"])
    head, _, row = table.splitlines()
    assert head == "|  | last loss (nats) | best loss (nats) | last accuracy (%) |"
    assert row.startswith("| dropout | ")
    assert row.count("±") == 3
    assert "s &= \\sqrt{1 - \\tfrac1k}\n" in chapters.equation("apart/noise_back", 3)
    assert "\\tag" not in chapters.equation("derive/bend", 1)


def drawn(after, tmp_path):
    picture = nbformat.v4.new_output("display_data", {"image/svg+xml": "<svg>η</svg>"})
    cell = nbformat.v4.new_code_cell("draw()", id="c1", outputs=[picture])
    notebook = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_markdown_cell(after)])
    return build_slides.Chapters({"what/noise": notebook}, tmp_path).figure("what/noise", "c1")


def test_the_caption_of_a_figure_is_its_text_alternative(tmp_path):
    caption = "**Figure 12.** The *loss* $R_{\\text{drop}}$ [falls](x.md),\nby `half`."
    shown = drawn(caption, tmp_path)
    assert shown == "![The loss R_drop falls, by half.](figures/what-noise-c1.svg)"
    assert (tmp_path / "what-noise-c1.svg").read_text("utf-8") == "<svg>η</svg>"


def test_a_figure_without_a_caption_is_refused(tmp_path):
    with pytest.raises(build_slides.Missing, match="no caption"):
        drawn("A figure.", tmp_path)


def test_what_answers_a_vote_can_be_quoted(tmp_path):
    data = {"text/plain": "What came out: 13.6", "text/html": '<p class="dropreg-outcome">…</p>'}
    table = {"text/plain": "What came out: 2", "text/html": "<table></table>"}
    outputs = [nbformat.v4.new_output("execute_result", each) for each in (data, table)]
    cell = nbformat.v4.new_code_cell("", id="c1", outputs=outputs)
    chapters = build_slides.Chapters({"x": nbformat.v4.new_notebook(cells=[cell])}, tmp_path)
    assert chapters.says("x", "c1", "came out: {}") == "13.6"


def test_a_lecture_that_outlived_its_result_is_named(tmp_path):
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "late.md").write_text(
        '<< holds("start/quickstart", "quickstart-21", "all is well") >>'
    )
    with pytest.raises(build_slides.Missing, match=r"^late\.md: .*'all is well' is 0 times"):
        build_slides.stage(build_slides.stored(), tmp_path / "source", sources)
