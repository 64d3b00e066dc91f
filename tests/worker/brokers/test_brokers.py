"""What every broker promises."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable

import pytest
from llmtaskpool_worker.brokers.memory import MemoryBroker
from llmtaskpool_worker.brokers.own_books import Accepted, Broker, IdempotencyConflict, LeaseLost
from llmtaskpool_worker.brokers.retention import NoRoom
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.scheduling.limits import ResultLimits
from llmtaskpool_worker.scheduling.task import (
    Call,
    Embedded,
    Generated,
    Returned,
    TaskRequest,
    TaskState,
    TextDelta,
    TokenLogprob,
)

Make = Callable[[ResultLimits], Broker]
LIMITS = ResultLimits()


@pytest.fixture(params=[MemoryBroker])
def make(request: pytest.FixtureRequest) -> Make:
    return request.param  # type: ignore[no-any-return]  # as listed


def task(
    name: str, key: str | None = None, value: object = 1, *, attended: bool = False
) -> Accepted:
    request = TaskRequest(
        kind="k", payload=Call({"v": value}), idempotency_key=key, attended=attended
    )
    return Accepted(name, request, LaneName.IO, 1.0, 1.0)


def ended(
    broker: Broker, name: str, now: float, value: object = 1, *, attended: bool = False
) -> None:
    broker.accept(task(name, attended=attended), now)
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


def test_answers_that_were_read_go_oldest_first_by_count_bytes_and_age(make: Make) -> None:
    broker = make(ResultLimits(tasks=2))
    for place, name in enumerate("abc"):
        ended(broker, name, float(place), attended=True)
        assert broker.get(name) is not None, "nobody has read it yet"
        broker.let_go(name)
        broker.forget(float(place))
    assert [broker.get(name) is not None for name in "abc"] == [False, True, True]

    broker = make(ResultLimits(bytes=7000))
    for name in "ab":
        ended(broker, name, 0.0, "x" * 4000, attended=True)
        broker.let_go(name)
    broker.forget(0.0)
    assert [broker.get(name) is not None for name in "ab"] == [False, True]


def test_results_go_when_their_time_is_over(make: Make) -> None:
    broker = make(ResultLimits(ttl_seconds=10.0))
    ended(broker, "a", 0.0)
    ended(broker, "b", 5.0)
    broker.accept(task("waits"), 0.0)
    broker.forget(12.0)
    assert [broker.get(name) is not None for name in ("a", "b", "waits")] == [False, True, True]


@pytest.mark.parametrize(
    "limits", [ResultLimits(tasks=50), ResultLimits(bytes=300_000), ResultLimits(tasks=1)]
)
def test_what_is_accepted_can_be_read_until_the_time_that_was_told(
    make: Make, limits: ResultLimits
) -> None:
    broker = make(limits)
    expires: dict[str, float] = {}
    retry_after: list[float] = []
    for second in range(300):
        now = float(second)
        broker.forget(now)
        for place in range(2):
            name = f"{second}-{place}"
            try:
                told = broker.accept(task(name), now).result_expires_at
            except NoRoom as full:
                retry_after.append(full.retry_after_seconds)
                continue
            assert told is not None
            assert told >= now + 60, "kept for a minute at least"
            claim = broker.claim(name, now, 9.0)
            view = broker.commit(name, claim.token, Returned("x" * (second % 40) * 50), now)
            assert view.result_expires_at is not None
            assert view.result_expires_at >= told
            expires[name] = view.result_expires_at
        for name, until in expires.items():
            assert (broker.get(name) is not None) or until <= now, "kept as long as was told"
    assert retry_after
    assert 1 <= min(retry_after) <= max(retry_after) <= 60
    assert len(expires) > 2, "room that is free again is given again"


def test_a_result_is_not_given_up_while_somebody_waits_for_it_or_follows_it(make: Make) -> None:
    async def main() -> None:
        broker = make(ResultLimits(tasks=1, ttl_seconds=10.0))
        broker.accept(task("a"), 0.0)
        claim = broker.claim("a", 0.0, 9.0)
        following = broker.events("a")
        assert await anext(following)
        waiting = asyncio.create_task(broker.wait("a"))
        await asyncio.sleep(0)
        broker.publish("a", claim.token, TextDelta("x", (1,)))
        broker.commit("a", claim.token, Returned(7), 0.0)
        broker.forget(1000.0)
        heard = [event async for event in following]
        assert TextDelta("x", (1,)) in heard
        assert (await waiting).result == Returned(7)
        broker.forget(1000.0)
        assert broker.get("a") is None

    asyncio.run(main())


def test_a_result_that_finds_no_room_is_told_as_lost(make: Make) -> None:
    broker = make(ResultLimits(bytes=100_000))
    for name in "abc":
        broker.accept(task(name), 0.0)
    views = {}
    for name in "abc":
        claim = broker.claim(name, 0.0, 9.0)
        views[name] = broker.commit(name, claim.token, Returned("x" * 80_000), 0.0)
    assert [views[name].state for name in "ab"] == [TaskState.SUCCEEDED] * 2
    assert views["c"].state is TaskState.FAILED
    assert views["c"].error is not None
    assert views["c"].error.code == "result_lost"
    assert broker.get("a").result == Returned("x" * 80_000)  # type: ignore[union-attr]
    with pytest.raises(NoRoom):
        broker.accept(task("d"), 0.0)


def generated(tokens: int, alternatives: int) -> tuple[list[TextDelta], Generated]:
    drawn = [
        TokenLogprob(
            10_000 + place,
            -place / 7,
            tuple((20_000 + place * 30 + i, -i / 3) for i in range(alternatives)),
        )
        for place in range(tokens)
    ]
    deltas = [TextDelta(f"w{d.token}", (d.token,), (d,) if alternatives else ()) for d in drawn]
    result = Generated(
        "".join(d.text for d in deltas),
        tuple(d.token for d in drawn),
        5,
        "stop",
        tuple(drawn) if alternatives else (),
    )
    return deltas, result


@pytest.mark.parametrize(
    ("tasks", "say"),
    [
        (40, lambda: generated(300, 20)),
        (200, lambda: generated(300, 0)),
        (2000, lambda: ([], Returned(1))),
        (500, lambda: ([], Returned({f"k{i}": [i * 1.5, f"v{i}"] for i in range(40)}))),
        (20, lambda: ([], Returned([{"id": i, "name": f"n{i}"} for i in range(3000)]))),
        (100, lambda: ([], Returned({"content": bytes(20_000).hex()}))),
        (1000, lambda: ([], Embedded(bytes(bytearray(1536)), 9))),
    ],
    ids=["logprobs", "chat", "small", "object", "list", "text", "vector"],
)
def test_memory_is_counted_as_python_holds_it(tasks: int, say: Callable) -> None:
    """A limit of 64 MiB held 825 before, with 20 alternatives for each token."""
    broker = MemoryBroker(ResultLimits(bytes=1 << 40))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(tasks):
            name = f"task-{number:032d}"
            broker.accept(task(name, value=f"argument {number}"), 0.0)
            token = broker.claim(name, 0.0, 9.0).token
            events, result = say()
            for event in events:
                broker.publish(name, token, event)
            broker.commit(name, token, result, 0.0)
            del events, result
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held / 1.5 < broker.kept_bytes < held * 1.5


def test_a_forgotten_task_frees_its_key(make: Make) -> None:
    broker = make(ResultLimits(ttl_seconds=10.0))
    broker.accept(task("a", key="k"), 0.0)
    broker.commit("a", broker.claim("a", 0.0, 9.0).token, Returned(1), 0.0)
    broker.forget(11.0)
    assert broker.find(task("b", key="k", value=2).request) is None
