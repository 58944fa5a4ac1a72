"""The page of model families: what was recorded, of every family that is declared."""

import json
import runpy
import sys

import pytest

from tools import ROOT, families

RECORD = json.loads(families.ROWS.read_text("utf-8"))


@pytest.fixture
def declared(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(families.FOLDER), *sys.path])
    return runpy.run_path(str(families.FOLDER / "families.py"))["FAMILIES"]


def test_the_page_says_what_the_rows_say():
    page = (ROOT / f"{families.PAGE}.md").read_text("utf-8")
    assert page == families.page(RECORD), "make families"


def test_each_declared_family_has_its_row(declared):
    rows = [(row["package"], row["family"], row["expected"]) for row in RECORD["rows"]]
    assert rows == [(each.package, each.name, each.expected) for each in declared], "make families"
    assert len({each.name + each.package for each in declared}) == len(declared)


def test_every_row_is_right_or_a_refusal():
    for row in RECORD["rows"]:
        assert not row["wrong"] + row["crashed"]
        compared = len(row["errors"]) + len(row["not_compared"])
        assert row["refused"] or compared == families.METHODS
        assert (row["expected"] == "refused") == (row["verdict"] == "refused")


def row(**changes):
    plain = {"family": "A family", "package": "torch", "version": "2.13", "expected": "works"}
    outcome = {"verdict": "agrees", "sites": 2, "refused": [], "wrong": [], "crashed": []}
    outcome |= {"not_compared": {}}
    return plain | outcome | {"errors": {"exact": 3e-9, "sampled_labels": 1.0}} | changes


def page(**changes):
    made = {"python": "3.11", "draws": 40}
    return families.page({"made": made, "rows": [row(**changes)]})


def test_a_row_counts_its_methods_and_shows_the_worst():
    errors = {str(i): 1e-9 for i in range(8)} | {"sampled_labels": 1.0}
    assert "| A family | agrees | $1 \\cdot 10^{-9}$ | 2 | torch |" in page(errors=errors)
    assert "| A family | 2 of 9 methods agree | $3 \\cdot 10^{-9}$ | 2 | torch |" in page()


def test_what_is_not_compared_is_said_with_the_reason():
    text = page(not_compared={"even_odd": "the noise changes the way"})
    assert (
        "\nNot compared: A family (torch), by even\\_odd, as the noise changes the way.\n" in text
    )


def test_words_of_a_refusal_are_not_taken_for_markdown():
    refused = [
        {"methods": ["jvp"], "words": "SomeError: use dropout_p\nor a*b|c <d>, torch.no_grad."}
    ]
    text = page(refused=refused, verdict="agrees, in part refused")
    assert "**A family** (torch), by jvp:\n" in text
    assert "> SomeError: use dropout\\_p or a\\*b\\|c \\<d\\>, torch\\.no\\_grad.\n" in text
    whole = page(refused=refused, verdict="refused", errors={}, sites=None)
    assert "| A family | refused |  |  | torch |" in whole
    assert "**A family** (torch):\n" in whole


@pytest.mark.parametrize(
    ("error", "heading"),
    [
        ("NeverSupportedError", "## Refused for good"),
        ("NotYetSupportedError", "## Refused so far"),
        ("PrecisionError", "## Refused for another reason"),
    ],
)
def test_a_refusal_stands_once_under_the_heading_of_its_kind(error, heading):
    text = page(refused=[{"methods": ["jvp"], "words": f"{error}: no"}])
    assert [line for line in text.splitlines() if line.startswith("## Refused")] == [heading]
    assert text.count(f"> {error}: no") == 1
