"""`make pins`, with an index of three packages; and that requirements.txt is what it makes."""

import re
import zipfile

import pytest
from packaging.requirements import Requirement

from tools import ROOT, pins

PROJECT = """\
[project]
dependencies = ["Torch-like>=1"]
[project.optional-dependencies]
book = ["plots[nice]>=1"]
families = ["not-to-be-found>=1"]
trainers = ["trainer-like"]
cluster = ["rays"]
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A project, and where pip looks for packages: nowhere else."""

    def package(name, version, *requires):
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        metadata += "Provides-Extra: nice\n" + "".join(f"Requires-Dist: {r}\n" for r in requires)
        with zipfile.ZipFile(tmp_path / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            folder = f"{name}-{version}.dist-info"
            wheel.writestr(f"{folder}/METADATA", metadata)
            wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
            wheel.writestr(f"{folder}/RECORD", "")

    package("Torch_like", "1.0", "helper")
    package("Torch_like", "2.0+cpu", "helper")
    package("helper", "1.0")
    package("helper", "1.1")
    package("plots", "1.5", "colors; extra == 'nice'")
    package("colors", "3.0")
    package("trainer_like", "1.0", "torch-like", "loops")
    package("loops", "1.0")
    package("loops", "2.0")
    package("rays", "2.0", "loops")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / pins.PINS_ON_TOP).write_text("# On top.\nloops==1.0\n")
    return tmp_path


def test_what_is_pinned_stays_and_the_rest_is_found(tree, capsys):
    path = tree / "requirements.txt"
    path.write_text("# A comment,\n# of two lines.\nGone==7.0\nhelper==1.0\n")
    pins.main(tree)
    assert path.read_text() == (
        "# A comment,\n# of two lines.\ncolors==3.0\nhelper==1.0\nplots==1.5\nTorch_like==2.0\n"
    )
    assert "4 pins; new: Torch_like==2.0, colors==3.0, plots==1.5" in capsys.readouterr().out
    pins.main(tree)
    assert "4 pins; new: none" in capsys.readouterr().out
    on_top = (tree / pins.PINS_ON_TOP).read_text()
    assert on_top == "# On top.\nloops==1.0\nrays==2.0\ntrainer_like==1.0\n"


def test_what_cannot_be_had_changes_nothing(tree):
    path = tree / "requirements.txt"
    path.write_text("helper==9.9\n")
    with pytest.raises(SystemExit, match=r"requirements\.txt is as it was"):
        pins.main(tree)
    assert path.read_text() == "helper==9.9\n"


def read(name):
    lines = (ROOT / name).read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", name).lower(): pin for name, pin in pinned.items()}


def test_everything_that_is_asked_for_is_pinned_in_its_range():
    pinned, on_top = read(pins.PINS), read(pins.PINS_ON_TOP)
    assert not pinned.keys() & on_top.keys(), "make pins"
    for extras, found in (((), pinned), (pins.ON_TOP, pinned | on_top)):
        for line in pins.wanted(ROOT, *extras):
            asked = Requirement(line)
            pin = found.get(re.sub(r"[-_.]+", "-", asked.name).lower())
            assert pin is not None, f"{line}: make pins"
            assert asked.specifier.contains(pin), f"{line}: make pins"
