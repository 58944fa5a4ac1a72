"""The first pages: what they say of the ledger, and of how long chapters are."""

import re
from collections import Counter

from dropreg.book.experiments import Size, Store, claims, first_ledger, verdicts
from dropreg.book.experiments.ledger import Epoch
from dropreg.book.experiments.records import results_folder
from tools import ROOT, reading

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
    found = {
        str(verdicts.verdict(verdicts.judge(claim, STORE, *best))) for claim in claims.CLAIMS
    }
    assert f"({len(claims.CLAIMS)} claims, a stricter rule" in intro
    assert found <= {"under way", "not yet run"}, f"say in intro.md what was judged: {found}"


def test_paths_give_the_minutes_of_the_chapters():
    """A chapter's first cell states them; `test_notebooks` holds that to its length."""
    paths = ROOT / "book" / "start" / "paths.md"
    listed = re.findall(r"\]\(([\w./]+\.ipynb)\) \((\d+)(?: minutes)?\)", paths.read_text("utf-8"))
    assert len(listed) >= 15
    for name, minutes in listed:
        length = reading.length((paths.parent / name).resolve())
        assert int(minutes) == -(-length.minutes // 5) * 5, name
