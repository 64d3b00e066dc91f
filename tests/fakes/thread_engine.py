"""An Engine that runs its loop in a thread of the test: real models without another process."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading

from llmtaskpool_worker.engines import child
from llmtaskpool_worker.engines.protocol import Beat, Ping, SetNiceness

_LOADING = threading.Lock()
"""transformers loads one model at a time: what it ties and fills up is state of the process."""


class ThreadEngine:
    """``spec`` is loaded as the engine's process does it; torch may be imported here."""

    def __init__(self, spec):
        self.spec = spec
        self._inbox = queue.SimpleQueue()
        self._events = asyncio.Queue()
        self._thread = None

    async def start(self):
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
        self._thread.start()

    def _run(self, loop):
        def tell(*events):
            for event in events:
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        ours, theirs = socket.socketpair()  # where it tells how far loading is: nobody reads it
        with _LOADING, ours, theirs:
            engine = child._load(self.spec, theirs)
        tell(engine.ready())
        while True:
            while not engine.busy() or not self._inbox.empty():
                message = self._inbox.get()
                if message is None:
                    return
                if not isinstance(message, SetNiceness):  # this thread is the test's too
                    tell(*([Beat()] if isinstance(message, Ping) else engine.accept(message)))
            tell(*engine.step())

    def send(self, message):
        self._inbox.put(message)

    async def events(self):
        while True:
            yield await self._events.get()

    def kill(self):
        """It can't be."""

    async def stop(self, grace_seconds):
        self._inbox.put(None)
