"""What the sandbox claims, tried by functions that mean harm."""

import contextlib
import errno
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

import dropreg
from assignments.grader import sandbox, wall, wire
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
    import builtins
    torch.as_tensor = builtins.abs = lambda *a, **k: torch.zeros(())
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

def system_call(number, arguments):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    return ctypes.get_errno() if result == -1 else 0

def status():
    kept = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs", "Seccomp")
    with open("/proc/self/status") as file:
        lines = [line.split(":") for line in file]
    return {name: text.split() for name, text in lines if name in kept}

def become_root():
    for change in (os.setuid, os.setgid, os.seteuid, lambda n: os.setgroups([n])):
        try:
            change(0)
            return "root"
        except OSError as error:
            found = type(error).__name__
    return found

def make_device():
    try:
        os.mknod("/tmp/disk", 0o60666, os.makedev(8, 0))
        return "made"
    except OSError as error:
        return type(error).__name__

def start_spinning(n):
    import time
    for _ in range(n):
        if os.fork() == 0:
            while True:
                print("x" * 1000)
    import threading
    threading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()
    return 1.0

def dribble():
    import time
    for _ in range(40):
        if os.fork() == 0:
            while True:
                time.sleep(1)
    for fd in range(3, 20):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("pipe"):
                for byte in (1000).to_bytes(8, "big") * 2:
                    os.write(fd, bytes([byte]))
                while True:
                    os.write(fd, b"x")
                    time.sleep(0.01)
        except OSError:
            pass

def share():
    import mmap, time
    memory = mmap.mmap(-1, 200 << 20)
    memory[:] = b"x" * len(memory)
    for _ in range(8):
        if os.fork() == 0:
            sum(memory[:: 4096])
            time.sleep(1)
            os._exit(0)
    time.sleep(1)
    return 1.0

def many_files():
    i = 0
    while True:
        i += 1
        open(f"/tmp/{i}", "w").close()

def deleted():
    kept = []
    try:
        while True:
            file = open("/tmp/gone", "wb", buffering=0)
            os.unlink("/tmp/gone")
            kept.append(file)
            file.write(b"x" * 10**6)
    except OSError as error:
        return [type(error).__name__, len(kept)]

def in_memory_file():
    try:
        return os.memfd_create("x")
    except OSError as error:
        return type(error).__name__

def of(path):
    import importlib
    module, _, name = path.rpartition(".")
    return float(getattr(importlib.import_module(module), name) is not None)

def odd_error():
    class Odd(Exception):
        def __str__(self):
            raise ValueError
    raise Odd

def half_a_character():
    raise ValueError("\\ud83d \\x00\\x1b[31m \\u202e")

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
        for dtype in wire.DTYPES.values():
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
        for path in (str(secret), f"{root}/assignments", f"{root}/tests", "/etc/passwd"):
            assert box.answer("look")(path) == "FileNotFoundError", path
        assert box.answer("look")("/modules/dropreg/book/checks") == ["__init__.py", "fixtures.py"]
        assert not {".ssh", ".bash_history"} & set(box.answer("look")(os.path.expanduser("~")))

    def test_it_writes_nowhere_but_in_its_own_empty_folder(self, box, tmp_path):
        assert box.answer("write")(str(tmp_path / "gradebook.db")) == "FileNotFoundError"
        assert not (tmp_path / "gradebook.db").exists()
        written = (
            "/x",
            "/dev/x",
            "/dev/shm/x",
            "/modules/x",
            "/proc/x",
            "/usr/x",
            sys.prefix + "/x",
        )
        for path in written:
            refused = ("OSError", "PermissionError", "FileNotFoundError")
            assert box.answer("write")(path) in refused, path
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
        for family in (
            16,
            17,
            38,
            40,
        ):  # netlink, packets, the kernel's ciphers, the virtual machine
            number = wall.SOCKET[wall.PROCESSORS[platform.machine()][0]]
            assert box.answer("system_call")(number, [family, 1, 0]) == errno.EAFNOSUPPORT

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

    def test_the_kernel_cannot_be_set(self, box):
        """As root this once wrote the pattern of core files of the machine."""
        pattern = Path("/proc/sys/kernel/core_pattern").read_text()
        assert box.answer("write")("/proc/sys/kernel/core_pattern") == "FileNotFoundError"
        assert Path("/proc/sys/kernel/core_pattern").read_text() == pattern
        for name in wall.HIDDEN_FOLDERS:
            assert box.answer("look")(f"/proc/{name}") in ([], "FileNotFoundError"), name
        refused = ("PermissionError", "OSError", "FileNotFoundError")
        for name in wall.HIDDEN_FILES:
            assert box.answer("write")(f"/proc/{name}") in refused, name
        for path in ("/sys", "/sys/kernel", "/sys/fs/cgroup"):
            assert box.answer("look")(path) == "FileNotFoundError"

    def test_it_is_nobody_and_cannot_become_anybody(self, box):
        status = box.answer("status")()
        assert status["Uid"] == status["Gid"] == ["65534"] * 4
        assert set(status["Groups"]) <= {"65534"}
        assert {int(n, 16) for name in status if name.startswith("Cap") for n in status[name]} == {
            0
        }
        assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
        assert box.answer("become_root")() == "PermissionError"
        assert box.answer("make_device")() == "PermissionError"

    @pytest.mark.parametrize("name", wall.FORBIDDEN)
    def test_system_calls_that_no_answer_needs_are_refused(self, box, name):
        number = wall.FORBIDDEN[name][wall.PROCESSORS[platform.machine()][0]]
        refused = errno.ENOSYS if name == "clone3" else errno.EPERM
        if number is not None:
            assert box.answer("system_call")(number, [0] * 6) == refused

    def test_it_makes_no_namespace(self, box):
        clone = wall.CLONE[wall.PROCESSORS[platform.machine()][0]]
        time, mount, group, uts, ipc, user, process, network = (
            0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
        )  # fmt: skip
        for kind in (mount, group, uts, ipc, user, process, network):
            call = [kind | signal.SIGCHLD, 0, 0, 0, 0]
            assert box.answer("system_call")(clone, call) == errno.EPERM
        # Of time only unshare makes one: here its bit is part of the signal.
        assert not wall.NAMESPACES & time
        for newer in (460, 500, 0x40000000 + 39):
            assert box.answer("system_call")(newer, [0] * 6) == errno.ENOSYS

    def test_it_types_on_no_terminal(self, box):
        ioctl = wall.IOCTL[wall.PROCESSORS[platform.machine()][0]]
        for request in wall.TYPING:
            assert box.answer("system_call")(ioctl, [0, request, 0]) == errno.EPERM
        assert box.answer("system_call")(ioctl, [0, 0x5413, 0]) == errno.ENOTTY  # others are heard

    def test_devices_are_the_harmless_ones(self, box):
        harmless = "core fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
        assert set(box.answer("look")("/dev")) <= set(harmless.split())
        assert box.answer("look")("/dev/shm") == []

    def test_it_reads_no_other_process(self, box, monkeypatch):
        """The only other one has no more than it has itself, and is closed, or shows no more."""
        monkeypatch.setenv("TOKEN", "secret")
        for name in ("environ", "root", "cwd", "maps"):
            seen = str(box.answer("look")(f"/proc/1/{name}"))
            assert "secret" not in seen
            assert os.path.expanduser("~/.") not in seen
        assert box.answer("look")("/proc/1/root") in ("PermissionError", box.answer("look")("/"))

    def test_nothing_computes_between_calls_and_nothing_is_left(self):
        limits = Limits(call_seconds=20)
        with Sandbox([CODE], {"start_spinning": "", "add": ""}, limits=limits) as box:
            assert box.answer("start_spinning")(3) == 1.0
            processes = [psutil.Process(pid) for pid in sandbox.family(box._process.pid)]
            assert len(processes) >= 5
            spent = [sum(p.cpu_times()[:2]) for p in processes]
            time.sleep(0.5)
            assert [sum(p.cpu_times()[:2]) for p in processes] == spent
            begin = time.monotonic()
            assert [box.answer("add")(i, 1) for i in range(20)] == list(range(1, 21))
            assert time.monotonic() - begin < 10  # with all of them printing
        assert psutil.wait_procs(processes, timeout=5)[1] == []

    def test_a_reply_byte_by_byte_is_watched(self, box):
        begin = time.monotonic()
        with pytest.raises(Mistake, match="too many processes"):
            box.answer("dribble")()
        assert time.monotonic() - begin < 5

    def test_files_are_counted(self, box):
        with pytest.raises(Mistake, match="too many processes or files"):
            box.answer("many_files")()
        kind, files = box.answer("deleted")()
        assert kind == "OSError"
        assert files <= Limits().file_bytes // 10**6 + 1
        assert box.answer("in_memory_file")() == "PermissionError"

    def test_shared_memory_is_counted_once(self, box):
        assert box.answer("share")() == 1.0

    def test_the_library_is_not_there_to_be_asked(self, box):
        assert box.answer("of")("torch.nn.Dropout") == 1.0
        for path in ("dropreg.explicit_regularizer", "dropreg.book.checks.masks.moments",
                     "dropreg.book.checks.core.expect", "dropreg.book.checks.Answer"):  # fmt: skip
            with pytest.raises(Mistake, match="is not there when answers are tested"):
                box.answer("of")(path)

    def test_errors_are_text(self, box):
        with pytest.raises(Mistake, match=r"\(Odd: "):
            box.answer("odd_error")()
        with pytest.raises(Mistake) as caught:
            box.answer("half_a_character")()
        assert str(caught.value).isprintable()
        str(caught.value).encode()


@NEEDS_BWRAP
@pytest.mark.thorough
class TestAsOthers:
    """The same tests once more, by a grader who is somebody else."""

    def run(self, *options):
        """With a Python that everybody may read, wherever it lies."""
        shown = {Path(sys.prefix), Path(sys.base_prefix), Path(wall.__file__).parents[2]}
        folders = {p for path in shown for p in path.parents if p.stat().st_mode & 0o5 != 0o5}
        bwrap = ["bwrap", "--dev-bind", "/", "/"]
        for folder in sorted(folders):
            bwrap += ["--perms", "0755", "--tmpfs", str(folder)]
        for path in sorted(shown) if folders else []:
            for parent in reversed(path.parents):
                if any(parent.is_relative_to(folder) for folder in folders):
                    bwrap += ["--perms", "0755", "--dir", str(parent)]
            bwrap += ["--ro-bind", str(path), str(path)]
        tests = [sys.executable, "-m", "pytest", "-q", "--no-cov", "-p", "no:cacheprovider"]
        tests += ["-o", "addopts=", f"{__file__}::TestUnderBubblewrap"]
        environment = {**os.environ, "HOME": "/tmp", "CI": "true", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [*bwrap, "--", *options, *tests], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr

    @pytest.mark.skipif(os.geteuid() != 0, reason="a grader who is no root: the tests above")
    def test_a_normal_user(self):
        self.run("setpriv", "--reuid=1234", "--regid=1234", "--clear-groups")

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
    def test_root_of_a_container(self):
        """Who may mount nothing, as with Docker."""
        self.run("setpriv", "--bounding-set=-sys_admin")


def test_without_bubblewrap_it_refuses(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NoIsolationError, match="apt-get install bubblewrap"):
        Sandbox([CODE], {"add": ""})


@NEEDS_BWRAP
def test_where_it_does_not_work_it_refuses_and_says_why(monkeypatch):
    monkeypatch.setattr(wall, "seen", lambda modules: ["--ro-bind", "/nowhere", "/"])
    wall.tried.cache_clear()
    try:
        with pytest.raises(
            NoIsolationError, match=r"Can't find source path /nowhere.*Where to grade"
        ):
            Sandbox([CODE], {"add": ""})
        assert not isolation_works()
    finally:
        wall.tried.cache_clear()


@NEEDS_BWRAP
@pytest.mark.skipif(not os.path.isdir("/run/systemd/system"), reason="no systemd runs here")
def test_memory_is_counted_in_a_group_where_there_is_one():
    way = wall.with_scope(wall.best_wall(), 1 << 29, 256)
    if not way.before:
        pytest.skip("systemd makes no scope for this user")
    command = [sys.executable, "-c", "x = b'x' * (1 << 30)"]
    process = way.start(command, Path("/usr/share"), 1 << 20, {}, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE)  # fmt: skip
    process.communicate()
    assert process.returncode != 0


@NEEDS_BWRAP
def test_a_processor_without_a_filter_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert wall.tried.__wrapped__(0) == (None, "there is no filter of system calls for riscv64")


def test_without_isolation_if_asked_for():
    with Sandbox([CODE], {"add": "", "gone": "", "start_spinning": ""}, isolated=False) as box:
        assert box.answer("add")(1, 2) == 3
        with pytest.raises(Mistake, match="no function `gone`"):
            box.answer("gone")()
        box.answer("start_spinning")(2)
        processes = [psutil.Process(pid) for pid in sandbox.family(box._process.pid)]
        assert len(processes) == 3
    assert psutil.wait_procs(processes, timeout=5)[1] == []


@pytest.mark.parametrize("isolated", [False, pytest.param(True, marks=NEEDS_BWRAP)])
def test_it_ends_with_a_grader_that_is_killed(isolated):
    code = f"""
import os, signal
from assignments.grader import sandbox
box = sandbox.Sandbox([{CODE!r}], {{"add": ""}}, isolated={isolated})
assert box.answer("add")(1, 2) == 3
print(*sandbox.family(box._process.pid), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == (3 if isolated else 1)
    until = time.monotonic() + 10
    while (left := [pid for pid in pids if psutil.pid_exists(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"nonsense", b""),
        (b'{"tensor": [2], "dtype": "float64", "bytes": 8}', bytes(8)),
        (b'{"tensor": [1], "dtype": "object", "bytes": 8}', bytes(8)),
        (b'{"tensor": [-1], "dtype": "float64", "bytes": 8}', bytes(8)),
        (b'{"tensor": [1], "dtype": "float64", "bytes": -8}', bytes(8)),
        (b'{"tensor": [-1, -1], "dtype": "float64", "bytes": 8}', bytes(8)),
        (b'{"tensor": [1000000000000], "dtype": "uint8", "bytes": 1000000000000}', bytes(8)),
        (b'{"tensor": [0, 1000000000000], "dtype": "uint8", "bytes": 0}', b""),
        (b'{"tensor": [1], "dtype": "uint8", "bytes": true}', bytes(1)),
        (b'{"tensor": [1.0], "dtype": "uint8", "bytes": 1}', bytes(1)),
        (b'{"tensor": 1, "dtype": "uint8", "bytes": 1}', bytes(1)),
        (b'{"tensor": ' + json.dumps([1] * 65).encode() + b', "dtype": "uint8", "bytes": 1}', b"1"),
        (b'{"tensor": [1], "dtype": ["uint8"], "bytes": 1}', bytes(1)),
        (b'{"tensor": [1], "dtype": "uint8", "bytes": 1}', bytes(2)),
        (b"1", bytes(1)),
        (b"1" * 1000, b""),
        (b"-9223372036854775809", b""),
        (b"1." + b"1" * 1000, b""),
        (b'{"fixture": "tiny_network", "args": [1]}', b""),
        (b'{"list": [' + b"1," * 200_000 + b"1]}", b""),
        (b'{"list": [' * 3000, b""),
        (b'{"list": 5}', b""),
        (b'{"dict": [[{"list": []}, 1]]}', b""),
        (b'{"dict": [1]}', b""),
        (b"[1]", b""),
        (b"\xff\xfe", b""),
    ],
)  # fmt: skip
def test_a_forged_reply_is_refused(header, body):
    with pytest.raises(ValueError, match=r".*"):
        wire.decode(header, body)


def test_overlapping_tensors_cannot_be_said():
    one = '{"tensor": [4], "dtype": "uint8", "bytes": 4}'
    got = wire.decode(f'{{"list": [{one}, {one}]}}'.encode(), bytes(range(8)))
    assert [t.tolist() for t in got] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    "value",
    [math.inf, math.nan, 10**30, -(2**63), True, None, "é😀", 1e-300, [], {}, {"a": (1, 2)}],
)
def test_numbers_and_text_cross(value):
    written = wire.encode(value)
    size = int.from_bytes(written[:8], "big")
    got = wire.decode(written[16 : 16 + size], written[16 + size :])
    assert got == (1e30 if value == 10**30 else value) or (got != got and value != value)
    assert type(got) is (float if value == 10**30 else type(value))


STRANGE = {
    "one number of a row": torch.arange(10, dtype=torch.float64).reshape(2, 5)[:1, 0],
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "every second": torch.arange(6)[::2],
    "expanded": torch.tensor([1.5, 2.5]).expand(3, 2),
    "an imaginary part": torch.randn(3, dtype=torch.complex64).conj().imag,
    "with a gradient": torch.ones(2, requires_grad=True),
    "empty": torch.zeros(0, 3),
    "float16": torch.ones(2, dtype=torch.float16),
    "bool": torch.tensor([True, False]),
}


@pytest.mark.parametrize("name", STRANGE)
def test_tensors_cross_however_they_lie_in_memory(name):
    tensor = STRANGE[name]
    written = wire.encode(tensor)
    size = int.from_bytes(written[:8], "big")
    got = wire.decode(written[16 : 16 + size], written[16 + size :])
    assert got.tolist() == tensor.tolist()
    assert got.shape == tensor.shape


@pytest.mark.parametrize("text", ["\ud800", "a\x00b", "\x1b[1m", "\u202eabc", "\u2028"])
def test_text_that_cannot_be_shown_is_replaced(text):
    assert wire.clean(text).isprintable()
    assert wire.decode(json.dumps(text).encode(), b"") == wire.clean(text)


@NEEDS_BWRAP
def test_who_cannot_be_defined_is_not_tried_for_every_function():
    ends = "import os\nstop = os._exit(0)\ndef add(x, y):\n    return stop"
    with Sandbox([CODE, ends], {"add": ends, "loop": ""}) as box:
        for name in ("add", "loop", "add"):
            with pytest.raises(Mistake, match="defining the functions ended the process"):
                box.answer(name)()
        assert len(box.notes) == 1


@NEEDS_BWRAP
class TestWhoseItIs:
    GIVEN = (
        "import math\n\ndef network(w):\n    return math.sqrt(w)\n\n"
        "from dropreg.book.checks import masks as check\n"
        "from dropreg.book.data import load_digits"
    )

    def message(self, source, name="f", given=(GIVEN,), **options):
        with Sandbox([*given, source], {name: source}, given=given, **options) as box:
            with pytest.raises(Mistake) as caught:
                box.answer(name)(-1.0)
            return str(caught.value)

    def test_an_error_has_its_line(self):
        assert self.message("\ndef f(x):\n    y = x + 1\n    return 1 / y") == (
            "`f` stopped with an error: ZeroDivisionError. (ZeroDivisionError: float division by "
            "zero (line 4 of its cell: `return 1 / y`))"
        )

    def test_an_error_of_a_given_function_is_said_to_be(self):
        assert self.message("def f(x):\n    return network(x)") == (
            "`f` stopped with an error: ValueError. (ValueError: math domain error (raised in "
            "`network`, which is given: `return math.sqrt(w)`; called by line 2 of your cell: "
            "`return network(x)`))"
        )

    def test_a_fixture_that_cannot_be_built_is_nobodys_mistake(self):
        source = "def f(x):\n    return x"
        with Sandbox([source], {"f": source}) as box:
            with pytest.raises(Mistake, match="may not be your mistake"):
                box.answer("f")(Fixture("tiny_network", ("no seed",)))
            assert "could not build `tiny_network` for `f`" in box.notes[0]
            assert box.answer("f")(1) == 1

    def test_a_cell_that_cannot_be_read_is_said_with_its_line(self):
        message = self.message("def f(x):\n    return (x")
        assert (
            message == "the cell of `f` cannot be read: SyntaxError in line 2: '(' was never closed"
        )

    @pytest.mark.parametrize(
        ("source", "path"),
        [
            ("from dropreg import explicit_regularizer as r\ndef f(x):\n    return r(x)",
             "dropreg.explicit_regularizer"),
            ("def f(x):\n    import dropreg.explicit\n    return 1", "dropreg.explicit"),
            ("import dropreg\ndef f(x):\n    return dropreg.explicit_regularizer(x)",
             "dropreg.explicit_regularizer"),
            ("def f(x):\n    return check.moments(x)", "dropreg.book.checks.masks"),
        ],
    )  # fmt: skip
    def test_who_imports_the_result_is_told(self, source, path):
        message = self.message(source, tests=["check.moments(f)"])
        assert f"`{path}` is not there when answers are tested: write it yourself" in message

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_cells_arrive_as_they_were_written(self, end):
        source = end.join(
            ["import pickle", "class A:", "    n = 2  # \ud83d", "", "def f(x):",
             "    assert __name__ == '__main__'",
             "    return '\u00a0\u202e' * pickle.loads(pickle.dumps(A())).n"]
        )  # fmt: skip
        with Sandbox([source], {"f": source}) as box:
            assert box.answer("f")(1) == "\ufffd" * 4

    def test_what_given_cells_import_is_there(self):
        source = "def f(x):\n    return len(load_digits(train_size=10).train_x)"
        with Sandbox(
            [self.GIVEN, source], {"f": source}, given=[self.GIVEN], tests=["check.a(f)"]
        ) as box:
            assert box.answer("f")(1) == 10
            assert box.notes == []
