"""What the sources say of themselves: the version they install, and what is to be written."""

import ast
import importlib

import pytest
from test_wrong_solutions import source

import dropreg
from assignments.grader import classroom, grading
from dropreg.book.checks import fixtures, language

NAMES = classroom.assignments()
# What a given cell may import: nothing of it holds an answer. The check itself is hidden from
# students' functions.
HARMLESS = ("dropreg", "dropreg.book.data", "dropreg.book.models", language, fixtures)


@pytest.mark.parametrize("name", NAMES)
def test_the_install_cell_pins_this_version(name):
    (cell,) = [c for c in source(name).cells if "pip install" in c.source]
    assert cell.source.endswith(f'/dropreg@v{dropreg.__version__}"'), (
        "a new version: name it in the first cells of assignments/source, then `make assignments`"
    )


@pytest.mark.parametrize("name", NAMES)
def test_given_cells_import_no_truth(name):
    harmless = {getattr(module, "__name__", module) for module in HARMLESS}
    for cell in source(name).cells:
        tags = cell.metadata.get("nbgrader", {})
        if tags.get("locked") and not tags["grade"] and "pip install" not in cell.source:
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("dropreg"):
                    names = [alias.name for alias in node.names]
                    of_check = node.module == "dropreg.book.checks" and names == [name]
                    assert of_check or node.module in harmless, ast.unparse(node)


@pytest.mark.parametrize("name", NAMES)
def test_what_would_be_the_answer_itself_is_named_for_each_function(name):
    notebook = source(name)
    named = notebook.metadata["dropreg"]["write_yourself"]
    assert named.keys() == grading.answers_of(notebook).keys()
    for names in named.values():
        assert names
        for path in names:
            if path.startswith(("torch.", "numpy.", "scipy.", "dropreg")):
                assert exists(path), path


def exists(path):
    """Whether there is a module, or an attribute of one, of this name."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part, None)
        return value is not None
    return False


def test_the_projects_names_can_still_be_had_where_they_were():
    project = importlib.import_module("dropreg.book.checks.project")
    for name in project.__all__:
        assert getattr(project, name) is getattr(language, name)
