"""A corpus of a few words, and a web server on this machine that serves it with a chosen fault."""

import hashlib
import io
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dropreg.book.data.fetch import Source, Text

TEXTS = {
    "train": b" the cat saw the <unk> \n\n the dog saw it \n",
    "valid": b" a cat \n",
    "test": b" the zebra \n",
}
FILES = {part: f"mini.{part}.txt" for part in TEXTS}
WORDS = {"train": 9, "valid": 2, "test": 2}


def zipped(members=None):
    """A zip archive: of the small corpus, or of other members."""
    members = members or {f"mini/{FILES[part]}": text for part, text in TEXTS.items()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, text in members.items():
            file.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)  # dated 1980, always
    return out.getvalue()


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def small_source(address="http://127.0.0.1:9/mini.zip", digest=None, words=None):
    """A corpus like the real ones, with few words."""
    counts = words or WORDS
    return Source(
        title="Mini",
        origin="made for a test",
        folders=("", "mini"),
        archive="mini.zip",
        downloads={"mini.zip": (address, digest or sha256(zipped()))},
        texts={part: Text(FILES[part], sha256(TEXTS[part]), counts[part]) for part in TEXTS},
    )


class Server(ThreadingHTTPServer):
    """Serves `content`, with a fault that the path names; counts what is asked for."""

    daemon_threads = True
    content = b""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.cuts = Counter()
        self.stop = threading.Event()

    def address(self, fault):
        return f"http://127.0.0.1:{self.server_port}/{fault}/mini.zip"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        fault = self.path.split("/")[1]
        content, first = self.server.content, 0
        given = self.headers.get("Range")
        self.server.asked.append((fault, given))
        if fault == "missing":
            return self.send_error(404)
        if fault == "silent":
            self.server.stop.wait(5)
            return None
        if fault == "slow":  # so that two clients meet
            self.server.stop.wait(1)
        if fault == "wrong":
            content = bytes(len(content))
        if fault == "short":  # without a length: nothing but the hash can tell
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return None
        if given and fault != "no_resume":
            first = int(given.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[first:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.server.cuts[fault] += 1
        cut = {"cut": 2, "no_resume": 1, "dead": 1000}.get(fault, 0)
        if fault == "stall":
            if self.server.cuts[fault] == 1:
                self.wfile.write(body[:10])
            self.server.stop.wait(20)
        elif fault == "dead" and self.server.cuts[fault] > 1:
            self.close_connection = True  # not a byte more
        elif self.server.cuts[fault] <= cut:
            self.wfile.write(body[: len(body) // 2])
        else:
            self.wfile.write(body)
        return None
