"""The two clients: the same operations, one waits in its thread, the other in asyncio's loop."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar, Unpack
from urllib.parse import quote

import httpx

from llmtaskpool.answers import (
    DEFAULT_URL,
    KEY_VARIABLE,
    URL_VARIABLE,
    options_of,
    told_of,
    unreachable,
)
from llmtaskpool.bodies import BatchFields, TaskFields
from llmtaskpool.errors import PoolError
from llmtaskpool.operations import Call, Operations, Steps
from llmtaskpool.views import Batch, File, Graph, GraphEvent, GraphLines, Task

T = TypeVar("T")
PATIENCE_SECONDS = 60.0
TIMEOUT_SECONDS = 3600.0
_TROUBLE = (httpx.HTTPError, httpx.InvalidURL)


STREAM_SECONDS = 30.0
"""To be connected to a stream."""


def _events(graph_id: str) -> str:
    return f"/v1/graphs/{quote(graph_id, safe='')}/events"


def _nothing(_: Batch) -> None:
    """For who doesn't look."""


class _Pool:
    """Where a pool is, and with which key."""

    def __init__(self, url: str | None, key: str | None, patience_seconds: float) -> None:
        self.url = (url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
        key = key or os.environ.get(KEY_VARIABLE) or None
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._do = Operations(patience_seconds, time.monotonic, random.random)


class Client(_Pool):
    """A pool at ``url`` (else LLMTASKPOOL_URL) with ``key`` (else LLMTASKPOOL_API_KEY).

    While the pool is away, full or starting, what may be said twice is said again for
    ``patience_seconds``, when its Retry-After says. Every call raises Unreachable, Refused.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        super().__init__(url, key, patience_seconds)
        self._http = httpx.Client(base_url=self.url, headers=self._headers)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def submit(self, kind: str, **fields: Unpack[TaskFields]) -> Task:
        """Hand over a task; ``fields`` are those of POST /v1/tasks."""
        return self.submit_body({"kind": kind, **fields})

    def submit_body(self, body: Mapping[str, Any]) -> Task:
        """The same of a whole body."""
        return self._run(self._do.submit(body))

    def get(self, task_id: str) -> Task:
        """A task as it is now."""
        return self._run(self._do.get(task_id))

    def wait(self, task_id: str, timeout: float = TIMEOUT_SECONDS) -> Task:
        """A task once it has ended. Raises WaitTimeout."""
        return self._run(self._do.wait(task_id, timeout))

    def cancel(self, task_id: str) -> Task:
        """A task that has not ended is cancelled, and with it what depends on it."""
        return self._run(self._do.cancel(task_id))

    def list(
        self,
        *,
        states: Sequence[str] | str | None = None,
        labels: Mapping[str, str] | None = None,
        most: int = 100,
    ) -> list[Task]:
        """Tasks without their results, the newest first."""
        return self._run(self._do.tasks(most, states, labels or {}))

    def dead_letters(self, most: int = 100) -> Sequence[Task]:
        """Tasks whose workers were lost with them."""
        return self.list(states="dead", most=most)

    def replay(self, task_id: str) -> Task:
        """A dead letter waits again, with no attempts."""
        return self._run(self._do.replay(task_id))

    def graph(self, tasks: Mapping[str, Mapping[str, Any]]) -> Graph:
        """Tasks by names of their own; ``depends_on`` names others of them."""
        return self._run(self._do.graph(tasks))

    def get_graph(self, graph_id: str) -> Graph:
        """A graph as it is now: those of its tasks that are known, without results."""
        return self._run(self._do.get_graph(graph_id))

    def graph_events(self, graph_id: str, silent_seconds: float = 60.0) -> Iterator[GraphEvent]:
        """What becomes of a graph, from what has ended already until all of it has.

        It ends early when nothing comes for so long: ask again then.
        """
        timeout = httpx.Timeout(STREAM_SECONDS, read=silent_seconds)
        lines = GraphLines()
        try:
            with self._http.stream("GET", _events(graph_id), timeout=timeout) as answer:
                if answer.is_error:
                    answer.read()
                    told_of(self.url, answer)
                for line in answer.iter_lines():
                    if (event := lines.read(line)) is not None:
                        yield event
        except httpx.ReadTimeout:
            return
        except _TROUBLE as error:
            raise unreachable(self.url, error) from None

    def upload(
        self,
        content: BinaryIO | bytes,
        filename: str = "requests.jsonl",
        *,
        expires_after_seconds: int | None = None,
    ) -> File:
        """A file of requests, one a line, for a batch."""
        return self._run(self._do.upload(filename, content, expires_after_seconds))

    def create_batch(self, input_file_id: str, endpoint: str, **more: Unpack[BatchFields]) -> Batch:
        """Work off an uploaded file; ``more`` are the other fields of POST /v1/batches."""
        body = {"input_file_id": input_file_id, "endpoint": endpoint, **more}
        return self._run(self._do.create_batch(body))

    def get_batch(self, batch_id: str) -> Batch:
        """A batch as it is now."""
        return self._run(self._do.get_batch(batch_id))

    def wait_batch(
        self,
        batch_id: str,
        timeout: float = 14 * 86_400.0,
        on_look: Callable[[Batch], None] = _nothing,
    ) -> Batch:
        """A batch once it has ended; ``on_look`` is told of each look. Raises WaitTimeout."""
        return self._run(self._do.wait_batch(batch_id, timeout, on_look))

    def cancel_batch(self, batch_id: str) -> Batch:
        """Nothing more of a batch is asked; what was answered stays."""
        return self._run(self._do.cancel_batch(batch_id))

    def list_batches(self, most: int = 100) -> Sequence[Batch]:
        """The newest first."""
        return self._run(self._do.list_batches(most))

    def download(self, file_id: str, into: BinaryIO) -> int:
        """Write a file's content; its bytes."""
        size = 0
        path = f"/v1/files/{quote(file_id, safe='')}/content"
        try:
            with self._http.stream("GET", path) as answer:
                if answer.is_error:
                    answer.read()
                    told_of(self.url, answer)
                for piece in answer.iter_bytes():
                    size += into.write(piece)
        except _TROUBLE as error:
            raise unreachable(self.url, error) from None
        return size

    def _run(self, steps: Steps[T]) -> T:
        told: Any = None
        trouble: PoolError | None = None
        while True:
            try:
                step = steps.send(told) if trouble is None else steps.throw(trouble)
            except StopIteration as end:
                result: T = end.value
                return result
            told = trouble = None
            if not isinstance(step, Call):
                time.sleep(step.seconds)
                continue
            try:
                try:
                    answer = self._http.request(step.method, step.path, **options_of(step))
                except _TROUBLE as error:
                    raise unreachable(self.url, error) from None
                told = told_of(self.url, answer)
            except PoolError as error:
                trouble = error


class AsyncClient(_Pool):
    """As Client, for asyncio."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        super().__init__(url, key, patience_seconds)
        self._http = httpx.AsyncClient(base_url=self.url, headers=self._headers)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def submit(self, kind: str, **fields: Unpack[TaskFields]) -> Task:
        """See Client."""
        return await self.submit_body({"kind": kind, **fields})

    async def submit_body(self, body: Mapping[str, Any]) -> Task:
        """See Client."""
        return await self._run(self._do.submit(body))

    async def get(self, task_id: str) -> Task:
        """See Client."""
        return await self._run(self._do.get(task_id))

    async def wait(self, task_id: str, timeout: float = TIMEOUT_SECONDS) -> Task:  # noqa: ASYNC109
        """See Client."""
        return await self._run(self._do.wait(task_id, timeout))

    async def cancel(self, task_id: str) -> Task:
        """See Client."""
        return await self._run(self._do.cancel(task_id))

    async def list(
        self,
        *,
        states: Sequence[str] | str | None = None,
        labels: Mapping[str, str] | None = None,
        most: int = 100,
    ) -> list[Task]:
        """See Client."""
        return await self._run(self._do.tasks(most, states, labels or {}))

    async def dead_letters(self, most: int = 100) -> Sequence[Task]:
        """See Client."""
        return await self.list(states="dead", most=most)

    async def replay(self, task_id: str) -> Task:
        """See Client."""
        return await self._run(self._do.replay(task_id))

    async def graph(self, tasks: Mapping[str, Mapping[str, Any]]) -> Graph:
        """See Client."""
        return await self._run(self._do.graph(tasks))

    async def get_graph(self, graph_id: str) -> Graph:
        """A graph as it is now: those of its tasks that are known, without results."""
        return await self._run(self._do.get_graph(graph_id))

    async def graph_events(
        self, graph_id: str, silent_seconds: float = 60.0
    ) -> AsyncIterator[GraphEvent]:
        """As of Client."""
        timeout = httpx.Timeout(STREAM_SECONDS, read=silent_seconds)
        lines = GraphLines()
        try:
            async with self._http.stream("GET", _events(graph_id), timeout=timeout) as answer:
                if answer.is_error:
                    await answer.aread()
                    told_of(self.url, answer)
                async for line in answer.aiter_lines():
                    if (event := lines.read(line)) is not None:
                        yield event
        except httpx.ReadTimeout:
            return
        except _TROUBLE as error:
            raise unreachable(self.url, error) from None

    async def upload(
        self,
        content: BinaryIO | bytes,
        filename: str = "requests.jsonl",
        *,
        expires_after_seconds: int | None = None,
    ) -> File:
        """See Client."""
        return await self._run(self._do.upload(filename, content, expires_after_seconds))

    async def create_batch(
        self, input_file_id: str, endpoint: str, **more: Unpack[BatchFields]
    ) -> Batch:
        """See Client."""
        body = {"input_file_id": input_file_id, "endpoint": endpoint, **more}
        return await self._run(self._do.create_batch(body))

    async def get_batch(self, batch_id: str) -> Batch:
        """See Client."""
        return await self._run(self._do.get_batch(batch_id))

    async def wait_batch(
        self,
        batch_id: str,
        timeout: float = 14 * 86_400.0,  # noqa: ASYNC109
        on_look: Callable[[Batch], None] = _nothing,
    ) -> Batch:
        """See Client."""
        return await self._run(self._do.wait_batch(batch_id, timeout, on_look))

    async def cancel_batch(self, batch_id: str) -> Batch:
        """See Client."""
        return await self._run(self._do.cancel_batch(batch_id))

    async def list_batches(self, most: int = 100) -> Sequence[Batch]:
        """See Client."""
        return await self._run(self._do.list_batches(most))

    async def download(self, file_id: str, into: BinaryIO) -> int:
        """See Client."""
        size = 0
        path = f"/v1/files/{quote(file_id, safe='')}/content"
        try:
            async with self._http.stream("GET", path) as answer:
                if answer.is_error:
                    await answer.aread()
                    told_of(self.url, answer)
                async for piece in answer.aiter_bytes():
                    size += into.write(piece)
        except _TROUBLE as error:
            raise unreachable(self.url, error) from None
        return size

    async def _run(self, steps: Steps[T]) -> T:
        told: Any = None
        trouble: PoolError | None = None
        while True:
            try:
                step = steps.send(told) if trouble is None else steps.throw(trouble)
            except StopIteration as end:
                result: T = end.value
                return result
            told = trouble = None
            if not isinstance(step, Call):
                await asyncio.sleep(step.seconds)
                continue
            try:
                try:
                    answer = await self._http.request(step.method, step.path, **options_of(step))
                except _TROUBLE as error:
                    raise unreachable(self.url, error) from None
                told = told_of(self.url, answer)
            except PoolError as error:
                trouble = error
