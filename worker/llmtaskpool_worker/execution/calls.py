"""Running a registered handler and measuring what it did: on a CPU, or waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.kinds.registry import CallContext, Kind, SyncHandler
from llmtaskpool_worker.scheduling.sizes import json_bytes

CpuClock = Callable[[], float]

SMALL_BYTES = 64 * 1024
"""Results up to this are checked on the loop: it takes less than handing them to a thread."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a handler returned and the CPU seconds of its own thread."""

    value: Any
    compute_seconds: float


class Calls:
    """Runs handlers: in a pool of threads (compute, or synchronous) or on the loop."""

    def __init__(self, cpu_clock: CpuClock = time.thread_time) -> None:
        self._cpu_clock = cpu_clock
        # Its size is no limit: the lanes' threads are. Idle threads are reused before new ones.
        self._threads = ThreadPoolExecutor(max_workers=4096, thread_name_prefix="call")

    @staticmethod
    def on_loop(kind: Kind, lane: LaneName) -> bool:
        """Whether the handler runs on the event loop; else in a thread, which can't be stopped."""
        return kind.is_async and lane is LaneName.IO

    async def run(
        self, kind: Kind, lane: LaneName, arguments: dict[str, Any], context: CallContext
    ) -> Ran:
        """Call the handler; its exceptions are raised as they are, and what can't be JSON raises.

        A handler in a thread must not be cancelled here: its thread would run on unseen.
        """
        loop = asyncio.get_running_loop()
        if self.on_loop(kind, lane):
            timed = _Timed(_coroutine(kind, arguments, context), self._cpu_clock)
            value = await timed
            if json_bytes(value) <= SMALL_BYTES:
                msgspec.json.encode(value)
            else:
                await loop.run_in_executor(self._threads, _check_json, value)
            return Ran(value, timed.compute_seconds)
        return await loop.run_in_executor(self._threads, self._in_thread, kind, arguments, context)

    def close(self) -> None:
        """Let idle threads go; running handlers are told by their context and not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _in_thread(self, kind: Kind, arguments: dict[str, Any], context: CallContext) -> Ran:
        began = self._cpu_clock()
        if kind.is_async:
            value = asyncio.run(_coroutine(kind, arguments, context))
        else:
            value = cast(SyncHandler, kind.handler)(arguments, context)
        ran = Ran(value, self._cpu_clock() - began)
        _check_json(value)
        return ran


def _check_json(value: Any) -> None:
    """Raise when the value can't be JSON; its long texts are looked at in pieces."""
    if isinstance(value, dict):
        for text in value.values():
            if isinstance(text, str) and len(text) > SMALL_BYTES and not text.isascii():
                for i in range(0, len(text), SMALL_BYTES):
                    text[i : i + SMALL_BYTES].encode()
        value = {k: v for k, v in value.items() if not isinstance(v, str) or len(v) <= SMALL_BYTES}
    msgspec.json.encode(value)


def _coroutine(
    kind: Kind, arguments: dict[str, Any], context: CallContext
) -> Coroutine[Any, Any, Any]:
    return cast(Coroutine[Any, Any, Any], kind.handler(arguments, context))


class _Timed:
    """Awaits a coroutine and sums up the CPU seconds between its waits."""

    def __init__(self, inner: Coroutine[Any, Any, Any], cpu_clock: CpuClock) -> None:
        self._inner = inner
        self._cpu_clock = cpu_clock
        self.compute_seconds = 0.0

    def __await__(self) -> Generator[Any, Any, Any]:
        value: Any = None
        error: BaseException | None = None
        while True:
            began = self._cpu_clock()
            try:
                inner = self._inner
                waits_for = inner.send(value) if error is None else inner.throw(error)
            except StopIteration as end:
                return end.value
            finally:
                self.compute_seconds += self._cpu_clock() - began
            value = error = None
            try:
                value = yield waits_for
            except BaseException as caught:
                error = caught
