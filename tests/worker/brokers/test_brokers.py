"""What every broker promises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from llmtaskpool_worker.brokers.memory import MemoryBroker
from llmtaskpool_worker.brokers.protocol import Accepted, Broker, IdempotencyConflict, LeaseLost
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.scheduling.limits import ResultLimits
from llmtaskpool_worker.scheduling.task import Call, Returned, TaskRequest, TaskState, TextDelta

Make = Callable[[ResultLimits], Broker]
LIMITS = ResultLimits()


@pytest.fixture(params=[MemoryBroker])
def make(request: pytest.FixtureRequest) -> Make:
    return request.param  # type: ignore[no-any-return]  # as listed


def task(name: str, key: str | None = None, value: object = 1) -> Accepted:
    request = TaskRequest(kind="k", payload=Call({"v": value}), idempotency_key=key)
    return Accepted(name, request, LaneName.IO, 1.0, 1.0)


def ended(broker: Broker, name: str, now: float, value: object = 1) -> None:
    broker.accept(task(name), now)
    broker.commit(name, broker.claim(name, now, 9.0).token, Returned(value), now)


def test_a_task_goes_from_queued_over_running_to_its_result(make: Make) -> None:
    broker = make(LIMITS)
    assert broker.accept(task("a"), 1.0).state is TaskState.QUEUED
    claim = broker.claim("a", 2.0, 9.0)
    running = broker.get("a")
    assert running is not None
    assert (running.state, running.attempts, running.started_at) == (TaskState.RUNNING, 1, 2.0)
    view = broker.commit("a", claim.token, Returned(7), 3.0)
    assert (view.state, view.result, view.ended_at) == (TaskState.SUCCEEDED, Returned(7), 3.0)


def test_an_old_token_commits_nothing(make: Make) -> None:
    broker = make(LIMITS)
    broker.accept(task("a"), 0.0)
    old = broker.claim("a", 0.0, 9.0)
    broker.release("a", old.token, "crashed")
    new = broker.claim("a", 1.0, 9.0)
    assert new.token > old.token
    assert new.attempt == 2
    with pytest.raises(LeaseLost):
        broker.commit("a", old.token, Returned("old"), 2.0)
    with pytest.raises(LeaseLost):
        broker.publish("a", old.token, TextDelta("old", (1,)))
    with pytest.raises(LeaseLost):
        broker.cancel_running("a", old.token, 2.0)
    assert broker.commit("a", new.token, Returned("new"), 2.0).result == Returned("new")
    with pytest.raises(LeaseLost):
        broker.commit("a", new.token, Returned("twice"), 3.0)


def test_only_a_waiting_task_is_claimed_or_ended_waiting(make: Make) -> None:
    broker = make(LIMITS)
    broker.accept(task("a"), 0.0)
    broker.claim("a", 0.0, 9.0)
    with pytest.raises(LeaseLost):
        broker.claim("a", 0.0, 9.0)
    with pytest.raises(LeaseLost):
        broker.end_waiting("a", TaskState.EXPIRED, None, 0.0)
    with pytest.raises(KeyError):
        broker.claim("unknown", 0.0, 9.0)


def test_a_released_task_forgets_what_it_had_said(make: Make) -> None:
    async def said() -> list[object]:
        broker = make(LIMITS)
        broker.accept(task("a"), 0.0)
        first = broker.claim("a", 0.0, 9.0)
        broker.publish("a", first.token, TextDelta("lost", (1,)))
        broker.release("a", first.token, "crashed")
        second = broker.claim("a", 0.0, 9.0)
        broker.publish("a", second.token, TextDelta("kept", (2,)))
        broker.commit("a", second.token, Returned(1), 0.0)
        return [event async for event in broker.events("a")]

    texts = [event.text for event in asyncio.run(said()) if isinstance(event, TextDelta)]
    assert texts == ["kept"]


def test_every_listener_hears_everything_whenever_it_comes(make: Make) -> None:
    async def main() -> None:
        broker = make(LIMITS)
        broker.accept(task("a"), 0.0)

        async def listen() -> list[object]:
            return [event async for event in broker.events("a")]

        early = asyncio.create_task(listen())
        claim = broker.claim("a", 0.0, 9.0)
        await asyncio.sleep(0)
        assert broker.watched("a")
        broker.publish("a", claim.token, TextDelta("x", (1,)))
        broker.commit("a", claim.token, Returned(1), 0.0)
        heard = await early
        assert TextDelta("x", (1,)) in heard
        assert await listen() == heard
        assert (await broker.wait("a")).state is TaskState.SUCCEEDED

    asyncio.run(main())


def test_one_key_is_one_task_and_another_body_conflicts(make: Make) -> None:
    broker = make(LIMITS)
    broker.accept(task("a", key="k"), 0.0)
    found = broker.find(task("b", key="k").request)
    assert found is not None
    assert found.id == "a"
    assert broker.find(task("b", key="other").request) is None
    with pytest.raises(IdempotencyConflict):
        broker.find(task("b", key="k", value=2).request)


def test_the_oldest_results_go_first_by_count_bytes_and_age(make: Make) -> None:
    broker = make(ResultLimits(tasks=2))
    for place, name in enumerate("abc"):
        ended(broker, name, float(place))
    assert [broker.get(name) is not None for name in "abc"] == [False, True, True]

    broker = make(ResultLimits(bytes=6000))
    ended(broker, "a", 0.0, "x" * 4000)
    ended(broker, "b", 1.0, "x" * 4000)
    assert [broker.get(name) is not None for name in "ab"] == [False, True]

    broker = make(ResultLimits(ttl_seconds=10.0))
    ended(broker, "a", 0.0)
    ended(broker, "b", 5.0)
    broker.accept(task("waits"), 0.0)
    broker.forget(12.0)
    assert [broker.get(name) is not None for name in ("a", "b", "waits")] == [False, True, True]


def test_a_forgotten_task_frees_its_key(make: Make) -> None:
    broker = make(ResultLimits(ttl_seconds=10.0))
    broker.accept(task("a", key="k"), 0.0)
    broker.commit("a", broker.claim("a", 0.0, 9.0).token, Returned(1), 0.0)
    broker.forget(11.0)
    assert broker.find(task("b", key="k", value=2).request) is None
