"""The first pages: what they say of the ledger and of the chapters."""

import re
from collections import Counter

import nbformat

from dropreg.book.experiments import Size, Store, claims, first_ledger, verdicts
from dropreg.book.experiments.ledger import Epoch
from dropreg.book.experiments.records import results_folder
from dropreg.book.statistics import in_percent
from tools import ROOT, build_book

STORE = Store(results_folder(), results_folder())
ORDER = ("reproduced", "contradicted", "undecided")


def test_the_first_page_counts_the_verdicts_of_the_first_edition():
    intro = (ROOT / "intro.md").read_text("utf-8")
    said = re.search(
        r"at the best epoch (.+?); at the last epoch, well into overfitting, (.+?)\.", intro
    )
    assert said
    for epoch, words in zip((Epoch.BEST, Epoch.LAST), said.groups(), strict=True):
        found = Counter(
            str(first_ledger.judge(claim, Size.SMALL, STORE, epoch).verdict)
            for claim in first_ledger.CLAIMS
        )
        assert words == ", ".join(f"{found[verdict]} {verdict}" for verdict in ORDER)
    assert f"({len(first_ledger.CLAIMS)} claims, three seeds" in intro


def test_the_first_page_counts_the_verdicts_of_the_second_edition():
    intro = (ROOT / "intro.md").read_text("utf-8")
    assert f"({len(claims.CLAIMS)} claims, a stricter rule" in intro
    waiting = (verdicts.Verdict.UNDER_WAY, verdicts.Verdict.NOT_RUN)
    for view, where in (
        (verdicts.View.BEST, "at the best look"),
        (verdicts.View.LAST, "at the last look"),
        (verdicts.View.EQUAL_FIT, "at equal training loss"),
    ):
        found = Counter(
            verdicts.verdict(verdicts.judge(claim, STORE, view)) for claim in claims.CLAIMS
        )
        left = sum(found.pop(each, 0) for each in waiting)
        words = [f"{found.pop(name, 0)} {name}" for name in ORDER]
        words += [f"{number} {name}" for name, number in found.items()]
        assert f"{where} {', '.join(words)}" in intro
        assert f"Of the other {left} not all seeds have ended" in intro
    (adds,) = (c for c in claims.CLAIMS if c.text == "The noise adds to what R_approx does alone.")
    (noise,) = verdicts.judge(adds, STORE, verdicts.View.EQUAL_FIT)
    worth = (
        f"At equal training loss the derived noise is worth {in_percent(noise.part.value):.1f} %"
    )
    assert worth in intro


def test_the_ledger_quotes_sentences_that_stand_in_the_chapters():
    ledger = ROOT / "book" / "reference" / "evidence.ipynb"
    (answers,) = (c for c in nbformat.read(ledger, as_version=4).cells if c.id == "e35")
    text = answers.outputs[0]["data"]["text/markdown"]
    quoted = re.findall(r"“([^”]+)” in \*([^*]+)\*", text)
    assert len(quoted) >= 4
    prose = {}
    for path in build_book.chapters():
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"]
        title = cells[0].source.splitlines()[0].removeprefix("# ")
        prose[title] = " ".join(cell.source for cell in cells).lower()
    for sentence, title in quoted:
        assert sentence.lower() in prose[title], f"{title}: {sentence}"


def test_paths_give_the_minutes_that_stand_at_the_head_of_the_chapters():
    paths = ROOT / "book" / "start" / "paths.md"
    listed = re.findall(r"\]\(([\w./]+\.ipynb)\) \((\d+)(?: minutes)?\)", paths.read_text("utf-8"))
    assert len(listed) >= 15
    for name, minutes in listed:
        chapter = nbformat.read((paths.parent / name).resolve(), as_version=4)
        assert f"*Reading:* {minutes} minutes" in chapter.cells[0].source, name
