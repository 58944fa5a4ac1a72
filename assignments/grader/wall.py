"""The wall around a student's functions: bubblewrap, another user, a filter on system calls.

bubblewrap (`bwrap`) gives them namespaces of their own: no network, no process of anybody else, and
of the disk only Python, its packages and what is bound. A grader who is root takes one of two ways
to another user. With root's powers over mounts, bubblewrap makes the wall as root, so that it may
read a Python which lies where only root may, and `setpriv` drops to nobody behind it. Without, as
in a container, bubblewrap starts as nobody, who must be able to read Python. As root inside a user
namespace, which is what bubblewrap does by itself, `/proc/sys` of the machine could be written.
"""

import dataclasses
import functools
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NOBODY = 65534
# Where the modules that are shown lie behind the wall.
INSIDE = Path("/modules")
# Of the kernel's own files, what nobody needs; not every kernel has each.
HIDDEN_FOLDERS = ("sys", "irq", "bus", "fs", "acpi", "scsi", "asound", "driver", "tty")
HIDDEN_FILES = (
    "config.gz", "iomem", "ioports", "kallsyms", "kcore", "key-users", "keys", "kmsg",
    "kpagecgroup", "kpagecount", "kpageflags", "latency_stats", "mtrr", "sched_debug", "slabinfo",
    "sysrq-trigger", "timer_list", "vmallocinfo",
)  # fmt: skip

# System calls that no answer needs: their numbers on x86_64 and on aarch64, None where there is
# none. New namespaces and mounts, other processes' memory, keys, modules, clocks; and memory that
# no process's own count shows.
FORBIDDEN: dict[str, tuple[int, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "perf_event_open": (298, 241),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "unshare": (272, 97), "setns": (308, 268), "clone3": (435, 435), "chroot": (161, 51),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "move_mount": (429, 429),
    "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "userfaultfd": (323, 282),
    "bpf": (321, 280), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "personality": (135, 92), "vhangup": (153, 58), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
}  # fmt: skip
# Calls of which some arguments are refused; and the last call that was known when this was written.
CLONE, SOCKET, IOCTL, NEWEST = (56, 220), (41, 198), (16, 29), 454
NAMESPACES = 0x7E020000  # every CLONE_NEW… of a namespace
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6: not the host of a virtual machine, not packets
TYPING = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX: keys pressed on somebody's terminal
PROCESSORS = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


class NoIsolationError(RuntimeError):
    """There is no working bubblewrap here."""


def system_call_filter(machine: str) -> bytes:
    """A program for the kernel's seccomp that refuses what `FORBIDDEN` names, and what is newer."""
    load, equal, greater, any_of, end = 0x20, 0x15, 0x25, 0x45, 0x06
    number, architecture, first, second = 0, 4, 16, 24  # offsets of struct seccomp_data
    allow, kill = 0x7FFF0000, 0x80000000
    refuse, unknown, no_family = (0x00050000 | errno for errno in (1, 38, 97))
    which, known = PROCESSORS[machine]
    clone, socket, ioctl = CLONE[which], SOCKET[which], IOCTL[which]
    # (what, how many to skip if so, how many if not, value)
    program = [(load, 0, 0, architecture), (equal, 1, 0, known), (end, 0, 0, kill)]
    program += [(load, 0, 0, number), (greater, 0, 1, NEWEST), (end, 0, 0, unknown)]
    for name, numbers in FORBIDDEN.items():
        if (call := numbers[which]) is not None:
            answer = unknown if name == "clone3" else refuse  # then the C library takes clone
            program += [(equal, 0, 1, call), (end, 0, 0, answer)]
    program += [(equal, 0, 3, clone), (load, 0, 0, first), (any_of, 0, 1, NAMESPACES)]
    program += [(end, 0, 0, refuse), (load, 0, 0, number)]
    program += [(equal, 0, 2 + len(FAMILIES), socket), (load, 0, 0, first)]
    program += [(equal, len(FAMILIES) - i, 0, family) for i, family in enumerate(FAMILIES)]
    program += [(end, 0, 0, no_family), (load, 0, 0, number)]
    program += [(equal, 0, 2 + len(TYPING), ioctl), (load, 0, 0, second)]
    program += [(equal, 1, 0, TYPING[0]), (equal, 0, 1, TYPING[1]), (end, 0, 0, refuse)]
    program += [(end, 0, 0, allow)]
    return b"".join(struct.pack("<HBBI", *step) for step in program)


@dataclasses.dataclass(frozen=True)
class Wall:
    """One way to run a command behind bubblewrap.

    Attributes:
        before: What the command line begins with: a scope of systemd, if there is one.
        user: Whom bubblewrap itself runs as; None for the grader's own user.
        own_users: Whether it makes a user namespace.
    """

    user: int | None
    own_users: bool
    before: tuple[str, ...] = ()

    def command(
        self, command: Sequence[str], modules: Path, file_bytes: int, filter_fd: int
    ) -> list[str]:
        """The command line, with only what Python needs in sight, and the folder of modules."""
        options = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
        options += ["--unshare-cgroup-try", "--hostname", "sandbox"]
        options += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        options += ["--seccomp", str(filter_fd)]
        if self.own_users:
            options += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
        else:
            for name in ("SETUID", "SETGID", "SETPCAP"):
                options += ["--cap-add", f"CAP_{name}"]
            drop = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=-all"
            command = [*drop.split(), "--bounding-set=-all", *command]
        options += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
        for name in HIDDEN_FOLDERS:
            if (path := f"/proc/{name}") and os.path.isdir(path):
                options += ["--tmpfs", path, "--remount-ro", path]
        for name in HIDDEN_FILES:
            if (path := f"/proc/{name}") and os.path.exists(path):
                options += ["--ro-bind", "/dev/null", path]
        options += ["--perms", "1777", "--size", str(file_bytes), "--tmpfs", "/tmp"]
        options += seen(modules)
        return [
            *self.before,
            "bwrap",
            *options,
            "--remount-ro",
            "/",
            "--chdir",
            "/tmp",
            "--",
            *command,
        ]

    def start(
        self,
        command: Sequence[str],
        modules: Path,
        file_bytes: int,
        environment: Mapping[str, str],
        **pipes: Any,
    ) -> "subprocess.Popen[bytes]":
        """Start the command behind the wall."""
        reading, writing = os.pipe()
        try:
            with os.fdopen(writing, "wb") as file:
                file.write(system_call_filter(platform.machine()))
            groups: dict[str, Any] = {}
            if self.user is not None:
                groups = {"user": self.user, "group": self.user, "extra_groups": []}
            if self.before:
                keep = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")  # how systemd is reached
                environment = {k: os.environ[k] for k in keep if k in os.environ} | {**environment}
            return subprocess.Popen(
                self.command(command, modules, file_bytes, reading),
                env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **environment},
                cwd="/",
                pass_fds=[reading],
                start_new_session=True,
                bufsize=0,
                **pipes,
                **groups,
            )
        finally:
            os.close(reading)


def seen(modules: Path) -> list[str]:
    """The options that show Python, its packages and a folder of modules, and nothing else."""
    options: list[str] = []
    visible = [Path("/usr"), Path(sys.prefix), Path(sys.base_prefix), Path("/etc/ld.so.cache")]
    packages = [Path(p) for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    for name in ("/lib", "/lib32", "/lib64", "/bin"):
        if Path(name).is_symlink():
            options += ["--symlink", os.readlink(name), name]
        else:
            visible.append(Path(name))
    bound: list[Path] = []
    made: set[Path] = {Path("/")}
    for path in sorted({p for p in [*visible, *packages] if p.exists()}):
        if any(path.is_relative_to(other) for other in bound):
            continue
        for folder in reversed(path.parents):  # which bubblewrap would make for root alone
            if folder not in made:
                options += ["--perms", "0755", "--dir", str(folder)]
                made.add(folder)
        options += ["--ro-bind", str(path), str(path)]
        bound.append(path)
    # Of the package only what is among the modules; and nothing of a copy of this repository.
    here = Path(__file__).resolve().parents[2]
    hidden = [p / "dropreg" for p in packages] + [here / "dropreg", here / "assignments"]
    for path in dict.fromkeys(hidden):
        if path.is_dir() and any(path.is_relative_to(other) for other in bound):
            options += ["--tmpfs", str(path), "--remount-ro", str(path)]
    return [*options, "--ro-bind", str(modules), str(INSIDE)]


def scope(memory: int, processes: int) -> tuple[str, ...]:
    """The beginning of a command line that counts all its memory in a group of systemd's."""
    user = ("--user",) if os.geteuid() else ()
    limits = (f"MemoryMax={memory}", "MemorySwapMax=0", f"TasksMax={processes}")
    options = (option for limit in limits for option in ("-p", limit))
    return ("systemd-run", *user, "--scope", "--quiet", "--collect", *options, "--")


def ways() -> list[Wall]:
    """The walls that the grader's user may make, the best first."""
    if os.geteuid():
        return [Wall(None, own_users=True)]
    return [Wall(None, own_users=False), Wall(NOBODY, own_users=True)]


@functools.cache
def tried(user: int) -> tuple[Wall | None, str]:
    """The first wall behind which Python starts as nobody; and what the last one said."""
    if platform.machine() not in PROCESSORS:
        return None, f"there is no filter of system calls for {platform.machine()}"
    said = ""
    for way in ways():
        process = way.start(
            [sys.executable, "-I", "-c", "import os; print(os.getuid())"],
            Path("/usr/share"),
            1 << 20,
            {},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, error = process.communicate()
        if out.strip() == str(NOBODY).encode():
            return way, ""
        said = error.decode("utf-8", "replace").strip() or f"it ended with {process.returncode}"
    return None, said


@functools.cache
def with_scope(way: Wall, memory: int, processes: int) -> Wall:
    """The same wall within a group of systemd's, where there is one."""
    if not os.path.isdir("/run/systemd/system") or shutil.which("systemd-run") is None:
        return way
    if way.user is not None:
        return way
    scoped = dataclasses.replace(way, before=scope(memory, processes))
    process = scoped.start(
        [sys.executable, "-I", "-c", "print(1)"],
        Path("/usr/share"),
        1 << 20,
        {},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return scoped if process.communicate()[0].strip() == b"1" else way


def isolation_works() -> bool:
    """Whether bubblewrap is installed and Python starts behind it, as nobody."""
    return shutil.which("bwrap") is not None and tried(os.geteuid())[0] is not None


def best_wall() -> Wall:
    """The wall to take.

    Raises:
        NoIsolationError: If there is none, with what to do.
    """
    if shutil.which("bwrap") is None:
        raise NoIsolationError(
            "Students' code is not run here without isolation, and `bwrap` is missing. Debian and "
            "Ubuntu: `apt-get install bubblewrap`. " + INSTEAD
        )
    way, said = tried(os.geteuid())
    if way is None:
        root = (
            f" You are root, and `{sys.executable}` must then be readable by everybody, or you "
            "another user."
            if os.geteuid() == 0
            else ""
        )
        raise NoIsolationError(
            f"Students' code is not run here without isolation, and `bwrap` fails: {said}.{root} "
            "In a container or on Ubuntu 24.04 it may not make namespaces: the book's page *Where "
            "to grade* says what to change. " + INSTEAD
        )
    return way


INSTEAD = (
    "In a container or virtual machine of its own, which holds nothing else, you may say "
    "`--no-isolation`."
)
