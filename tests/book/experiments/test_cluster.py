"""What is said before there is a cluster; with Ray it is tested in tests/integrations."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dropreg.book import cli
from dropreg.book.experiments import EXPERIMENTS, Record, Size, Store, cluster
from dropreg.book.experiments.records import CHANGED, COMMIT, commit

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "book" / "use" / "machines.md").read_text("utf-8")


@pytest.fixture
def fresh(monkeypatch):
    """No commit is remembered, before or after."""
    commit.cache_clear()
    yield monkeypatch
    commit.cache_clear()


def sweep(tmp_path, *words):
    folders = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "runs")]
    return cli.main(["run", "even-odd", "--size", "tiny", *folders, *words])


def test_without_ray_the_error_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert sweep(tmp_path, "--ray") == 1
    assert '--ray needs ray: pip install "dropreg[cluster]"' in capsys.readouterr().err


def test_a_device_that_ray_does_not_deal_out_is_refused(tmp_path, capsys):
    assert sweep(tmp_path, "--ray", "--device", "cuda:1") == 1
    assert "with --ray say auto, cpu or cuda" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["even-odd", "ray://head:10001", "head"])
def test_what_is_no_address_is_refused(tmp_path, address, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "_ray", lambda: None)
    assert sweep(tmp_path, "--ray", address) == 1
    error = capsys.readouterr().err
    assert f"--ray {address}: say auto" in error
    assert "put --ray last" in error


@pytest.mark.parametrize("changed", [False, True])
def test_a_task_records_the_drivers_commit_and_whether_it_was_changed(fresh, changed):
    fresh.setenv(COMMIT, "0" * 40 + (CHANGED if changed else ""))
    assert commit() == {"commit": "0" * 40, "changed": changed}


def test_other_code_is_refused_with_the_name_of_the_node(tmp_path):
    store = Store(tmp_path / "results", tmp_path / "runs")
    job = cluster._Job(store, "cpu", None, "other code", {}, ())
    with pytest.raises(cluster.ClusterError, match="node gpu07/3f2a1c has other code"):
        cluster._require_same_code(job, "gpu07/3f2a1c")


def test_the_driver_reads_a_record_once_and_believes_its_tasks(tmp_path):
    (run, *_) = EXPERIMENTS["even-odd"].runs(Size.TINY, lambda run: None)
    known = cluster._Known(tmp_path / "results", tmp_path / "runs")
    assert known.lookup(run) is None
    record = Record(run.name, json.loads(json.dumps(run.config)), "finished", [], [], {})
    record.write(known.results)
    assert known.lookup(run) is None  # of what ends from now on it is told
    known.known[run.name] = record
    (known.results / f"{run.name}.json").unlink()
    assert known.lookup(run) is record


def test_the_deadline_counts_the_epoch_to_come(tmp_path, monkeypatch):
    store = Store(tmp_path / "results", tmp_path / "runs")
    job = cluster._Job(store, "cpu", 100.0, "", {}, ())
    monkeypatch.setattr(cluster.time, "time", lambda: 95.0)
    assert not job.over()
    assert not job.over(5.0)
    assert job.over(5.1)


def test_the_pages_commands_are_understood():
    code = "\n".join(re.findall(r"```(?:sh|bash)\n(.*?)```", PAGE, re.DOTALL))
    commands = re.findall(r"^dropreg (.*)", code.replace("\\\n", ""), re.MULTILINE)
    assert len(commands) == 2
    on_ray, in_an_array = (
        cli._parser().parse_args(shlex.split(command.partition("||")[0])) for command in commands
    )
    assert on_ray.ray == "auto"
    assert on_ray.results == Path("/shared/results")
    assert in_an_array.ray is None
    assert in_an_array.max_minutes < 240  # the script's time limit


@pytest.mark.slow
def test_the_pages_array_shares_the_work_and_queues_again_what_the_clock_has_stopped(tmp_path):
    (script,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    script = script.replace("--size small", "--size tiny --seeds 0 --device cpu")
    (tmp_path / "sweep").mkdir()
    for name, does in {
        "dropreg": f'exec {shlex.quote(sys.executable)} -m dropreg "$@"',
        "scontrol": f'echo "$@" >> {tmp_path}/asked',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    shared = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SWEEP": str(tmp_path / "sweep"),
        "SLURM_ARRAY_JOB_ID": "7",
    }

    def start(task):
        return subprocess.Popen(
            ["bash", "-c", script],
            env=shared | {"SLURM_ARRAY_TASK_ID": str(task)},
            stdout=subprocess.PIPE,
            text=True,
        )

    tasks = [start(task) for task in range(2)]
    lines = "".join(task.communicate(timeout=120)[0] for task in tasks)
    assert [task.returncode for task in tasks] == [0, 0]
    store = Store(tmp_path / "sweep" / "results", tmp_path / "sweep" / "runs")
    runs = list(EXPERIMENTS["even-odd"].runs(Size.TINY, store.lookup, [0]))
    for run in runs:
        assert store.lookup(run).finished
        assert lines.count(f"{run.name}: perplexity") == 1
    assert not (tmp_path / "asked").exists()
    Record("tiny/other", {}, "stopped after epoch 3", [], [], {}).write(store.results)
    again = start(31)
    again.communicate(timeout=120)
    assert (tmp_path / "asked").read_text() == "requeue 7_31\n"
