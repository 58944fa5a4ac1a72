"""How a sweep grows: what is measured, what is worked out from it, and what the page says of it."""

import json
import re

import pytest

from benchmarks import machines
from dropreg.book.experiments.records import results_folder
from tools import ROOT

RECORDED = results_folder() / "speed" / "machines" / "cpu" / "machines.json"
PAGE = ROOT / "book" / "use" / "machines.md"


def made_up(passing, reading, trying, driver=0.001):
    """Measurements that are exactly linear."""
    rows = [
        {
            "what": "step",
            "ended": n,
            "held": 0,
            "seconds": 1 + n * passing,
            "first": 3 + n * (passing + reading),
        }
        for n in (5, 50)
    ]
    rows += [
        {"what": "step", "ended": 0, "held": n, "seconds": 2 + n * trying, "first": 2.0}
        for n in (5, 50)
    ]
    return [*rows, {"what": "driver", "runs": 9, "seconds_a_run": driver}]


def test_a_step_grows_by_what_it_passes_over_and_by_what_it_tries():
    rows = made_up(0.5, 0.125, 0.25)
    assert machines.slope(rows, "ended") == pytest.approx(0.5)
    assert machines.slope(rows, "ended", "first") == pytest.approx(0.625)
    assert machines.slope(rows, "held") == pytest.approx(0.25)


@pytest.mark.parametrize("workers", [1, 7, 100])
def test_without_any_cost_a_minute_has_as_many_runs_as_workers(workers):
    row = machines.worked_out(made_up(0.0, 0.0, 0.0), workers)
    rounds = -(-machines.RUNS // workers)
    assert row["built_in_runs_a_minute"] == pytest.approx(machines.RUNS / rounds)
    assert row["ray_runs_a_minute"] == pytest.approx(workers)


def test_one_worker_reads_each_ended_run_once_and_passes_over_it_before_each_run():
    passing, reading = 0.001, 0.01
    row = machines.worked_out(made_up(passing, reading, 0.0), 1)
    n = machines.RUNS
    assert row["built_in_opens"] == n - 1
    seconds = n * machines.SECONDS + reading * (n - 1) + passing * n * (n - 1) / 2
    assert row["built_in_runs_a_minute"] == pytest.approx(60 * n / seconds)


def test_each_of_two_workers_reads_what_both_have_ended_and_tries_the_others_lock():
    row = machines.worked_out(made_up(0.0, 0.0, 0.0), 2)
    n = machines.RUNS
    # Both are free at once: the first finds its last two ended, the second the same and a lock.
    assert row["built_in_opens"] == 2 * (n - 2) + n // 2


def test_a_driver_ends_no_more_runs_than_it_has_time_for():
    row = machines.worked_out(made_up(0.0, 0.0, 0.0, driver=0.5), 1000)
    assert row["ray_runs_a_minute"] == pytest.approx(120)
    assert row["ray_driver_busy"] == pytest.approx(1)


def test_the_steps_are_those_of_the_runner(monkeypatch):
    monkeypatch.setattr(machines, "ENDED", (1, 3))
    monkeypatch.setattr(machines, "HELD", (2,))
    rows = machines.built_in(rounds=3)
    assert [(row["ended"], row["held"]) for row in rows] == [(1, 0), (3, 0), (0, 2)]
    assert all(row["seconds"] > 0 and row["first"] > 0 for row in rows)


def recorded():
    return json.loads(RECORDED.read_bytes())["rows"]


def test_what_is_worked_out_follows_from_what_is_recorded():
    rows = recorded()
    worked_out = [row for row in rows if row["what"] == "worked out"]
    assert worked_out == [machines.worked_out(rows, workers) for workers in machines.WORKERS]


def rounded(value):
    """To two digits."""
    return float(f"{value:.2g}")


def test_the_page_shows_the_recorded_numbers():
    expected = [
        [
            f"{row['workers']:,}",
            f"{rounded(row['built_in_runs_a_minute']):,g}",
            f"{rounded(row['built_in_opens_a_second']):,g}",
            f"{rounded(row['ray_runs_a_minute']):,.0f}",
            f"{row['ray_driver_busy']:.1%}".replace("%", " %"),
        ]
        for row in recorded()
        if row["what"] == "worked out"
    ]
    text = PAGE.read_text("utf-8").partition("## How the cost grows")[2]
    shown = [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if "|" in line]
    assert shown[2:] == expected
    driver = [row for row in recorded() if row["what"] == "driver"][-1]
    opens = {r["workers"]: r["built_in_opens"] for r in recorded() if r["what"] == "worked out"}
    for sentence in (
        f"with ten of them {rounded(opens[10]) / 1e6:g} million over this sweep",
        f"with a thousand {rounded(opens[1000]) / 1e6:g} million.",
        f"needs {1000 * driver['seconds_a_run']:.1f} ms of a processor",
        f"limit at {rounded(60 / driver['seconds_a_run']):,.0f} workers",
        f"it took {driver['runs']:,}\nsuch runs at {1000 * driver['wall_a_run']:.0f} ms each",
        f"A thousand workers need {1000 / machines.SECONDS:.0f}.",
    ):
        assert sentence in text
