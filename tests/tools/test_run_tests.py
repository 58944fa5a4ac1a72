"""`make test`: a part that fails keeps no other from running, and is named at the end."""

import re
import sys

import pytest

from tools import run_tests

FAILS = [sys.executable, "-c", "print('seen'); raise SystemExit(3)"]


def made_up(tmp_path):
    def touch(name):
        return [sys.executable, "-c", f"open({str(tmp_path / name)!r}, 'w')"]

    def parts(workers):
        return {
            "first": ("fails, and goes on", [FAILS, touch("a")], {}),
            "second": ("passes", [touch("b")], {"SETTING": str(workers)}),
        }

    return parts


def test_every_part_runs_and_has_its_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(run_tests, "parts", made_up(tmp_path))
    monkeypatch.setattr(sys, "argv", ["run_tests.py"])
    with pytest.raises(SystemExit) as ended:
        run_tests.main()
    assert ended.value.code
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    lines = capfd.readouterr().out.splitlines()
    assert "hour" in lines[0]
    assert re.fullmatch(r"    FAILED  first +0:\d\d  make test ONLY=first", lines[-2])
    assert re.fullmatch(r"    passed  second +0:\d\d  make test ONLY=second", lines[-1])


def test_some_parts_only(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(run_tests, "parts", made_up(tmp_path))
    monkeypatch.setattr(sys, "argv", ["run_tests.py", "second"])
    with pytest.raises(SystemExit) as ended:
        run_tests.main()
    assert not ended.value.code
    assert {path.name for path in tmp_path.iterdir()} == {"b"}
    assert "first" not in capfd.readouterr().out
    monkeypatch.setattr(sys, "argv", ["run_tests.py", "third"])
    with pytest.raises(SystemExit):
        run_tests.main()
    assert "no part third; there are first, second" in capfd.readouterr().err


def test_what_runs_beside_the_rest_is_shown_when_it_has_ended(tmp_path, monkeypatch, capfd):
    """And before what runs alone begins."""
    monkeypatch.setattr(run_tests, "parts", made_up(tmp_path))
    monkeypatch.setattr(run_tests, "BESIDE", ("first",))
    monkeypatch.setattr(run_tests, "ALONE", "second")
    monkeypatch.setattr(sys, "argv", ["run_tests.py"])
    with pytest.raises(SystemExit) as ended:
        run_tests.main()
    assert ended.value.code
    printed = capfd.readouterr().out
    assert printed.index("seen") < printed.index("==> second: passes")
    assert "FAILED  first" in printed


def test_the_quick_check_is_no_part_of_everything(tmp_path, monkeypatch, capfd):
    def parts(workers):
        return {run_tests.CHECK: ("fails", [FAILS], {}), **made_up(tmp_path)(workers)}

    monkeypatch.setattr(run_tests, "parts", parts)
    for words, ran in ([], {"first", "second"}), (["check"], {"check"}):
        monkeypatch.setattr(sys, "argv", ["run_tests.py", *words])
        with pytest.raises(SystemExit):
            run_tests.main()
        lines = capfd.readouterr().out.splitlines()
        found = [re.fullmatch(r"    \w+  (\w+) +\d+:\d\d  make .*", line) for line in lines]
        assert {each[1] for each in found if each} == ran


def test_the_programs_are_there_and_are_set_as_said():
    for name, (_, commands, settings) in run_tests.parts(2).items():
        assert all((run_tests.BIN / command[0]).exists() for command in commands), name
        assert run_tests.run([["python", "-c", CHECK.format(settings)]], settings) == (True, "")


CHECK = "import os; assert os.environ.items() >= {}.items(); assert os.environ['OMP_NUM_THREADS']"
