"""When the broker is asked for work: at once, or by a task of its own that nobody waits for.

An immediate broker is asked whenever something has changed. Others are asked when a place became
free, when the broker says that work may be there, and each second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from llmtaskpool_worker.brokers.protocol import Unavailable
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.disclosure import where_raised
from llmtaskpool_worker.execution.desk import at_once
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.execution.ledger import TaskLedger
from llmtaskpool_worker.execution.making_way import MakingWay
from llmtaskpool_worker.execution.running import LEASE_SECONDS, Running

log = logging.getLogger("llmtaskpool.worker")

LOOK_SECONDS = 1.0
"""So often is asked for work, and swept, though nothing tells that there is any."""
BUSY_SECONDS = 0.1
"""While a lane has no free thread, so often is looked whether it has one."""

_Seen = tuple[int, tuple[int, ...]]


class Asking:
    """Fills the lanes of one worker. ``compute`` is the lane whose tasks can make way."""

    def __init__(
        self,
        running: Running,
        making_way: MakingWay,
        ledger: TaskLedger,
        lanes: Mapping[LaneName, Lane],
    ) -> None:
        self._running, self._making_way, self._ledger = running, making_way, ledger
        self._lanes, self._compute = lanes, lanes[LaneName.COMPUTE]
        self._broker = ledger.broker
        self._due: dict[LaneName, None] = {}
        self._came = asyncio.Event()
        self._dry: dict[LaneName, _Seen] = {}
        """Lanes for which there was nothing when they last asked, and what they had free then."""
        self._tasks: list[asyncio.Task[None]] = []
        running.place_is_free = self.schedule

    def start(self) -> None:
        """Begin to ask."""
        if self._broker.immediate:
            return
        self._tasks = [
            asyncio.create_task(self._ask()),
            asyncio.create_task(self._tend()),
            *(asyncio.create_task(self._hear(lane)) for lane in self._lanes.values()),
        ]

    async def close(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def schedule(self, *lanes: Lane) -> None:
        """Something has changed for these lanes."""
        if self._broker.immediate:
            for lane in lanes:
                # A model whose part others hold starts all the same: thread_shares.py.
                if lane.free_threads or len(lane.held) or lane is self._compute:
                    self._fill_at_once(lane)
            return
        for lane in lanes:
            if len(lane.held) or self._dry.get(lane.name) != self._seen(lane):
                self._due[lane.name] = None
                self._came.set()

    def _fill_at_once(self, lane: Lane) -> None:
        """Of an immediate broker; nothing is asked for where nothing waits.

        That is after each step of an engine of a worker that keeps up with what comes.
        """
        if self._anything_waits(lane) or self._running.one_runs_alone:
            at_once(self._running.fill(lane))

    def _anything_waits(self, lane: Lane) -> bool:
        return bool(len(lane.held) or self._broker.waiting_weights(lane.name, ()))

    def come(self, lane: Lane) -> None:
        """A task was accepted for this lane: it, or one that runs, may go before others."""
        if self._broker.immediate:
            self.schedule(lane)
            if self._anything_waits(lane):  # else it has started
                self.look()
            return
        self._dry.pop(lane.name, None)
        self.schedule(lane)

    def look(self) -> None:
        """Whether somebody is to make way; expired and other ends that time has brought."""
        if not self._broker.immediate:
            return
        at_once(self._make_way())
        for view in at_once(self._broker.sweep()).ended:
            self._ledger.ended(view)

    async def _make_way(self) -> None:
        if not self._running.one_runs_alone:
            wanted = self._running.wanted(self._compute, 1)
            await self._making_way.look(wanted, self._running.start_urgent)

    def _seen(self, lane: Lane) -> _Seen:
        free = tuple(self._running.free(group) for group in self._running.groups(lane))
        return lane.free_threads, free

    async def _ask(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            due, self._due = self._due, {}
            for name in due:
                lane = self._lanes[name]
                try:
                    await self._running.fill(lane)
                    if lane is self._compute:
                        await self._make_way()
                except Unavailable:
                    pass  # each second it is tried again
                except Exception as error:  # one claim that can't be begun stops no other
                    log.error(  # noqa: TRY400  a traceback has paths
                        "claim not begun", extra={"error": where_raised(error)}
                    )
                self._dry[name] = self._seen(lane)

    async def _hear(self, lane: Lane) -> None:
        """Wait for the broker's sign that there is work, while there is a thread for it."""
        while True:
            if not lane.free_threads:
                await asyncio.sleep(BUSY_SECONDS)
                continue
            try:
                groups = self._running.groups(lane)
                if not await self._broker.wait_for_work(lane.name, groups, LOOK_SECONDS):
                    continue
            except Unavailable:
                await asyncio.sleep(LOOK_SECONDS)
            self._dry.pop(lane.name, None)
            self.schedule(lane)

    async def _tend(self) -> None:
        """Leases, what time decides, and who is to make way, each second."""
        renewed = 0.0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                renewed += LOOK_SECONDS
                if self._broker.shared and renewed >= LEASE_SECONDS / 3:
                    renewed = 0.0
                    await self._renew()
                for view in (await self._broker.sweep()).ended:
                    self._ledger.ended(view)
                await self._make_way()
            except Unavailable:
                pass
            except Exception as error:
                log.error(  # noqa: TRY400  a traceback has paths
                    "broker not tended", extra={"error": where_raised(error)}
                )
            self._dry.clear()
            self.schedule(*self._lanes.values())

    async def _renew(self) -> None:
        """What makes progress keeps its lease; a task of an engine that stands still loses it."""
        held = self._running.progressing()
        lost = await self._broker.renew(held, LEASE_SECONDS)
        for one in held:
            if one.id in lost:
                self._ledger.lost(one.id, one.fence)
