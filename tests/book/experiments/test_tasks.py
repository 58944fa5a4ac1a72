"""The tasks' settings, which are written out, against what they repeat."""

import pytest

from dropreg.book.experiments import TASKS, Size
from dropreg.book.experiments.tasks import FIRST


@pytest.mark.parametrize("size", [Size.TINY, Size.FULL])
@pytest.mark.parametrize("task", FIRST.values(), ids=FIRST)
def test_the_dimensions_are_those_that_the_model_names(task, size):
    arguments = task.settings[size].model
    dimensions = {name: value for name, value in arguments.items() if name not in task.dropout}
    assert dimensions == task.model.sizes[size]
    assert {*task.dropout} < {*arguments}


@pytest.mark.parametrize("size", [Size.TINY, Size.SMALL])
@pytest.mark.parametrize("name", ["transformer-xl", "qrnn"])
def test_more_text_is_seen_less_often(name, size):
    less, more = (TASKS[task].settings[size] for task in (name, f"{name}-more-text"))
    assert less.train_tokens < more.train_tokens
    assert less.train_tokens * less.epochs == more.train_tokens * more.epochs
