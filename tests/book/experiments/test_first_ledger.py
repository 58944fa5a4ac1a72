"""The first edition's ledger: its rule, its numbers, and that its page says what the rows say."""

import json
import math
import re

import nbformat
import numpy as np
import pytest
import scipy.stats

from dropreg.book.experiments import Record, Size, Store
from dropreg.book.experiments.first_edition import FIRST_EDITION
from dropreg.book.experiments.first_ledger import CLAIMS, Claim, Expected, Verdict, judge, verdict
from dropreg.book.experiments.ledger import Epoch, rows
from dropreg.book.experiments.records import results_folder
from dropreg.book.experiments.report import report
from dropreg.errors import InputError
from tools import build_book

RESULTS = results_folder()
STORE = Store(RESULTS, RESULTS / "unused")
PAGE = build_book.ROOT / "book/reference/ledger.ipynb"


def claim(expected, margin=0.02):
    return Claim(
        text="",
        source="",
        experiment="even-odd",
        first="even",
        second="Dropout_1",
        expected=expected,
        margin=margin,
    )


@pytest.mark.parametrize(
    ("expected", "logs", "wanted"),
    [
        # For three seeds the half-width is 2.48 standard deviations: 4.303 / sqrt(3).
        ("better", [-0.030, -0.031, -0.029], "reproduced"),
        ("better", [0.030, 0.031, 0.029], "contradicted"),
        ("better", [-0.010, 0.010, -0.020], "undecided"),
        ("worse", [0.030, 0.031, 0.029], "reproduced"),
        ("worse", [-0.030, -0.031, -0.029], "contradicted"),
        ("equal", [0.010, 0.011, 0.009], "reproduced"),
        ("equal", [-0.010, -0.011, -0.009], "reproduced"),
        ("equal", [0.030, 0.031, 0.029], "contradicted"),
        ("equal", [-0.030, -0.031, -0.029], "contradicted"),
        ("equal", [0.010, 0.030, 0.020], "undecided"),
        ("equal", [0.010, 0.010], "too few seeds"),
        ("worse", [0.5], "too few seeds"),
        ("worse", [], "not yet run"),
    ],
)
def test_the_rule(expected, logs, wanted):
    assert verdict(logs, claim(Expected(expected))) is Verdict(wanted)


def test_the_margin_is_a_share():
    assert verdict([math.log(1.019)] * 3, claim(Expected.EQUAL)) is Verdict.REPRODUCED
    assert verdict([math.log(1.021)] * 3, claim(Expected.EQUAL)) is Verdict.CONTRADICTED
    assert verdict([math.log(1.021)] * 3, claim(Expected.EQUAL, 0.03)) is Verdict.REPRODUCED


@pytest.fixture
def made_up(tmp_path):
    """Runs with known perplexities: three seeds of one arm, four of another, one of it diverged."""
    store = Store(tmp_path / "results", tmp_path / "runs")
    arms = FIRST_EDITION["even-odd"].arms
    perplexities = {"even": [50.0, 60.0, 70.0], "Dropout_1": [51.0, 59.0, 66.0]}
    for name, values in perplexities.items():
        runs = arms[name].runs(Size.TINY, store.lookup)
        for run, value in zip(runs, values, strict=True):
            epochs = [
                {"epoch": 1, "valid_perplexity": value, "seconds": 1.0},
                {"epoch": 2, "seconds": 1.0},
                {"epoch": 3, "valid_perplexity": value + 10, "seconds": 1.0},
            ]
            Record(run.name, run.config, "finished", [], epochs, {}).write(store.results)
    return store


def test_a_finding_is_a_paired_t_interval(made_up):
    finding = judge(claim(Expected.WORSE), Size.TINY, made_up)
    logs = np.log([50, 60, 70]), np.log([51, 59, 66])
    paired = scipy.stats.ttest_rel(*logs).confidence_interval(0.95)
    mean, low, high = finding.percent
    assert mean == pytest.approx(100 * math.expm1((logs[0] - logs[1]).mean()))
    assert low == pytest.approx(100 * math.expm1(paired.low))
    assert high == pytest.approx(100 * math.expm1(paired.high))
    assert finding.summary == f"{mean:+.1f} % ({low:+.1f} to {high:+.1f}), n = 3"
    last = judge(claim(Expected.WORSE), Size.TINY, made_up, Epoch.LAST)
    assert last.logs[0] == pytest.approx(math.log(60 / 61))


def test_a_diverged_run_is_counted_and_not_averaged(made_up):
    run = FIRST_EDITION["even-odd"].arms["even"].runs(Size.TINY, made_up.lookup)[1]
    Record(run.name, run.config, "diverged: epoch 1", [], [], {}).write(made_up.results)
    by_name = {row.arm: row for row in rows(FIRST_EDITION["even-odd"], Size.TINY, made_up)}
    assert by_name["even"].summary(Epoch.BEST) == "50.0, 70.0 (1 diverged)"
    assert by_name["none"].summary(Epoch.BEST) == ""
    finding = judge(claim(Expected.WORSE), Size.TINY, made_up)
    assert set(finding.logs) == {0, 2}
    assert finding.verdict is Verdict.TOO_FEW
    assert finding.summary == "-2.0 %, +6.1 %"


def test_what_was_stopped_is_shown_and_not_judged(made_up):
    run = FIRST_EDITION["even-odd"].arms["even"].runs(Size.TINY, made_up.lookup)[1]
    epochs = [{"epoch": 1, "valid_perplexity": 9.0}, {"epoch": 2, "valid_perplexity": 8.0}]
    Record(run.name, run.config, "stopped after epoch 2", [], epochs, {}).write(made_up.results)
    by_name = {row.arm: row for row in rows(FIRST_EDITION["even-odd"], Size.TINY, made_up)}
    assert by_name["even"].summary(Epoch.BEST) == "50.0, 70.0 (8.0 in the first 2 epochs)"
    finding = judge(claim(Expected.WORSE), Size.TINY, made_up)
    assert set(finding.logs) == {0, 2}
    large = report(Size.LARGE, made_up)
    assert "first-epochs" in large
    assert "claims" not in large
    assert "dropout-k" not in large


def test_curves_have_the_epochs_that_were_looked_at(made_up):
    by_name = {row.arm: row for row in rows(FIRST_EDITION["even-odd"], Size.TINY, made_up)}
    epochs, perplexities = by_name["even"].curve()
    assert epochs.tolist() == [1, 3]
    assert perplexities.tolist() == [[50, 60], [60, 70], [70, 80]]
    with pytest.raises(InputError, match="no run of 'none'"):
        by_name["none"].curve()


def test_claims_name_arms_that_exist():
    for each in CLAIMS:
        arms = FIRST_EDITION[each.experiment].arms
        assert each.first in arms, each.text
        assert each.second in arms, each.text


def test_the_committed_rows_give_the_report():
    """Every number of the report once more, from the files alone."""
    text = report(Size.SMALL, STORE)
    for each in FIRST_EDITION.values():
        for row in rows(each, Size.SMALL, STORE):
            seeds = row.records
            if len(seeds) < 3 or not all(record.finished for record in seeds.values()):
                continue
            files = [json.loads((RESULTS / f"{r.run}.json").read_text()) for r in seeds.values()]
            curves = [
                [e["valid_perplexity"] for e in f["epochs"] if "valid_perplexity" in e]
                for f in files
            ]
            for values in ([min(c) for c in curves], [c[-1] for c in curves]):
                error = scipy.stats.sem(values) * scipy.stats.t.ppf(0.975, len(values) - 1)
                assert f"{np.mean(values):.1f} ± {error:.1f}" in text


@pytest.fixture(scope="module")
def page():
    """What the committed page shows, tags removed."""
    shown = []
    for cell in nbformat.read(PAGE, as_version=4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            shown += [
                output.get("text", ""),
                data.get("text/html", ""),
                data.get("text/markdown", ""),
            ]
    return re.sub(r"<[^>]+>", " ", "\n".join(shown)).replace("\xa0", " ")


def test_the_page_and_the_rows_agree(page):
    for each in CLAIMS:
        assert each.text in page
        for epoch in Epoch:
            finding = judge(each, Size.SMALL, STORE, epoch)
            assert finding.summary in page, each.text
    for each in FIRST_EDITION.values():
        for row in rows(each, Size.SMALL, STORE):
            for epoch in Epoch:
                assert row.summary(epoch) in page, (each.name, row.arm)


def test_the_page_shows_no_other_perplexities(page):
    """Nothing of the form "mean ± interval" stands there that the rows do not give."""
    given = {
        row.summary(epoch).split(" (")[0]
        for each in FIRST_EDITION.values()
        for row in rows(each, Size.SMALL, STORE)
        for epoch in Epoch
    }
    for found in re.findall(r"\d+\.\d ± \d+\.\d", page):
        assert found in given
