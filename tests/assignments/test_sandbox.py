"""What the sandbox claims, tried by functions that mean harm."""

import contextlib
import os
import shutil

import pytest
import torch

import dropreg
from assignments.grader import sandbox_child
from assignments.grader.sandbox import Limits, NoIsolationError, Sandbox, isolation_works
from dropreg.book.checks import Fixture, Mistake

NEEDS_BWRAP = pytest.mark.skipif(
    not isolation_works() and os.environ.get("CI") != "true",
    reason="needs bubblewrap (Debian and Ubuntu: apt-get install bubblewrap)",
)

CODE = """
import os, socket, subprocess, sys, torch

def look(path):
    try:
        return sorted(os.listdir(path)) if os.path.isdir(path) else open(path).read()
    except OSError as error:
        return type(error).__name__

def write(path):
    try:
        with open(path, "w") as file:
            file.write("10/10")
        return "written"
    except OSError as error:
        return type(error).__name__

def connect(host, port):
    try:
        socket.create_connection((host, port), 2)
        return "connected"
    except OSError as error:
        return type(error).__name__

def kill_parent():
    try:
        os.kill(os.getppid(), 9)
        os.kill(-1, 9)
    except OSError as error:
        return type(error).__name__
    return "killed"

def environment():
    return dict(os.environ)

def processes():
    return [name for name in os.listdir("/proc") if name.isdigit()]

def patch():
    import builtins, dropreg.book.checks.core as core
    torch.as_tensor = core.expect = builtins.abs = lambda *a, **k: torch.zeros(())
    return 42.0

def huge():
    return torch.zeros(10**12)

def grow():
    kept = []
    while True:
        kept.append(b"x" * 10**8)

def fork():
    while True:
        try:
            os.fork()
        except OSError:
            pass

def loop():
    while True:
        pass

def leave():
    os._exit(0)

def flood():
    for _ in range(20000):
        print("x" * 1000)
    return 1.0

def forge():
    for fd in range(3, 20):
        try:
            os.write(fd, (10**12).to_bytes(8, "big") * 100)
        except OSError:
            pass
    return 1.0

def module():
    return torch.nn.Linear(2, 2)

def many():
    return torch.zeros(10**8, dtype=torch.float64)

def add(x, y):
    return x + y

def same(x):
    return x

def build(model):
    return sum(p.numel() for p in model.parameters())

def fill():
    try:
        with open("/tmp/big", "wb") as file:
            for _ in range(10**4):
                file.write(b"x" * 10**6)
        return "written"
    except OSError as error:
        return type(error).__name__
"""
NAMES = [line.split()[1].split("(")[0] for line in CODE.splitlines() if line.startswith("def ")]


@pytest.fixture(scope="module")
def box():
    limits = Limits(call_seconds=20, total_seconds=3000, memory=1 << 30)
    with Sandbox([CODE], dict.fromkeys(NAMES, ""), limits=limits) as sandbox:
        yield sandbox


@NEEDS_BWRAP
class TestUnderBubblewrap:
    def test_numbers_go_through_unchanged(self, box):
        for dtype in sandbox_child.DTYPES.values():
            x = torch.arange(6).reshape(2, 3).to(dtype)
            got = box.answer("same")(x)
            assert got.dtype == x.dtype
            assert torch.equal(got, x)
        assert box.answer("add")([1, 2.5], ["a", None]) == [1, 2.5, "a", None]
        assert box.answer("add")(torch.zeros(0, 3), 1).shape == (0, 3)

    def test_fixtures_are_built_inside(self, box):
        assert box.answer("build")(Fixture("tiny_network", (1,))) == 31

    def test_it_sees_no_tests_no_solutions_no_submissions(self, box, tmp_path):
        secret = tmp_path / "hidden.py"
        secret.write_text("FRESH = 1")
        root = os.path.dirname(os.path.dirname(dropreg.__file__))
        for path in (str(secret), f"{root}/assignments/source", f"{root}/tests", "/etc/passwd"):
            assert box.answer("look")(path) == "FileNotFoundError", path
        assert "assignments" not in box.answer("look")(root)
        assert os.path.expanduser("~/.ssh") not in str(box.answer("look")("/root"))

    def test_it_writes_nowhere_but_in_its_own_empty_folder(self, box, tmp_path):
        assert box.answer("write")(str(tmp_path / "gradebook.db")) == "FileNotFoundError"
        assert not (tmp_path / "gradebook.db").exists()
        assert box.answer("write")(f"{os.path.dirname(dropreg.__file__)}/core.py") == "OSError"
        assert box.answer("write")("/tmp/mine") == "written"
        assert not os.path.exists("/tmp/mine")
        assert box.answer("fill")() == "OSError"

    def test_it_has_no_network(self, box):
        import socket

        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection(("127.0.0.1", port)).close()  # it can be reached from here
            assert box.answer("connect")("127.0.0.1", port) == "ConnectionRefusedError"
        assert box.answer("connect")("1.1.1.1", 53) == "OSError"

    def test_it_sees_no_other_process_and_no_secret_of_the_environment(self, box, monkeypatch):
        monkeypatch.setenv("TOKEN", "secret")
        assert len(box.answer("processes")()) <= 3
        assert "secret" not in str(box.answer("environment")())

    def test_what_it_patches_stays_inside(self, box):
        assert box.answer("patch")() == 42.0
        assert torch.as_tensor(3.0) == 3.0

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("huge", "memory"),
            ("grow", "memory|stopped"),
            ("fork", "too many processes"),
            ("leave", "ended the process"),
            ("forge", "cannot be read|stopped|ended"),
            ("module", "expected, not Linear"),
            ("many", "too much"),
        ],
    )
    def test_what_breaks_a_limit_is_stopped_and_the_rest_goes_on(self, box, name, words):
        if name == "forge":
            # Its own reply is forged: that is no worse than any other wrong number.
            with contextlib.suppress(Mistake):
                box.answer(name)()
        else:
            with pytest.raises(Mistake, match=words):
                box.answer(name)()
        assert box.answer("add")(1, 2) == 3

    def test_a_loop_is_stopped(self):
        limits = Limits(call_seconds=3)
        with Sandbox([CODE], {"loop": "", "add": ""}, limits=limits) as box:
            assert box.answer("add")(1, 2) == 3
            with pytest.raises(Mistake, match="Does a loop never end"):
                box.answer("loop")()
            with pytest.raises(Mistake, match="Does a loop never end"):
                box.answer("loop")()  # at once: it is not run again

    def test_a_flood_of_text_is_cut(self, box):
        assert box.answer("flood")() == 1.0
        assert len(box.printed) <= Limits().printed

    def test_the_parent_survives(self, box):
        assert box.answer("kill_parent")() in ("killed", "PermissionError", "ProcessLookupError")
        assert box.answer("add")(1, 2) == 3


def test_without_bubblewrap_it_refuses(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NoIsolationError, match="apt-get install bubblewrap"):
        Sandbox([CODE], {"add": ""})


def test_without_isolation_if_asked_for():
    with Sandbox([CODE], {"add": "", "gone": ""}, isolated=False) as box:
        assert box.answer("add")(1, 2) == 3
        with pytest.raises(Mistake, match="no function `gone`"):
            box.answer("gone")()


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"nonsense", b""),
        (b'{"tensor": [2], "dtype": "float64", "bytes": 8}', bytes(8)),
        (b'{"tensor": [1], "dtype": "object", "bytes": 8}', bytes(8)),
        (b'{"list": [' * 3000, b""),
        (b'{"dict": [[{"list": []}, 1]]}', b""),
        (b"[1]", b""),
        (b"\xff\xfe", b""),
    ],
)
def test_a_forged_reply_is_refused(header, body):
    with pytest.raises(ValueError, match=r".*"):
        sandbox_child.decode(header, body)


def test_definitions_survive_what_students_leave_behind():
    cells = [
        "%matplotlib inline\n!pip install x\nimport math",
        "def broken(:",
        "while True: pass",
        "def f(x):\n    return helper(x)",
        "x = 1 / 0",
        "def helper(x):\n    return math.sqrt(x)",
        "def f(x):\n    raise NotImplementedError()",
    ]
    names, errors = sandbox_child.define(cells, 5.0)
    assert names["f"](4.0) == 2.0
    assert [error.split(":")[1].strip() for error in errors] == ["SyntaxError", "ZeroDivisionError"]


def test_definitions_have_a_time_in_all():
    loops = [f"x{i} = [0 for _ in iter(int, 1)]" for i in range(20)]
    names, errors = sandbox_child.define([*loops, "def f(x):\n    return x"], 0.1)
    assert 5 <= len(errors) <= 8
    assert "took longer" in errors[0]
    assert "no time was left" in errors[-1]
    assert "f" not in names


@NEEDS_BWRAP
def test_who_cannot_be_defined_is_not_tried_for_every_function():
    ends = "import os\nstop = os._exit(0)"
    with Sandbox([ends, CODE], {"add": "", "loop": ""}) as box:
        for name in ("add", "loop", "add"):
            with pytest.raises(Mistake, match="defining the functions ended the process"):
                box.answer(name)()
        assert len(box.notes) == 1


def test_a_function_under_another_name_is_found_in_its_cell():
    cell = "def my_power(a, b):\n    return a - b"
    names, _ = sandbox_child.define([cell], 5.0)
    assert sandbox_child.find("power", cell, names)(3, 1) == 2
    assert sandbox_child.find("power", cell + "\ndef other(): pass", names) is None
