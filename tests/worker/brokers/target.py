"""A server that tasks of kind io.fetch call, and the submitting of such tasks."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx


class Target:
    """A server that io.fetch calls: paths with "slow" in them are answered once it is let go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.at_once = self.most = 0
        self.gate = threading.Event()
        target = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                target.asked.append(self.path)
                target.at_once += 1
                target.most = max(target.most, target.at_once)
                if "slow" in self.path:
                    target.gate.wait(60)
                target.at_once -= 1
                body = self.path.encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):  # its worker is gone
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()


def submit(http: httpx.Client, target: Target, path: str, **more) -> dict:
    fetch = {"kind": "io.fetch", "arguments": {"url": f"http://{target.host}/{path}"}}
    answer = http.post("/v1/tasks", json=fetch | more)
    assert answer.status_code == 202, answer.text
    return answer.json()
