"""That a piece of work that dies, hangs or fills the memory harms no other."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from assignments.grader import apart


def well(number):
    return number * 2


def dies():
    os.kill(os.getpid(), 11)


def leaves():
    os._exit(3)


def hangs():
    subprocess.Popen((sys.executable, "-c", "import time; time.sleep(1000)  # of the hanging one"))
    while True:
        pass


def fills():
    return len(bytearray(10 * apart.MEMORY))


def refuses():
    raise apart.CannotGradeError("no notebook")


def fails():
    raise KeyError("half an emoji: \ud83d")


def deep():
    return deep()


def answers_what_cannot_be_sent():
    return lambda: None


BAD = [
    (dies, "signal 11"),
    (leaves, "status 3"),
    (hangs, "too long"),
    (fills, "MemoryError"),
    (refuses, "no notebook"),
    (fails, "KeyError: 'half an emoji: "),
    (deep, "RecursionError"),
    (answers_what_cannot_be_sent, "pickle"),
]


@pytest.mark.parametrize(("bad", "words"), BAD, ids=[bad.__name__ for bad, _ in BAD])
def test_the_others_do_not_notice(bad, words):
    arguments = {"a": (well, 1), "bad": (bad,), "b": (well, 2), "c": (well, 3)}
    done = {d.key: d for d in apart.each(call, arguments, jobs=2, seconds=3)}
    assert {key: d.value for key, d in done.items()} == {"a": 2, "bad": None, "b": 4, "c": 6}
    assert {key for key, d in done.items() if d.reason} == {"bad"}
    assert words in done["bad"].reason
    done["bad"].reason.encode()  # it can be written to a file
    commands = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    assert not any("of the hanging one" in word for words in commands for word in words)


def call(function, *arguments):
    return function(*arguments)


def sleeps():
    time.sleep(1)


def test_as_many_at_a_time_as_there_are_jobs():
    next(apart.each(call, {"warm": (well, 1)}, jobs=1, seconds=30))  # the first imports
    begin = time.monotonic()
    assert (
        len(list(apart.each(call, {str(i): (sleeps,) for i in range(4)}, jobs=4, seconds=9))) == 4
    )
    assert time.monotonic() - begin < 3.5


def test_what_is_given_up_is_ended():
    work = apart.each(call, {"a": (well, 1), "b": (hangs,)}, jobs=2, seconds=100)
    assert next(work).key == "a"
    work.close()
    commands = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    assert not any("of the hanging one" in word for words in commands for word in words)
