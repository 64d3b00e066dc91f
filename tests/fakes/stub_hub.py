"""A model hub on this machine: counts downloads, and fails, throttles, cuts and asks for a token.

It speaks what huggingface_hub asks of the real one: model_info, the list of files, and files with
ranges. Nothing of it is on the network.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class StubHub:
    """One repository, `org/tiny`, with one commit. ``faults`` are taken one a request:

    a status to answer, or "cut" to send half of a file and close the connection.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.commit = COMMIT
        self.token: str | None = None
        self.gated = False
        self.info_faults: deque[int] = deque()
        self.file_faults: deque[int | str] = deque()
        self.down = False
        self.begun: Counter[str] = Counter()
        self.whole: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.requests: list[str] = []
        self.slow = threading.Event()
        """Not set: files wait until it is."""
        self.slow.set()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def next_fault(self, of: deque[Any]) -> Any:
        with self._lock:
            return of.popleft() if of else None

    def counted(self, what: Counter[str], name: str, more: int) -> None:
        with self._lock:
            what[name] += more


@contextmanager
def stub_hub(files: dict[str, bytes]) -> Iterator[StubHub]:
    hub = StubHub(files)
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.slow.set()
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StubHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        if hub.down:
            self.close_connection = True
            return
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._send(401, {"error": "x"}, {"X-Error-Code": "GatedRepo"} if hub.gated else {})
            return
        api = path.startswith("/api/")
        # A fault of files is for a download of the weights: files come side by side.
        asks = api or (self.command == "GET" and path.endswith(".safetensors"))
        fault = hub.next_fault(hub.info_faults if api else hub.file_faults) if asks else None
        if isinstance(fault, int):
            headers = {"X-Error-Code": "RevisionNotFound"} if fault == 404 else {}
            self._send(fault, {"error": "x"}, headers)
        elif path.startswith("/api/models/org/tiny/revision/"):
            files = [{"rfilename": n, "size": len(b)} for n, b in sorted(hub.files.items())]
            self._send(200, {"id": "org/tiny", "sha": hub.commit, "siblings": files})
        elif path.startswith("/api/models/org/tiny/tree/"):
            tree = [
                {"type": "file", "path": n, "size": len(b), "oid": _etag(b)}
                for n, b in sorted(hub.files.items())
            ]
            self._send(200, tree)
        elif path.startswith("/org/tiny/resolve/"):
            self._file(path.split("/", 5)[5], fault)
        else:
            self._send(404, {"error": "x"}, {"X-Error-Code": "RepoNotFound"})

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _file(self, name: str, fault: object) -> None:
        content = self.hub.files.get(name)
        if content is None:
            self._send(404, {"error": "x"}, {"X-Error-Code": "EntryNotFound"})
            return
        start = 0
        if (asked := self.headers.get("Range", "")).startswith("bytes="):
            start = int(asked.removeprefix("bytes=").split("-")[0])
        rest = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("X-Repo-Commit", self.hub.commit)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.slow.wait(60)
        sent = rest[: len(rest) // 2] if fault == "cut" else rest
        self.hub.counted(self.hub.begun, name, 1)
        self.hub.counted(self.hub.sent, name, len(sent))
        self.hub.counted(self.hub.whole, name, int(fault != "cut"))
        self.wfile.write(sent)
        self.wfile.flush()
        if fault == "cut":
            self.close_connection = True


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
