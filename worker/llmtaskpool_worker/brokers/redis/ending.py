"""Ends: what runs here is committed by its fence, what anybody may end is cancelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from llmtaskpool_worker.brokers.codec import encode_result
from llmtaskpool_worker.brokers.protocol import Commit, Committed, Outcome
from llmtaskpool_worker.brokers.redis import books
from llmtaskpool_worker.brokers.redis.following import Following
from llmtaskpool_worker.brokers.redis.session import Session
from llmtaskpool_worker.brokers.redis.views import Views
from llmtaskpool_worker.scheduling.task import Result, TaskError, TaskState, TaskView

LARGEST_BYTES = 8 * 1024 * 1024
"""Of a task's input, and of its result."""
_pack = msgspec.msgpack.Encoder().encode
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
        ends = [_end_of(one) for one in outcomes]
        asked = self._asked(ends)
        answer = await self._session.call("commit", *asked)
        became = answer[1:]
        if not all(became):
            asked = self._asked([one for one, how in zip(ends, became, strict=True) if how])
        if any(became):
            self._session.done("commit", *asked)
        ended_at, kept = self._session.at(answer[0]), self._ttl_ms / 1000
        taken: list[Committed] = []
        rest: list[int] = []
        for (task_id, fence, state, why, result, _), how in zip(ends, became, strict=True):
            run = self._runs.get(task_id)
            mine = run is not None and run.claim.fence == fence
            if mine:
                del self._runs[task_id]
            view = None
            if how:
                self._following.ended(task_id, state, why)
                if run is not None and mine:
                    view = run.view(state, ended_at, kept, result)
            elif mine:
                self._following.lost(task_id)
            if view is None:
                rest.append(len(taken))
            taken.append(Committed(_BECAME[how], view))
        if rest:
            views = await self._views.of([outcomes[place].id for place in rest])
            for place, view in zip(rest, views, strict=True):
                taken[place] = Committed(taken[place].commit, view)
        return taken

    def _asked(self, ends: Sequence[_End]) -> tuple[int | bytes, ...]:
        """The arguments of commit.lua. One text of many costs less than as many arguments."""
        texts: list[str] = []
        for one in ends:
            texts += (one.id, one.fence, books.LETTERS[one.state], one.why)
        return (self._ttl_ms, self._soon_ms, _pack(texts), *[one.data for one in ends])

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


_BECAME = (Commit.LOST, Commit.TAKEN, Commit.HAD)
"""By what commit.lua answers."""


class _End(NamedTuple):
    """How a task ended here. ``data``: the result as it is kept."""

    id: str
    fence: str
    state: TaskState
    why: str
    result: Result | TaskError
    data: bytes


def _end_of(outcome: Outcome) -> _End:
    result, data = outcome.result, encode_result(outcome.result)
    if len(data) > LARGEST_BYTES:
        result, data = _TOO_LARGE, encode_result(_TOO_LARGE)
    if isinstance(result, TaskError):
        return _End(outcome.id, outcome.fence, TaskState.FAILED, result.code, result, data)
    return _End(outcome.id, outcome.fence, TaskState.SUCCEEDED, "", result, data)
