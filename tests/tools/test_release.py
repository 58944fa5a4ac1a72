"""A release is of the version that its tag names, and says what has changed."""

import pytest

from tools import ROOT, release

CHANGELOG = """# Changelog

## [Unreleased]

Soon.

## [1.2.3] - 2026-01-02

### Added

- Much.

## [1.2.2] - 2025-01-02

- Little.
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def test_the_notes_are_the_changelogs_section(tree):
    assert release.notes("v1.2.3", tree) == "### Added\n\n- Much."


@pytest.mark.parametrize("tag", ["v1.2.2", "1.2.3", "v1.2.3.dev0"])
def test_a_tag_of_another_version_is_refused(tag, tree):
    with pytest.raises(SystemExit, match=r"pyproject\.toml says version 1\.2\.3.*: v1\.2\.3"):
        release.notes(tag, tree)


@pytest.mark.parametrize("heading", ["## [1.2.3] - unreleased", "## [1x2x3] - 2026-01-02"])
def test_a_version_without_its_dated_section_is_refused(heading, tree):
    (tree / "CHANGELOG.md").write_text(CHANGELOG.replace("## [1.2.3] - 2026-01-02", heading))
    with pytest.raises(SystemExit, match=r"needs a heading with the day: ## \[1\.2\.3\]"):
        release.notes("v1.2.3", tree)


def test_this_versions_section_waits_in_the_changelog():
    version = release.version(ROOT)
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text("utf-8")
