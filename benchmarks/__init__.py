"""What a step of each method costs, and how faithful it is: ``python -m benchmarks --help``.

The results are JSON files in `results/speed/`, with their provenance. The book's page *What it
costs* reads them.
"""
