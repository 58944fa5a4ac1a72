"""The grader: assignments out of their sources, and marks out of a folder of notebooks.

`classroom.py` has the commands (``python -m assignments.grader --help``), `grading.py` puts a
notebook in order and tests it, `sandbox.py` runs a student's functions, `sandbox_child.py` is the
process in which they run.
"""
