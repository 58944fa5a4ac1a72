"""The grader: assignments out of their sources, and marks out of a folder of notebooks.

`classroom.py` has the commands (``python -m assignments.grader --help``), `reading.py` puts what a
student handed in in order, `grading.py` tests it, `feedback.py` shows a student the marks,
`sandbox.py` runs a student's functions, `sandbox_child.py` is the process in which they run.
"""
