"""The one call on a lent GPU: here on the CPU, at tiny, cut, killed, gone on with, brought home."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from environments import link, required

from dropreg.book.experiments import Record, Size, Store, train
from dropreg.book.experiments.records import read_record, results_folder
from tools import gpu
from tools.build_book import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RUNS = list(gpu.EXPERIMENT.runs(Size.TINY, lambda _: None))


@pytest.fixture
def bare(tmp_path):
    """A lent machine: torch and what it requires, this working tree, and no git to ask."""
    folder = tmp_path / "torch-alone"
    folder.mkdir()
    link(folder, required("torch"))
    path = os.pathsep.join(map(str, (ROOT, folder)))
    return {"PATH": os.environ["PATH"], "PYTHONPATH": path, "DROPREG_COMMIT": COMMIT}


def command(out, minutes, *script):
    where = ("--device", "cpu", "--size", "tiny", "--out", str(out), "--minutes", str(minutes))
    return [sys.executable, "-S", "-s", *(script or ["-m", "tools.gpu"]), *where]


TRAINING_ONLY = """
import sys
from tools import gpu
gpu.right_and_cost = lambda call: None
sys.exit(gpu.main())
"""


def rows(out):
    """The runs in what has come back, each of which must be whole."""
    with zipfile.ZipFile(out / gpu.ROWS) as archive:
        assert archive.testzip() is None
        names = [n for n in archive.namelist() if n.startswith("results/tiny/")]
        return {json.loads(archive.read(name))["run"]: archive.read(name) for name in names}


def test_a_whole_call_and_home_again(tmp_path, bare, capsys):
    out = tmp_path / "out"
    done = subprocess.run(command(out, 1.0), env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in out.iterdir()}
    assert len(names) <= gpu.MAX_FILES
    assert all(path.stat().st_size <= gpu.MAX_BYTES for path in out.iterdir())
    readme = (out / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in names - {"README.md"})
    for part in ("no pytest here", "gradients: exit code 0", "cost: exit code 0", "5 at once"):
        assert part in readme, readme
    first = {run.name for run in RUNS if run.seed == 0}
    assert first <= rows(out).keys()

    home = Store(tmp_path / "results", tmp_path / "runs")
    words = ["take", str(out), "--results", str(home.results), "--runs", str(home.work)]
    assert gpu.main(words) == 0
    for run in RUNS[:5]:
        assert home.latest(run).sessions[0]["commit"] == COMMIT
    for name in ("gradients", "rules"):
        assert (home.results / "speed" / "tiny" / "cpu" / f"{name}.json").exists()
    assert gpu.main(words) == 0  # a second time nothing is new but the measured times
    assert capsys.readouterr().out.splitlines()[-1].startswith("==> 2 files taken")
    assert gpu.main(["take", str(out)]) == 1
    assert "of size tiny" in capsys.readouterr().err
    assert not (results_folder() / "tiny").exists()


def test_killed_half_way_leaves_whole_rows_and_nobody_at_work(tmp_path, bare):
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(out, 2, "-c", TRAINING_ONLY),
        env=bare,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        out.exists() and (out / gpu.ROWS).exists() and rows(out)
    ):
        time.sleep(0.05)
    process.kill()
    process.wait()
    found = rows(out)
    assert len(found) == 5
    for name, content in found.items():
        path = tmp_path / "row.json"
        path.write_bytes(content)
        assert read_record(path).run == name
    # Its workers notice, in the middle of an epoch, too.
    for _ in range(200):
        if subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True).returncode:
            break
        time.sleep(0.05)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("a worker goes on")


def test_a_part_is_ended_in_time_and_keeps_what_it_had(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DROPREG_COMMIT", COMMIT)
    monkeypatch.setattr(gpu, "FEWEST", 3.0)
    options = argparse.Namespace(out=tmp_path / "out", device="cpu", size="tiny", minutes=0.01)
    call = gpu.Call(options, tmp_path / "work")
    call.work.mkdir()
    gpu.part(call, "tests", "-c", "import time; print('one', flush=True); time.sleep(60)")
    gpu.part(call, "cost", "-c", "raise SystemExit('no such thing')")
    first, second = capsys.readouterr().out.splitlines()
    assert re.match(r"==> tests: ended when its 3 s were over, with what it had, \d s; one", first)
    assert re.match(r"==> cost: exit code 1, \d s; no such thing", second)
    with zipfile.ZipFile(options.out / gpu.ROWS) as archive:
        assert archive.read("log/tests.txt") == b"one\n"


def a_call(tmp_path, content):
    """What has come back, made by hand: one record."""
    out = tmp_path / "came"
    out.mkdir(exist_ok=True)
    path = content.write(tmp_path / "written")
    with zipfile.ZipFile(out / gpu.ROWS, "w") as archive:
        archive.write(path, f"results/{content.run}.json")
    return out


def a_record(epochs, status="stopped after epoch 2", **changes):
    session = {"commit": COMMIT, "changed": False} | changes
    numbered = [{"epoch": i + 1, "loss": loss} for i, loss in enumerate(epochs)]
    return Record(RUNS[0].name, RUNS[0].config, status, [session], numbered, {})


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (a_record([1.0, 2.0], commit="unknown"), "not committed"),
        (a_record([1.0, 2.0], changed=True), "not committed"),
        (a_record([9.0, 2.0]), "differs from the row that is recorded"),
        (Record(RUNS[0].name, {"task": "x"}, "finished", [], [], {}), "does not declare"),
        (Record(RUNS[1].name, RUNS[0].config, "finished", [], [], {}), "is the record of"),
    ],
)
def test_what_is_not_what_it_should_be_is_refused_and_changes_nothing(
    tmp_path, capsys, record, says
):
    home = Store(tmp_path / "results", tmp_path / "runs")
    before = a_record([1.0], "stopped after epoch 1")
    before.write(home.results)
    where = ["--results", str(home.results), "--runs", str(home.work)]
    assert gpu.main(["take", str(a_call(tmp_path, record)), *where]) == 1
    assert says in capsys.readouterr().err
    assert home.latest(RUNS[0]) == before
    assert [path.name for path in home.results.rglob("*.json")] == ["seed0.json"]


def test_a_row_that_goes_on_takes_the_place_of_the_shorter_one(tmp_path):
    home = Store(tmp_path / "results", tmp_path / "runs")
    where = ["--results", str(home.results), "--runs", str(home.work)]
    records = [a_record([1.0]), a_record([1.0, 2.0]), a_record([1.0]), a_record([1.0, 2.0, 3.0])]
    for record, epochs in zip(records, (1, 2, 2, 3), strict=True):
        assert gpu.main(["take", str(a_call(tmp_path, record)), *where]) == 0
        assert len(home.latest(RUNS[0]).epochs) == epochs


def test_checkpoints_are_gone_on_with(tmp_path, monkeypatch):
    """Those that are behind come first, so that all are equally long."""
    monkeypatch.setenv("DROPREG_COMMIT", COMMIT)
    here = Store(tmp_path / "results", tmp_path / "runs")
    for run in RUNS[:2]:
        train(run, here.checkpoint(run), stop=lambda seconds: True)
    found = gpu.checkpoints(here.work)
    assert {run.name for run, _, _ in found} == {run.name for run in RUNS[:2]}
    epochs = {run.name: len(done) for run, _, done in found}

    class Call:
        size, store, work = Size.TINY, here, tmp_path

    assert gpu.next_turn(Call, epochs) == RUNS[2:5]
    assert gpu.next_turn(Call, epochs | {run.name: 1 for run in RUNS[2:5]}) == RUNS[:5]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "{tmp}/new", "--device", "cuda:99"], "cannot be used here"),
        (["--out", "{tmp}"], "is not empty"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_time_is_spent(
    tmp_path, monkeypatch, capsys, words, says
):
    monkeypatch.setenv("DROPREG_COMMIT", COMMIT)
    (tmp_path / "file").write_text("")
    words = [word.format(tmp=tmp_path) for word in words]
    assert gpu.main(["--minutes", "1", "--size", "tiny", *words]) == 1
    assert says in capsys.readouterr().err
    monkeypatch.setattr(gpu, "commit", lambda: {"commit": COMMIT, "changed": True})
    assert gpu.main(["--minutes", "1", "--size", "tiny", "--out", str(tmp_path / "new")]) == 1
    assert "DROPREG_COMMIT" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_none_is_named(tmp_path, capsys):
    assert gpu.main(["take", str(tmp_path)]) == 1
    assert "holds no results.zip" in capsys.readouterr().err
