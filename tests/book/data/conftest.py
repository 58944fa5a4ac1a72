"""Every test has a cache of its own, no DROPREG_DATA, and a web server if it asks for one."""

import os
import threading
from pathlib import Path

import pytest
from mini_corpus import Server, zipped

from dropreg.book.data import fetch

SHARED = Path(__file__).parents[4] / "shared" / "data"
PTB = Path(os.environ.get("DROPREG_DATA", SHARED))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("DROPREG_DATA", raising=False)
    return tmp_path / "cache" / "dropreg"


@pytest.fixture
def ptb_zip():
    path = PTB / "ptb.zip"
    if not path.is_file():
        pytest.skip("needs Penn Treebank: set DROPREG_DATA")
    return path


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "SILENCE", 1.0)
    monkeypatch.setattr(fetch, "BLOCK", 1)
    with Server() as running:
        running.content = zipped()
        run = {"target": running.serve_forever, "kwargs": {"poll_interval": 0.02}}
        thread = threading.Thread(**run, daemon=True)
        thread.start()
        yield running
        running.stop.set()
        running.shutdown()
        thread.join(5)
        assert not thread.is_alive()
