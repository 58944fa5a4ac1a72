"""The paper about the book: what JOSE asks of its form, and what it says of the repository."""

import re

import pybtex.database
import yaml

from tools import ROOT

PAPER = ROOT / "paper" / "paper.md"
_, HEAD, TEXT = PAPER.read_text("utf-8").split("---\n", 2)
ENTRIES = pybtex.database.parse_file(str(PAPER.with_name("paper.bib"))).entries
IN_WORDS = {3: "three", 5: "five", 6: "Six", 10: "Ten"}


def test_the_head_has_what_jose_reads():
    head = yaml.safe_load(HEAD)
    assert {"title", "tags", "authors", "affiliations", "date", "bibliography"} == head.keys()
    places = {place["index"] for place in head["affiliations"]}
    assert all(author["affiliation"] in places for author in head["authors"])
    assert (PAPER.parent / head["bibliography"]).is_file()
    assert re.fullmatch(r"\d\d? [A-Z][a-z]+ \d{4}", head["date"])


def test_it_has_the_length_and_the_sections_that_jose_asks_for():
    assert 250 <= len(TEXT.split()) <= 1000
    sections = re.findall(r"^# (.+)$", TEXT, re.MULTILINE)
    wanted = ["Summary", "Statement of need", "Learning objectives and content"]
    assert sections[:3] == wanted
    assert sections[-1] == "References"


def test_what_is_cited_is_listed_with_a_way_to_find_it():
    assert set(re.findall(r"@([\w-]+)", TEXT)) == set(ENTRIES)
    for key, entry in ENTRIES.items():
        doi, url = entry.fields.get("doi"), entry.fields.get("url")
        assert doi or url, key
        assert doi is None or re.fullmatch(r"10\.\d{4,}/\S+", doi), key
        assert url is None or url.startswith("https://"), key
        assert entry.fields["title"]
        assert entry.fields["year"]
        assert entry.persons


def test_its_numbers_are_those_of_the_repository():
    preface = (ROOT / "book" / "start" / "preface.md").read_text("utf-8")
    (pieces,) = re.findall(r"^\*\*Write it yourself\.\*\* (.+?) In the end", preface, re.MULTILINE)
    counted = {
        "graded assignments": len(list((ROOT / "assignments" / "source").glob("*/*.ipynb"))),
        "labs": len(list((ROOT / "book" / "labs").glob("*.ipynb"))),
        "lectures": len(list((ROOT / "slides").glob("lecture*.md"))),
        "short functions": pieces.count("]("),
    }
    for what, number in counted.items():
        assert f"{IN_WORDS[number]} {what}" in TEXT, (number, what)


def test_its_objectives_and_plans_are_those_of_the_guide():
    guide = (ROOT / "book" / "teach" / "guide.md").read_text("utf-8")
    table = guide.partition("| after the course a student can |")[2].partition("\n\n")[0]
    objectives = re.findall(r"^\| (.+?) \| .+ \| \d, ", table, re.MULTILINE)
    assert objectives == [each[:-1] for each in re.findall(r"^\d\. (.+)$", TEXT, re.MULTILINE)]
    plans = re.findall(r"^\| \*\*(.+?)\*\* \|", guide, re.MULTILINE)
    assert plans == ["90 minutes", "one week", "three weeks"]
    assert "plans for ninety minutes, one week and three weeks" in TEXT
