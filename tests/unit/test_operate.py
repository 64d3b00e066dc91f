"""A replica of the operator: alive while it stands by, however much happens around it."""

from __future__ import annotations

import asyncio

from fakes.cluster_objects import pool_body
from llmtaskpool_operator.api import KIND
from llmtaskpool_operator.operate import STUCK_SECONDS, Clocks, Operator
from llmtaskpool_operator.operator_settings import load


def test_a_replica_that_stands_by_stays_alive_while_pools_change() -> None:
    async def stand_by() -> None:
        now = 0.0
        operator = Operator(load(), Clocks(steady=lambda: now, wall=lambda: now))
        operator.store.seen(KIND, pool_body())
        now = 2 * STUCK_SECONDS
        assert operator.alive()
        assert operator.queue.depth == 0

    asyncio.run(stand_by())
