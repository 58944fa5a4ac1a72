"""From an aligned notebook to marks: run in the sandbox, test.

nbgrader does the rest: gradebook, manual grading, feedback pages.
"""

import ast
import contextlib
import hashlib
import io
import textwrap
from collections.abc import Mapping
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output
from nbgrader import utils
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Bool, Unicode

from assignments.grader.definitions import Notebook, define, find, statements
from assignments.grader.reading import text_in
from assignments.grader.sandbox import Limits, Sandbox
from dropreg.book.checks import Answer, Mistake


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def answers_of(notebook: NotebookNode) -> dict[str, str]:
    """The graded functions, and the source of the cell of each."""
    return {
        cell.metadata.nbgrader.grade_id: cell.source
        for cell in code_cells(notebook)
        if utils.is_solution(cell)
    }


def definitions(notebook: NotebookNode) -> list[str]:
    """Sources whose definitions count: all cells but tests, and the answers once more at the end.

    So that an older version of a function, further down, does not win over the answer.
    """
    sources = [cell.source for cell in code_cells(notebook) if not utils.is_grade(cell)]
    return sources + list(answers_of(notebook).values())


def given_cells(notebook: NotebookNode) -> list[str]:
    """Sources of the cells that the release gives, which are no tests."""
    return [c.source for c in code_cells(notebook) if utils.is_locked(c) and not utils.is_grade(c)]


def test_names(notebook: NotebookNode, answers: Mapping[str, Answer], fresh: int) -> dict[str, Any]:
    """What a test cell can name: the functions, FRESH, and what given cells import."""
    names: dict[str, Any] = {}
    for source in given_cells(notebook):
        for node in statements(source):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([node], []), "<given>", "exec"), names)
    return {**names, **answers, "FRESH": fresh}


def run_test(source: str, names: Mapping[str, Any]) -> str | None:
    """Run a test cell; return what is wrong, or None.

    What only its hidden part finds is told without the numbers: they are not for the student.
    """
    begin = source.find("### BEGIN HIDDEN TESTS")
    first_hidden = source.count("\n", 0, begin) + 1 if begin >= 0 else len(source)
    namespace = dict(names)
    for node in ast.parse(source).body:
        hidden = node.lineno > first_hidden
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the ticks of the checks
                exec(compile(ast.Module([node], []), "<test>", "exec"), namespace)
        except Mistake as mistake:
            return f"With other numbers: {mistake.public}" if hidden else str(mistake)
        except Exception as error:
            # Of a check that stumbles over what it was given: shown to the instructor as well.
            message = "" if hidden else f": {error}"
            return f"CHECK STOPPED: {type(error).__name__}{message}"[:600]
    return None


def run_tests(notebook: NotebookNode, names: Mapping[str, Any]) -> dict[str, str | None]:
    """What is wrong in each test cell of a notebook with its hidden tests, by grade_id."""
    return {
        cell.metadata.nbgrader.grade_id: run_test(cell.source, names)
        for cell in code_cells(notebook)
        if utils.is_grade(cell) and not utils.is_solution(cell)
    }


def local_answers(notebook: NotebookNode) -> dict[str, Answer]:
    """The functions in this process: for the author's own solutions, never for a student's."""
    functions = answers_of(notebook)
    given = given_cells(notebook)
    cells = Notebook([*given, *functions.values()], functions, given)
    names, errors = define(cells, seconds=5.0)
    if errors:
        raise ValueError(f"the cells do not run: {errors}")
    found = {name: find(name, cells, names) for name in functions}
    return {name: Answer.local(function) for name, function in found.items() if function}


def fresh_seed(secret: str, notebook: NotebookNode, resources: Mapping[str, Any]) -> int:
    """The seed of a submission's hidden tests: of the course, the student and what was handed in.

    So what a student learns of the numbers, by whatever way, is worth nothing to anybody.
    """
    who = resources["nbgrader"]
    parts = [secret, who["assignment"], who["student"], *(cell.source for cell in notebook.cells)]
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class GradeInSandbox(NbGraderPreprocessor):
    """In the place of nbgrader's Execute: no kernel runs, tests and functions live apart."""

    isolated = Bool(True, help="Insist on bubblewrap.").tag(config=True)
    secret = Unicode("", help="What the hidden tests' numbers come from.").tag(config=True)
    limits = Limits()

    def preprocess(
        self, nb: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """Fill the outputs of the test cells, from which nbgrader reads the marks."""
        functions = answers_of(nb)
        with Sandbox(
            definitions(nb),
            functions,
            isolated=self.isolated,
            limits=self.limits,
            given=given_cells(nb),
            tests=[c.source for c in code_cells(nb) if utils.is_grade(c)],
            write_yourself=nb.metadata.get("dropreg", {}).get("write_yourself"),
        ) as sandbox:
            answers = {name: sandbox.answer(name) for name in functions}
            wrong = run_tests(nb, test_names(nb, answers, fresh_seed(self.secret, nb, resources)))
        for cell in code_cells(nb):
            grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
            if grade_id in wrong:
                message = wrong[grade_id] and text_in(wrong[grade_id])
                cell.outputs = [
                    new_output("stream", name="stdout", text="✓ all tests of this cell passed")
                    if message is None
                    else new_output(
                        "error",
                        ename="Mistake",
                        evalue=message,
                        traceback=[textwrap.fill(f"✗ {message}", 90)],  # not wider than the page
                    )
                ]
        stopped = [f"{i}: {m}" for i, m in wrong.items() if m and m.startswith("CHECK STOPPED")]
        notes = list(nb.metadata.get("dropreg", {}).get("notes", [])) + sandbox.notes + stopped
        notes = [" ".join(text_in(note).split()) for note in notes]
        nb.metadata["dropreg"] = {**nb.metadata.get("dropreg", {}), "notes": notes}
        if notes:
            # As output of a cell: text to whatever shows it. Markdown could hold a link.
            shown = "\n".join(f"- {note}" for note in notes)
            cell = new_code_cell("# Noticed while grading", metadata={"dropreg": {"noticed": True}})
            cell.outputs = [new_output("stream", name="stdout", text=shown)]
            nb.cells.insert(0, cell)
        return nb, resources
