"""That a family that crashes is a row like any other."""

import json
import os
import signal
import subprocess
import sys

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


def built(kind: str) -> Case:
    if kind == "no package":
        raise ImportError("no such package")
    return Case(Gates(kind).double().train(), linear().inputs)


KINDS = [
    ("killed", "signal 9 after", 1),
    ("raises", "RuntimeError: too often", 1),
    ("no package", "ImportError: no such package", None),
]


@pytest.mark.parametrize(("kind", "word", "sites"), KINDS, ids=[kind for kind, *_ in KINDS])
def test_a_family_that_crashes_is_a_row(kind, word, sites):
    # In a process of its own, as `make families` runs: a family's is forked from it, and that
    # cannot differentiate where a test before this one has started autograd's threads.
    command = (sys.executable, __file__, kind)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["verdict"] == "CRASH"
    assert any(word in line for line in row["crashed"])
    assert row["sites"] == sites
    assert kind != "no package" or word in done.stderr


if __name__ == "__main__":
    family = families.Family("a family", "torch", lambda: built(sys.argv[1]))
    print(json.dumps(as_json(family, run(family))))
