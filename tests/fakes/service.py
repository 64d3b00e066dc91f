"""What a Service does for clients: sends them to pods that were ready a moment ago."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from threading import Event, Lock, Thread

import httpx
from fakes.plain_http import NO_TLS

LAG_SECONDS = 1.0
"""Every node hears of a change of the endpoints a little later; clients must not notice."""


class LaggingService:
    """``pick`` gives an address from the endpoints of LAG_SECONDS ago."""

    def __init__(self, addresses: Callable[[], list[str]], seed: int = 1) -> None:
        self._addresses = addresses
        self._random = random.Random(seed)
        self._seen: list[tuple[float, list[str]]] = []
        self._lock = Lock()

    def pick(self) -> str | None:
        now = time.monotonic()
        with self._lock:
            self._seen.append((now, self._addresses()))
            while len(self._seen) > 1 and now - self._seen[1][0] >= LAG_SECONDS:
                self._seen.pop(0)
            known = self._seen[0][1]
            return self._random.choice(known) if known else None


class Clients:
    """Threads that send one request after another; every failure is kept."""

    def __init__(
        self, service: LaggingService, send: Callable[[httpx.Client, str], None], count: int
    ) -> None:
        self._service = service
        self._send = send
        self._stopping = Event()
        self.done = 0
        self.failures: list[str] = []
        self._lock = Lock()
        self._threads = [Thread(target=self._run, daemon=True) for _ in range(count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(120)

    def _run(self) -> None:
        with httpx.Client(timeout=120, verify=NO_TLS) as http:
            while not self._stopping.is_set():
                address = self._service.pick()
                if address is None:
                    time.sleep(0.05)
                    continue
                try:
                    self._send(http, f"http://{address}:8000")
                except (httpx.HTTPError, AssertionError) as error:
                    with self._lock:
                        self.failures.append(f"{type(error).__name__}: {error}"[:300])
                else:
                    with self._lock:
                        self.done += 1
