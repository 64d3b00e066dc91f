"""Asking for tasks: T of each line goes along, so that nothing is re-keyed when T changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from llmtaskpool_worker.brokers.codec import Unreadable, encode_result
from llmtaskpool_worker.brokers.protocol import Line, Submission, Wanted
from llmtaskpool_worker.brokers.redis import books
from llmtaskpool_worker.brokers.redis.heads import Heads
from llmtaskpool_worker.brokers.redis.session import Session
from llmtaskpool_worker.brokers.refusals import SHED
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.priority import (
    SMALLEST_LOAD_SECONDS,
    QueuePolicy,
    priority,
)
from llmtaskpool_worker.scheduling.task import LaneName, TaskError

LINES_KNOWN = 256
"""Beyond that it is asked anew which there are."""
ROUNDS = 8
"""So often the server may name lines whose T it wants first."""
CLAIM_SECONDS = 2.0

_pack = msgspec.msgpack.Encoder().encode


def _alike(_: str) -> float:
    return 1.0


class Claiming:
    """Claims for one worker. ``ttl_ms`` is of results, ``dead_ms`` of dead letters."""

    def __init__(
        self,
        session: Session,
        limits: Limits,
        ttl_ms: int,
        dead_ms: int,
        clock: Callable[[], float],
        heads: Heads,
    ) -> None:
        self._session, self._limits, self._clock = session, limits, clock
        self._heads = heads
        self._ttl_ms, self._dead_ms = ttl_ms, dead_ms
        self._asked = 0
        self._lines: dict[LaneName, dict[str, Line]] = {lane: {} for lane in LaneName}
        """Lines by their names: what the server asked T of."""
        self._named: dict[LaneName, tuple[tuple[str, ...], list[tuple[str, str]]]] = {}
        """The groups asked for last, and what they are called on the server."""
        self._bounded = limits.tenants.bound_running
        self._load: Callable[[Line], float] = lambda _: 1.0
        self._favour: Callable[[str], float] = _alike

    async def claim(self, wanted: Wanted) -> list[books.Run]:
        """See Broker. Raises Unavailable."""
        names = self._names(wanted)
        seen = [name for name, group in names if wanted.free(group) > 0]
        for _ in range(ROUNDS):
            self._asked += 1  # no process had this pod's name before: so no call had this text
            fence = f"{self._session.pod}/{self._asked:x}"
            call = self._session.call(
                "claim", self._arguments(wanted, fence, names), seconds=CLAIM_SECONDS
            )
            try:
                answer = await asyncio.shield(call.answer)
            except asyncio.CancelledError:
                call.answer.add_done_callback(self._nobody_wants)
                raise
            if answer[0] == b"ok":
                if self._heads.asked(wanted.lane) and not wanted.only_bound:
                    self._heads.saw(seen, answer[2])  # of groups without a free slot it is silent
                return await self._read(wanted, answer)
            self._learn(wanted.lane, answer[1:])
        return []

    def _names(self, wanted: Wanted) -> list[tuple[str, str]]:
        """The groups as the server calls them, and as we do."""
        groups, names = self._named.get(wanted.lane, ((), []))
        if groups != (asked := tuple(wanted.groups)):
            names = [(name, g) for g in asked for name in books.group_keys(wanted.lane, g)]
            self._named[wanted.lane] = asked, names
        return names

    def _arguments(self, wanted: Wanted, fence: str, names: list[tuple[str, str]]) -> bytes:
        limits, tenants = self._limits, self._limits.tenants
        by_age = wanted.by_age and wanted.above <= 0 and not wanted.only_bound
        lines = self._lines[wanted.lane]
        loads = {key: wanted.load(line) for key, line in lines.items()}
        if loads and min(loads.values()) < SMALLEST_LOAD_SECONDS:
            loads = {key: max(load, SMALLEST_LOAD_SECONDS) for key, load in loads.items()}
        bounds = {}
        if self._bounded and not wanted.only_bound:
            for line in lines.values():
                if (most := tenants.of(line.tenant).running) is not None:
                    bounds[line.tenant] = most
        self._load, favour = wanted.load, wanted.favour
        self._favour = favour or _alike
        groups = [(name, max(0, min(wanted.free(group), wanted.most))) for name, group in names]
        return _pack(
            (
                self._session.pod,
                fence,
                round(wanted.lease_seconds * 1000),
                wanted.most,
                round(limits.ageing_seconds * 1000) if by_age else 0,
                limits.aged_share,
                int(limits.policy is QueuePolicy.NEWEST_FIRST),
                wanted.lane.value,
                groups,
                loads,
                wanted.above,
                self._session.pod if wanted.only_bound else "",
                self._ttl_ms,
                int(self._heads.asked(wanted.lane)),
                bounds,
                {} if favour is None else {key: favour(line.tenant) for key, line in lines.items()},
            )
        )

    def _learn(self, lane: LaneName, names: Sequence[bytes]) -> None:
        """Lines whose T the server wants to know."""
        known = self._lines[lane]
        if len(known) > LINES_KNOWN:
            known.clear()
        for name in names:
            known[name.decode()] = books.line_of(name.decode())

    async def shed(self, task: Submission, soon_ms: int) -> bool:
        """Whether somebody less urgent than a task has left its lane, which is full, for it.

        T and F are those of the last claim. Raises Unavailable.
        """
        mine = priority(task.request.weight, self._load(task.line)) * self._favour(task.line.tenant)
        for _ in range(ROUNDS):
            ranks = {
                key: max(self._load(line), SMALLEST_LOAD_SECONDS) / self._favour(line.tenant)
                for key, line in self._lines[task.lane].items()
            }
            numbers = _pack((task.lane.value, mine, ranks, self._ttl_ms, soon_ms))
            answer = await self._session.call("shed", numbers, encode_result(SHED))
            if answer[0] == b"ok":
                return bool(answer[1])
            self._learn(task.lane, answer[1:])
        return False

    async def _read(self, wanted: Wanted, answer: list[Any]) -> list[books.Run]:
        ahead = self._session.ahead
        until = answer[1] / 1000 + ahead + wanted.lease_seconds
        runs: list[books.Run] = []
        unreadable: list[bytes | str] = []
        inputs = answer[books.CLAIM_HEAD :]
        for given, data in zip(books.given_in(answer[3]), inputs, strict=True):
            try:
                runs.append(books.run_of(given, data, wanted.lane, until, ahead))
            except Unreadable as why:
                error = TaskError("quarantined", f"it can't be run: {why}")
                unreadable += (given.id, given.fence, str(why), encode_result(error))
        if runs:
            self._session.given([run.claim.fence for run in runs])
        if unreadable:
            await self._session.call("bury", self._dead_ms, *unreadable)
        return runs

    def _nobody_wants(self, answer: asyncio.Future[Any]) -> None:
        """Whoever asked was cancelled: what came goes back, and does not count."""
        if answer.cancelled() or answer.exception() is not None:
            return
        values = answer.result()
        if values[0] != b"ok":
            return
        back: list[bytes | str] = []
        for given in books.given_in(values[3]):
            back += (given.id, given.fence, "unwanted", "0", "0")
        if back:
            self._session.call("release", self._ttl_ms, self._dead_ms, *back)
