"""Downloads from a server on this machine, its faults, and files that people put there by hand."""

import multiprocessing
import os
import signal
import stat
import sys
import time
import zipfile

import pytest
from mini_corpus import FILES, TEXTS, sha256, small_source, zipped

from dropreg.book.data import fetch
from dropreg.book.data.corpora import read_source
from dropreg.book.data.tokens import cached
from dropreg.errors import DataError, DropregError, MissingPackageError


def kept(cache):
    folder = cache / "downloads"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_download_is_checked_kept_and_not_repeated(server, own_cache):
    source = small_source(server.address("good"))
    assert fetch.read(source) == TEXTS
    assert fetch.read(source) == TEXTS
    assert server.asked == [("good", None)]
    assert kept(own_cache) == [".lock", "mini.zip"]


def test_a_cut_connection_is_resumed_where_it_broke(server):
    size = len(server.content)
    assert fetch.read(small_source(server.address("cut"))) == TEXTS
    half = size // 2
    rest = half + (size - half) // 2
    assert server.asked == [
        ("cut", None),
        ("cut", f"bytes={half}-"),
        ("cut", f"bytes={rest}-"),
    ]


def test_a_server_that_cannot_resume_sends_everything_again(server):
    assert fetch.read(small_source(server.address("no_resume"))) == TEXTS
    assert server.asked == [
        ("no_resume", None),
        ("no_resume", f"bytes={len(server.content) // 2}-"),
    ]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("missing", "404"),
        ("wrong", "does not match the known hash"),
        ("short", "does not match the known hash"),
        ("silent", "timed out"),
        ("stall", "timed out"),
        ("dead", "Connection|IncompleteRead"),
    ],
)
def test_a_fault_is_told_with_what_to_do_and_leaves_nothing(server, own_cache, fault, says):
    address = server.address(fault)
    begun = time.monotonic()
    with pytest.raises(DataError, match=says) as error:
        fetch.read(small_source(address))
    assert time.monotonic() - begun < 10
    assert isinstance(error.value, DropregError)
    for part in ("Mini could not be fetched", address, "by hand", "DROPREG_DATA"):
        assert part in str(error.value)
    assert kept(own_cache) == [".lock"]
    assert len(server.asked) <= 3


def test_no_network_is_told_with_what_to_do(own_cache):
    with pytest.raises(DataError, match=r"refused[\s\S]*DROPREG_DATA"):
        fetch.read(small_source())  # nothing listens there
    assert kept(own_cache) == [".lock"]


def test_a_download_has_a_limit_of_size_and_of_time(server, own_cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "MAX_BYTES", 100)
        with pytest.raises(DataError, match="sends more than 100 bytes"):
            fetch.read(small_source(server.address("good")))
    monkeypatch.setattr(fetch, "PATIENCE", 0.0)
    with pytest.raises(DataError, match="took more than 0 seconds"):
        fetch.read(small_source(server.address("good")))
    assert kept(own_cache) == [".lock"]


def test_a_kept_download_that_was_damaged_is_fetched_again(server, own_cache):
    source = small_source(server.address("good"))
    fetch.read(source)
    (own_cache / "downloads" / "mini.zip").write_bytes(b"half of it")
    assert fetch.read(source) == TEXTS
    assert len(server.asked) == 2


def test_where_nothing_can_be_written_the_error_says_so(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"Not a directory[\s\S]*DROPREG_DATA"):
        fetch.read(small_source(server.address("good")))


def test_an_archive_without_the_files_is_refused(server):
    server.content = zipped({"other.txt": b"x"})
    with pytest.raises(DataError, match="none of its files"):
        fetch.read(small_source(server.address("good"), digest=sha256(server.content)))


# A clean process imports everything once, and the others are its forks.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["dropreg.book.data.corpora", "dropreg.book.experiments.ledger"])


def fetch_and_report(source, cache, results):
    os.environ["XDG_CACHE_HOME"] = cache
    tokens = cached("mini", lambda: read_source(source))
    results.put((tokens.words, tokens.ids["train"].tolist()))


def test_two_processes_at_once_fetch_once(server, own_cache):
    results = FORKS.Queue()
    source = small_source(server.address("slow"))
    arguments = source, os.environ["XDG_CACHE_HOME"], results
    processes = [FORKS.Process(target=fetch_and_report, args=arguments) for _ in "ab"]
    for process in processes:
        process.start()
    first, second = (results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert first == second
    assert len(server.asked) == 1
    assert kept(own_cache) == [".lock", "mini.zip"]
    assert sorted(path.name for path in own_cache.iterdir()) == ["downloads", "mini.tokens2"]


def test_a_killed_download_leaves_no_file_no_lock_and_no_rubbish(server, own_cache):
    arguments = small_source(server.address("stall")), os.environ["XDG_CACHE_HOME"], None
    victim = FORKS.Process(target=fetch_and_report, args=arguments)
    victim.start()
    deadline = time.monotonic() + 120
    while not any(name.startswith("tmp") for name in kept(own_cache)):
        assert time.monotonic() < deadline
        assert victim.is_alive()
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(30)
    assert "mini.zip" not in kept(own_cache)
    assert fetch.read(small_source(server.address("good"))) == TEXTS
    assert kept(own_cache) == [".lock", "mini.zip"]


def report_imports(results):
    needless = "pooch", "requests", "platformdirs", "sklearn", "pythonbible", "scipy", "matplotlib"
    results.put(set(needless) & set(sys.modules))


def test_importing_the_library_imports_no_package_that_only_data_needs():
    results = FORKS.Queue()
    process = FORKS.Process(target=report_imports, args=(results,))
    process.start()
    assert results.get(timeout=120) == set()
    process.join(30)


@pytest.mark.parametrize("package", ["platformdirs", "pooch"])
def test_without_a_package_that_fetches_the_error_names_it(server, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError) as error:
        fetch.read(small_source(server.address("good")))
    assert str(error.value) == (
        "Fetching Mini (DROPREG_DATA names no folder that holds it) needs "
        f'{package}: pip install "dropreg[book]"'
    )
    assert server.asked == []


# What people put into DROPREG_DATA


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / "mine"
    path.mkdir()
    monkeypatch.setenv("DROPREG_DATA", str(path))
    return path


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("inner", ["", "mini"])
@pytest.mark.parametrize("packed", [True, False])
def test_files_are_found_packed_or_not_and_nothing_is_written(
    folder, own_cache, inner, packed, monkeypatch
):
    for package in ("platformdirs", "pooch", "requests"):  # for what lies there nothing is needed
        monkeypatch.setitem(sys.modules, package, None)
    members = {f"{inner}/{FILES[part]}".lstrip("/"): text for part, text in TEXTS.items()}
    if packed:
        (folder / "mini.zip").write_bytes(zipped(members))
    else:
        (folder / inner).mkdir(exist_ok=True)
        for name, text in members.items():
            (folder / name).write_bytes(text)
    before = contents(folder)
    assert fetch.read(small_source()) == TEXTS
    assert contents(folder) == before
    assert not own_cache.exists()


def test_a_folder_without_the_corpus_leads_to_the_download(folder, server):
    (folder / "other.txt").write_text("")
    assert fetch.read(small_source(server.address("good"))) == TEXTS


def test_a_folder_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("DROPREG_DATA", "no/such/folder")
    with pytest.raises(DataError, match="'no/such/folder', which is not a folder"):
        fetch.read(small_source())


def test_an_incomplete_copy_is_refused(folder):
    (folder / FILES["train"]).write_bytes(TEXTS["train"])
    with pytest.raises(DataError, match=r"without mini\.valid\.txt, mini\.test\.txt"):
        fetch.read(small_source())


def test_another_text_is_refused(folder):
    for part, text in TEXTS.items():
        (folder / FILES[part]).write_bytes(text)
    (folder / FILES["valid"]).write_bytes(TEXTS["valid"].replace(b"a", b"b"))
    with pytest.raises(DataError, match=r"mini.valid.txt .* is not Mini as published.*sha256 is"):
        fetch.read(small_source())


def encrypted():
    data = bytearray(zipped())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(mark)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(mark, at + 1)
    return bytes(data)


def bit_flipped():
    data = bytearray(zipped({FILES[part]: text * 50 for part, text in TEXTS.items()}))
    data[60] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    "damage",
    [lambda: zipped()[:-40], lambda: b"not an archive", lambda: b"", encrypted, bit_flipped],
    ids=["cut off", "no archive", "empty", "encrypted", "bit flipped"],
)
def test_a_damaged_archive_is_refused(folder, damage):
    (folder / "mini.zip").write_bytes(damage())
    with pytest.raises(DataError, match=r"mini.zip is damaged or not a plain zip archive"):
        fetch.read(small_source())


def test_paths_in_an_archive_lead_nowhere(folder, tmp_path, own_cache):
    outside = tmp_path / "outside.txt"
    evil = {
        "../outside.txt": b"evil",
        "../../outside.txt": b"evil",
        str(outside): b"evil",
        "C:\\outside.txt": b"evil",
    }
    good = {FILES[part]: text for part, text in TEXTS.items()}
    (folder / "mini.zip").write_bytes(zipped(evil | good))
    before = set(tmp_path.rglob("*"))
    assert fetch.read(small_source()) == TEXTS
    assert set(tmp_path.rglob("*")) == before
    assert not outside.exists()


def test_a_link_in_an_archive_is_not_followed(folder, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(TEXTS["train"])
    with zipfile.ZipFile(folder / "mini.zip", "w") as file:
        link = zipfile.ZipInfo(FILES["train"])
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, str(secret))
        for part in ("valid", "test"):
            file.writestr(FILES[part], TEXTS[part])
    with pytest.raises(DataError, match="not Mini as published"):
        fetch.read(small_source())


def test_absurd_sizes_are_refused_before_they_are_read(folder, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_BYTES", 100_000)
    bomb = {FILES["train"]: bytes(10_000_000)}
    (folder / "mini.zip").write_bytes(zipped(bomb))
    assert (folder / "mini.zip").stat().st_size < 100_000
    with pytest.raises(DataError, match="claims to hold 10,000,000 bytes"):
        fetch.read(small_source())
    (folder / FILES["train"]).write_bytes(bytes(100_001))
    with pytest.raises(DataError, match="claims to hold 100,001 bytes"):
        fetch.read(small_source())


def test_an_archive_that_lies_about_its_sizes_is_refused(folder):
    honest, lie = zipped({FILES["train"]: bytes(10_000)}), (10).to_bytes(4, "little")
    (folder / "mini.zip").write_bytes(honest.replace((10_000).to_bytes(4, "little"), lie))
    with pytest.raises(DataError, match="damaged"):
        fetch.read(small_source())
