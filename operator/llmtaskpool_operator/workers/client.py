"""The operator's client of a worker's control port: state, threads, drain.

Every call is bounded in time and in bytes, and what comes back is validated: a worker that
answers oddly is an error with a reason, never a wrong number.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

import aiohttp
from llmtaskpool_worker.contract import (
    CONTROL_DRAIN,
    CONTROL_STATE,
    CONTROL_THREADS,
    CONTROL_WORKERS,
    LIVEZ,
    DrainAnswer,
    DrainRequest,
    GateState,
    LaneName,
    ThreadsAnswer,
    ThreadsRequest,
    WorkerReport,
    WorkersRequest,
)
from pydantic import BaseModel, ValidationError
from yarl import URL

Answer = TypeVar("Answer", bound=BaseModel)

KEEP_SECONDS = 30.0
"""A connection is kept for longer than the time between two turns of a pool at rest."""

_CLOCK = re.compile(rb'"observed_at":\s*([0-9]+(?:\.[0-9]+)?)')


class WorkerUnreachable(Exception):
    """A worker did not answer, or not as it should; the message says which, in one line."""


class ThreadsRefused(Exception):
    """The worker has a newer generation of threads in force (409): read its state again."""


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """``seconds`` bounds a whole call, ``answer_bytes`` its answer."""

    seconds: float = 2.0
    answer_bytes: int = 1024 * 1024
    connections: int = 256


def open_http(limits: ClientLimits) -> aiohttp.ClientSession:
    """The connections that all WorkerClients of a process share; the caller closes it.

    aiohttp and not httpx, because a thousand workers are asked every few seconds: a request is
    0.3 ms of processor time here at any number of hosts; there 2.5 ms with one host, and more
    with each further one.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=limits.connections, keepalive_timeout=KEEP_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None),  # WorkerClient bounds each call as a whole
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,  # a proxy of the environment is no way to a pod
    )


async def is_alive(
    http: aiohttp.ClientSession, url: str, limits: ClientLimits | None = None
) -> bool | None:
    """What a worker's data port at ``url`` says of itself; None when it says nothing in time."""
    try:
        async with (
            asyncio.timeout((limits or ClientLimits()).seconds),
            http.get(url + LIVEZ, allow_redirects=False) as response,
        ):
            return response.status == 200
    except (TimeoutError, aiohttp.ClientError):
        return None


class WorkerClient:
    """One worker's control port at ``url``, such as ``http://127.0.0.1:8001``."""

    def __init__(
        self, http: aiohttp.ClientSession, url: str, token: str, limits: ClientLimits | None = None
    ) -> None:
        self._http = http
        self._url = url
        self._state_url = URL(url + CONTROL_STATE)
        self._last: tuple[bytes, WorkerReport] | None = None
        """The last answer: a digest of all but its clocks, and what was read of it."""
        self._headers = {"authorization": f"Bearer {token}"}
        self._limits = limits or ClientLimits()

    async def state(self) -> WorkerReport:
        """What the worker reports, as far as it is read here. Raises WorkerUnreachable.

        A worker at rest says the same each time but for its clock, and is read once.
        """
        raw = await self._asked("GET", CONTROL_STATE, None)
        clock, rest = _CLOCK.search(raw), blake2b(_CLOCK.sub(b"", raw), digest_size=16).digest()
        if clock and self._last is not None and self._last[0] == rest:
            state = self._last[1].model_copy(update={"observed_at": float(clock[1])})
            self._last = (rest, state)  # the very one that is handed out: one is kept, not two
            return state
        state = _read(WorkerReport, CONTROL_STATE, raw)
        if LaneName.COMPUTE not in state.lanes:
            raise WorkerUnreachable(f"{CONTROL_STATE} answered oddly: lanes.compute: missing")
        # Only where the clock that was found first is the worker's own, and not one of a part.
        own = clock is not None and float(clock[1]) == state.observed_at
        self._last = (rest, state) if own else None
        return state

    async def set_threads(self, generation: int, threads: Mapping[LaneName, int]) -> ThreadsAnswer:
        """Set N per lane, absolutely. Raises WorkerUnreachable, ThreadsRefused."""
        body = ThreadsRequest(generation=generation, threads=dict(threads))
        return await self._call(ThreadsAnswer, "PUT", CONTROL_THREADS, body)

    async def set_workers(self, workers: Sequence[str]) -> GateState:
        """Tell a gate the ready workers, absolutely. Raises WorkerUnreachable."""
        body = WorkersRequest(workers=tuple(workers))
        return await self._call(GateState, "PUT", CONTROL_WORKERS, body)

    async def drain(self, budget_seconds: float) -> DrainAnswer:
        """Tell it to take no new tasks and finish. Idempotent. Raises WorkerUnreachable."""
        body = DrainRequest(budget_seconds=budget_seconds)
        return await self._call(DrainAnswer, "POST", CONTROL_DRAIN, body)

    async def _call(
        self, expected: type[Answer], method: str, path: str, body: BaseModel | None = None
    ) -> Answer:
        return _read(expected, path, await self._asked(method, path, body))

    async def _asked(self, method: str, path: str, body: BaseModel | None) -> bytes:
        """The body of a good answer. Raises WorkerUnreachable, ThreadsRefused."""
        try:
            async with asyncio.timeout(self._limits.seconds):
                status, raw = await self._exchange(method, path, body)
        except TimeoutError:
            raise WorkerUnreachable(f"no answer within {self._limits.seconds:g} s") from None
        except aiohttp.ClientError as error:
            raise WorkerUnreachable(f"{type(error).__name__} on {path}") from None
        if status == 409:
            raise ThreadsRefused("the worker has a newer generation in force")
        if status != 200:
            raise WorkerUnreachable(f"{path} answered {status}{_hint(status)}")
        return raw

    async def _exchange(self, method: str, path: str, body: BaseModel | None) -> tuple[int, bytes]:
        content = None if body is None else body.model_dump_json()
        headers, url = self._headers, self._state_url
        if content is not None:
            headers = headers | {"content-type": "application/json"}
        if path != CONTROL_STATE:
            url = URL(self._url + path)
        async with self._http.request(
            method, url, data=content, headers=headers, allow_redirects=False
        ) as response:
            raw = bytearray()
            async for part in response.content.iter_any():
                raw += part
                if len(raw) > self._limits.answer_bytes:
                    raise WorkerUnreachable(
                        f"{path} answered more than {self._limits.answer_bytes} bytes"
                    )
            return response.status, bytes(raw)


def _read(expected: type[Answer], path: str, raw: bytes) -> Answer:
    try:
        return expected.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise WorkerUnreachable(f"{path} answered oddly: {place}: {first['msg']}") from None


def _hint(status: int) -> str:
    return ": the control token is wrong" if status in (401, 403) else ""
