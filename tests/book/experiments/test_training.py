"""Training runs: stopped, killed, started twice, diverged; and the same to the last bit."""

import dataclasses
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dropreg.book import cli
from dropreg.book.experiments import EXPERIMENTS, TASKS, Record, RecordError, Run, Size, Store
from dropreg.book.experiments.catalog import at_size
from dropreg.book.experiments.declarations import TUNING_SEEDS, Arm, Experiment, Tuning
from dropreg.book.experiments.ledger import rows
from dropreg.book.experiments.records import (
    StorageError,
    read_record,
    results_folder,
    write_whole,
)
from dropreg.book.experiments.runner import Order, run_next, run_one
from dropreg.book.experiments.tasks import texts
from dropreg.book.experiments.training import Average, evaluate, train
from dropreg.errors import DataError, MissingPackageError
from dropreg.updates import Rule

TINY = Size.TINY
# Times, and where and when a run took place, are all that may differ.
VOLATILE = ("seconds",)


def a_run(rule="dropout_k", task="lstm", seed=0, **options):
    rule = rule if isinstance(rule, Rule) else Rule(rule)
    return Run(TASKS[task], rule, TINY, seed, **options)


def numbers(record):
    """What must not depend on how often a run was interrupted."""
    rows = [{k: v for k, v in row.items() if k not in VOLATILE} for row in record.epochs]
    return record.status, record.final, rows, record.config


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "run.pt"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results", tmp_path / "runs")


def command(store, *words):
    return [
        *(sys.executable, "-m", "dropreg", *words),
        *("--results", str(store.results), "--work", str(store.work)),
    ]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rule", [Rule("dropout_k", "analytic", 2), Rule("even", "odd")])
def test_interrupted_after_each_epoch_or_never_is_the_same(task, rule, tmp_path):
    run = a_run(rule, task, changes={"epochs": 3})
    whole = train(run, tmp_path / "whole.pt")
    for status in ("stopped after epoch 1", "stopped after epoch 2", "finished"):
        torch.manual_seed(99)  # nothing may hang on the global generator
        pieces = train(run, tmp_path / "pieces.pt", stop=lambda seconds: True)
        assert pieces.status == status
    assert numbers(pieces) == numbers(whole)
    assert [session["from_epoch"] for session in pieces.sessions] == [1, 2, 3]


def test_seeds_differ_and_rules_share_weights_and_windows(tmp_path):
    def first_look(run):
        """Loss of the clean network at the very first update, before anything has been learned."""
        seen = []
        train(run, tmp_path / f"{time.monotonic_ns()}.pt", observe=lambda p: seen.append(p.loss))
        return seen

    none = first_look(a_run("none"))
    assert first_look(a_run("none")) == none
    assert first_look(a_run("none", seed=1))[0] != none[0]
    decayed = first_look(a_run(Rule("l2", strength=0.0)))
    assert decayed == none
    assert len(first_look(a_run("dropout_k"))) == len(none)


def test_each_seed_sees_a_piece_of_its_own_where_there_are_pieces():
    whole = a_run(task="lstm").setting
    words = len(texts(whole)[0]["train"])
    pieces = dataclasses.replace(whole, train_tokens=words // 3, vocab_size=None, pieces=True)
    whole = dataclasses.replace(whole, vocab_size=None)
    lengths = [len(texts(pieces, seed)[0]["train"]) for seed in range(3)]
    assert lengths == [words // 3] * 3

    # Numbers differ with the vocabulary; where the same word stands again does not.
    def pattern(tokens):
        return [tokens.tolist().index(token) for token in tokens.tolist()]

    train = texts(whole)[0]["train"]
    for seed in range(3):
        piece = train[seed * words // 3 : (seed + 1) * words // 3]
        assert pattern(texts(pieces, seed)[0]["train"]) == pattern(piece)
    assert torch.equal(texts(whole, 2)[0]["train"], texts(whole)[0]["train"])


def test_a_learning_rate_falls_in_equal_steps_towards_zero(checkpoint, monkeypatch):
    seen, step = [], torch.optim.SGD.step

    def watched(optimizer):
        seen.append(optimizer.param_groups[0]["lr"])
        step(optimizer)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    changes = {"vary_length": False, "epochs": 4, "lr_falls": True}
    record = train(a_run("none", "lstm-ptb", changes=changes), checkpoint)
    assert record.config["lr_falls"]
    of_epochs = torch.tensor(seen).view(4, -1).max(1).values  # the last window may be short
    assert of_epochs.tolist() == pytest.approx([10.0, 7.5, 5.0, 2.5])


def test_evaluation_is_over_every_token_with_carried_state():
    run = a_run()
    parts, words = texts(run.setting)
    torch.manual_seed(0)
    model = run.task.model(words, **run.setting.model).double()
    text = parts["valid"]
    # By hand: 20 contiguous streams, each in one piece, longer ones first.
    pairs = list(zip(text[:-1].tolist(), text[1:].tolist(), strict=True))
    shorter, longer = divmod(len(pairs), 20)
    total, start = 0.0, 0
    model.eval()
    with torch.no_grad():
        for stream in range(20):
            stop = start + shorter + (stream < longer)
            words_in, words_out = zip(*pairs[start:stop], strict=True)
            logits, _ = model(torch.tensor([words_in]))
            total += F.cross_entropy(logits[0], torch.tensor(words_out), reduction="sum").item()
            start = stop
    model.train()
    assert evaluate(model, text) == pytest.approx(total / len(pairs), rel=1e-12)
    assert model.training


def test_rows_say_what_happened(checkpoint):
    seen = []
    record = train(a_run(Rule("explicit", "analytic")), checkpoint, observe=seen.append)
    assert record.finished
    for number, row in enumerate(record.epochs, 1):
        assert row["epoch"] == number
        assert row["valid_perplexity"] == pytest.approx(2.718281828459045 ** row["valid_loss"])
        assert row["seconds"] > 0
        assert 0 <= row["clipped"] <= 1
        assert row["explicit"] > 0
        assert row["objective"] == pytest.approx(row["clean"] + row["explicit"] + row["implicit"])
    assert sum(row["updates"] for row in record.epochs) == len(seen)
    assert record.last == record.epochs[-1]["valid_perplexity"] == record.final["valid_perplexity"]
    assert record.best == min(row["valid_perplexity"] for row in record.epochs)
    assert 0 < seen[0].share < seen[1].share <= 1
    (session,) = record.sessions
    assert session["device"].startswith("cpu: ")
    assert session["torch"] == str(torch.__version__)
    assert len(session["commit"]) == 40


def test_each_look_measures_the_fit_the_test_text_and_averaged_weights(checkpoint):
    run = a_run("none", changes={"epochs": 2})
    record = train(run, checkpoint, stop=lambda seconds: True)
    parts, words = texts(run.setting)
    saved = torch.load(checkpoint, weights_only=True)
    row = record.epochs[-1]
    for prefix, weights in (("", saved["model"]), ("averaged_", saved["average"]["model"])):
        model = run.task.model(words, **run.setting.model)
        model.load_state_dict(weights)
        losses = {part: evaluate(model, parts[part]) for part in parts}
        assert row[f"{prefix}train_loss"] == losses["train"]
        assert row[f"{prefix}valid_loss"] == losses["valid"]
        assert row[f"{prefix}valid_perplexity"] == math.exp(losses["valid"])
        assert row[f"{prefix}test_perplexity"] == math.exp(losses["test"])
    assert row["averaged_valid_loss"] != row["valid_loss"]
    final = train(run, checkpoint).final
    assert final.keys() == {"train_perplexity", "valid_perplexity", "test_perplexity"}


@pytest.mark.parametrize("forgets", [False, True])
def test_the_average_is_exponential(forgets):
    """Against the sum written out, also where an epoch is so long that the average begins anew."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average, seen = Average(model), []
    for _ in range(500 if forgets else 5):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(model)
        seen.append(model.weight.detach().clone())
    average.end_epoch(len(seen))
    assert (average.state() is None) == forgets
    for _ in range(3):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(model)
        seen.append(model.weight.detach().clone())
    seen = torch.stack(seen[-3:] if forgets else seen).double()
    shares = 0.99 ** torch.arange(len(seen) - 1, -1, -1).double()
    expected = (shares / shares.sum() @ seen.flatten(1)).view(2, 3)
    torch.testing.assert_close(average.model.weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert average.model.bias.equal(model.bias)
    assert not average.model.weight.requires_grad


def test_an_average_goes_on_from_its_state():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    ours, other = Average(model), Average(nn.Linear(3, 2))
    ours.update(model)
    other.load(ours.state())
    with torch.no_grad():
        model.weight.mul_(2)
    for average in (ours, other):
        average.update(model)
    assert torch.equal(ours.model.weight, other.model.weight)


def test_reports_come_as_often_as_asked_for(checkpoint):
    often, once = [], []
    run = a_run("none", changes={"epochs": 1})
    train(run, checkpoint, observe=often.append)
    checkpoint.unlink()
    train(run, checkpoint, observe=once.append, observe_every=1e9)
    assert len(often) > 1
    assert once == often[:1]


def test_a_checkpoint_at_large_holds_the_weights_only():
    """What comes back from a lent GPU: five of them, below 16 MiB each."""
    setting = TASKS["lstm"].settings[Size.LARGE]
    model = TASKS["lstm"].model(10_000, **setting.model)
    assert 4 * sum(p.numel() for p in model.parameters()) < 11.6 * 2**20
    updates = 887_521 // setting.batch_size // setting.length
    average = Average(model)
    average.update(model)
    average.end_epoch(updates)
    assert average.state() is None


def test_noise_counts_in_the_clipped_norm(checkpoint):
    unclipped = {"clip": float("inf"), "epochs": 1, "lr": 0.1}
    quiet = train(a_run("none", changes=unclipped), checkpoint)
    loud = train(
        a_run(Rule("none", "dropout_pair", noise_scale=30.0), changes=unclipped), checkpoint
    )
    assert loud.epochs[0]["gradient_norm"] > 3 * quiet.epochs[0]["gradient_norm"]
    assert quiet.epochs[0]["clipped"] == 0


def test_divergence_ends_the_run_with_a_row_that_says_so(checkpoint, store):
    run = a_run("none", changes={"lr": 1e12, "clip": float("inf")})
    record = train(run, checkpoint)
    assert record.status.startswith("diverged: epoch ")
    assert not record.finished
    assert record.final == {}
    record.write(store.results)
    assert store.lookup(run) == record


def test_a_checkpoint_of_another_configuration_is_not_taken_up(checkpoint):
    train(a_run(changes={"epochs": 3}), checkpoint, stop=lambda seconds: True)
    record = train(a_run(changes={"epochs": 2}), checkpoint)
    assert [session["from_epoch"] for session in record.sessions] == [1]


def test_q_and_changes_reach_the_model_and_the_name():
    run = a_run(q=0.2, changes={"clip": 1.0})
    assert run.name == "tiny/lstm/dropout_1,q=0.2,clip=1.0/seed0"
    ps = [value for name, value in run.setting.model.items() if name.endswith("_p")]
    assert ps == [0.2] * 4
    assert run.setting.clip == 1.0
    assert json.loads(json.dumps(run.config)) == run.config


# Files


def test_records_come_back_as_they_were(checkpoint, store):
    run = a_run()
    record = train(run, checkpoint)
    path = record.write(store.results)
    assert read_record(path) == record == store.lookup(run)
    assert store.lookup(dataclasses.replace(run, changes={"lr": 1.0})) is None
    assert len(path.read_text().splitlines()) == 8 + len(record.epochs)  # an epoch a line


def test_a_run_whose_declaration_has_changed_counts_as_not_run(checkpoint, store):
    run = a_run()
    train(run, checkpoint).write(store.results)
    path = store.results / f"{run.name}.json"
    path.write_text(path.read_text().replace('"lr": 10', '"lr": 11'))
    assert store.lookup(run) is None


def test_a_stopped_run_leaves_a_row_and_is_no_result(checkpoint, store):
    run = a_run(changes={"epochs": 3})
    stopped = train(run, checkpoint, stop=lambda seconds: True)
    store.keep(run, stopped)
    assert read_record(store.results / f"{run.name}.json") == stopped == store.latest(run)
    assert stopped.status == "stopped after epoch 1"
    assert stopped.final == {}
    assert store.lookup(run) is None
    further = train(run, checkpoint, stop=lambda seconds: True)
    store.keep(run, further)
    store.keep(run, stopped)  # the checkpoint was lost, and the run begun anew
    assert store.latest(run) == further
    ended = train(run, checkpoint)
    store.keep(run, ended)
    assert store.lookup(run) == ended


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": 2, "run": "x"}'])
def test_a_damaged_record_is_named(content, store):
    path = store.results / f"{a_run().name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(RecordError, match=r"seed0\.json"):
        store.lookup(a_run())


def test_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_whole(path, lambda file: file.write(b"old"))
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from dropreg.book.experiments.records import write_whole\n"
        "def write(file):\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole(Path(sys.argv[1]), write)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(StorageError, match=r"file cannot be written .*disk full"):
        write_whole(tmp_path / "file", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_read_once_until_another_stands_in_its_place(checkpoint, store, monkeypatch):
    run = a_run()
    record = train(run, checkpoint)
    record.write(store.results)
    read, real = [], json.loads
    monkeypatch.setattr(json, "loads", lambda content: read.append(content) or real(content))
    assert [store.lookup(run) for _ in range(3)] == [record] * 3
    assert len(read) == 1
    other = dataclasses.replace(record, status="diverged: epoch 2")
    other.write(store.results)
    assert store.lookup(run) == other
    store.row(run).unlink()
    assert store.lookup(run) is None


def damage(content, how):
    if how == "nothing in it":
        return b""
    if how == "cut short":
        return content[: len(content) // 2]
    if how == "no checkpoint":
        return b"some words"
    if how == "another program's":
        file = io.BytesIO()
        torch.save({"weights": torch.ones(3)}, file)
        return file.getvalue()
    # One bit of a weight, which torch.load believes.
    weight, *_ = torch.load(io.BytesIO(content), weights_only=True)["model"].values()
    place = content.index(weight.numpy().tobytes())
    changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    torch.load(io.BytesIO(changed), weights_only=True)
    return changed


@pytest.mark.parametrize(
    "how", ["nothing in it", "cut short", "no checkpoint", "another program's", "one bit"]
)
def test_a_damaged_checkpoint_is_named_and_set_aside_and_its_run_begins_anew(how, store, capsys):
    run = a_run(changes={"epochs": 3})
    expected = run_one(run, Store(store.results / "whole", store.work / "whole"), "cpu")
    run_one(run, store, "cpu", stop=lambda seconds: True)
    checkpoint = store.checkpoint(run)
    damaged = damage(checkpoint.read_bytes(), how)
    checkpoint.write_bytes(damaged)
    record = run_one(run, store, "cpu")
    assert numbers(record) == numbers(expected)
    assert len(record.sessions) == 1
    assert f"{checkpoint} is damaged" in capsys.readouterr().err
    assert not checkpoint.exists()
    assert checkpoint.with_name("seed0.pt.damaged").read_bytes() == damaged


def test_what_a_killed_process_left_half_written_goes(store):
    run = a_run()
    others = a_run(seed=10)
    left = [
        path.with_name(f".{path.name}.abcd1234")
        for each in (run, others)
        for path in (store.checkpoint(each), store.row(each))
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert run_one(run, store, "cpu").finished
    assert [path.exists() for path in left] == [False, False, True, True]


@pytest.mark.parametrize("folder", ["results", "work"])
@pytest.mark.parametrize("below", [False, True])
def test_a_folder_that_cannot_be_written_is_told_before_the_training(
    folder, below, store, capfd, monkeypatch
):
    # A file stands in its place, which stops root, too.
    path = getattr(store, folder)
    path = path / "tiny" if below else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    monkeypatch.setattr("dropreg.book.experiments.runner.train", None)
    where = ["--results", str(store.results), "--work", str(store.work)]
    assert cli.main(["run", "even-odd", "--size", "tiny", "--device", "cpu", *where]) == 1
    said = capfd.readouterr().err
    assert str(path) in said
    assert "cannot be written" in said
    assert "Traceback" not in said
    assert not list(store.work.rglob("*.pt"))


# The command line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "kills"), [("0", 2), pytest.param("0,1,2,3,4,5,6,7", 50, marks=pytest.mark.thorough)]
)
def test_killed_at_any_moment_the_numbers_are_the_same(seeds, kills, store, tmp_path):
    words = ("run", "noise-back", "--size", "tiny", "--seeds", seeds, "--device", "cpu")
    untouched = Store(tmp_path / "untouched", tmp_path / "untouched-runs")
    subprocess.run(command(untouched, *words), check=True, capture_output=True)
    numbered = [int(seed) for seed in seeds.split(",")]
    expected = list(EXPERIMENTS["noise-back"].runs(TINY, untouched.lookup, numbered))
    moments, killed = random.Random(0), 0
    for _ in range(20 * kills):
        process = subprocess.Popen(
            command(store, *words),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # Once its worker is at work (a lock is there), some time later.
        before = set(store.work.rglob("*"))
        while process.poll() is None and set(store.work.rglob("*")) == before:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.15))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        for path in store.results.rglob("*.json"):
            read_record(path)
        if all(store.lookup(run) for run in expected):
            break
    assert killed >= kills
    subprocess.run(command(store, *words), check=True, capture_output=True)
    for run in expected:
        assert numbers(store.lookup(run)) == numbers(untouched.lookup(run))


def ended_in(log):
    """The runs that a log says have ended."""
    return [line.split(":")[0] for line in log.splitlines() if " at best, " in line]


@pytest.mark.slow
def test_two_processes_share_the_work(store):
    words = ("run", "even-odd", "--size", "tiny", "--jobs", "2")
    both = [
        subprocess.Popen(command(store, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    ended = [name for out, _ in outputs for name in ended_in(out.decode())]
    runs = [run.name for run in EXPERIMENTS["even-odd"].runs(TINY, store.lookup)]
    assert sorted(ended) == sorted(runs)  # each trained once
    assert [err for _, err in outputs] == [b"", b""]  # quiet where there is no terminal
    assert not list(store.work.rglob("*.pt"))


@pytest.mark.slow
def test_every_experiment_runs_and_is_reported(store, capsys):
    where = ["--results", str(store.results), "--work", str(store.work)]
    seeds = (0, 1, 2)
    queue = ["run", "--queue", "tiny", "--seeds", "0,1,2", "--device", "cpu", "--jobs", "2", *where]
    assert cli.main([*queue, "--max-minutes", "0"]) == 0
    assert not list(store.results.rglob("*.json"))
    assert cli.main(queue) == 0
    for experiment in EXPERIMENTS.values():
        if TINY not in experiment.sizes:
            continue
        assert all(arm.chosen(TINY, store.lookup) for arm in experiment.arms.values())
        for run in experiment.runs(TINY, store.lookup, seeds):
            assert store.lookup(run).finished
    capsys.readouterr()
    assert cli.main(["status", "--size", "tiny", *where]) == 0
    table = capsys.readouterr().out
    for experiment in EXPERIMENTS.values():
        runs = list(experiment.runs(TINY, store.lookup))
        ended = sum(store.lookup(run) is not None for run in runs)
        (line,) = (line for line in table.splitlines() if f" {experiment.name} " in line)
        assert line.split()[1:5] == [str(ended), "/", str(len(runs)), "0"]
    each = {run.name: run for one in at_size(TINY) for run in one.runs(TINY, store.lookup)}
    ended = sum(store.lookup(run) is not None for run in each.values())
    (line,) = (line for line in table.splitlines() if " each run once " in line)
    assert line.split()[3:6] == [str(ended), "/", str(len(each))]
    assert cli.main(["report", "--size", "tiny", *where]) == 0
    report = capsys.readouterr().out
    assert "not yet run" not in report
    lines = report.splitlines()
    tables = [number for number, line in enumerate(lines) if line.endswith("  seeds")]
    claims = [number for number, line in enumerate(lines) if line.startswith("claims, ")]
    assert len(claims) == 2
    assert max(claims) < min(tables)
    assert cli.main(["resume", "--device", "cpu", *where]) == 0  # nothing is left
    assert cli.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)


def test_a_run_that_the_clock_stops_leaves_a_row(store, monkeypatch):
    """One worker, one run, one epoch: then the time is over."""
    monkeypatch.setattr("dropreg.book.experiments.runner.time.monotonic", lambda: 0.0)
    order = Order([("even-odd", TINY)])
    record = run_next(order, store, "cpu", deadline=1e-9)
    assert record.status == "stopped after epoch 1"
    (path,) = store.results.rglob("*.json")
    assert read_record(path) == record
    assert store.checkpoint(next(order.runs(store))).exists()
    assert run_next(order, store, "cpu", deadline=None).finished


@pytest.mark.slow
def test_resume_takes_up_what_has_begun_and_nothing_else(store, capsys):
    run = next(iter(EXPERIMENTS["even-odd"].runs(TINY, store.lookup)))
    assert not train(run, store.checkpoint(run), stop=lambda seconds: True).ended
    where = ["--results", str(store.results), "--work", str(store.work)]
    assert cli.main(["resume", "--device", "cpu", *where]) == 0
    assert [path.name for path in store.results.rglob("*.json")] == ["seed0.json"]
    assert len(store.lookup(run).sessions) == 2


def test_tuning_uses_a_seed_of_its_own_and_then_the_best_strength(store):
    arm = tuned_by(store, {1e-4: [3.0] * 3, 1e-2: [2.0] * 3, 1.0: [4.0] * 3})
    assert [rule.strength for rule in arm.chosen(TINY, store.lookup)] == [1e-2]
    runs = arm.runs(TINY, store.lookup)
    assert [run.seed for run in runs] == [0, 1, 2]
    assert {run.seed for run in arm.tuning_runs(TINY)}.isdisjoint(run.seed for run in runs)


def tuned_by(store, losses):
    """An arm whose strengths have had these validation losses; infinite where a run diverged."""
    arm = Arm("lstm-ptb", Rule("explicit", "analytic"), tuning=Tuning(tuple(losses)))
    assert arm.chosen(TINY, store.lookup) == []
    assert arm.runs(TINY, store.lookup) == []
    for run in arm.tuning_runs(TINY):
        assert run.rule.noise_scale == 1.0  # with the noise that it will have
        loss = losses[run.rule.strength][TUNING_SEEDS.index(run.seed)]
        status = "finished" if math.isfinite(loss) else "diverged: epoch 2"
        rows = [{"epoch": 1, "averaged_valid_loss": min(loss, 9.0)}]
        Record(run.name, run.config, status, [], rows, {}).write(store.results)
    return arm


def test_two_strengths_are_tied_unless_one_is_better_on_every_seed(store):
    arm = tuned_by(store, {0.1: [4.0, 4.0, 4.0], 0.3: [2.0, 2.0, 2.2], 1.0: [2.1, 2.1, 2.1]})
    assert [rule.strength for rule in arm.chosen(TINY, store.lookup)] == [0.3, 1.0]
    runs = arm.runs(TINY, store.lookup)
    assert [(run.seed, run.rule.strength) for run in runs[:3]] == [(0, 0.3), (0, 1.0), (1, 0.3)]
    made_up = Experiment("made-up", "", "", {"arm": arm, "other": Arm("lstm-ptb", Rule("none"))})
    found = rows(made_up, TINY, store)
    assert [row.label for row in found] == ["arm, strength 0.3", "arm, strength 1", "other"]


def test_a_strength_was_tuned_without_the_noise_and_kept_with_it_in_the_first_edition():
    arms = EXPERIMENTS["ingredients"].arms
    quiet, noisy = arms["identity"], arms["identity + xi_approx"]
    assert noisy.tuning_runs(TINY) == quiet.tuning_runs(TINY)
    tuned = quiet.tuning_runs(TINY)
    best = tuned[len(tuned) // 2]
    losses = {run.name: 1 if run is best else 2 for run in tuned}

    def lookup(run):
        rows = [{"epoch": 1, "valid_loss": losses[run.name]}]
        return Record(run.name, run.config, "finished", [], rows, {})

    strength = best.rule.strength
    assert quiet.chosen(TINY, lookup) == [Rule("explicit", method="identity", strength=strength)]
    assert noisy.chosen(TINY, lookup) == [
        Rule("explicit", "analytic", method="identity", strength=strength)
    ]


def test_a_diverged_strength_is_not_chosen(store):
    arm = tuned_by(store, {0.1: [3.0] * 3, 0.3: [1.0, 1.0, math.inf], 1.0: [math.inf] * 3})
    assert [rule.strength for rule in arm.chosen(TINY, store.lookup)] == [0.1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "name the experiments"),
        (["run", "fig1"], "no experiment 'fig1'"),
        (["run", "dropout-k", "--queue", "tiny"], "name the experiments"),
        (["run", "--queue", "tiny", "--size", "tiny"], "names the size itself"),
        (["run", "dropout-k", "--size", "large"], "dropout-k is run at tiny, small, full"),
        (["run", "first-epochs"], "first-epochs is run at tiny, large"),
        (["run", "dropout-k", "--size", "tiny", "--device", "cuda:99"], "cannot be used here"),
        (["run", "dropout-k", "--size", "tiny", "--device", "gpu"], "cannot be used here"),
    ],
)
def test_bad_commands_are_refused_before_any_work(words, message, store, capsys):
    where = ["--results", str(store.results), "--work", str(store.work)]
    assert cli.main([*words, *where]) == 1
    assert message in capsys.readouterr().err
    assert not store.results.exists()


def test_a_missing_text_is_told_before_any_work(store, capsys, monkeypatch, tmp_path):
    (tmp_path / "ptb.train.txt").write_text("not the Treebank")
    monkeypatch.setenv("DROPREG_DATA", str(tmp_path))
    # The tokens of an earlier reading must not stand in for it.
    monkeypatch.setattr("dropreg.book.data.tokens.cache_folder", lambda: tmp_path / "cache")
    texts_of = EXPERIMENTS["dropout-k"].arms["none"].runs(Size.SMALL, lambda _: None)[0].setting
    with pytest.raises(DataError, match="without"):
        texts(dataclasses.replace(texts_of, vocab_size=999))
    where = ["--results", str(store.results), "--work", str(store.work)]
    monkeypatch.setattr(
        "dropreg.book.experiments.runner.texts",
        lambda *_: (_ for _ in ()).throw(DataError("gone")),
    )
    assert cli.main(["run", "dropout-k", "--device", "cpu", *where]) == 1
    assert capsys.readouterr().err == "dropreg: gone\n"
    assert cli.main(["run", "--queue", "small", "--device", "cpu", *where]) == 0
    assert "dropout-k is left out: gone" in capsys.readouterr().err
    assert not store.results.exists()


def test_a_missing_package_leaves_an_experiment_out(store, capsys, monkeypatch):
    monkeypatch.setattr(
        "dropreg.book.experiments.runner.texts",
        lambda *_: (_ for _ in ()).throw(MissingPackageError("needs a reader")),
    )
    where = ["--results", str(store.results), "--work", str(store.work)]
    assert cli.main(["run", "dropout-k", "--device", "cpu", *where]) == 1
    assert capsys.readouterr().err == "dropreg: needs a reader\n"
    assert cli.main(["run", "--queue", "small", "--device", "cpu", *where]) == 0
    assert "dropout-k is left out: needs a reader" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_without_a_terminal_or_tqdm_there_are_lines_and_no_bars(
    terminal, store, capsys, monkeypatch
):
    if terminal:
        monkeypatch.setitem(sys.modules, "tqdm", None)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("dropreg.book.experiments.runner.LINE_EVERY", 0.0)
    where = ["--results", str(store.results), "--work", str(store.work)]
    words = ["run", "even-odd", "--size", "tiny", "--seeds", "0", "--device", "cpu"]
    assert cli.main([*words, *where]) == 0
    out, err = capsys.readouterr()
    runs = [run.name for run in EXPERIMENTS["even-odd"].runs(TINY, store.lookup, [0])]
    first, *between, last = out.splitlines()
    places = f"results: {store.results}, checkpoints: {store.work}"
    assert first == f"0 of {len(runs)} runs have ended; {places}"
    assert last == f"{len(runs)} of {len(runs)} runs have ended"
    assert ended_in(out) == runs
    assert {line.split(": epoch ")[0] for line in between if ": epoch " in line} == set(runs)
    assert err == ""
    assert cli.main([*words, *where]) == 0
    assert capsys.readouterr().out == f"{last}; {places}\n"  # and no worker was started


def test_what_is_left_is_told(store, capsys, monkeypatch):
    monkeypatch.setattr("dropreg.book.experiments.runner._worker", stopped_at_once)
    where = ["--results", str(store.results), "--work", str(store.work)]
    words = ["run", "ingredients", "--size", "tiny", "--device", "cpu", "--jobs", "2"]
    assert cli.main([*words, *where]) == 0
    first, last = capsys.readouterr().out.splitlines()
    tuning = "a strength is being tuned, which will make more runs known"
    assert f"({tuning}); results: " in first
    left = len(list(EXPERIMENTS["ingredients"].runs(TINY, store.lookup)))
    assert last.endswith(f"({tuning}); {left} left, for which the same command goes on")


def stopped_at_once(*_):
    """A worker without time."""


def test_seeds_that_no_table_counts_are_told(store, capsys, monkeypatch):
    monkeypatch.setattr("dropreg.book.experiments.runner._worker", stopped_at_once)
    where = ["--results", str(store.results), "--work", str(store.work)]
    words = ["run", "even-odd", "--size", "tiny", "--device", "cpu"]
    assert cli.main([*words, "--seeds", "0,7,9", *where]) == 0
    said = capsys.readouterr().err
    assert "even-odd declares no seed 7, 9 for all of its arms" in said
    assert cli.main([*words, "--seeds", "0,2", *where]) == 0
    assert capsys.readouterr().err == ""


def test_a_seed_without_a_piece_of_text_is_told_before_any_work(store, capsys, monkeypatch):
    asked = []

    def texts(setting, seed):
        asked.append(seed)
        if seed > 40:
            raise DataError("no such piece")

    monkeypatch.setattr("dropreg.book.experiments.runner.texts", texts)
    where = ["--results", str(store.results), "--work", str(store.work)]
    words = ["run", "lstm", "--size", "small", "--device", "cpu", "--seeds", "3,99"]
    assert cli.main([*words, *where]) == 1
    assert asked == [3, 99]
    assert capsys.readouterr().err == "dropreg: no such piece\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-minutes", "-1"], "'-1' is no time; give minutes"),
        (["--max-minutes", "nan"], "'nan' is no time"),
        (["--max-minutes", "soon"], "'soon' is no time"),
        (["--jobs", "0"], "'0' is not a whole number above 0"),
        (["--jobs", "two"], "'two' is not a whole number above 0"),
        (["--seeds", "-1"], "'-1' is no list of seeds; give them as in 0,1,2"),
        (["--seeds=-1,2"], "'-1,2' is no list of seeds"),
        (["--seeds", "0,,1"], "'0,,1' is no list of seeds"),
        (["--seeds", ""], "'' is no list of seeds"),
        (["--seeds", "0-3"], "'0-3' is no list of seeds"),
        (["--seeds", "1,2,1"], "'1,2,1' names a seed twice"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "even-odd", *words])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_an_orphan_ends_although_nobody_reads_what_it_says(store):
    """Its parent is killed when the pipe is full, so that the worker waits for a reader."""
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(store.results), str(store.work)],
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = psutil.Process(int(parent.stdout.readline()))
    checkpoint = store.checkpoint(next(EXPERIMENTS["even-odd"].runs(TINY, store.lookup)))
    while not checkpoint.with_suffix(".lock").exists():
        time.sleep(0.1)
    time.sleep(2)
    assert worker.is_running()  # where an epoch takes less than a second
    assert not checkpoint.exists()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (path,) = store.results.rglob("*.json")
    assert read_record(path).status == "stopped after epoch 1"


ORPHAN = """
import multiprocessing, os, sys, time
from pathlib import Path
from dropreg.book.experiments.runner import Order, Store, _worker

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    os.set_blocking(theirs.fileno(), False)
    try:
        while True:
            os.write(theirs.fileno(), b"x")
    except BlockingIOError:
        os.set_blocking(theirs.fileno(), True)
    store = Store(Path(sys.argv[1]), Path(sys.argv[2]))
    order = Order([("even-odd", "tiny")])
    worker = context.Process(target=_worker, args=(order, store, "cpu", None, theirs))
    worker.start()
    theirs.close()
    print(worker.pid, flush=True)
    time.sleep(1000)
"""


def test_a_worker_that_fails_is_heard(store, capfd):
    run = next(iter(EXPERIMENTS["even-odd"].runs(TINY, store.lookup)))
    path = store.results / f"{run.name}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    where = ["--results", str(store.results), "--work", str(store.work)]
    assert cli.main(["run", "even-odd", "--size", "tiny", "--device", "cpu", *where]) == 1
    assert "is not the record of a run, or is damaged" in capfd.readouterr().err


# What is committed


SPEED = results_folder() / "speed"  # what the benchmarks measured; see tests/benchmarks
COMMITTED = sorted(p for p in results_folder().rglob("*.json") if SPEED not in p.parents)


def test_committed_results_are_of_declared_runs():
    store = Store(results_folder(), Path("unused"))
    declared = {}
    for size in Size:
        for experiment in EXPERIMENTS.values():
            declared |= {run.name: run for run in experiment.runs(size, store.lookup)}
    assert COMMITTED
    for path in COMMITTED:
        name = str(path.relative_to(results_folder()).with_suffix(""))
        assert name in declared, f"{path}: nothing declares this run"
        assert store.latest(declared[name]), f"{path}: declared otherwise now"


def test_committed_results_say_where_they_come_from():
    for path in COMMITTED:
        record = read_record(path)
        for session in record.sessions:
            assert session["commit"].isalnum(), path
            assert len(session["commit"]) == 40, path
            assert not session["changed"], f"{path}: of uncommitted code"
            assert {"started", "command", "device", "python", "torch"} <= session.keys()
