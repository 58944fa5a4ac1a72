"""The page's code fits on it, and none of it is left out by the tests beside this one."""

import re

from snippets import PAGE, blocks

TESTED = {"transformers": 3, "Lightning": 2, "Accelerate": 4, "Keras 3": 3}


def test_every_block_belongs_to_a_test():
    assert {section: len(blocks(section)) for section in TESTED} == TESTED
    assert PAGE.read_text("utf-8").count("```python") == sum(TESTED.values())


def test_blocks_are_short_and_narrow():
    for block in re.findall(r"```\w+\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        lines = block.splitlines()
        assert len(lines) <= 12, block
        assert max(map(len, lines)) <= 76, block
