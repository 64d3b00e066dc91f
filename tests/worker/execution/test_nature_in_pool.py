from __future__ import annotations

import asyncio
import threading

from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.kinds.registry import CallContext, Kind, Kinds
from llmtaskpool_worker.scheduling.nature import ENOUGH
from llmtaskpool_worker.scheduling.task import Call, TaskRequest


def test_an_auto_kind_that_only_waits_moves_to_the_io_lane() -> None:
    def waits(_: dict[str, object], __: CallContext) -> None:
        threading.Event().wait(0.02)

    async def lanes() -> list[LaneName]:
        kinds = Kinds()
        kinds.register(Kind("waits", waits, "auto"))
        pool = Dispatcher(kinds=kinds)
        await pool.start()
        try:
            seen = []
            for _ in range(ENOUGH + 1):
                task = await pool.submit(TaskRequest("waits", Call()))
                seen.append(task.lane)
                await pool.wait(task.id)
            verdict = pool.state().kinds["waits"]
            assert verdict.lane is LaneName.IO
            assert verdict.waiting_seconds > verdict.compute_seconds
            assert "of its time is compute" in verdict.reason
            return seen
        finally:
            await pool.stop(0.0)

    assert asyncio.run(lanes()) == [LaneName.COMPUTE] * ENOUGH + [LaneName.IO]
