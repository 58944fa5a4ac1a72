"""The command: ``python -m assignments.grader``."""

from assignments.grader.commands import main

main()
