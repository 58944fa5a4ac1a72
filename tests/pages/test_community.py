"""What GitHub shows to people who want to say something: its forms, and where links lead."""

import re

import pytest
import yaml

from tools import ROOT

GITHUB = ROOT / ".github"
FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
# https://docs.github.com/en/communities/using-templates-to-encourage-useful-issues-and-pull-requests
FORM = {"name", "description", "title", "labels", "body"}
WANTED = {
    "markdown": {"value"},
    "input": {"label"},
    "textarea": {"label"},
    "dropdown": {"label", "options"},
    "checkboxes": {"label", "options"},
}
ALLOWED = {
    "markdown": set(),
    "input": {"description", "placeholder", "value"},
    "textarea": {"description", "placeholder", "value", "render"},
    "dropdown": {"description", "multiple", "default"},
    "checkboxes": {"description"},
}
# Those that every new repository has: GitHub leaves out a label that is not there.
LABELS = {"bug", "documentation", "enhancement", "question"}
PAGES = [*GITHUB.glob("*.md"), ROOT / "CONTRIBUTING.md"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_is_one_that_github_shows(path):
    form = yaml.safe_load(path.read_text("utf-8"))
    assert {"name", "description", "body"} <= form.keys() <= FORM
    assert set(form["labels"]) <= LABELS
    for field in form["body"]:
        kind, attributes = field["type"], field["attributes"]
        assert field.keys() <= {"type", "id", "attributes", "validations"}
        assert WANTED[kind] <= attributes.keys() <= WANTED[kind] | ALLOWED[kind], field
        assert field.get("validations", {"required": True}) == {"required": True}
        options = attributes.get("options", ["one"])
        assert all(isinstance(option, str) for option in options)
        assert len(options) == len(set(options)) > 0
        assert all(isinstance(attributes[name], str) for name in attributes if name != "options")
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    for name in ("id", "label"):
        names = [field.get(name) or field["attributes"].get(name) for field in asked]
        assert len(names) == len(set(names)) > 0
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", field["id"]) for field in asked)


def test_the_chooser_offers_the_forms_and_a_page_that_is_there():
    chooser = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "config.yml").read_text("utf-8"))
    assert chooser.keys() == {"blank_issues_enabled", "contact_links"}
    assert chooser["blank_issues_enabled"] is False
    for link in chooser["contact_links"]:
        assert link.keys() == {"name", "url", "about"}
        assert (ROOT / link["url"].partition("/blob/main/")[2]).is_file()
    assert [path.stem for path in FORMS] == ["bug", "erratum", "question"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_what_is_there(path):
    text = path.read_text("utf-8")
    for address in re.findall(r"\]\(([^)\s]+)\)", text):
        if not address.startswith(("https:", "#")):
            assert (path.parent / address.partition("#")[0]).exists(), address
    for form in re.findall(r"issues/new\?template=([\w.]+)", text):
        assert GITHUB / "ISSUE_TEMPLATE" / form in FORMS, form


def test_no_checkpoint_is_read_that_may_hold_code():
    """SECURITY.md says so."""
    folders = ("dropreg", "tools", "assignments", "benchmarks", "book")
    files = [path for name in folders for path in (ROOT / name).rglob("*")]
    sources = {p: p.read_text("utf-8") for p in files if p.suffix in (".py", ".ipynb")}
    found = 0
    for path, text in sources.items():
        calls = re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text)
        found += len(calls)
        assert len(calls) == text.count("torch.load("), path
        assert all("weights_only=True" in call for call in calls), path
        unsafe = r"\b(import (pickle|joblib|dill)|allow_pickle|weights_only=False)"
        assert not re.search(unsafe, text), path
    assert found >= 4
