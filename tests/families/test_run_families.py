"""That a family that crashes is a row like any other."""

import os
import signal

import families
import pytest
from compare import Case
from run_families import as_json, run
from test_reference import linear
from torch import Tensor, nn


class Gates(nn.Module):
    """Raises where it is told to."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.passes, self.layers = kind, 0, linear().model

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes > 30 and self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.passes > 30 and self.kind == "raises":
            raise RuntimeError("too often")
        return self.layers(x)


@pytest.mark.parametrize(("kind", "word"), [("killed", "signal 9 after"), ("raises", "too often")])
def test_a_family_that_crashes_is_a_row(kind, word):
    def build() -> Case:
        return Case(Gates(kind).double().train(), linear().inputs)

    row = as_json(families.Family("a family", "torch", build), run(families.Family("", "", build)))
    assert row["verdict"] == "CRASH"
    assert any(word in line for line in row["crashed"])
    assert row["sites"] == 1


def test_a_family_that_cannot_be_built_is_a_row(capfd):
    def build() -> Case:
        raise ImportError("no such package")

    row = run(families.Family("a family", "torch", build))
    assert (row.verdict, row.crashed) == ("CRASH", ["ImportError: no such package"])
    assert "no such package" in capfd.readouterr().err
