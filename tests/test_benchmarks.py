"""The benchmarks run on every workload, and what is recorded says where it comes from."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.workloads import WORKLOADS
from dropreg.experiments.records import results_folder

COMMITTED = sorted((results_folder() / "speed").rglob("*.json"))
COST = ("dropout", "controlled", "dropout_2", "both/central", "both/even_odd", "both/published")


@pytest.mark.filterwarnings("ignore")  # of BackPACK and curvlinops
def test_every_workload_at_tiny(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cost of each method on each workload: times, peaks, table and plot."""
    arguments = ["--size", "tiny", "--rounds", "1", "--results", str(tmp_path)]
    arguments += ["--only", *WORKLOADS, "--methods", *COST, "backpack/mc", "curvlinops/hutchinson"]
    main(arguments)
    assert "both/central" in capsys.readouterr().out
    folder = tmp_path / "tiny" / "cpu"
    assert (folder / "cost.png").stat().st_size > 1000
    for name in WORKLOADS:
        found = json.loads((folder / f"{name}.json").read_text())
        methods = {row["method"] for row in found["rows"]}
        assert methods == {"dropout", *(("backpack/mc", "curvlinops/hutchinson")
                           if name == "weight-mlp" else COST)}  # fmt: skip
        assert all(row["seconds"] > 0 and row["rounds"] == 1 for row in found["rows"])
        assert found["session"]["command"].startswith("python -m benchmarks")


def test_fidelity_at_tiny(tmp_path: Path) -> None:
    main(["--size", "tiny", "--results", str(tmp_path), "--only", "fidelity"])
    found = json.loads((tmp_path / "tiny/cpu/fidelity.json").read_text())
    rows = {(r["model"], r["effect"], r["method"], r["step"]): r for r in found["rows"]}
    for model in ("lstm", "transformer", "relu-mlp"):
        assert rows[model, "explicit", "jvp", None]["bias_on_same_noise"] == 0
        assert rows[model, "implicit", "analytic", None]["cosine_on_same_noise"] > 1 - 1e-6
    for model in ("lstm", "transformer"):  # smooth: a short step is the derivative
        assert rows[model, "explicit", "central", 0.05]["bias_on_same_noise"] < 0.1
        assert rows[model, "implicit", "central", 0.05]["cosine_on_same_noise"] > 0.98


def test_what_is_recorded_is_of_committed_code() -> None:
    assert COMMITTED
    for path in COMMITTED:
        found = json.loads(path.read_text())
        session = found["session"]
        assert found["schema"] == 1
        assert session["commit"].isalnum(), path
        assert len(session["commit"]) == 40, path
        assert not session["changed"], f"{path}: of uncommitted code"
        assert {"started", "command", "device", "python", "torch"} <= session.keys()
