from __future__ import annotations

from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llmtaskpool_worker.scheduling.priority import QueuePolicy
from llmtaskpool_worker.scheduling.task_queue import QueueFullError, TaskQueue, Waiting, again

AGEING = 20.0
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"),
            st.sampled_from("ab"),
            st.integers(0, 2),
            st.sampled_from([0.5, 1.0, 2.0, 3.0]),
            st.integers(1, 40),
        ),
        st.tuples(st.just("take"), st.sampled_from(["a", "b", "ab", ""])),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("price"), st.integers(0, 2), st.sampled_from([0.1, 1.0, 5.0])),
        st.tuples(st.just("wait"), st.integers(1, 15)),
    ),
    max_size=60,
)


def make(
    loads: dict[Hashable, float], max_tasks: int = 1000, max_bytes: int = 1 << 30
) -> TaskQueue:
    return TaskQueue(
        load=loads.__getitem__, max_tasks=max_tasks, max_bytes=max_bytes, ageing_seconds=AGEING
    )


def naive_next(waiting: list[Waiting], loads: dict[Hashable, float], now: float) -> Waiting | None:
    if not waiting:
        return None
    if now - waiting[0].arrived_at >= AGEING:
        return waiting[0]
    return max(waiting, key=lambda w: (w.weight / loads[w.cost_class], -waiting.index(w)))


@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_the_queue_answers_as_a_plain_sorted_list_does(operations: list[tuple]) -> None:  # type: ignore[type-arg]  # tuples of several forms
    loads: dict[Hashable, float] = {0: 1.0, 1: 2.0, 2: 4.0}
    queue, naive, now, count = make(loads), list[Waiting](), 0.0, 0
    for operation in operations:
        match operation:
            case ("push", group, cost, weight, patience):
                item = Waiting(str(count), group, cost, weight, now, now + patience, 10)
                count += 1
                queue.push(item)
                naive.append(item)
            case ("take", groups):
                allowed = [w for w in naive if w.group is not None and w.group in groups]
                wanted = naive_next(allowed, loads, now)
                assert queue.take(now, lambda g, among=groups: g in among) is wanted
                naive = [w for w in naive if w is not wanted]
            case ("cancel", number):
                found = next((w for w in naive if w.id == str(number)), None)
                assert queue.cancel(str(number)) is found
                naive = [w for w in naive if w is not found]
            case ("price", cost, seconds):
                loads[cost] = seconds
            case ("wait", seconds):
                now += seconds
                late = {w.id for w in naive if w.expires_at <= now}
                assert {w.id for w in queue.expired(now)} == late
                naive = [w for w in naive if w.id not in late]
        assert [w.id for w in queue] == [w.id for w in naive]
        assert queue.bytes == 10 * len(naive)
        assert queue.oldest_arrival() == (naive[0].arrived_at if naive else None)
        assert queue.next_expiry() == min((w.expires_at for w in naive), default=float("inf"))


def test_a_full_queue_says_which_bound_and_keeps_what_it_had() -> None:
    queue = make({0: 1.0}, max_tasks=1)
    queue.push(Waiting("a", None, 0, 1.0, 0.0))
    with pytest.raises(QueueFullError, match="1 tasks"):
        queue.push(Waiting("b", None, 0, 1.0, 0.0))
    queue = make({0: 1.0}, max_bytes=10)
    queue.push(Waiting("a", None, 0, 1.0, 0.0, size_bytes=6))
    with pytest.raises(QueueFullError, match="10 bytes"):
        queue.push(Waiting("b", None, 0, 1.0, 0.0, size_bytes=6))
    assert [item.id for item in queue] == ["a"]


def test_newest_first_turns_round_only_once_the_oldest_has_aged() -> None:
    for now, first in ((AGEING - 1, "old"), (AGEING, "new")):
        queue = make({0: 1.0})
        queue.policy = QueuePolicy.NEWEST_FIRST
        queue.push(Waiting("old", None, 0, 1.0, 0.0))
        queue.push(Waiting("new", None, 0, 1.0, 5.0))
        taken = queue.take(now, lambda _: True)
        assert taken is not None
        assert taken.id == first


def test_what_is_put_back_has_the_place_of_its_arrival_beyond_the_bounds() -> None:
    queue = TaskQueue(load=lambda _: 1.0, max_tasks=3, max_bytes=1 << 30, ageing_seconds=60.0)
    for number in range(3):
        queue.push(
            Waiting(
                str(number), "m", "class", weight=1.0, arrived_at=float(number), expires_at=99.0
            )
        )
    taken = [queue.take(0.0, lambda _: True) for _ in range(2)]
    queue.push(Waiting("new", "m", "class", weight=1.0, arrived_at=3.0))
    queue.push(Waiting("newer", "m", "class", weight=1.0, arrived_at=3.0))
    queue.restore([again(item, "m", 99.0) for item in reversed(taken) if item is not None])
    assert len(queue) == 5
    assert queue.oldest_arrival() == 0.0
    order = [queue.take(0.0, lambda _: True) for _ in range(5)]
    assert [item.id for item in order if item is not None] == ["0", "1", "2", "new", "newer"]
    assert len(queue) == 0
    assert queue.expired(1000.0) == []
