"""From any file to an aligned notebook: nothing raises, nothing is lost, nothing runs."""

import contextlib
import copy
import json
import sqlite3
import time
from functools import cache

import nbformat
import pytest
import simulated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output, new_raw_cell
from nbgrader import utils
from wrong.case import one_in

from assignments.grader import classroom, reading

NAMES = ("masks", "effects", "explicit", "implicit", "project")
SAID = "Zebras average, as the mean stays and the variance does not, whatever we multiply."


@cache
def read_release(name):
    return nbformat.read(classroom.STUDENT / f"{name}.ipynb", as_version=4)


def release_of(name="masks"):
    return copy.deepcopy(read_release(name))


def answers_in(notebook):
    return [c for c in notebook.cells if utils.is_solution(c) and c.cell_type == "markdown"]


def flagged(notebook):
    """The written answers that nbgrader gives a person to mark."""
    return {question_of(c) for c in answers_in(notebook) if utils.determine_grade(c)[0] is None}


def question_of(cell):
    return cell.metadata.nbgrader.grade_id


def aligned(theirs, name="masks"):
    """Through a file, as it comes from a student."""
    notebook, notes = reading.align(
        nbformat.from_dict(json.loads(json.dumps(theirs))), release_of(name)
    )
    nbformat.validate(notebook)
    return notebook, notes


def text_of(notebook):
    return "\n".join(c.source for c in notebook.cells)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"cells": 3}',
        b'{"cells": [{}], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
        b'{"cells": [{"cell_type": "code", "source": 5}], "nbformat": 4, "metadata": {}}',
        b'{"worksheets": [{"cells": []}], "nbformat": 3, "nbformat_minor": 0, "metadata": {}}',
        b'{"nbformat": 99}',
        b"[" * 100_000,
    ],
)
def test_any_file_is_aligned_or_refused(tmp_path, content):
    path = tmp_path / "x.ipynb"
    path.write_bytes(content)
    notebook, notes = reading.read_submission(path)
    if notebook is None:
        assert "not a notebook" in notes[0]
    else:
        nbformat.validate(reading.align(notebook, release_of())[0])


def test_a_photo_of_a_derivation_is_kept():
    release = release_of()
    theirs = simulated.colab(release)
    answer = next(c for c in theirs.cells if c.source.startswith("*Your answer to question 1"))
    answer["attachments"] = {
        "p.png": {"image/png": "iVBO"},
        "q.png": {"image/png": '"><script>alert(1)</script>'},
        "p.svg": {"image/svg+xml": "<svg>"},
        '" onload="alert(1)': {"image/png": "iVBO"},
    }
    answer.source += "\n\n![photo](attachment:p.png)"
    aligned = reading.align(theirs, release)[0]
    kept = next(c for c in aligned.cells if c.get("id") == "scaling")
    assert kept.attachments == {"p.png": {"image/png": "iVBO"}}
    assert "attachment:p.png" in kept.source


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("$a<b$ and a < b", "$a< b$ and a < b"),
        ("<b onclick=x>", "< b onclick=x>"),
        ("</p><!-- x -->", "< /p>< !-- x -->"),
        ("[x](https://a.b) ![y](attachment:p.png)", "[x](https://a.b) ![y](attachment:p.png)"),
        ("![z](data:image/png;base64,iVBO)", "![z](data:image/png;base64,iVBO)"),
        ("![z](data:image/svg+xml;base64,iVBO)", "! [z] (data:image/svg+xml;base64,iVBO)"),
        ("![z](data:image/png;base64,iVBO')", "![z] (data:image/png;base64,iVBO')"),
        ("[x](\n JaVa&#115;cript:f())", "[x] (\n JaVa&#115;cript:f())"),
        ("[x]: javascript:f()", "[x] : javascript:f()"),
        (r"$\href{javascript:f()}{x}$", r"$\ href{javascript:f()}{x}$"),
    ],
)
def test_what_a_browser_would_run_is_shown_instead(text, shown):
    assert reading.harmless(text, {"p.png": {}}) == shown


def test_pictures_in_outputs_are_pictures():
    release = release_of()
    theirs = simulated.answered(release)
    cell = next(c for c in theirs.cells if c.id == "masks-16")
    cell.outputs = [
        nbformat.v4.new_output("display_data", {"image/png": data, "text/plain": "<Figure>"})
        for data in ("iVBO\n", '"><script>')
    ]
    kept = next(c for c in reading.align(theirs, release)[0].cells if c.id == "masks-16").outputs
    assert kept[0].data == {"image/png": "iVBO\n"}
    assert kept[1].text == "<Figure>"


def test_a_page_of_ten_megabytes_is_cut():
    release = release_of()
    theirs = simulated.hostile_to_the_grader(release)
    assert len(json.dumps(theirs)) > 7_000_000
    assert len(json.dumps(reading.align(theirs, release)[0])) < 500_000


# --- Written answers, wherever they stand ---------------------------------------------------------


def last_answer(notebook):
    return (
        len(notebook.cells)
        - 1
        - next(i for i, c in enumerate(reversed(notebook.cells)) if c in answers_in(notebook))
    )


def in_its_cell(nb, at):
    nb.cells[at].source += f"\n\n{SAID}"


def in_place_of_the_stub(nb, at):
    nb.cells[at].source = nb.cells[at].source.split("\n")[0] + f" {SAID}"


def in_the_questions_cell(nb, at):
    nb.cells[at - 1].source += f"\n\n{SAID}"


def in_a_line_of_the_questions_cell(nb, at):
    first, *others = nb.cells[at - 1].source.split("\n")
    nb.cells[at - 1].source = "\n".join([f"{first} {SAID}", *others])


def in_the_rubrics_table(nb, at):
    lines = nb.cells[at - 1].source.split("\n")
    nb.cells[at - 1].source = "\n".join([*lines[:-1], f"{lines[-1]} {SAID} |"])


def above(nb, at):
    nb.cells.insert(at, new_markdown_cell(SAID))


def above_the_question(nb, at):
    nb.cells.insert(at - 1, new_markdown_cell(SAID))


def below(nb, at):
    nb.cells.insert(at + 1, new_markdown_cell(SAID))


def in_a_comment(nb, at):
    nb.cells.insert(at + 1, new_code_cell(f"# {SAID}"))


def in_a_string(nb, at):
    nb.cells.insert(at + 1, new_code_cell(f'"""{SAID}"""'))


def in_an_assigned_string(nb, at):
    nb.cells.insert(at + 1, new_code_cell(f"answer_two = '{SAID}'"))


def in_a_print(nb, at):
    nb.cells.insert(at + 1, new_code_cell(f"print('{SAID}')"))


def in_code_that_is_not_python(nb, at):
    nb.cells.insert(at + 1, new_code_cell(SAID))


def in_its_cell_turned_to_code(nb, at):
    nb.cells[at] = new_code_cell(f"{nb.cells[at].source}\n{SAID}", id=nb.cells[at].id)


def in_its_cell_turned_raw(nb, at):
    nb.cells[at] = new_raw_cell(f"{nb.cells[at].source}\n{SAID}", id=nb.cells[at].id)


def in_a_raw_cell(nb, at):
    nb.cells.insert(at + 1, new_raw_cell(SAID))


def at_the_end(nb, at):
    nb.cells.append(new_markdown_cell(f"## Answers\n\n{SAID}"))


def at_the_beginning(nb, at):
    nb.cells.insert(0, new_markdown_cell(SAID))


def under_an_own_heading(nb, at):
    number = reading.question(nb.cells[at].source)
    nb.cells.insert(0, new_markdown_cell(f"# Question {number}\n{SAID}"))


def in_another_answer(nb, at):
    other = next(c for c in nb.cells if utils.is_solution(c) and c.cell_type == "code")
    other.source = f"# {SAID}\n{other.source}"


def in_a_comment_within_a_function(nb, at):
    number = reading.question(nb.cells[at].source)
    other = next(c for c in nb.cells if utils.is_solution(c) and c.cell_type == "code")
    other.source += f"\n    # Question {number}: {SAID}"


def in_a_docstring(nb, at):
    number = reading.question(nb.cells[at].source)
    nb.cells.append(new_code_cell(f'def answer():\n    """Answer to question {number}: {SAID}"""'))


def in_another_answers_text(nb, at):
    others = [c for c in answers_in(nb) if c is not nb.cells[at]]
    (others or [nb.cells[at]])[0].source += f"\n\n{SAID}"


def without_its_heading(nb, at):
    nb.cells[at].source = SAID


def in_a_copy(nb, at):
    twin = copy.deepcopy(nb.cells[at])
    twin.id = "twin"
    twin.source += f"\n{SAID}"
    nb.cells.insert(at, twin)


def in_a_copy_without_names(nb, at):
    nb.cells.append(new_markdown_cell(f"{nb.cells[at].source}\n{SAID}"))


def in_a_merged_cell(nb, at):
    nb.cells[at - 1].source += f"\n\n{nb.cells[at].source}\n\n{SAID}"
    del nb.cells[at]


def in_a_given_cell(nb, at):
    next(c for c in nb.cells if "import torch" in c.source).source += f"\n# {SAID}"


def in_a_test(nb, at):
    test = next(c for c in nb.cells if utils.is_grade(c) and c.cell_type == "code")
    test.source += f"\n# {SAID}"


def in_a_given_text(nb, at):
    nb.cells[0].source += f"\n{SAID}"


def in_an_output(nb, at):
    shown = new_output("stream", name="stdout", text=f"{SAID}\n")
    nb.cells.insert(at + 1, new_code_cell("print(open('answer.txt').read())", outputs=[shown]))


def in_displayed_markdown(nb, at):
    data = {"text/markdown": SAID, "text/plain": "<IPython.core.display.Markdown object>"}
    shown = new_output("display_data", data)
    nb.cells.insert(at + 1, new_code_cell("show(answer)", outputs=[shown]))


PLACES = [
    in_its_cell, in_place_of_the_stub, in_the_questions_cell, in_a_line_of_the_questions_cell,
    in_the_rubrics_table, above, above_the_question, below, in_a_comment, in_a_string,
    in_an_assigned_string, in_a_print, in_code_that_is_not_python, in_its_cell_turned_to_code,
    in_its_cell_turned_raw, in_a_raw_cell, at_the_end, at_the_beginning, under_an_own_heading,
    in_another_answer, in_another_answers_text, in_a_comment_within_a_function, in_a_docstring,
    without_its_heading, in_a_copy,
    in_a_copy_without_names, in_a_merged_cell, in_a_given_cell, in_a_test, in_a_given_text,
    in_an_output, in_displayed_markdown,
]  # fmt: skip


NEARER_TO_ANOTHER = (
    above_the_question, at_the_beginning, in_another_answer, in_another_answers_text,
    in_a_given_cell, in_a_test, in_a_given_text,
)  # fmt: skip


def nameless(notebook):
    """As a tool leaves it that takes away all metadata and gives new ids."""
    for i, cell in enumerate(notebook.cells):
        cell["metadata"], cell["id"] = nbformat.from_dict({}), f"new{i}"
    return notebook


@pytest.mark.parametrize("tool", [lambda nb: nb, nameless], ids=["as it is", "nameless"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("write", PLACES, ids=lambda f: f.__name__)
def test_an_answer_is_shown_and_flagged_wherever_it_stands(write, name, tool):
    theirs = release_of(name)
    at = last_answer(theirs)
    wanted = question_of(theirs.cells[at])
    write(theirs, at)
    notebook, _ = aligned(tool(theirs), name)
    assert SAID in text_of(notebook)
    assert wanted in flagged(notebook)
    cell = next(c for c in answers_in(notebook) if question_of(c) == wanted)
    if write not in NEARER_TO_ANOTHER:
        assert SAID in cell.source
    else:
        assert SAID in cell.source or "The student wrote in" in cell.source


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tool", [lambda nb: nb, nameless], ids=["as it is", "nameless"])
def test_the_untouched_notebook_is_itself_and_flags_nothing(name, tool):
    theirs = release_of(name)
    for cell in theirs.cells:  # it was run, and an editor took the spaces at the ends
        cell.source = "\n".join(line.rstrip() for line in cell.source.split("\n"))
        if cell.cell_type == "code":
            text = "the mean of all draws lies off the truth by that many errors"
            cell.outputs = [new_output("stream", name="stdout", text=text)]
    notebook, notes = aligned(tool(theirs), name)
    assert [c.source for c in notebook.cells] == [c.source for c in release_of(name).cells]
    assert flagged(notebook) == set()
    assert notes == []


@pytest.mark.parametrize("change", [
    lambda text: "",
    lambda text: text.split("\n")[0],
    lambda text: text.replace("*", ""),
    lambda text: text.upper(),
], ids=["emptied", "stub deleted", "no emphasis", "upper case"])  # fmt: skip
def test_an_answer_without_a_word_of_the_student_is_not_flagged(change):
    theirs = release_of()
    for cell in answers_in(theirs):
        cell.source = change(cell.source)
    assert flagged(aligned(theirs)[0]) == set()


@pytest.mark.parametrize(("text", "number"), [
    ("## Question 2\nBecause", "2"),
    ("**Answer to question 1:** Because", "1"), ("Q2: Because", "2"),
    ("a) 3 of them", None), ("q = 1 is", None), ("We have 2 questions", None), ("Frage 2", "2"),
])  # fmt: skip
def test_a_question_is_known_by_its_number(text, number):
    assert reading.Text(text, "", 0, 0, {}).number == number


def test_code_without_prose_flags_nothing():
    theirs = simulated.partial(release_of())
    theirs.cells.append(new_code_cell("x = 1  # one\nprint('one', x)\n!ls\n%timeit x"))
    notebook, _ = aligned(theirs)
    assert flagged(notebook) == set()
    assert "%timeit x" in text_of(notebook)


def test_an_answer_needs_no_heading_in_the_release():
    """As an instructor's own assignment may have it."""
    release, theirs = release_of(), release_of()
    for notebook in (release, theirs):
        for cell in answers_in(notebook):
            cell.source = "*(write here)*"
    answers_in(theirs)[1].source = SAID
    one, two = answers_in(reading.align(theirs, release)[0])
    assert two.source == SAID
    assert "The student wrote in the answer to question law" in one.source


def test_two_answers_under_one_heading_are_both_shown():
    theirs = release_of()
    first, second = answers_in(theirs)
    theirs.cells.append(new_markdown_cell(f"{first.source}\n\nA second thought."))
    first.source += "\n\nA first thought."
    second.source += "\n\nDone."
    cell = answers_in(aligned(theirs)[0])[0]
    assert "A second thought." in cell.source
    assert "A first thought." in cell.source


def test_two_answers_merged_into_one_cell_are_taken_apart():
    theirs = release_of()
    first, second = answers_in(theirs)
    first.source += f"\n\nOne thing.\n\n{second.source}\n\nAnother thing."
    theirs.cells.remove(second)
    one, two = answers_in(aligned(theirs)[0])
    assert "One thing." in one.source
    assert "Another" not in one.source
    assert "Another thing." in two.source
    assert "One thing" not in two.source


def test_the_text_beside_answers_stays_where_it_stood():
    theirs = release_of()
    for cell in answers_in(theirs):
        cell.source += "\n\nDone."
    theirs.cells.insert(5, new_markdown_cell("I wonder why."))
    theirs.cells[0].source += "\n\nMy notes."
    notebook, _ = aligned(theirs)
    assert notebook.cells[1].source == "*Written into the cell above:*\n\nMy notes."
    assert notebook.cells[6].source == "I wonder why."


def test_a_picture_alone_is_an_answer():
    theirs = release_of()
    cell = answers_in(theirs)[0]
    cell["attachments"] = {"my photo (1).png": {"image/png": "iVBO"}}
    notebook, _ = aligned(theirs)
    shown = answers_in(notebook)[0]
    assert shown.attachments == {"my_photo__1_.png": {"image/png": "iVBO"}}
    assert "![my_photo__1_.png](attachment:my_photo__1_.png)" in shown.source
    assert question_of(shown) in flagged(notebook)


def test_pictures_of_one_name_from_two_cells_stay_apart():
    theirs = release_of()
    for data in ("iVBO", "iVBP"):
        cell = new_markdown_cell("![p](attachment:p.png)")
        cell["attachments"] = {"p.png": {"image/png": data}}
        theirs.cells.append(cell)
    shown = answers_in(aligned(theirs)[0])[-1]
    assert {p["image/png"] for p in shown.attachments.values()} == {"iVBO", "iVBP"}
    assert shown.source.count("(attachment:") == 2
    assert all(f"(attachment:{name})" in shown.source for name in shown.attachments)


@pytest.mark.parametrize(
    "form", ["![p.png](data:image/{};base64,{})", "<img src='data:image/{};base64,{}' width=9>"]
)
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_large_picture_in_the_text_is_kept_whole(form, kind):
    """Colab writes them so."""
    theirs = release_of()
    cell = answers_in(theirs)[0]
    data = "iVBO" * 200_000
    cell.source += f"\n\nSee {form.format(kind, data)} there."
    notebook, notes = aligned(theirs)
    shown = answers_in(notebook)[0]
    name = f"in-text-1.{kind}"
    assert shown.attachments == {name: {f"image/{kind}": data}}
    assert shown.source.endswith(f"See ![{name}](attachment:{name}) there.")
    assert notes == []


@pytest.mark.parametrize("form", ["{}", "```python\n{}\n```"])
@pytest.mark.parametrize("new_cell", [new_markdown_cell, new_raw_cell])
def test_a_function_in_a_cell_turned_to_text_is_the_answer(new_cell, form):
    theirs = simulated.answered(release_of())
    at = next(i for i, c in enumerate(theirs.cells) if c.get("id") == "moments")
    source = theirs.cells[at].source.strip()
    theirs.cells[at] = new_cell(form.format(source), id="moments")
    notebook, notes = aligned(theirs)
    assert next(c for c in notebook.cells if c.id == "moments").source == source
    assert any("`moments` was taken from a" in note for note in notes)
    assert text_of(notebook).count("def moments") == 1


def test_a_function_within_other_text_is_named_and_kept():
    theirs = simulated.answered(release_of())
    at = next(i for i, c in enumerate(theirs.cells) if c.get("id") == "moments")
    theirs.cells[at] = new_markdown_cell(
        "Here it is:\n\ndef moments(q):\n    return 1", id="moments"
    )
    notebook, notes = aligned(theirs)
    assert any("`moments` stands in a cell of text" in note for note in notes)
    assert "Here it is:" in text_of(notebook)


def test_a_function_that_is_no_python_is_tested_and_not_called_unwritten():
    theirs = nameless(simulated.answered(release_of(), moments="def moments(q):\n    return [q,"))
    notebook, _ = aligned(theirs)
    cell = next(c for c in notebook.cells if c.id == "moments")
    assert cell.source == "def moments(q):\n    return [q,"


# --- Any file at all ------------------------------------------------------------------------------


def read(tmp_path, content):
    path = tmp_path / "x.ipynb"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return reading.read_submission(path)


def checked(notebook):
    """Align, and hold the result to all that reads it afterwards."""
    result, notes = reading.align(notebook, release_of())
    nbformat.validate(result)
    stored = json.dumps(result, ensure_ascii=False).encode("utf-8")
    assert json.loads(stored) == result
    with contextlib.closing(sqlite3.connect(":memory:")) as book:
        for text in [cell.source for cell in result.cells] + notes:
            assert book.execute("SELECT ?", (text,)).fetchone() == (text,)
            assert "\0" not in text
    return result, notes


LETTERS = st.text(st.characters(exclude_categories=()), max_size=20)
HOSTILE_TEXTS = st.sampled_from([
    "\ud83d", "\0", "\x1b[31mred", "### BEGIN HIDDEN TESTS", "### END SOLUTION", "-" * 5000 + "1",
    "lambda:" * 2000, "(" * 3000, "![x](attachment:gone.png)", "<script>", "$$", "```",
    "*Your answer to question 1:* Words.", "def moments(q):\n    return 1", "%%bash\nls",
])  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | LETTERS | HOSTILE_TEXTS,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        LETTERS
        | st.sampled_from(
            ["cells", "cell_type", "source", "outputs", "data", "text", "text/plain", "image/png",
             "metadata", "nbgrader", "attachments", "output_type", "evalue", "id", "worksheets"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@cache
def submission_text():
    """A submission with words of the student in cells of each kind."""
    notebook = simulated.answered(release_of())
    for i in range(4):
        notebook.cells.insert(7 * i, new_markdown_cell(f"Thought number{i} about zebras."))
        notebook.cells.append(new_code_cell(f"zebra{i} = {i}"))
    answer = answers_in(notebook)[0]
    answer["attachments"] = {"p.png": {"image/png": "iVBO"}}
    shown = new_output("display_data", {"image/png": "iVBO", "text/plain": "<Figure>"})
    notebook.cells[-1].outputs = [
        new_output("stream", name="stdout", text="printed"),
        new_output("error", ename="ValueError", evalue="wrong", traceback=["a", "b"]),
        shown,
    ]
    return json.dumps(notebook)


def submission():
    return json.loads(submission_text())


def places_in(tree, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(tree, dict | list):
        for key, inner in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from places_in(inner, (*path, key))


PLACES_IN_JSON = [p for p in places_in(submission()) if p[:1] == ("cells",) and len(p) > 1]


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(PLACES_IN_JSON), JSON), min_size=1, max_size=4))
def test_a_damaged_cell_costs_itself_only(tmp_path_factory, changes):
    tree = submission()
    for path, value in changes:
        node = tree
        # An earlier change may have taken the place away.
        with contextlib.suppress(TypeError, IndexError, KeyError):
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
    notebook, _ = read(tmp_path_factory.mktemp("in"), tree)
    result, _ = checked(notebook)
    touched = {path[1] for path, _ in changes}
    for i, cell in enumerate(submission()["cells"]):
        if i not in touched and "zebra" in cell["source"]:
            assert cell["source"] in text_of(result)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(JSON | st.fixed_dictionaries({"cells": st.lists(JSON, max_size=5)}))
def test_any_json_is_aligned_or_refused_in_words(tmp_path_factory, tree):
    notebook, notes = read(tmp_path_factory.mktemp("in"), tree)
    if notebook is None:
        assert notes[0].startswith("The file is not a notebook that can be read: ")
    else:
        checked(notebook)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.binary(max_size=200) | st.integers(0, 19_000).map(lambda n: submission_text().encode()[:n])
)
def test_any_bytes_are_refused_in_words(tmp_path_factory, content):
    notebook, notes = read(tmp_path_factory.mktemp("in"), content)
    assert notebook is None
    assert notes[-1].startswith("The file is not a notebook that can be read: ")


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "it is empty"),
    (b"%PDF-1.4 \xff\xfe", "it is a PDF"),
    (b"PK\x03\x04\x00\xff", "it is a zip archive or an office document"),
    (b"<!DOCTYPE html><html>", "it is a web page"),
    (b"\xef\xbb\xbf<html>", "it is a web page"),
    (b"import torch\nx = 1\n", "it is text, and perhaps a program"),
    (b'{"cells": [{"cell_type": "co', "it is damaged or cut off at line 1, column 26"),
    (b'{"nbformat": 4}', "it has no list of cells"),
    (b"[1]", "it holds a list"),
    (b"[" * 100_000, "it is damaged"),
    (b'{"cells": ' + b"9" * 5000 + b"}", "it is damaged"),
])  # fmt: skip
def test_what_is_no_notebook_is_called_by_its_name(tmp_path, content, reason):
    notebook, notes = read(tmp_path, content)
    assert notebook is None
    assert notes[-1] == f"The file is not a notebook that can be read: {reason}."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_notebooks_in_the_encodings_of_editors_are_read(tmp_path, encoding):
    theirs = release_of()
    answers_in(theirs)[0].source += "\n\nGrößer ∑ 😀"
    notebook, notes = read(tmp_path, json.dumps(theirs, ensure_ascii=False).encode(encoding))
    assert notes == []
    assert "Größer ∑ 😀" in text_of(checked(notebook)[0])


def test_another_encoding_is_noted(tmp_path):
    theirs = release_of()
    answers_in(theirs)[0].source += "\n\nGrößer"
    text = json.dumps(theirs, ensure_ascii=False)
    notebook, notes = read(tmp_path, text.encode("latin-1", "replace"))
    assert "not UTF-8" in notes[0]
    assert "Größer" in text_of(checked(notebook)[0])


def test_what_is_too_large_or_not_there_is_refused(tmp_path):
    (tmp_path / "big.ipynb").write_bytes(b" " * (reading.MAX_FILE + 1))
    for name, reason in (
        ("big.ipynb", "larger than 20 MB"),
        ("none.ipynb", "no such file"),
        ("", "no such file"),
    ):
        notebook, notes = reading.read_submission(tmp_path / name)
        assert notebook is None
        assert reason in notes[0]


def test_half_a_letter_becomes_a_sign_and_two_halves_a_letter():
    assert reading.text_in("a\ud83d") == "a\ufffd"
    assert reading.text_in(["a\ud83d", "\ude00"]) == "a😀"
    assert (
        reading.text_in("\x1b[1;31mred\x1b[0m\0 \x1b]8;;http://x\x07link\x1b]8;;\x07\r\nend")
        == "red link\nend"
    )


@pytest.mark.parametrize("version", [2, 3])
def test_a_notebook_of_an_older_version_is_read(tmp_path, version):
    cells = [
        {"cell_type": "heading", "level": 2, "source": "My answers"},
        {"cell_type": "code", "language": "python", "input": simulated.solutions()["moments"],
         "outputs": [{"output_type": "pyout", "png": "iVBO"}, {"output_type": "pyerr", "ename": "E",
                     "evalue": "wrong"}]},
        {"cell_type": "markdown", "source": ["*Your answer to question 1:*\n", "Because."]},
    ]  # fmt: skip
    tree = {"nbformat": version, "worksheets": [{"cells": cells}], "metadata": {}}
    notebook, _ = read(tmp_path, tree)
    result, _ = checked(notebook)
    cell = next(c for c in result.cells if c.id == "moments")
    assert cell.source == simulated.solutions()["moments"]
    assert [o.get("text") or o.data for o in cell.outputs] == [{"image/png": "iVBO"}, "E: wrong"]
    assert "Because." in answers_in(result)[0].source
    assert "## My answers" in text_of(result)


def test_what_is_dropped_is_said(tmp_path):
    tree = submission()
    tree["cells"][1] = 5
    tree["cells"][2]["source"] = ["x = 1\n", 7]
    del tree["cells"][3]["cell_type"]
    tree["cells"][-1]["outputs"] = [{"data": []}]
    tree["cells"][-2]["source"] = "y" * (reading.MAX_SOURCE + 1)
    last = len(tree["cells"])
    _, notes = read(tmp_path, tree)
    assert notes == [
        "Cell 2 not read, as it is no cell.",
        "Cell 3 read only in part, as not all of it is text.",
        "Cell 4 without a type, and taken for text.",
        f"Cell {last - 1} cut after 100,000 characters.",
        f"Cell {last} with an output or a picture that cannot be shown or is too long.",
    ]


@pytest.mark.parametrize(
    "words", ["### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS", "### BEGIN SOLUTION"]
)
def test_the_words_of_nbgrader_are_text(words):
    theirs = release_of()
    theirs.cells.insert(4, new_markdown_cell(words))
    theirs.cells.insert(4, new_code_cell(f"x = 1\n{words}"))
    for cell in answers_in(theirs):
        cell.source += f"\n\n{words}\n\nMy answer."
    assert text_of(aligned(theirs)[0]).count(words) == 4


@pytest.mark.parametrize(
    "source", ["-" * 50_000 + "1", "lambda:" * 10_000 + "1", "(" * 90_000, "0" * 9999, "a\0b"]
)
def test_code_that_stops_the_parser_stops_nothing(source):
    theirs = release_of()
    theirs.cells.insert(4, new_code_cell(source))
    theirs.cells.append(new_markdown_cell(f"def moments(q):\n    return {source}"))
    assert source.replace("\0", "") in text_of(aligned(theirs)[0])


LONG = 1_000_000
UNITS = [
    "<", "![", "](", "]", "] (", "](data:image/png;base64,A", "\\", "\\href", " ", "\n", "*", "`",
    "```\n", "question ", "question to ", "*Your answer to question 1:*\n", "# a\n", "'", '"""',
    "Your answer to question", "\x1b[", "\x1b]", "\x1b[0", "a\n", "(", "![a](attachment:", "\t%",
    "<img src='data:image/png;base64,AAAA", "<img ", "<img src=", "![a](data:image/png;base64,AAA ",
    "\ud83d",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_no_text_takes_long(unit):
    text = (unit * LONG)[:LONG]
    begin = time.process_time()
    clean = reading.text_in(text)
    reading.lifted(clean)
    reading.harmless(clean, {"p.png": {}})
    reading.question(clean)
    reading.by_question(clean, {"1", "2"})
    reading.NAMED.search(clean)
    reading.unfenced(clean)
    reading.fenced(clean)
    reading.inserted(clean, "a\n" * 50)
    reading.plain(clean)
    reading.prose_in(clean[: reading.MAX_SOURCE])
    reading.prose_in("# " + clean[: reading.MAX_SOURCE])
    # Each is linear: hundredths of a second. What takes the square takes hours.
    assert time.process_time() - begin < 20


HUGE = [
    (150, {"cell_type": "code", "source": "# a b c d e f g h i j\n" * 4500}),
    (100_000, {"cell_type": "markdown", "source": "thought {}"}),
    (100_000, {"cell_type": "code", "source": "x = {}"}),
    (100_000, {"cell_type": "markdown", "id": "law", "source": "thought {}"}),
    (100_000, {"cell_type": "markdown", "source": "*Your answer to question 1:* {}"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "cell"), one_in(len(HUGE), HUGE))
def test_a_huge_notebook_is_cut_and_does_not_take_long(tmp_path, count, cell):
    cells = [{**cell, "source": cell["source"].format(i)} for i in range(count)]
    notebook, _ = read(tmp_path, {"cells": cells})
    begin = time.process_time()
    result, notes = checked(notebook)
    assert time.process_time() - begin < 60
    assert len(json.dumps(result)) < 9_000_000
    assert any("too many" in note for note in notes)


def test_other_tools_can_show_what_is_hostile():
    """A picture that is not there stops nbconvert, if it is asked for."""
    theirs = release_of()
    theirs.cells += [
        new_markdown_cell(
            "![x](attachment:gone.png) ![x](attachment:) ![x][y]\n\n[y]: attachment:z"
        ),
        new_raw_cell("![[x](attachment:gone.png)](attachment:gone.png)"),
    ]
    page, _ = HTMLExporter().from_notebook_node(aligned(theirs)[0])
    assert "attachment:gone.png" in page
