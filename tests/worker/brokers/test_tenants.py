"""Tenants on every broker: what each may have, a fair share, and who leaves a full line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from llmtaskpool_worker.brokers.protocol import Full, Release
from llmtaskpool_worker.brokers.redis import views
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.task import Asked, TaskState
from llmtaskpool_worker.scheduling.tenants import parse_tenants

from .rigs import RIGS, Rig, task

Story = Callable[[Rig], Awaitable[None]]


@pytest.fixture(params=RIGS, ids=lambda make: make.__name__)
def play(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Run a story against a broker of its own."""

    def run(story: Story, tenants: str = "", **limits: Any) -> None:
        async def whole() -> None:
            bounds = Limits(tenants=parse_tenants(tenants), **limits)
            async with request.param(bounds) as rig:
                await story(rig)

        asyncio.run(asyncio.wait_for(whole(), 60))

    return run


async def counts(rig: Rig) -> dict[str, tuple[int, int]]:
    await rig.broker.sweep()
    return dict(rig.broker.depth().tenants)


def test_a_tenant_may_have_so_many_tasks_waiting_and_others_are_not_held_up(play) -> None:
    async def story(rig: Rig) -> None:
        for name in ("a1", "a2"):
            await rig.broker.accept(task(name, tenant="a"))
        with pytest.raises(Full) as refused:
            await rig.broker.accept(task("a3", tenant="a"))
        assert (refused.value.bound, refused.value.limit) == ("tenant", 2)
        assert await rig.broker.get("a3") is None
        for name in ("b1", "b2", "b3"):
            await rig.broker.accept(task(name, tenant="b"))
        await rig.broker.accept(task("nobodys"))
        assert await counts(rig) == {"a": (2, 0), "b": (3, 0)}
        await rig.broker.cancel("a1")
        await rig.broker.accept(task("a3", tenant="a"))

    play(story, "a,waiting=2;*,waiting=3")


def test_the_lines_of_a_tenants_batch_leave_half_of_its_places_to_its_other_tasks(play) -> None:
    async def story(rig: Rig) -> None:
        for name in ("line1", "line2"):
            await rig.broker.accept(task(name, tenant="a", of_a_batch=True))
        with pytest.raises(Full) as refused:
            await rig.broker.accept(task("line3", tenant="a", of_a_batch=True))
        assert (refused.value.bound, refused.value.limit) == ("tenant", 2)
        for name in ("a1", "a2"):
            await rig.broker.accept(task(name, tenant="a"))
        with pytest.raises(Full):
            await rig.broker.accept(task("a3", tenant="a"))
        await rig.take()
        await rig.take()
        with pytest.raises(Full):
            await rig.broker.accept(task("line3", tenant="a", of_a_batch=True))
        await rig.take()
        await rig.broker.accept(task("line3", tenant="a", of_a_batch=True))

    play(story, "a,waiting=4")


def test_a_tenants_list_has_its_own_tasks_however_many_of_others_are_newer(
    play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "LOOKED_AT", 4)

    async def story(rig: Rig) -> None:
        async def seen(tenant: str | None, **more: Any) -> list[str]:
            asked = Asked(tenant=tenant, limit=50, **more)
            return [view.id for view in await rig.broker.list(asked)]

        await rig.run("00ended", tenant="a")
        await rig.broker.accept(task("01runs", tenant="a", kind="r"))
        await rig.take(free={"r": 9})
        await rig.broker.accept(task("02waits", tenant="a"))
        await rig.broker.accept(task("03later", tenant="a", delay_seconds=500.0))
        await rig.broker.accept(task("04blocked", tenant="a", after=["02waits"]))
        for number in range(10, 22):
            await rig.run(f"{number}ended", tenant="b", kind="e")
            await rig.broker.accept(task(f"{number}runs", tenant="b", kind="r"))
            await rig.take(free={"r": 9})
            parent = f"{number}waits"
            await rig.broker.accept(task(parent, tenant="b"))
            await rig.broker.accept(task(f"{number}later", tenant="b", delay_seconds=900.0))
            await rig.broker.accept(task(f"{number}blocked", tenant="b", after=[parent]))
        own = ["04blocked", "03later", "02waits", "01runs", "00ended"]
        assert await seen("a") == own
        assert await seen("a", after="03later") == own[2:]
        assert await seen("nobody") == []
        if rig.broker.immediate:  # else the ids alone tell where a list goes on
            assert await seen("a", after="21waits") == [], "as if there were no such task"
        assert len(await seen("b")) == 50
        views_of_all = await rig.broker.list(Asked(limit=100))
        assert {view.tenant for view in views_of_all} >= {"b"}

    play(story)


def test_a_tenants_tasks_at_work_are_bounded_and_each_end_makes_room_for_one(play) -> None:
    async def story(rig: Rig) -> None:
        for name in ("a1", "a2", "a3", "a4"):
            await rig.broker.accept(task(name, tenant="a", weight=9.0))
        await rig.broker.accept(task("b1", tenant="b"))
        claims = {claim.id: claim for claim in await rig.claim(most=9)}
        assert sorted(claims) == ["a1", "a2", "b1"]
        assert await counts(rig) == {"a": (2, 2), "b": (0, 1)}
        assert await rig.claim(most=9) == []
        assert await rig.claim(above=0.1) == []
        assert await rig.broker.peek(rig.wanted()) is None
        await rig.end(claims["a1"])
        await rig.broker.release([Release("a2", claims["a2"].fence, "no room", counts=False)])
        assert await counts(rig) == {"a": (3, 0), "b": (0, 1)}
        assert [claim.id for claim in await rig.claim(most=9)] == ["a2", "a3"]
        await rig.broker.cancel("a2")
        await rig.broker.cancel("a3")
        await rig.end(await rig.take())
        await rig.end(claims["b1"])
        assert await counts(rig) == {}

    play(story, "*,running=2")


def test_what_a_lost_worker_had_is_at_work_no_more(play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a1", tenant="a", max_attempts=2))
        await rig.broker.accept(task("a2", tenant="a"))
        for left in ({"a": (2, 0)}, {"a": (1, 0)}):
            await rig.take(lease_seconds=0.05)
            await rig.later(0.1)
            await rig.broker.sweep()
            assert await counts(rig) == left
        assert (await rig.take()).id == "a2"

    play(story, "a,running=1")


def test_among_equals_who_is_favoured_goes_first_and_priority_goes_before_favour(play) -> None:
    async def story(rig: Rig) -> None:
        for number in range(3):
            await rig.broker.accept(task(f"a{number}", tenant="a"))
        await rig.broker.accept(task("b", tenant="b"))
        await rig.broker.accept(task("urgent", tenant="a", weight=100.0))
        favour = {"a": 0.25, "b": 4.0}.__getitem__
        first = [(await rig.take(favour=favour)).id for _ in range(3)]
        assert first == ["urgent", "b", "a0"]
        assert (await rig.take(above=0.9)).id == "a1", "what is above the own is asked by P alone"

    play(story)


def test_a_full_line_sheds_the_least_urgent_that_ends_with_its_client(play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("batch", weight=0.1))
        await rig.broker.accept(task("bulk", weight=0.5, bound_to="w", attended=True))
        await rig.broker.accept(task("chat", bound_to="w", attended=True))
        with pytest.raises(Full):
            await rig.broker.accept(task("lower", weight=0.4, bound_to="w", attended=True))
        await rig.broker.accept(task("urgent", weight=9.0))
        view = await rig.broker.get("bulk")
        assert view is not None
        assert (view.state, view.error.code) == (TaskState.FAILED, "shed")
        told = (await rig.broker.sweep()).ended
        assert [one.id for one in told] == ["bulk"]
        await rig.broker.accept(task("more", weight=9.0))
        with pytest.raises(Full):
            await rig.broker.accept(task("most", weight=99.0))
        assert sorted([claim.id for claim in await rig.claim(most=9)]) == [
            "batch",
            "more",
            "urgent",
        ]

    play(story, io=LaneLimits(8, 8, queue_tasks=3))


def test_an_idempotency_key_is_its_tenants(play) -> None:
    async def story(rig: Rig) -> None:
        first = await rig.broker.accept(task("a1", tenant="a", key="same"))
        other = await rig.broker.accept(task("b1", tenant="b", key="same", value=2))
        again = await rig.broker.accept(task("a2", tenant="a", key="same"))
        assert [one.view.id for one in (first, other, again)] == ["a1", "b1", "a1"]
        assert again.known

    play(story)
