"""Ends: what runs here is committed by its fence, what anybody may end is cancelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from llmtaskpool_worker.brokers.codec import encode_result
from llmtaskpool_worker.brokers.protocol import Commit, Committed, Outcome
from llmtaskpool_worker.brokers.redis import books
from llmtaskpool_worker.brokers.redis.following import Following
from llmtaskpool_worker.brokers.redis.session import Session
from llmtaskpool_worker.brokers.redis.views import Views
from llmtaskpool_worker.scheduling.task import Result, TaskError, TaskState, TaskView

LARGEST_BYTES = 8 * 1024 * 1024
"""Of a task's input, and of its result."""
_TOO_LARGE = TaskError(
    "result_lost",
    f"the task succeeded and its result was given up: it has more than {LARGEST_BYTES >> 20} MiB",
)


class Ending:
    """``runs``: this worker's claims by task. ``stopped(id)``: one of them is not in force."""

    def __init__(
        self,
        session: Session,
        runs: dict[str, books.Run],
        following: Following,
        views: Views,
        stopped: Callable[[str], None],
        *,
        ttl_ms: int,
        soon_ms: int,
    ) -> None:
        self._session, self._runs, self._following = session, runs, following
        self._views, self._stopped = views, stopped
        self._ttl_ms, self._soon_ms = ttl_ms, soon_ms

    async def commit(self, outcomes: Sequence[Outcome]) -> list[Committed]:
        """See Broker."""
        if not outcomes:
            return []
        self._following.send()
        values: list[tuple[bytes | str, ...]] = []
        results: list[Result | TaskError] = []
        for one in outcomes:
            result, data = _fitting(one.result)
            state = books.LETTERS[_state_of(result)]
            why = result.code if isinstance(result, TaskError) else ""
            values.append((one.id, one.fence, state, why, data))
            results.append(result)
        times = (self._ttl_ms, self._soon_ms)
        answer = await self._session.call("commit", *times, *chain.from_iterable(values))
        ended = [one for one, became in zip(values, answer[1:], strict=True) if became]
        if ended:
            self._session.done("commit", *times, *chain.from_iterable(ended))
        ended_at = self._session.at(answer[0])
        taken: list[Committed | None] = []
        for one, result, became in zip(outcomes, results, answer[1:], strict=True):
            run = self._runs.get(one.id)
            mine = run is not None and run.claim.fence == one.fence
            if mine:
                del self._runs[one.id]
            if became == 0:
                if mine:
                    self._following.lost(one.id)
                taken.append(None)
                continue
            state = _state_of(result)
            self._following.ended(
                one.id, state, result.code if isinstance(result, TaskError) else ""
            )
            if run is None or not mine:
                taken.append(None)
                continue
            view = run.view(state, ended_at, self._ttl_ms / 1000, result)
            taken.append(Committed(Commit.TAKEN if became == 1 else Commit.HAD, view))
        rest = [one.id for one, done in zip(outcomes, taken, strict=True) if done is None]
        views = dict(zip(rest, await self._views.of(rest), strict=True)) if rest else {}
        return [
            done
            if done is not None
            else Committed((Commit.LOST, Commit.TAKEN, Commit.HAD)[became], views[one.id])
            for one, done, became in zip(outcomes, taken, answer[1:], strict=True)
        ]

    async def cancel(self, task_id: str) -> Committed:
        """See Broker."""
        args = ("C", "", "", self._ttl_ms, self._soon_ms, "0", task_id)
        (state,) = await self._session.call("close", *args)
        if state.endswith(b"C"):
            self._session.done("close", *args)
        if state == b"+C" and self._runs.get(task_id) is not None:
            self._stopped(task_id)
        if (stream := self._following.streams.find(task_id)) is not None and state.endswith(b"C"):
            stream.end(TaskState.CANCELLED, "")
        commit = {b"+C": Commit.TAKEN, b"C": Commit.HAD}.get(state, Commit.LOST)
        return Committed(commit, (await self._views.of([task_id]))[0] if state else None)

    async def give_up(self, error: TaskError, group: str | None = None) -> Sequence[TaskView]:
        """See Broker."""
        flat = await self._session.call("bound", self._session.pod)
        ids = []
        for task_id, name in zip(flat[::2], flat[1::2], strict=True):
            known = books.group_of(name.decode())
            if group is None or (known is not None and known[1] == group):
                ids.append(task_id.decode())
        if not ids:
            return []
        said = encode_result(error)
        args = ("F", error.code, said, self._ttl_ms, self._soon_ms, "1", *ids)
        states = await self._session.call("close", *args)
        ended = [i for i, state in zip(ids, states, strict=True) if state == b"+F"]
        for task_id in ended:
            self._following.ended(task_id, TaskState.FAILED, error.code)
        return [view for view in await self._views.of(ended) if view is not None]

    async def replay(self, task_id: str) -> TaskView | None:
        """See Broker."""
        (done,) = await self._session.call("replay", task_id)
        if not done:
            return None
        if (stream := self._following.streams.find(task_id)) is not None:
            stream.revive()
        return (await self._views.of([task_id]))[0]


def _state_of(result: Result | TaskError) -> TaskState:
    return TaskState.FAILED if isinstance(result, TaskError) else TaskState.SUCCEEDED


def _fitting(result: Result | TaskError) -> tuple[Result | TaskError, bytes]:
    data = encode_result(result)
    if len(data) > LARGEST_BYTES:
        return _TOO_LARGE, encode_result(_TOO_LARGE)
    return result, data
