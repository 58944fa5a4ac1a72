"""The README's example runs."""

import re
from pathlib import Path


def test_the_example_runs():
    readme = Path(__file__).parent.parent / "README.md"
    (example,) = re.findall(r"```python\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
    names = {}
    exec(example, names)
    assert all(weight.grad is not None for weight in names["model"].parameters())
