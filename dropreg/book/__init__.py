"""What the book adds to the library: data, models, experiments, checks, figures, the command line.

From the ground up: `data`, `models`, `statistics`, `plots`, `interactive` and `checks`; then
`experiments`, and within them tasks and records, the catalog, training and its runner, the ledger;
last the command line. Nothing imports from a later one.

The library does without it: outside this folder only `python -m dropreg` imports from it.
"""
