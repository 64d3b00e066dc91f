"""What holds accepted tasks, their line and their books: the Broker protocol.

A task is accepted once, waits in a line, is claimed for one attempt at a time and ends once. A
claim counts the attempt, gives a lease and sets the fence in one atomic step. The fence is a text
of the claimer's own that nobody else ever uses: a number that a server counts goes back after a
failover or a restored backup, and then two claims hold the same one. What is committed with any
other fence than the one in force changes nothing.

All calls are from one asyncio loop. Times that go in and out are seconds of the clock that the
broker was made with, which is its worker's; a broker that outlives the worker keeps times of its
own and converts. ``immediate`` brokers hold all in this process: their coroutines never wait.
From a ``shared`` one other workers claim too; of the others a claim's lease may have no end, as
its holder can't be lost without it.

A broker that can't be reached, or can't write, raises Unavailable from whatever it was asked, and
it is not known whether it was done. So accept is idempotent by id, commit by fence: say it again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

from llmtaskpool_worker.brokers.refusals import WORKER_LOST as WORKER_LOST
from llmtaskpool_worker.brokers.refusals import Full as Full
from llmtaskpool_worker.brokers.refusals import IdempotencyConflict as IdempotencyConflict
from llmtaskpool_worker.brokers.refusals import Unavailable as Unavailable
from llmtaskpool_worker.brokers.refusals import UnknownParent as UnknownParent
from llmtaskpool_worker.brokers.shelf import Shelf
from llmtaskpool_worker.scheduling.task import (
    Asked,
    LaneName,
    Result,
    TaskError,
    TaskEvent,
    TaskRequest,
    TaskView,
)
from llmtaskpool_worker.scheduling.task import Dependencies as Dependencies

MAX_ATTEMPTS = 3
"""K: so many workers may be lost with a task before it is a dead letter."""
DEPENDENCY_FAILED = "dependency_failed"
Weights = Sequence[tuple[str, float]]


class Line(NamedTuple):
    """Where in a group a task waits. Within a line W alone decides, as all have the same T.

    ``cost_class`` is the claimer's text; ``tenant`` the one who is billed, by its API key.
    """

    cost_class: str
    tenant: str = ""


# Structs, as each task makes five of these: a frozen dataclass takes ten times as long to be made.
class Submission(msgspec.Struct, frozen=True, gc=False):
    """All that is kept of a task from its acceptance on.

    ``id`` is the submitter's, so that the same submission said twice is one task. ``group`` is
    what must have a free slot for it: a model or a kind. ``load_seconds`` (T) and ``priority`` are
    as estimated now, to be shown; the order is that of the T that claimers pass. ``work_seconds``
    is its offered work in pod-seconds, ``size_bytes`` what it counts in the line.
    ``patience_seconds`` bounds its wait from the acceptance (blocked time is not counted),
    ``run_seconds`` one run; ``delay_seconds`` it may not be claimed before. ``bound_to`` is the
    worker that holds its client's connection: it ends with that worker. None: it survives it.
    ``group_most``: so many of its group may wait, itself among them.
    """

    id: str
    request: TaskRequest
    lane: LaneName
    group: str
    line: Line
    load_seconds: float
    priority: float
    work_seconds: float
    size_bytes: int
    patience_seconds: float
    run_seconds: float
    delay_seconds: float = 0.0
    dependencies: Dependencies | None = None
    max_attempts: int = MAX_ATTEMPTS
    bound_to: str | None = None
    group_most: int | None = None


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """Of an accepted task. ``known``: its idempotency key or id was there before."""

    view: TaskView
    known: bool = False


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """What a claimer can start now.

    ``fence`` is a text that no call has used before; each claim's is made of it, or of the broker's
    own. Of ``groups`` each has ``free(group)`` slots left. ``load(line)`` is T, the
    tenant's share multiplied in. ``above``: only tasks with P = W / T above it, whatever their
    age. ``by_age``: whether the aged have their share of this call (aged_share.py).
    ``only_bound``: only what ends with this worker, as the worker is about to end. ``favour`` is
    F of a tenant in the ordinary turn (tenants.py); None: 1 of each.
    """

    worker: str
    fence: str
    lane: LaneName
    groups: Collection[str]
    free: Callable[[str], int]
    most: int
    load: Callable[[Line], float]
    lease_seconds: float
    above: float = 0.0
    by_age: bool = True
    only_bound: bool = False
    favour: Callable[[str], float] | None = None


class Claim(msgspec.Struct, frozen=True, gc=False):
    """One attempt at a task. ``alone``: a worker was lost with it, so it runs alone in this one.

    ``request.weight`` is the strongest of its own and of what waits for it. ``attempt`` counts
    from 1. ``expires_at``: it has to be started by then.
    """

    id: str
    fence: str
    attempt: int
    lease_until: float
    request: TaskRequest
    lane: LaneName
    group: str
    line: Line
    submitted_at: float
    expires_at: float
    run_seconds: float
    work_seconds: float
    alone: bool = False
    parents: tuple[str, ...] = ()
    """What it depends on, where results of it are to be filled into its arguments."""


class Held(NamedTuple):
    """A claim by which its holder speaks of it."""

    id: str
    fence: str


class Release(msgspec.Struct, frozen=True, gc=False):
    """A claimed task that waits in line again, for anybody.

    ``counts``: whether that was an attempt; what has not begun wasn't. ``alone``: as of Claim.
    """

    id: str
    fence: str
    reason: str
    counts: bool = True
    alone: bool = False


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How an attempt ended: a result, or an error of the task itself."""

    id: str
    fence: str
    result: Result | TaskError


class Commit(Enum):
    """What became of an outcome, or of a wish to cancel."""

    TAKEN = "taken"
    HAD = "had"
    """Said again: it was this fence that ended the task."""
    LOST = "lost"
    """Another fence is in force, or the task has ended otherwise: this attempt doesn't count."""


class Committed(msgspec.Struct, frozen=True, gc=False):
    """``view`` is the task as it is now; None when it is unknown or forgotten."""

    commit: Commit
    view: TaskView | None


@dataclass(frozen=True, slots=True)
class Head:
    """The most urgent waiting task of a worker's groups, for preemption."""

    id: str
    group: str
    priority: float


@dataclass(frozen=True, slots=True)
class LaneDepth:
    """What waits in a lane: tasks, offered work in pod-seconds, since when the oldest does."""

    waiting: int = 0
    work_seconds: float = 0.0
    oldest_at: float | None = None


@dataclass(frozen=True, slots=True)
class Depth:
    """The line as last seen, at ``as_of``; ``error`` says why it is not newer.

    ``shared``: it is the pool's, and not to be summed over workers. ``blocked`` tasks wait for
    others, ``delayed`` for their time (the first of them at ``next_due_at``), ``dead`` are dead
    letters. ``running`` is what anybody has claimed. ``bound``: of all that waits, what ends with
    this worker. ``tenants``: of each how many tasks wait, and how many are claimed.
    """

    as_of: float
    lanes: Mapping[LaneName, LaneDepth]
    groups: Mapping[str, LaneDepth] = field(default_factory=dict)
    running: int = 0
    bound: int = 0
    blocked: int = 0
    delayed: int = 0
    next_due_at: float | None = None
    dead: int = 0
    quarantined: int = 0
    shared: bool = False
    error: str | None = None
    tenants: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Swept:
    """What time has decided in one sweep.

    ``ended``: tasks that it ended (expired, dead, failed with a parent), each told by one sweep of
    all. ``returned``: ids that wait again because their lease ended.
    """

    ended: Sequence[TaskView] = ()
    returned: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Durability:
    """What is promised of a task whose result is fetched later.

    ``name``: memory or file; a server's always, everysec, no, unknown or volatile. ``note``: text.
    """

    name: str
    durable: bool
    note: str


class Broker(Protocol):
    """See the head of this file for clocks, Unavailable and repetition."""

    immediate: bool
    shared: bool

    @property
    def durability(self) -> Durability:
        """Of a server, as it was when it was last seen."""

    async def start(self, worker: str, on_lost: Callable[[str], None]) -> None:
        """Open what there is. ``on_lost(id)``: a claim of this worker is not in force any more.

        Raises ValueError with the remedy when it can't be used.
        """

    async def close(self) -> None:
        """Let go of what was opened. What is accepted stays, as far as it can. Idempotent."""

    async def accept(self, submission: Submission) -> Receipt:
        """Keep a task: when this returns, it is as safe as ``durability`` says.

        How long its result is kept is told from here on (TaskView.result_expires_at). One whose
        parents can't succeed any more is accepted, and has failed.

        Raises IdempotencyConflict, Full, UnknownParent, Unavailable; NoRoom (retention.py) when
        its result could not be kept (an attended task needs no room).
        """

    async def claim(self, wanted: Wanted) -> list[Claim]:
        """Take at most ``most`` waiting tasks in the order of P = W / T, each for one attempt.

        Attempt, lease and fence are set in one step, before this returns. A group without slots
        never holds up another. What waits beyond its patience is not given. What can't be read
        (damaged, foreign, of a future version) is put into quarantine with a reason, and stops
        nobody. An answer that was lost is undone by ``recover``.
        """

    async def peek(self, wanted: Wanted) -> Head | None:
        """The task with the highest P among ``groups``, whatever is free; it stays in line.

        Of a shared broker as it was last seen, a second ago at most: the server isn't asked.
        """

    def waiting_weights(self, lane: LaneName, groups: Collection[str]) -> Weights:
        """Each of ``groups`` with somebody in line, and the weight of its strongest; as of peek.

        A broker that is not shared has no other groups in line: it needs none named.
        """

    async def promise(self, head: Head) -> bool:
        """Whether somebody here may make way for a waiting task: asked just before.

        False: it waits no longer, or another worker has promised it a place already.
        """

    async def wait_for_work(self, lane: LaneName, groups: Collection[str], seconds: float) -> bool:
        """Wait until work may be there for ``groups``, at most so long. One of all is woken."""

    async def renew(self, held: Sequence[Held], lease_seconds: float) -> frozenset[str]:
        """Prolong leases; the ids of those that are lost, whose runs are to end."""

    async def release(self, released: Sequence[Release]) -> None:
        """Give claimed tasks back to the line; what was said of them is forgotten.

        Those whose fence is not in force are passed over.
        """

    async def recover(self, worker: str, known: Sequence[Held]) -> int:
        """What ``worker`` has claimed and doesn't know of waits again, not counted; how many.

        To be called after answers may have been lost, and before the next claim.
        """

    async def commit(self, outcomes: Sequence[Outcome]) -> list[Committed]:
        """End claimed tasks, in the same order: compare-and-set by fence, idempotent.

        A result for which there is no room ends its task as failed with ``result_lost``, unless
        somebody waits for it or follows it. Parents' ends count for those that depend on them, in
        the same step.
        """

    async def cancel(self, task_id: str) -> Committed:
        """End a task that has not ended: TAKEN. HAD: it was cancelled before. LOST: it has ended.

        TAKEN and HAD are confirmed: no claim is given and no commit taken after this. Who runs it
        hears of it by ``on_lost``, or at its next ``renew`` at the latest. Tasks that depend on it
        are told as of any end.
        """

    async def give_up(self, error: TaskError, group: str | None = None) -> Sequence[TaskView]:
        """End what waits (in this group) and ends with this worker anyway, with this error.

        What survives the worker stays: it, or another, may be able to run it later.
        """

    async def replay(self, task_id: str) -> TaskView | None:
        """A dead letter waits again with no attempts; None when it is none."""

    async def get(self, task_id: str) -> TaskView | None:
        """The task as it is now; None when unknown or forgotten."""

    async def list(self, asked: Asked) -> list[TaskView]:
        """Tasks without their results, newest first."""

    async def wait(self, task_id: str) -> TaskView:
        """The task once it has ended. Raises KeyError."""

    def events(self, task_id: str) -> AsyncIterator[TaskEvent]:
        """Its events until it ends: all of them where it runs in this process.

        Elsewhere from a snapshot on. Raises KeyError.
        """

    def publish(self, held: Held, event: TaskEvent) -> None:
        """Something of a claimed task is there for those who follow it. Never waits, never raises.

        StateChanged(QUEUED, reason): its run begins anew later, under the same claim: what was
        said is forgotten. StateChanged(RUNNING): it does now, and that is one attempt more.
        """

    def watched(self, task_id: str) -> bool:
        """Whether somebody has read events of it, as far as is known: they can't be unsaid."""

    def let_go(self, task_id: str) -> None:
        """The submitter of an attended task has read it, or won't. Idempotent, never raises."""

    async def sweep(self) -> Swept:
        """Do what time decides: leases, patience, delays, results' time, lost workers.

        A task whose lease ended waits again, alone next; after ``max_attempts`` such losses it is
        dead with WORKER_LOST. To be called by every worker, each second.
        """

    def depth(self) -> Depth:
        """The line as last seen."""

    def shelf(self, limit_bytes: int) -> Shelf:
        """Where files and batches lie, as safe as tasks; usable once this has started."""
