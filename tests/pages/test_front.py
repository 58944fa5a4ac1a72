"""The first pages: what they say of the ledger and of the chapters."""

import re
from collections import Counter

import nbformat

from dropreg.book.experiments import Size, Store, claims, first_ledger, verdicts
from dropreg.book.experiments.ledger import Epoch
from dropreg.book.experiments.records import results_folder
from tools import ROOT

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


def test_the_first_page_says_how_far_the_second_edition_is():
    intro = (ROOT / "intro.md").read_text("utf-8")
    best = verdicts.View.BEST, verdicts.Network.AVERAGED
    found = {str(verdicts.verdict(verdicts.judge(claim, STORE, *best))) for claim in claims.CLAIMS}
    assert f"({len(claims.CLAIMS)} claims, a stricter rule" in intro
    assert found <= {"under way", "not yet run"}, f"say in intro.md what was judged: {found}"


def test_paths_give_the_minutes_that_stand_at_the_head_of_the_chapters():
    paths = ROOT / "book" / "start" / "paths.md"
    listed = re.findall(r"\]\(([\w./]+\.ipynb)\) \((\d+)(?: minutes)?\)", paths.read_text("utf-8"))
    assert len(listed) >= 15
    for name, minutes in listed:
        chapter = nbformat.read((paths.parent / name).resolve(), as_version=4)
        assert f"*Reading:* {minutes} minutes" in chapter.cells[0].source, name
