"""Sweeps on a cluster of Ray's: machines and drivers that die, locks that others hold, bad runs."""

import contextlib
import dataclasses
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")
from ray.cluster_utils import Cluster

from dropreg.book.experiments import EXPERIMENTS, Size, Store, cluster
from dropreg.book.experiments.declarations import Arm, Experiment, Tuning
from dropreg.book.experiments.records import read_record
from dropreg.book.experiments.runner import Order, run_next
from dropreg.book.experiments.training import Progress
from dropreg.updates import Rule

pytestmark = [
    pytest.mark.slow,
    # Ray's own, on being asked for no GPU, and of sockets that its processes leave.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning"),
]

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (its name), other tests run beside, and these wait for workers
ROOT = Path(__file__).parents[2]
# Long enough for machines to die in the middle of a run; a strength is tuned before the last two.
LONG = {"epochs": 12}
SWEEP = Experiment(
    "sweep",
    "Does a cluster change a bit?",
    "ours",
    {
        "dropout": Arm("lstm", Rule("dropout_k"), changes=LONG, seeds=(0, 1)),
        "tuned": Arm(
            "lstm",
            Rule("explicit"),
            changes=LONG,
            tuning=Tuning((0.1, 1.0), seeds=(43,)),
            seeds=(0,),
        ),
    },
)
ORDER = Order([("sweep", Size.TINY)])
COMMAND = ("run", "sweep", "--size", "tiny", "--device", "cpu")


def driver():
    """The command line, in a process that knows the sweep: the nodes are told its runs."""
    from dropreg.book import cli

    EXPERIMENTS["sweep"] = SWEEP
    sys.exit(cli.main())


def start(store, *words):
    """Such a process."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    return subprocess.Popen(
        [
            *(sys.executable, "-c", "import test_ray; test_ray.driver()", *COMMAND),
            *("--results", str(store.results), "--work", str(store.work), *words),
        ],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module", autouse=True)
def known():
    EXPERIMENTS["sweep"] = SWEEP
    yield
    del EXPERIMENTS["sweep"]


@pytest.fixture(scope="module")
def nodes():
    """A cluster on this machine: the driver's node, which has no room for runs, and two workers."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        found.add_node(num_cpus=1)
    yield found
    found.shutdown()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results", tmp_path / "runs")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What a worker of the built-in runner makes of the sweep."""
    folder = tmp_path_factory.mktemp("alone")
    found = Store(folder / "results", folder / "runs")
    while run_next(ORDER, found, "cpu", None):
        pass
    return found


def numbers(record):
    """What must not depend on where a run was trained, nor on how often it was interrupted."""
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in record.epochs]
    return record.status, record.final, rows, record.config


def ended_as_alone(store, alone):
    """The records of all runs, which are the built-in runner's to the last bit."""
    runs = list(ORDER.runs(alone))
    assert len(runs) >= 5
    assert [run.name for run in ORDER.runs(store)] == [run.name for run in runs]
    for run in runs:
        assert numbers(store.lookup(run)) == numbers(alone.lookup(run))
    assert not list(store.work.rglob("*.pt"))
    assert not list(store.results.rglob(".*"))
    return [store.lookup(run) for run in runs]


def wait_for(condition, seconds=180):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it has not come to pass"
        time.sleep(0.02)


def test_a_machine_that_dies_takes_no_run_with_it(nodes, store, alone, monkeypatch):
    monkeypatch.setattr(cluster, "LOOK_EVERY", 2.0)
    monkeypatch.setattr(sys, "argv", ["dropreg", "a", "sweep"])
    doomed = nodes.list_all_nodes()[-1]

    def kill():
        wait_for(lambda: len(list(store.work.rglob("*.pt"))) == 2)  # both are in the middle
        nodes.remove_node(doomed, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert cluster.run_on_cluster(ORDER, store, device="auto", address=nodes.address)
    killer.join()
    nodes.add_node(num_cpus=1)  # for the tests to come
    records = ended_as_alone(store, alone)
    assert 2 in [len(record.sessions) for record in records]  # begun there, ended elsewhere
    lines = said.getvalue().splitlines()
    for record in records:
        assert sum(line.startswith(f"{record.run}: perplexity") for line in lines) == 1
        for session in record.sessions:
            assert session["command"] == "dropreg a sweep"
            assert session["threads"] == 1
            assert session["device"].startswith("cpu: ")
    of = len(records)
    assert f"{of} of {of} known runs have ended, 0 at work" in lines
    assert any("/12, loss " in line for line in lines)


def test_a_driver_that_is_killed_is_taken_up_by_the_same_command(nodes, store, alone):
    first = start(store, "--ray", nodes.address)
    # One has ended, and the next is in the middle.
    wait_for(lambda: any(store.results.rglob("*.json")) and any(store.work.rglob("*.pt")))
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    done = {path: path.read_bytes() for path in store.results.rglob("*.json")}
    assert len(done) < 4  # what was tuned has yet to be run
    again = start(store, "--ray", nodes.address)
    _, error = again.communicate(timeout=180)
    assert again.returncode == 0, error
    for path, content in done.items():
        assert path.read_bytes() == content
    for record in ended_as_alone(store, alone):  # none was begun anew
        begun = [session["from_epoch"] for session in record.sessions]
        assert begun[0] == 1
        assert begun == sorted(set(begun))


def test_bad_runs_and_held_locks_keep_nobody_from_working(nodes, store, monkeypatch, capfd):
    monkeypatch.setattr(cluster, "AGAIN_AFTER", 0.5)
    names = [("even-odd", Size.TINY)]
    order = Order(names, seeds=[0])
    bad, held, *others = order.runs(store)
    assert len(others) >= 2
    (store.work / f"{bad.name}.lock").mkdir(parents=True)

    def hold():
        with store.lock(held):
            wait_for(lambda: all(store.lookup(run) for run in others))

    holder = threading.Thread(target=hold)
    holder.start()
    assert not cluster.run_on_cluster(order, store, device="cpu", address=nodes.address, jobs=1)
    holder.join()
    assert store.lookup(held).finished
    assert not store.lookup(bad)
    error = capfd.readouterr().err
    assert f"dropreg: {bad.name}: " in error
    assert "(Is a directory)" in error


def test_a_folder_that_is_not_shared_is_refused_by_name(nodes, tmp_path, monkeypatch):
    # The driver's folder is another one than that of the processes that the nodes have started.
    monkeypatch.chdir(tmp_path)
    folder = Path("/proc/self/cwd/sweep")
    with pytest.raises(cluster.ClusterError, match=r"node \S+/[0-9a-f]{6} does not see .*/sweep"):
        cluster.run_on_cluster(
            ORDER, Store(folder, tmp_path / "runs"), device="cpu", address=nodes.address
        )
    assert not list(tmp_path.rglob(".*"))


def test_a_gpu_that_no_node_has_is_refused(nodes, store):
    with pytest.raises(cluster.InputError, match="no node of the cluster has a GPU"):
        cluster.run_on_cluster(ORDER, store, device="cuda", address=nodes.address)


def test_a_node_says_what_it_lacks(nodes, store, tmp_path, monkeypatch):
    """Its part of the work, done here: the processes of the nodes are out of these tests' sight."""
    marker = "marker"
    for folder in (store.results, store.work):
        folder.mkdir()
        (folder / marker).touch()
    (run, *_) = Order([("even-odd", Size.TINY)], seeds=[0]).runs(store)
    data = {cluster.DATA: str(tmp_path / "nowhere")}
    job = cluster._Job(store, "cpu", None, cluster._code(), {}, ["run", "here"])
    with cluster._connected(nodes.address) as ray:
        board = ray.remote(num_cpus=0)(cluster._Board).remote()
        cluster._look(job, marker)
        for lacking, error in (
            (dataclasses.replace(job, code="other"), "has other code"),
            (dataclasses.replace(job, environment=data), f"has no folder {tmp_path}/nowhere"),
        ):
            with pytest.raises(cluster.ClusterError, match=error):
                cluster._look(lacking, marker)
        with monkeypatch.context() as context:
            context.setattr(os, "access", lambda folder, mode: folder != store.work)
            with pytest.raises(cluster.ClusterError, match=r"may not write to .*/runs.*--work"):
                cluster._look(job, marker)
        (store.results / marker).unlink()
        with pytest.raises(cluster.ClusterError, match=r"does not see .*/results. .*--results"):
            cluster._look(job, marker)

        monkeypatch.setattr(sys, "argv", ["ray's"])
        late = dataclasses.replace(job, deadline=time.time() - 1)
        assert cluster._train(run, late, board) is None
        record = cluster._train(run, job, board)
        assert record.finished
        assert record.sessions[0]["command"] == "dropreg run here"
        assert cluster._train(run, job, board) == record
        said = ray.get(board.take.remote())
        assert said[run.name][1].epoch == 1
        assert ray.get(board.take.remote()) == {}
        with pytest.raises(cluster.InputError, match="connected to Ray already"):
            cluster.run_on_cluster(ORDER, store, device="cpu")


def test_where_no_ray_listens_the_error_says_so(store):
    with pytest.raises(cluster.InputError, match=r"--ray 127\.0\.0\.1:9: "):
        cluster.run_on_cluster(ORDER, store, device="cpu", address="127.0.0.1:9")


def test_on_this_machine_alone_and_stopped_by_ctrl_c(store):
    process = start(store, "--ray")
    wait_for(lambda: any(store.work.rglob("*.pt")) or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "`dropreg resume` continues" in error
    for path in store.results.rglob("*.json"):
        read_record(path)
    (run, *_) = (run for run in ORDER.runs(store) if store.checkpoint(run).exists())
    wait_for(lambda: not store.is_running(run), 20)


def test_the_board_tells_what_was_said_since_it_was_asked():
    board = cluster._Board()
    for epoch in (1, 2):
        board.report("gpu07/3f2a1c", Progress("a", epoch, 9, 0.5, 1.0, 2.0))
    assert board.take() == {"a": ("gpu07/3f2a1c", Progress("a", 2, 9, 0.5, 1.0, 2.0))}
    assert board.take() == {}
