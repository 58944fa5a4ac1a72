"""What the book adds to the library: data, models, experiments, checks, figures, the command line.

The library does without: nothing outside this folder imports from it.
"""
