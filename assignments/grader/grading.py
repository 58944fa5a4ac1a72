"""From an aligned notebook to marks: run in the sandbox, test.

nbgrader does the rest: gradebook, manual grading, feedback pages.
"""

import ast
import contextlib
import io
import textwrap
from collections.abc import Mapping
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output
from nbgrader import utils
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Bool, Integer

from assignments.grader.reading import text_in
from assignments.grader.sandbox import Limits, Sandbox
from assignments.grader.sandbox_child import define, find, statements
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


def test_names(notebook: NotebookNode, answers: Mapping[str, Answer], fresh: int) -> dict[str, Any]:
    """What a test cell can name: the functions, FRESH, and what given cells import."""
    names: dict[str, Any] = {}
    for cell in code_cells(notebook):
        if utils.is_locked(cell) and not utils.is_grade(cell):
            for node in statements(cell.source):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    exec(compile(ast.Module([node], []), "<given>", "exec"), names)
    return {**names, **answers, "FRESH": fresh}


def run_test(source: str, names: Mapping[str, Any]) -> str | None:
    """Run a test cell; return what is wrong, or None."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the ticks of the checks
            exec(compile(source, "<test>", "exec"), dict(names))
    except Mistake as mistake:
        return str(mistake)
    except Exception as error:
        # Of a check that stumbles over what it was given: shown to the instructor as well.
        return f"CHECK STOPPED: {type(error).__name__}: {error}"[:600]
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
    given = [c.source for c in code_cells(notebook) if utils.is_locked(c) and not utils.is_grade(c)]
    names, errors = define([*given, *functions.values()], seconds=5.0)
    if errors:
        raise ValueError(f"the cells do not run: {errors}")
    found = {name: find(name, cell, names) for name, cell in functions.items()}
    return {name: Answer.local(function) for name, function in found.items() if function}


class GradeInSandbox(NbGraderPreprocessor):
    """In the place of nbgrader's Execute: no kernel runs, tests and functions live apart."""

    isolated = Bool(True, help="Insist on bubblewrap.").tag(config=True)
    fresh = Integer(0, help="Seed of the hidden tests' numbers.").tag(config=True)
    limits = Limits()

    def preprocess(
        self, nb: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """Fill the outputs of the test cells, from which nbgrader reads the marks."""
        functions = answers_of(nb)
        with Sandbox(
            definitions(nb), functions, isolated=self.isolated, limits=self.limits
        ) as sandbox:
            answers = {name: sandbox.answer(name) for name in functions}
            wrong = run_tests(nb, test_names(nb, answers, self.fresh))
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
        nb.metadata["dropreg"] = {"notes": notes}
        if notes:
            # As output of a cell: text to whatever shows it. Markdown could hold a link.
            shown = "\n".join(f"- {note}" for note in notes)
            cell = new_code_cell("# Noticed while grading", metadata={"dropreg": {"noticed": True}})
            cell.outputs = [new_output("stream", name="stdout", text=shown)]
            nb.cells.insert(0, cell)
        return nb, resources
