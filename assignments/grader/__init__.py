"""The grader: assignments out of their sources, and marks out of a folder of notebooks.

A submission goes through these files, in this order:

- `commands.py`: what can be said on the command line (``python -m assignments.grader --help``);
  `doctor.py`: whether this machine can grade; `classroom.py`: where everything lies, and the
  versions of an assignment;
- `submissions.py`: whose a file is; `roster.py`: the class list; `lms.py`: the forms of
  learning-management systems;
- `marking.py`: the way of a class from files to marks; `apart.py`: each submission in a process of
  its own;
- `reading.py`: from any file to a notebook in order, with the student's answers in their places;
- `grading.py`: the tests of a notebook; `sandbox.py`: a student's functions as they are called from
  here, `wall.py`: what they run behind, `wire.py`: what crosses, `sandbox_child.py`: the process in
  which they run, `definitions.py`: what of a notebook is run, `uses.py`: what it takes from
  elsewhere;
- `feedback.py`: the student's page.

`mutants.py` and `operators.py` measure the checks.
"""
