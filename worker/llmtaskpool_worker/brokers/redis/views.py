"""Tasks as others may see them, read from the server's books."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from llmtaskpool_worker.brokers.redis import books
from llmtaskpool_worker.brokers.redis.session import Session
from llmtaskpool_worker.scheduling.task import (
    TERMINAL,
    Asked,
    LaneName,
    TaskError,
    TaskState,
    TaskView,
)

LOOKED_AT = 1000
"""Of each state so many tasks are looked at for a list: the newest."""
LOOKED_THROUGH = 20
"""For a tenant's own so many times as many: those of others may be newer."""
AT_ONCE = 100
_ENDS = TERMINAL - {TaskState.DEAD}
Tasks = list[TaskView]
Seen = list[TaskView | None]


class Views:
    """``ttl_seconds``: how long results are kept."""

    def __init__(self, session: Session, clock: Callable[[], float], ttl_seconds: float) -> None:
        self._session, self._clock, self._ttl_seconds = session, clock, ttl_seconds

    async def of(self, ids: Sequence[str]) -> Seen:
        """With results; None for each that is unknown or forgotten."""
        return await self._seen(ids, results=True)

    async def list(self, asked: Asked) -> Tasks:
        """See Broker."""
        sorts = {books.LETTERS[s] if s not in _ENDS else "e" for s in asked.states}
        found = await self._found(sorted(sorts), asked.tenant)
        ids = sorted(found, reverse=True)
        if asked.after is not None:
            ids = [one for one in ids if one < asked.after]
        out: Tasks = []
        for start in range(0, len(ids), AT_ONCE):
            for view in await self._seen(ids[start : start + AT_ONCE], results=False):
                if (
                    view is not None
                    and view.state in asked.states
                    and asked.labels.items() <= view.labels.items()
                    and asked.tenant in (None, view.tenant)
                ):
                    out.append(view)
            if len(out) >= asked.limit:
                break
        return out[: asked.limit]

    async def _found(self, sorts: Sequence[str], tenant: str | None) -> set[str]:
        """The ids of the newest of each state; of one tenant, if one is named."""
        found: set[str] = set()
        for begin in range(0, LOOKED_AT * LOOKED_THROUGH, LOOKED_AT):
            answer = await self._session.call("list", LOOKED_AT, begin, tenant or "", *sorts)
            more, *ids = answer
            found.update(one.decode() for one in ids)
            if tenant is None or not more:
                break
        return found

    async def _seen(self, ids: Sequence[str], *, results: bool) -> Seen:
        if not ids:
            return []
        answer: Sequence[Any] = await self._session.call("view", "01"[results], *ids)
        now = self._clock()
        return [
            None if values is None else self._view(task_id, values, now)
            for task_id, values in zip(ids, answer[1:], strict=True)
        ]

    def _view(self, task_id: str, values: Sequence[Any], now: float) -> TaskView:
        """Of one whose books are damaged what it will be once somebody claims it: put aside."""
        try:
            return books.view_of(task_id, values, now, self._session.at, self._ttl_seconds)
        except (ValueError, KeyError, msgspec.MsgspecError):
            error = TaskError("quarantined", "it can't be read: its books are damaged")
            dead, lane = TaskState.DEAD, LaneName.COMPUTE
            return TaskView(task_id, "", lane, None, dead, 1.0, 0.0, 0.0, now, error=error)
