from __future__ import annotations

from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llmtaskpool_worker.scheduling.priority import QueuePolicy
from llmtaskpool_worker.scheduling.task_queue import QueueFullError, TaskQueue, Waiting, again

AGEING = 20.0
SHARE = 0.25
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
        load=loads.__getitem__, max_tasks=max_tasks, max_bytes=max_bytes, ageing_seconds=AGEING,
        aged_share=SHARE,
    )  # fmt: skip


class Naive:
    """The order over a plain list, in order of arrival."""

    def __init__(self, loads: dict[Hashable, float]) -> None:
        self.loads = loads
        self.waiting: list[Waiting] = []
        self.credit = 0.0

    def take(self, groups: str, now: float) -> Waiting | None:
        allowed = [w for w in self.waiting if w.group is not None and w.group in groups]
        if not allowed:
            return None
        best = max(allowed, key=lambda w: (w.weight / self.loads[w.cost_class], -w.sequence))
        if now - allowed[0].arrived_at >= AGEING:
            by_age = self.credit >= 0
            item = allowed[0] if by_age else best
            load = self.loads[item.cost_class]
            self.credit += SHARE * load
            if by_age and item is not best:
                self.credit -= load
        else:
            item = best
            if now - self.waiting[0].arrived_at < AGEING:
                self.credit = 0.0
        self.waiting = [w for w in self.waiting if w is not item]
        return item


@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_the_queue_answers_as_a_plain_sorted_list_does(operations: list[tuple]) -> None:  # type: ignore[type-arg]  # tuples of several forms
    loads: dict[Hashable, float] = {0: 1.0, 1: 2.0, 2: 4.0}
    queue, plain, now, count = make(loads), Naive(loads), 0.0, 0
    for operation in operations:
        match operation:
            case ("push", group, cost, weight, patience):
                item = Waiting(str(count), group, cost, weight, now, now + patience, 10)
                count += 1
                queue.push(item)
                plain.waiting.append(item)
            case ("take", groups):
                wanted = plain.take(groups, now)
                assert queue.take(now, lambda g, among=groups: g in among) is wanted
            case ("cancel", number):
                found = next((w for w in plain.waiting if w.id == str(number)), None)
                assert queue.cancel(str(number)) is found
                plain.waiting = [w for w in plain.waiting if w is not found]
            case ("price", cost, seconds):
                loads[cost] = seconds
            case ("wait", seconds):
                now += seconds
                late = {w.id for w in plain.waiting if w.expires_at <= now}
                assert {w.id for w in queue.expired(now)} == late
                plain.waiting = [w for w in plain.waiting if w.id not in late]
        naive = plain.waiting
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


CHAT, BULK = 0, 1
TASKS = st.lists(
    st.tuples(st.sampled_from([CHAT, BULK]), st.sampled_from([0.1, 1.0, 20.0])), min_size=1
)


def started_in_order(queue: TaskQueue, now: float) -> list[Waiting]:
    order = []
    while (item := queue.take(now, lambda _: True)) is not None:
        order.append(item)
    return order


@settings(max_examples=200, deadline=None)
@given(TASKS, st.sampled_from([0.05, 0.25, 0.5]))
def test_the_aged_get_their_share_of_thread_seconds_and_urgent_work_keeps_the_rest(
    tasks: list[tuple[int, float]], share: float
) -> None:
    """Of what starts before the last aged one, at least the share less one task; no more by age."""
    loads: dict[Hashable, float] = {CHAT: 1.0, BULK: 8.0}
    queue = TaskQueue(
        load=loads.__getitem__, max_tasks=10**6, max_bytes=1 << 30, ageing_seconds=AGEING,
        aged_share=share,
    )  # fmt: skip
    old = [Waiting(f"old {n}", "m", cost, 0.01, 0.0) for n, (cost, _) in enumerate(tasks)]
    for item in old:
        queue.push(item)
    for number in range(2000):
        queue.push(Waiting(f"urgent {number}", "m", CHAT, 50.0, AGEING))
    aged = total = 0.0
    urgent_left, old_left = 2000, len(old)
    aged_in_order: list[Waiting] = []
    while urgent_left and old_left:  # from there on the others are alone
        item = queue.take(AGEING, lambda _: True)
        assert item is not None
        is_old = item.id.startswith("old")
        urgent_left -= not is_old
        old_left -= is_old
        load = loads[item.cost_class]
        total += load
        aged += load if is_old else 0.0
        assert aged <= share * total + (1 - share) * loads[BULK] + 1e-6
        assert aged >= share * total - loads[BULK] - 1e-6
        aged_in_order += [item] if is_old else []
    assert aged_in_order == old[: len(aged_in_order)]


def test_a_backlog_that_has_aged_ends_no_priority() -> None:
    """Before: with the oldest aged, the queue was first come, first served."""
    loads: dict[Hashable, float] = {CHAT: 1.0, BULK: 8.0}
    queue = make(loads, max_tasks=10_000)
    for number in range(5000):
        queue.push(Waiting(f"bulk {number}", "m", BULK, 0.1, 0.0))
    for number in range(4):
        queue.push(Waiting(f"chat {number}", "m", CHAT, 1.0, AGEING))
    first = [item.id for item in started_in_order(queue, AGEING)[:6]]
    assert first == ["bulk 0", "chat 0", "chat 1", "chat 2", "chat 3", "bulk 1"]


@pytest.mark.parametrize(("share", "first"), [(0.0, "chat"), (1.0, "bulk")])
def test_a_share_of_none_or_all_is_the_order_alone_or_age_alone(share: float, first: str) -> None:
    queue = TaskQueue(
        load=lambda _: 1.0, max_tasks=99, max_bytes=99, ageing_seconds=AGEING, aged_share=share
    )
    for number in range(3):
        queue.push(Waiting(f"bulk {number}", "m", 0, 0.1, 0.0))
    for number in range(3):
        queue.push(Waiting(f"chat {number}", "m", 0, 1.0, AGEING))
    order = [item.id.split()[0] for item in started_in_order(queue, AGEING)]
    assert order[:3] == [first] * 3
