"""What can be asked of a pool, as steps that know no network: both clients take them.

A step is a call or a pause; its answer, or its error, comes back into the generator. What may be
said twice is said again while a pool is away: tasks get an idempotency key for that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote
from uuid import uuid4

from llmtaskpool.errors import PoolError, Refused, Unreachable, WaitTimeout
from llmtaskpool.views import Batch, File, Graph, Task, batch_of, file_of, task_of

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0
LONGEST_RETRY_AFTER_SECONDS = 60.0
ONE_WAIT_SECONDS = 30.0
"""A wait is asked for in pieces of this length, so that no proxy cuts it."""
BATCH_LOOK_SECONDS = 1.0, 10.0
"""A batch is looked at so often at first, and in the end."""
PAGE = 100

_AWAY = frozenset({429, 502, 503, 504})
_TAKEN_MAYBE = frozenset({502, 504})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """A request. ``again``: saying it twice does no harm. ``wait_seconds``: it is held so long."""

    method: str
    path: str
    json: Mapping[str, Any] | None = None
    params: Sequence[tuple[str, str]] = ()
    upload: tuple[str, BinaryIO | bytes] | None = None
    again: bool = True
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Pause:
    """A time to let pass."""

    seconds: float


Steps = Generator[Call | Pause, Any, T]


class Operations:
    """``patience_seconds``: so long a pool that is away is asked again. ``chance()``: 0 to 1."""

    def __init__(
        self, patience_seconds: float, clock: Callable[[], float], chance: Callable[[], float]
    ) -> None:
        self._patience, self._clock, self._chance = patience_seconds, clock, chance

    def _ask(self, call: Call, patience: float | None = None) -> Steps[dict[str, Any]]:
        """The answer, asked for again while that can help. Raises PoolError."""
        until = self._clock() + (self._patience if patience is None else patience)
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                told: dict[str, Any] = yield call
            except PoolError as error:
                wait = pause_after(call, error, pause * (0.75 + 0.5 * self._chance()))
                if wait is None or self._clock() + wait > until:
                    raise
                yield Pause(wait)
                pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)
            else:
                return told

    # --- tasks ------------------------------------------------------------------------------

    def submit(self, body: Mapping[str, Any]) -> Steps[Task]:
        """Hand over a task."""
        given = {name: value for name, value in body.items() if value is not None}
        given.setdefault("idempotency_key", f"client-{uuid4().hex}")
        return task_of((yield from self._ask(Call("POST", "/v1/tasks", given))))

    def get(self, task_id: str) -> Steps[Task]:
        """A task as it is now."""
        return task_of((yield from self._ask(Call("GET", _task(task_id)))))

    def wait(self, task_id: str, timeout: float) -> Steps[Task]:
        """A task once it has ended; a pool that is away is waited for as long. WaitTimeout."""
        until = self._clock() + timeout
        task = task_of((yield from self._ask(Call("GET", _task(task_id)), timeout)))
        while not task.ended:
            left = until - self._clock()
            if left <= 0:
                raise WaitTimeout(task, task.state, timeout)
            piece = min(left, ONE_WAIT_SECONDS)
            call = Call("GET", _task(task_id), params=[("wait", f"{piece:g}")], wait_seconds=piece)
            task = task_of((yield from self._ask(call, left)))
        return task

    def cancel(self, task_id: str) -> Steps[Task]:
        """A task that has not ended is cancelled."""
        return task_of((yield from self._ask(Call("DELETE", _task(task_id)))))

    def replay(self, task_id: str) -> Steps[Task]:
        """A dead letter waits again."""
        call = Call("POST", f"{_task(task_id)}/replay", again=False)
        return task_of((yield from self._ask(call)))

    def tasks(
        self, most: int, states: Sequence[str] | str | None, labels: Mapping[str, str]
    ) -> Steps[list[Task]]:
        """At most so many tasks, the newest first."""
        fixed = [("label", f"{name}:{value}") for name, value in labels.items()]
        if states:
            fixed.append(("state", states if isinstance(states, str) else ",".join(states)))
        told = yield from self._pages("/v1/tasks", most, fixed)
        return [task_of(one) for one in told]

    def graph(self, tasks: Mapping[str, Mapping[str, Any]]) -> Steps[Graph]:
        """All tasks of a graph, or none."""
        call = Call("POST", "/v1/graphs", {"tasks": tasks}, again=False)
        told = yield from self._ask(call)
        return Graph(told["id"], {name: task_of(one) for name, one in told["tasks"].items()})

    def get_graph(self, graph_id: str) -> Steps[Graph]:
        """A graph as it is now: those of its tasks that are known, without results."""
        told = yield from self._ask(Call("GET", f"/v1/graphs/{quote(graph_id, safe='')}"))
        tasks = {name: task_of({**one, "name": name}) for name, one in told["tasks"].items()}
        return Graph(told["id"], tasks)

    # --- batches ----------------------------------------------------------------------------

    def upload(
        self, filename: str, content: BinaryIO | bytes, expires_after_seconds: int | None
    ) -> Steps[File]:
        """A file of requests, one a line."""
        keep = expires_after_seconds
        fields = [("purpose", "batch")]
        if keep is not None:
            fields.append(("expires_after[seconds]", str(keep)))
        again = isinstance(content, bytes)  # a stream is at its end by then
        call = Call("POST", "/v1/files", None, fields, (filename, content), again=again)
        return file_of((yield from self._ask(call)))

    def create_batch(self, body: Mapping[str, Any]) -> Steps[Batch]:
        """Work off an uploaded file."""
        given = {name: value for name, value in body.items() if value is not None}
        return batch_of((yield from self._ask(Call("POST", "/v1/batches", given, again=False))))

    def get_batch(self, batch_id: str) -> Steps[Batch]:
        """A batch as it is now."""
        return batch_of((yield from self._ask(Call("GET", _batch(batch_id)))))

    def cancel_batch(self, batch_id: str) -> Steps[Batch]:
        """Nothing more of a batch is asked."""
        return batch_of((yield from self._ask(Call("POST", f"{_batch(batch_id)}/cancel"))))

    def list_batches(self, most: int) -> Steps[list[Batch]]:
        """At most so many batches, the newest first."""
        told = yield from self._pages("/v1/batches", most, [])
        return [batch_of(one) for one in told]

    def wait_batch(
        self, batch_id: str, timeout: float, on_look: Callable[[Batch], None]
    ) -> Steps[Batch]:
        """A batch once it has ended; ``on_look`` is told of each look at it. WaitTimeout."""
        until = self._clock() + timeout
        pause, most = BATCH_LOOK_SECONDS
        while True:
            left = max(0.0, until - self._clock())
            batch = batch_of((yield from self._ask(Call("GET", _batch(batch_id)), left)))
            on_look(batch)
            if batch.ended:
                return batch
            left = until - self._clock()
            if left <= 0:
                raise WaitTimeout(batch, batch.status, timeout)
            yield Pause(min(pause, left))
            pause = min(most, 1.2 * pause)

    def _pages(
        self, path: str, most: int, fixed: Sequence[tuple[str, str]]
    ) -> Steps[list[dict[str, Any]]]:
        found: list[dict[str, Any]] = []
        beyond: list[tuple[str, str]] = []
        while len(found) < most:
            limit = ("limit", str(min(PAGE, most - len(found))))
            page = yield from self._ask(Call("GET", path, params=[*fixed, limit, *beyond]))
            found += page["data"]
            if not page["has_more"] or not page["data"]:
                break
            beyond = [("after", found[-1]["id"])]
        return found


def pause_after(call: Call, error: PoolError, usual: float) -> float | None:
    """Seconds until ``call`` may be said again after ``error``; None: it is not to be.

    What was refused as full or away was not taken, unless the queue itself can't be reached, or a
    proxy stands between: then only what may be said twice is.
    """
    if isinstance(error, Unreachable):
        return usual if call.again or not error.sent else None
    if not isinstance(error, Refused) or error.status not in _AWAY:
        return None
    if not call.again and (error.status in _TAKEN_MAYBE or error.code == "queue_unavailable"):
        return None
    asked = error.retry_after_seconds
    return usual if asked is None else min(LONGEST_RETRY_AFTER_SECONDS, asked)


def _task(task_id: str) -> str:
    return f"/v1/tasks/{quote(task_id, safe='')}"


def _batch(batch_id: str) -> str:
    return f"/v1/batches/{quote(batch_id, safe='')}"
