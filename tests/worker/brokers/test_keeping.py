"""What a broker of this process keeps of tasks that have ended, and for how long."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable

import pytest
from llmtaskpool_worker.brokers.memory import MemoryBroker
from llmtaskpool_worker.brokers.protocol import Claim, Outcome
from llmtaskpool_worker.brokers.retention import NoRoom
from llmtaskpool_worker.execution.desk import at_once
from llmtaskpool_worker.scheduling.limits import Limits, ResultLimits
from llmtaskpool_worker.scheduling.task import (
    Call,
    Embedded,
    Generated,
    Result,
    Returned,
    TaskState,
    TaskView,
    TextDelta,
    TokenLogprob,
)
from msgspec.structs import replace

from .rigs import Clock, Rig, held, task


class Kept:
    """A MemoryBroker whose calls answer at once."""

    def __init__(self, limits: ResultLimits) -> None:
        self.clock = Clock()
        self.clock.now = 0.0
        self.broker = MemoryBroker(Limits(results=limits), self.clock)
        self.rig = Rig(self.broker, asyncio.sleep)

    def accept(self, name: str, **given) -> TaskView:
        return at_once(self.broker.accept(task(name, **given))).view

    def claim(self) -> Claim:
        return at_once(self.rig.take())

    def commit(self, claim: Claim, result: Result) -> TaskView:
        [committed] = at_once(self.broker.commit([Outcome(claim.id, claim.fence, result)]))
        return committed.view

    def ended(self, name: str, value: object = 1, **given) -> None:
        self.accept(name, **given)
        self.commit(self.claim(), Returned(value))

    def forget(self, now: float) -> None:
        self.clock.now = now
        at_once(self.broker.sweep())

    def get(self, name: str) -> TaskView | None:
        return at_once(self.broker.get(name))

    def there(self, names: str) -> list[bool]:
        return [self.get(name) is not None for name in names]


def test_answers_that_were_read_go_oldest_first_by_count_bytes_and_age() -> None:
    kept = Kept(ResultLimits(tasks=2))
    for place, name in enumerate("abc"):
        kept.clock.now = float(place)
        kept.ended(name, attended=True)
        assert kept.get(name) is not None, "nobody has read it yet"
        kept.broker.let_go(name)
        kept.forget(float(place))
    assert kept.there("abc") == [False, True, True]

    kept = Kept(ResultLimits(bytes=7000))
    for name in "ab":
        kept.ended(name, "x" * 4000, attended=True)
        kept.broker.let_go(name)
    kept.forget(0.0)
    assert kept.there("ab") == [False, True]


def test_results_go_when_their_time_is_over() -> None:
    kept = Kept(ResultLimits(ttl_seconds=10.0))
    kept.ended("a")
    kept.clock.now = 5.0
    kept.ended("b")
    kept.accept("w")
    kept.forget(12.0)
    assert kept.there("abw") == [False, True, True]


@pytest.mark.parametrize(
    "limits", [ResultLimits(tasks=50), ResultLimits(bytes=300_000), ResultLimits(tasks=1)]
)
def test_what_is_accepted_can_be_read_until_the_time_that_was_told(limits: ResultLimits) -> None:
    kept = Kept(limits)
    expires: dict[str, float] = {}
    retry_after: list[float] = []
    for second in range(300):
        now = float(second)
        kept.forget(now)
        for place in range(2):
            name = f"{second}-{place}"
            try:
                told = kept.accept(name).result_expires_at
            except NoRoom as full:
                retry_after.append(full.retry_after_seconds)
                continue
            assert told is not None
            assert told >= now + 60, "kept for a minute at least"
            view = kept.commit(kept.claim(), Returned("x" * (second % 40) * 50))
            assert view.result_expires_at is not None
            assert view.result_expires_at >= told
            expires[name] = view.result_expires_at
        for name, until in expires.items():
            assert (kept.get(name) is not None) or until <= now, "kept as long as was told"
    assert retry_after
    assert 1 <= min(retry_after) <= max(retry_after) <= 60
    assert len(expires) > 2, "room that is free again is given again"


def test_a_result_is_not_given_up_while_somebody_waits_for_it_or_follows_it() -> None:
    async def main() -> None:
        kept = Kept(ResultLimits(tasks=1, ttl_seconds=10.0))
        broker = kept.broker
        kept.accept("a")
        claim = kept.claim()
        following = broker.events("a")
        assert await anext(following)
        waiting = asyncio.create_task(broker.wait("a"))
        await asyncio.sleep(0)
        broker.publish(held(claim), TextDelta("x", (1,)))
        kept.commit(claim, Returned(7))
        kept.forget(1000.0)
        heard = [event async for event in following]
        assert TextDelta("x", (1,)) in heard
        assert (await waiting).result == Returned(7)
        kept.forget(1000.0)
        assert kept.get("a") is None

    asyncio.run(main())


def test_a_result_is_not_given_up_while_a_task_that_depends_on_it_has_not_ended() -> None:
    kept = Kept(ResultLimits(ttl_seconds=10.0))
    kept.ended("a")
    kept.accept("child", after="a", patience_seconds=1e6)
    kept.forget(1000.0)
    assert kept.get("a").result == Returned(1)
    kept.commit(kept.claim(), Returned(2))
    kept.forget(2000.0)
    assert kept.get("a") is None


def test_a_result_that_finds_no_room_is_told_as_lost() -> None:
    kept = Kept(ResultLimits(bytes=100_000))
    for name in "abc":
        kept.accept(name)
    views = {name: kept.commit(kept.claim(), Returned("x" * 80_000)) for name in "abc"}
    assert [views[name].state for name in "ab"] == [TaskState.SUCCEEDED] * 2
    assert views["c"].state is TaskState.FAILED
    assert views["c"].error is not None
    assert views["c"].error.code == "result_lost"
    assert kept.get("a").result == Returned("x" * 80_000)
    with pytest.raises(NoRoom):
        kept.accept("d")


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
    kept = Kept(ResultLimits(bytes=1 << 40))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(tasks):
            kept.accept(f"task-{number:032d}", value=f"argument {number}")
            claim = kept.claim()
            events, result = say()
            for event in events:
                kept.broker.publish(held(claim), event)
            kept.commit(claim, result)
            del events, result, claim
        in_memory = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert in_memory / 1.5 < kept.broker.kept_bytes < in_memory * 1.5


def test_what_is_kept_of_a_task_that_has_ended_is_all_but_its_input() -> None:
    kept = Kept(ResultLimits())
    asked = task(
        "a", labels={"x": "y"}, key="k", tenant="t", delay_seconds=1e-9, max_attempts=7, weight=3.0
    )
    at_once(kept.broker.accept(asked))
    kept.forget(1.0)
    kept.commit(kept.claim(), Returned(1))
    left = kept.broker._records["a"].task
    assert left == replace(asked, request=replace(asked.request, payload=Call()))


def test_a_forgotten_task_frees_its_key() -> None:
    kept = Kept(ResultLimits(ttl_seconds=10.0))
    kept.ended("a", key="k")
    kept.forget(11.0)
    assert not at_once(kept.broker.accept(task("b", key="k", value=2))).known
