"""What `make` calls, run from the top of the repository as `python -m tools.NAME`.

`environment.py` and `colab.py` run under a Python that has nothing of ours, as files, and so import
nothing from here.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The top of the repository."""
