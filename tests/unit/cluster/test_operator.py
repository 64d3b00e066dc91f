"""A replica of the operator: alive while it stands by, however much happens around it."""

from __future__ import annotations

import asyncio

import pytest
from fakes.cluster_objects import pod_body, pool_body
from fakes.virtual_time import clock, run
from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.cluster.api_client import ApiFailure, Fenced
from llmtaskpool_operator.cluster.operator import STUCK_SECONDS, Clocks, Operator, _answered
from llmtaskpool_operator.cluster.settings import load
from llmtaskpool_operator.cluster.store import PoolKey


def test_a_replica_that_stands_by_stays_alive_while_pools_change() -> None:
    async def stand_by() -> None:
        now = 0.0
        operator = Operator(load(), Clocks(steady=lambda: now, wall=lambda: now))
        operator.store.seen(KIND, pool_body())
        now = 2 * STUCK_SECONDS
        assert operator.alive()
        assert operator.queue.depth == 0

    asyncio.run(stand_by())


def test_a_changed_pool_has_its_turn_at_once_and_news_of_its_pods_gather() -> None:
    async def leads() -> None:
        now = 0.0
        operator = Operator(load(), Clocks(steady=lambda: now, wall=lambda: now))
        operator._leading = True
        for version in range(5):
            operator.store.seen("Pod", pod_body("a", version=version + 1))
        assert operator.queue.depth == 0
        now = 0.5
        assert operator.queue.depth == 1
        operator.queue.clear()
        operator.store.seen(KIND, pool_body())
        assert operator.queue.depth == 1

    asyncio.run(leads())


def test_an_operator_that_lists_nothing_is_not_ready_and_says_why() -> None:
    async def listless() -> None:
        now = 0.0
        operator = Operator(load(resync_seconds=10), Clocks(steady=lambda: now, wall=lambda: now))
        assert "not listed yet" in operator.fault()
        operator._watching.set()
        assert "not listed yet" in operator.fault()
        operator._synced_at = now
        assert operator.fault() == ""
        now = 34.0
        assert operator.fault() == ""
        now = 36.0
        assert operator.fault() == "the API server has not answered a list for 36 s"

    asyncio.run(listless())


def test_who_leads_waits_for_an_answer_that_was_lost_and_ends_where_it_has_no_right() -> None:
    answers = [ApiFailure(0, "the connection was cut"), ApiFailure(503, "503: no"), "the key"]

    async def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, ApiFailure):
            raise answer
        return answer

    async def main() -> str:
        return await _answered(ask)

    assert run(main()) == "the key"
    answers.append(ApiFailure(403, "403: forbidden"))
    with pytest.raises(ApiFailure, match="forbidden"):
        run(main())


def test_a_pool_whose_turn_found_the_lease_overdue_has_its_turn_again() -> None:
    """As after it stood still: it renews its lease a moment later, and nothing has changed."""
    key = PoolKey("team", "chat")
    turns: list[float] = []

    class Overdue:
        async def turn(self, of: PoolKey) -> float:
            assert of == key
            turns.append(clock())
            if len(turns) < 3:
                raise Fenced("patch it: this replica does not lead")
            return 60.0

    async def main() -> None:
        operator = Operator(load(), Clocks(steady=clock, wall=clock))
        operator.queue.add(key)
        working = asyncio.create_task(operator._work(Overdue()))  # type: ignore[arg-type]
        await asyncio.sleep(30)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    run(main())
    assert len(turns) == 3
    assert turns[-1] - turns[0] < 5
