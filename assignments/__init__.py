"""Assignments, and in `assignments.grader` what makes and grades them."""
