"""What the book adds to the library: data, models, experiments, checks, figures, the command line.

The library does without it: outside this folder only `python -m dropreg` imports from it.
ARCHITECTURE.md has a line for each file, in the order in which they are built.
"""
