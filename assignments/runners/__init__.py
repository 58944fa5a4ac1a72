"""Where others run the grader: each runner calls one command, and says what came of it.

    python -m assignments.grader one ASSIGNMENT FILE --json OUT

writes `score`, `max_score`, `tests` (each with `name`, `title`, `points`, `max_points` and
`message`, None where it passed), `waiting` (answers for a person to mark, each with `name`, `title`
and `max_points`) and `notes`.
"""
