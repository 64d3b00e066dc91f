"""What an attack on a worker's process does to it: its memory, and how others are answered."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import httpx
import psutil
from fakes.plain_http import NO_TLS
from fakes.worker_process import WorkerProcess
from prometheus_client.parser import text_string_to_metric_families

MIB = 2**20


class Watched:
    """A worker under attack: its largest memory, and the slowest answer that others had."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._process = psutil.Process(worker.pid)
        self._url = worker.url
        self.before = self._process.memory_info().rss
        self.peak = self.before
        self.slowest_seconds = 0.0
        self.statuses: list[int] = []

    @property
    def grown(self) -> int:
        """Bytes that the process had more, at its most, than before the attack."""
        return self.peak - self.before

    def watch(self, over: threading.Event) -> None:
        """Sample until ``over`` is set, and a few times at least."""
        with httpx.Client(base_url=self._url, timeout=30, verify=NO_TLS) as other:
            while not over.is_set() or len(self.statuses) < 3:
                began = time.monotonic()
                self.statuses.append(other.get("/livez").status_code)
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
                self.peak = max(self.peak, self._process.memory_info().rss)
                time.sleep(0.02)


@contextmanager
def watched(worker: WorkerProcess) -> Iterator[Watched]:
    """Watch a worker as long as the block runs."""
    with httpx.Client(base_url=worker.url, timeout=30, verify=NO_TLS) as first:
        assert first.get("/livez").status_code == 200
    seen = Watched(worker)
    over = threading.Event()
    thread = threading.Thread(target=seen.watch, args=(over,), daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join(60)


def connect(worker: WorkerProcess) -> socket.socket:
    """A connection to the data port."""
    port = worker.wait_for("listening")["data_port"]
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def push(made: socket.socket, pieces: Iterable[bytes], seconds: float = 20.0) -> int:
    """Send until all is out, the other side hangs up, or ``seconds`` have passed; bytes sent."""
    deadline = time.monotonic() + seconds
    sent = 0
    made.settimeout(0.5)
    for piece in pieces:
        view = memoryview(piece)
        while view:
            try:
                count = made.send(view)
            except TimeoutError:
                count = 0
            except OSError:
                return sent
            if time.monotonic() > deadline:
                return sent
            sent += count
            view = view[count:]
    return sent


def all_at_once(count: int, act: Callable[[int], object]) -> list[object]:
    """What ``act(0)`` … ``act(count - 1)`` returned, each in a thread of its own."""
    results: list[object] = [None] * count

    def run(number: int) -> None:
        results[number] = act(number)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "an attack did not end"
    return results


def longest_stall_seconds(worker: WorkerProcess) -> float:
    """The upper bound of the bucket that the worker's own longest stall of its loop is in."""
    with httpx.Client(base_url=worker.url, timeout=30, verify=NO_TLS) as http:
        page = http.get("/metrics").text
    buckets = {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "llmtaskpool_loop_lag_seconds_bucket"
    }
    total = buckets[float("inf")]
    return min(bound for bound, count in buckets.items() if count == total)
