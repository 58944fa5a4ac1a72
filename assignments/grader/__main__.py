"""The command: ``python -m assignments.grader``."""

from assignments.grader.classroom import main

main()
