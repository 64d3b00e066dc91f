"""A graph as one thing: one number for how far it is, and one stream of what becomes of its tasks.

Tasks of a graph whose results are kept no longer have ended, and are counted as forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from llmtaskpool_worker.execution.pool import Rejected, TaskPool
from llmtaskpool_worker.http_api.long_text import in_pieces
from llmtaskpool_worker.http_api.sse import Frame, encode, event, long_event
from llmtaskpool_worker.scheduling.task import TERMINAL, TaskState, TaskView

FORGOTTEN = "forgotten"
AT_ONCE = 32
"""So many tasks are looked at at one time."""
LOOK_SECONDS = 2.0
"""So often is looked which tasks of a graph that is followed run, and wait."""
AWAY_SECONDS = 1.0

_Look = Callable[[TaskView], dict[str, Any]]


@dataclass(slots=True)
class Progress:
    """Where each task of a graph is, by its name."""

    graph_id: str
    ids: Mapping[str, str]
    states: dict[str, str] = field(default_factory=dict)

    def saw(self, name: str, view: TaskView | None) -> None:
        """A task as it is now; None: it is known no longer."""
        self.states[name] = FORGOTTEN if view is None else view.state.value

    @property
    def open(self) -> list[str]:
        """Names of the tasks that have not ended."""
        return [name for name in self.ids if self.states.get(name) not in _ENDED]

    def json(self) -> dict[str, Any]:
        """``progress`` is the share of the tasks that have ended, 0 to 1."""
        counts = dict.fromkeys(_SHOWN, 0)
        for name in self.ids:
            counts[self.states[name]] += 1
        ended = len(self.ids) - len(self.open)
        good = counts[TaskState.SUCCEEDED.value] + counts[FORGOTTEN] == len(self.ids)
        over = "succeeded" if good else "failed"
        return {
            "id": self.graph_id,
            "object": "graph",
            "state": "running" if self.open else over,
            "progress": round(ended / len(self.ids), 4),
            "total": len(self.ids),
            "ended": ended,
            "counts": {state: count for state, count in counts.items() if count},
        }


_ENDED = frozenset({FORGOTTEN, *(state.value for state in TERMINAL)})
_SHOWN = (*(state.value for state in TaskState), FORGOTTEN)


async def progress_of(
    pool: TaskPool, graph_id: str, ids: Mapping[str, str]
) -> tuple[Progress, dict[str, TaskView]]:
    """How far a graph is, and those of its tasks that are known. Raises Rejected."""
    progress, views = Progress(graph_id, ids), {}
    for name, view in (await _views(pool, ids, list(ids))).items():
        progress.saw(name, view)
        if view is not None:
            views[name] = view
    return progress, views


async def _views(
    pool: TaskPool, ids: Mapping[str, str], names: list[str]
) -> dict[str, TaskView | None]:
    found: dict[str, TaskView | None] = {}
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        views = await asyncio.gather(*(pool.get(ids[name]) for name in some))
        found |= dict(zip(some, views, strict=True))
    return found


async def frames(
    pool: TaskPool, graph_id: str, ids: Mapping[str, str], task_json: _Look
) -> AsyncIterator[Frame]:
    """``task`` for each that has ended, ``progress`` where it has changed, and ``end``.

    It begins with what has ended already, so whoever comes again misses nothing.
    """
    progress, views = await progress_of(pool, graph_id, ids)
    numbers = count(1)

    async def told(name: str, view: TaskView) -> Frame:
        pieces = await in_pieces(task_json(view))
        head = b'{"name":' + encode(name) + b',"task":'
        return long_event([head, *pieces, b"}"], name="task", number=next(numbers))

    ended = [(view.ended_at or 0.0, name) for name, view in views.items() if view.state in TERMINAL]
    for _, name in sorted(ended):
        yield await told(name, views.pop(name))
    views.clear()
    shown = progress.json()
    yield event(encode(shown), name="progress")
    came: asyncio.Queue[tuple[str, TaskView | None]] = asyncio.Queue()
    following = [asyncio.create_task(_follow(pool, n, ids[n], came)) for n in progress.open]
    try:
        while progress.open:
            for name, view in await _next(pool, ids, progress.open, came):
                progress.saw(name, view)
                if view is not None and view.state in TERMINAL:
                    yield await told(name, view)
            if (now := progress.json()) != shown and progress.open:
                shown = now
                yield event(encode(shown), name="progress")
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    yield event(encode(progress.json()), name="end")


async def _next(
    pool: TaskPool,
    ids: Mapping[str, str],
    names: list[str],
    came: asyncio.Queue[tuple[str, TaskView | None]],
) -> list[tuple[str, TaskView | None]]:
    """What has ended since; after a time without an end, which of them run and wait."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            first = await came.get()
    except TimeoutError:
        try:
            seen = await _views(pool, ids, names)
        except Rejected:  # the queue is away
            return []
        # Ends are told by who follows them.
        return [(n, v) for n, v in seen.items() if v is not None and v.state not in TERMINAL]
    return [first, *(came.get_nowait() for _ in range(came.qsize()))]


async def _follow(
    pool: TaskPool, name: str, task_id: str, came: asyncio.Queue[tuple[str, TaskView | None]]
) -> None:
    while True:
        try:
            came.put_nowait((name, await pool.wait(task_id)))
        except KeyError:
            came.put_nowait((name, None))
        except Rejected:  # the queue is away
            await asyncio.sleep(AWAY_SECONDS)
            continue
        return
