"""The environment of the trainers' tests is made once, and again when its pins change."""

from pathlib import Path

import pytest

from tools import pins, trainers


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """What is run in place of running it, in a tree that has the two files of pins."""
    monkeypatch.setattr(trainers, "ROOT", tmp_path)
    monkeypatch.setattr(trainers, "ENVIRONMENT", tmp_path / ".venv-trainers")
    for name in (pins.PINS, pins.PINS_ON_TOP):
        (tmp_path / name).write_text("torch==2.13.0\n")
    (tmp_path / "pyproject.toml").write_text(
        "[project]\noptional-dependencies = {trainers = ['keras'], cluster = ['ray']}\n"
    )
    seen = []

    def run(command, check):
        assert check
        seen.append([str(word) for word in command])
        (tmp_path / ".venv-trainers").mkdir(exist_ok=True)

    monkeypatch.setattr(trainers.subprocess, "run", run)
    return seen


def test_it_is_made_once_and_with_all_pins(commands, tmp_path):
    python = trainers.environment()
    assert python == tmp_path / ".venv-trainers" / "bin" / "python"
    made, installed = commands
    assert made[1:] == ["-m", "venv", "--clear", str(tmp_path / ".venv-trainers")]
    for name in (pins.PINS, pins.PINS_ON_TOP):
        place = installed.index(str(tmp_path / name))
        assert installed[place - 1] == "--constraint"
    assert installed[-2:] == ["--editable", f"{tmp_path}[trainers,cluster]"]
    trainers.environment()
    assert len(commands) == 2


@pytest.mark.parametrize("name", [pins.PINS, pins.PINS_ON_TOP, "pyproject.toml"])
def test_it_is_made_again_when_what_it_holds_changes(commands, tmp_path, name):
    trainers.environment()
    path = Path(tmp_path, name)
    path.write_text(path.read_text().replace("2.13.0", "2.13.1").replace("keras", "keras>=3"))
    trainers.environment()
    assert len(commands) == 4
