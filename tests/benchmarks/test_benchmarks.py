"""The benchmarks run on every workload, and what is recorded says where it comes from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence

from benchmarks.__main__ import main
from benchmarks.fidelity import last_layer, squared_mean, with_last_layer
from benchmarks.methods import VALUES, r_drop
from benchmarks.workloads import WORKLOADS
from dropreg import explicit_regularizer
from dropreg.book.experiments.records import results_folder
from tools import ROOT

COMMITTED = sorted((results_folder() / "speed").rglob("*.json"))
COST = (
    "dropout", "controlled", "dropout_2", "both/central", "both/even_odd", "both/published",
    "share-4/central", "rdrop",
)  # fmt: skip
OTHERS = ("backpack/mc", "curvlinops/hutchinson")


@pytest.mark.slow
def test_every_workload_at_tiny(tmp_path: Path) -> None:
    """The cost of each method on each workload: times, peaks, table and plot."""
    # In a process of its own: it is forked for each peak, and thousands of tests have left threads.
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks"]  # of BackPACK and curvlinops
    command += ["--size", "tiny", "--rounds", "1", "--results", str(tmp_path)]
    command += ["--only", *WORKLOADS, "--methods", *COST, *OTHERS]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    assert "both/central" in shown.stdout
    folder = tmp_path / "tiny" / "cpu"
    assert (folder / "cost.png").stat().st_size > 1000
    for name in WORKLOADS:
        found = json.loads((folder / f"{name}.json").read_text())
        methods = {row["method"] for row in found["rows"]}
        assert methods == {*COST, *(OTHERS if name == "weight-mlp" else ())}
        assert all(row["seconds"] > 0 and row["rounds"] == 1 for row in found["rows"])
        assert found["session"]["command"].startswith("python -m benchmarks")


def test_r_drop_is_the_papers_equation() -> None:
    torch.manual_seed(0)
    one, other, y = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    p, q = (Categorical(logits=logits) for logits in (one, other))
    divergence = (kl_divergence(p, q) + kl_divergence(q, p)) / 2
    expected = (divergence - p.log_prob(y) - q.log_prob(y)).mean()
    torch.testing.assert_close(r_drop(one, other, y), expected)


@pytest.mark.filterwarnings("ignore")  # of BackPACK and curvlinops
def test_values_with_dropout_on_weights_are_those_of_other_libraries() -> None:
    """One draw's mean is the exact value: 400 draws within four standard errors."""
    workload, cpu = WORKLOADS["weight-mlp"]["tiny"], torch.device("cpu")
    exact = VALUES["backpack/exact"](workload, cpu)()
    torch.testing.assert_close(VALUES["value/exact"](workload, cpu)(), exact)
    for name in ("value/sampled_labels", "value/central", *OTHERS):
        step = VALUES[name](workload, cpu)
        draws = torch.stack([step() for _ in range(400)])
        assert abs(draws.mean() - exact) < 4 * draws.std() / 20, name


def test_fidelity_at_tiny(tmp_path: Path) -> None:
    main(["--size", "tiny", "--results", str(tmp_path), "--only", "fidelity"])
    found = json.loads((tmp_path / "tiny/cpu/fidelity.json").read_text())
    rows = {(r["model"], r["effect"], r["method"], r["step"]): r for r in found["rows"]}
    for model in ("lstm", "transformer", "relu-mlp"):
        assert rows[model, "explicit", "jvp", None]["squared_bias_on_same_noise"] == 0
        assert rows[model, "implicit", "analytic", None]["cosine_on_same_noise"] > 1 - 1e-6
    for model in ("lstm", "transformer"):  # smooth: a short step is the derivative
        assert rows[model, "explicit", "central", 0.05]["squared_bias_on_same_noise"] < 0.01
        assert rows[model, "implicit", "central", 0.05]["cosine_on_same_noise"] > 0.98


def test_the_squared_mean_has_no_sampling_noise_in_it_and_an_error() -> None:
    """Of 2000 samples of 20 draws: its mean is the truth, and its spread what it says."""
    truth = torch.tensor([0.3, -0.4, 0.0, 0.0, 0.0]).double()
    generator = torch.Generator().manual_seed(0)
    samples = truth + torch.randn(2000, 20, 5, generator=generator).double()
    found = torch.tensor([squared_mean(draws) for draws in samples])
    squares, errors = found[:, 0], found[:, 1]
    assert abs(squares.mean() - truth @ truth) < 4 * squares.std() / 2000**0.5
    naive = samples.mean(1).square().sum(1).mean()
    assert naive > truth @ truth + 0.2  # what the length of a mean holds beside it: 5 / 20
    assert 1 <= errors.square().mean().sqrt() / squares.std() < 1.45  # rather too large


def test_closed_form_of_the_last_layer_is_exact() -> None:
    torch.manual_seed(0)
    layers = nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)
    x, model = torch.randn(6, 4), nn.Sequential(*layers)
    torch.testing.assert_close(last_layer(model, x), explicit_regularizer(model, x, method="exact"))


def test_last_layer_and_central_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their mean is R_approx: 400 draws within four standard errors."""
    torch.manual_seed(0)
    layers = nn.Dropout(0.2), nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3)
    x, model = torch.randn(6, 4), nn.Sequential(*layers)
    monkeypatch.setattr("benchmarks.fidelity.DEFAULT_STEP", 0.02)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([with_last_layer(model, x, generator) for _ in range(400)])
    off = draws.mean() - explicit_regularizer(model, x, method="exact")
    assert abs(off) < 4 * draws.std() / 20


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
