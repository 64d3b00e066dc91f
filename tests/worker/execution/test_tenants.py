"""Tenants share the threads of a worker."""

from __future__ import annotations

import asyncio

import pytest
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.execution.pool import Rejected
from llmtaskpool_worker.kinds.registry import CallContext, Kind, Kinds
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.task import Call, TaskRequest
from llmtaskpool_worker.scheduling.tenants import parse_tenants


def run(story, tenants: str = "") -> list[str]:
    """A story over a worker of one thread; whose tasks have run, in their order."""
    ran: list[str] = []

    async def note(arguments: dict, _: CallContext) -> None:
        ran.append(arguments["of"])
        await asyncio.sleep(0)

    async def whole() -> None:
        kinds = Kinds()
        kinds.register(Kind("note", note, "io"))
        limits = Limits(io=LaneLimits(1, 1), tenants=parse_tenants(tenants))
        pool = Dispatcher(kinds=kinds, limits=limits)
        await pool.start()
        try:
            await story(pool)
        finally:
            await pool.stop(0.0)

    asyncio.run(asyncio.wait_for(whole(), 60))
    return ran


def of(tenant: str, **more) -> TaskRequest:
    return TaskRequest("note", Call({"of": tenant}), tenant=tenant, **more)


async def all_of(pool: Dispatcher, requests: list[TaskRequest]) -> None:
    for view in [await pool.submit(one) for one in requests]:
        await pool.wait(view.id)


def test_a_tenant_with_few_tasks_does_not_wait_for_all_of_another_who_came_first() -> None:
    ran = run(lambda pool: all_of(pool, [of("many")] * 60 + [of("few")] * 6))
    assert ran.count("few") == 6
    last = max(place for place, tenant in enumerate(ran) if tenant == "few")
    assert last < 20, "half of the turns are theirs"


def test_a_weight_is_bounded_by_the_key_and_one_that_was_not_said_is_lowered() -> None:
    async def story(pool: Dispatcher) -> None:
        assert (await pool.submit(of("bulk"))).weight == 0.1
        assert (await pool.submit(of("other", weight=50.0))).weight == 50.0
        with pytest.raises(Rejected) as refused:
            await pool.submit(of("bulk", weight=2.0))
        assert (refused.value.code, refused.value.field) == ("weight_too_large", "weight")
        assert "weight is 2 and the most for your key is 0.1" in refused.value.message
        assert pool.state().tenants["bulk"].refused_total == 1

    run(story, "bulk,weight=0.1")
