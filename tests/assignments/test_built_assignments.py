"""What `make assignments` leaves: complete, current, and nothing in public that is not for all."""

import copy
import json
import re
import subprocess
import sys
import tarfile
import zipfile

import nbclient
import nbformat
import pytest
from bs4 import BeautifulSoup
from nbgrader import utils

from assignments.grader import classroom
from tools import build_book

NAMES = classroom.assignments()
REGION = re.compile(r"### BEGIN (?:SOLUTION|HIDDEN TESTS)(.*?)### END", re.DOTALL)


def read(path):
    assert path.is_file(), f"{path} is not there: run `make assignments`"
    return nbformat.read(path, as_version=4)


def words(text):
    return " ".join(re.findall(r"\w+", text))


def secrets():
    """Words of each solution, hidden test and model answer, by what and where."""
    for name in NAMES:
        for cell in read(classroom.source_of(name)).cells:
            for region in REGION.findall(cell.source):
                text = words(region)
                if cell.cell_type == "markdown":  # any stretch of a model answer
                    parts = text.split()
                    for i in range(0, len(parts) - 12, 12):
                        yield f"{name}: {cell.id}", " ".join(parts[i : i + 12])
                elif len(text.split()) > 8 or "FRESH" in text:
                    yield f"{name}: {cell.id}", text


SECRETS = list(secrets())


def found_in(text):
    """Which of the secrets a file holds: HTML, notebook or any other text."""
    if "<html" in text:
        text = BeautifulSoup(text, "html.parser").get_text()
    elif text.startswith("{") and '"cells"' in text:
        text = "\n".join(c.source for c in nbformat.reads(text, as_version=4).cells)
    plain = words(text)
    return [what for what, secret in SECRETS if secret in plain]


def test_the_search_finds_what_is_there():
    for name in NAMES:
        its = {what for what, _ in SECRETS if what.startswith(f"{name}:")}
        assert len(its) > 10
        assert its <= set(found_in(classroom.source_of(name).read_text("utf-8")))


def test_no_secret_in_the_site():
    kinds = (".html", ".ipynb", ".md", ".txt")
    pages = [path for path in build_book.HTML.rglob("*") if path.suffix in kinds]
    assert len(pages) > 20, "run `make book`"
    for page in pages:
        assert not found_in(page.read_text("utf-8")), page
    assert not [path for path in build_book.HTML.rglob("*") if "assignments" in path.parts]


def test_no_secret_in_the_bundle_for_students():
    with zipfile.ZipFile(classroom.OUT / "student.zip") as bundle:
        assert sorted(bundle.namelist()) == sorted(f"{name}.ipynb" for name in NAMES)
        for name in bundle.namelist():
            text = bundle.read(name).decode()
            assert not found_in(text)
            assert "FRESH" not in text
            assert "BEGIN" not in text


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=classroom.ROOT, check=True, capture_output=True)
    return folder


def test_no_secret_in_wheel_and_source_package(packages):
    (wheel,), (source,) = packages.glob("*.whl"), packages.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        files = {n: archive.read(n) for n in archive.namelist()}
    with tarfile.open(source) as archive:
        for member in archive.getmembers():
            if member.isfile():
                files[member.name] = archive.extractfile(member).read()
    for name in NAMES:
        assert f"dropreg/book/checks/{name}.py" in files  # the checks are for everybody
    for path, content in files.items():
        assert not re.search(r"assignments|wrong/|\.ipynb", path), path
        if path.endswith((".py", ".md")):
            assert not found_in(content.decode()), path
            assert not re.search(r"\bFRESH\b", content.decode()), path


@pytest.mark.parametrize("name", NAMES)
class TestAssignment:
    def test_the_committed_student_version_is_current(self, name):
        built = (classroom.OUT / "student" / f"{name}.ipynb").read_text("utf-8")
        committed = (classroom.STUDENT / f"{name}.ipynb").read_text("utf-8")
        assert committed == built, "run `make assignments` and commit assignments/student/"

    def test_the_student_version_is_of_this_source(self, name):
        """Else what was built is older than the source, and the test above compares the past."""
        source, student = (
            read(path) for path in (classroom.source_of(name), classroom.STUDENT / f"{name}.ipynb")
        )
        assert [c.id for c in source.cells] == [c.id for c in student.cells]
        for old, new in zip(source.cells, student.cells, strict=True):
            if not REGION.search(old.source):
                assert old.source == new.source, old.id
            assert not new.get("outputs")

    def test_the_instructors_version_ran_to_its_end(self, name):
        notebook = read(classroom.OUT / "instructor" / f"{name}.ipynb")
        code = [c for c in notebook.cells if c.cell_type == "code"]
        assert all(c.execution_count for c in code)
        assert not [o for c in code for o in c.outputs if o.get("name") == "stderr"]
        assert not any("BEGIN" in c.source for c in code)
        ticks = [o.text.count("✓") for c in code for o in c.outputs if o.get("name") == "stdout"]
        assert sum(ticks) >= 2 * len([c for c in code if utils.is_grade(c)])  # seed 0 and FRESH

    def test_feedback_on_the_solution_and_on_nothing(self, name):
        tests = {
            c.metadata.nbgrader.grade_id
            for c in read(classroom.source_of(name)).cells
            if utils.is_grade(c) and c.cell_type == "code"
        }
        pages, soups = {}, {}
        for who in ("solution", "untouched"):
            page = (classroom.OUT / "feedback" / name / f"{who}.html").read_text("utf-8")
            soups[who] = BeautifulSoup(page, "html.parser")
            pages[who] = " ".join(soups[who].get_text().split())
            assert "FRESH" not in pages[who]
        assert len(soups["solution"].select(".verdict.full")) == len(tests)
        assert "SOLUTION" not in pages["solution"]
        assert pages["untouched"].count("is not written yet. Replace the line") == len(tests)
        assert "CHECK STOPPED" not in pages["solution"] + pages["untouched"]

    def test_alone_in_an_empty_folder_it_runs_and_says_what_to_do(self, name, tmp_path):
        notebook = read(classroom.STUDENT / f"{name}.ipynb")
        client = nbclient.NotebookClient(
            copy.deepcopy(notebook),
            timeout=120,
            allow_errors=True,
            kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(tmp_path)}},
        )
        for cell in client.execute().cells:
            errors = [o for o in cell.get("outputs", []) if o.output_type == "error"]
            if utils.is_grade(cell) and cell.cell_type == "code":
                (error,) = errors
                (line,) = error.traceback  # one line, no frames of the library
                assert re.match(r"✗ `\w+` is not written yet\. Replace the line", line)
            elif utils.is_locked(cell):
                assert not errors
            for error in errors:  # what needs the functions says so
                assert error.ename in ("Mistake", "NotImplementedError"), error.evalue
        assert json.dumps(notebook).count("raise NotImplementedError()") >= 3
