"""Servers of the benchmarks: a port that is free, and a process that is ended in the end."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil


def free_port() -> int:
    """One that nobody had just now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextmanager
def started(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process of ours, ended at the end with those that it has started."""
    process = subprocess.Popen([sys.executable, *command], text=True, **options)
    try:
        yield process
    finally:
        whole = psutil.Process(process.pid)
        for one in (*whole.children(recursive=True), whole):
            with suppress(psutil.NoSuchProcess):
                one.terminate()
        process.wait()
