"""The placeholder for the owner: found wherever it waits, set by one command, published never."""

import subprocess

import pytest
import yaml

from tools import ROOT, owner


def git(folder, *arguments):
    done = subprocess.run(("git", *arguments), cwd=folder, check=True, capture_output=True)
    return done.stdout.decode()


def committed(folder):
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    me = ("-c", "user.name=dropreg", "-c", "user.email=dropreg@localhost")
    git(folder, *me, "commit", "--quiet", "--message", "as it is")
    return folder


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "README.md").write_text("git+https://github.com/SET_OWNER/dropreg")
    (tmp_path / "recipe.yaml").write_text("- SET_OWNER\n# https://SET_OWNER.github.io/dropreg")
    for name in ("CONTRIBUTING.md", "tests/test_it.py"):
        (tmp_path / name).write_text("SET_OWNER stands for the owner.")
    (tmp_path / ".gitignore").write_text("built.html")
    (tmp_path / "built.html").write_text("SET_OWNER")
    return committed(tmp_path)


def test_nothing_is_published_before_it_is_set(tree, capsys):
    with pytest.raises(SystemExit, match=r"README\.md for one.*Run `make owner NAME="):
        owner.main(["--check"], tree)
    owner.main(["some-body"], tree)
    owner.main(["--check"], tree)
    assert "some-body stands in 2 files now" in capsys.readouterr().out
    assert (tree / "README.md").read_text() == "git+https://github.com/some-body/dropreg"
    assert (
        tree / "recipe.yaml"
    ).read_text() == "- some-body\n# https://some-body.github.io/dropreg"
    assert git(tree, "diff", "--name-only").split() == ["README.md", "recipe.yaml"]


def test_it_is_set_once_and_never_over_work_that_git_does_not_have(tree):
    (tree / "notes.md").write_text("Not committed.")
    with pytest.raises(SystemExit, match="Commit your changes first"):
        owner.main(["some-body"], tree)
    (tree / "notes.md").unlink()
    owner.main(["some-body"], tree)
    committed(tree)
    with pytest.raises(SystemExit, match="an owner is set"):
        owner.main(["some-body-else"], tree)


@pytest.mark.parametrize("name", ["", "two words", "-a", "a-", "a--b", "a/b", "a_b", "a" * 40])
def test_what_is_no_name_on_github_is_refused(name, tree):
    with pytest.raises(SystemExit, match=r"is no name on GitHub.*make owner NAME=your-name"):
        owner.main(["--", name], tree)
    assert not git(tree, "diff")


def test_a_name_may_be_as_long_as_githubs():
    assert all(map(owner.LOGIN.fullmatch, ("a", "A1-b2-C3", "a" * 39)))


def test_an_archive_without_git_is_told_so(tmp_path):
    with pytest.raises(SystemExit, match="in a git repository only"):
        owner.main(["--check"], tmp_path)


def test_in_this_repository_every_address_follows(tmp_path):
    for name in filter(None, git(ROOT, "ls-files", "-z", ":!results").split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    committed(tmp_path)
    if owner.places(tmp_path):  # none where somebody has set it
        owner.main(["some-body"], tmp_path)
        assert not git(tmp_path, "diff", "--name-only", "--", *owner.EXPLAINED)
    owner.main(["--check"], tmp_path)
    config = yaml.safe_load((tmp_path / "_config.yml").read_text("utf-8"))
    address = config["repository"]["url"].removeprefix("https://")
    for name in ("book/what/noise.ipynb", "README.md", "assignments/student/masks.ipynb"):
        assert address in (tmp_path / name).read_text("utf-8")
