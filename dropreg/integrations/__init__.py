"""Dropout replaced in the trainers of other packages; each file here belongs to one of them.

`import dropreg` imports none of this, and a file here imports its package where it is needed.
Lightning and Accelerate need no file: the book's page "In your trainer" has their two lines.
"""
