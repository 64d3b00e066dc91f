"""The operator's keyed queue, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from fakes.virtual_time import clock, run
from llmtaskpool_operator.cluster.work_queue import WorkQueue
from llmtaskpool_operator.workers.backoff import Backoff

Body = Callable[[WorkQueue[str]], Awaitable[None]]


def queue_test(body: Body) -> Callable[[], None]:
    """A test that gets a queue, and runs where waiting costs no time."""

    def test() -> None:
        async def main() -> None:
            await body(WorkQueue(clock))

        run(main())

    test.__name__ = body.__name__
    return test


async def taken(queue: WorkQueue[str], within: float = 0.0) -> str | None:
    """What is taken within so many seconds; None: nothing."""
    try:
        async with asyncio.timeout(within + 1e-6):
            return await queue.take()
    except TimeoutError:
        return None


@queue_test
async def test_keys_are_taken_in_the_order_in_which_they_were_added(queue):
    for key in "bca":
        queue.add(key)
    assert [await queue.take() for _ in range(3)] == ["b", "c", "a"]


@queue_test
async def test_a_key_that_is_added_again_while_it_waits_is_not_doubled(queue):
    for _ in range(5):
        queue.add("a")
    assert queue.depth == 1
    assert await queue.take() == "a"
    assert await taken(queue, 100) is None


@queue_test
async def test_a_key_that_is_added_while_it_is_worked_on_comes_again_and_once(queue):
    queue.add("a")
    await queue.take()
    queue.add("a")
    queue.add("a")
    assert await taken(queue, 100) is None
    queue.done("a")
    assert await taken(queue) == "a"
    queue.done("a")
    assert await taken(queue, 100) is None


@queue_test
async def test_of_two_times_given_while_it_is_worked_on_the_earlier_holds(queue):
    queue.add("a")
    await queue.take()
    queue.add("a", after=1)
    queue.add("a", after=60)
    queue.done("a")
    assert await taken(queue, 1) == "a"


@queue_test
async def test_a_delayed_key_comes_when_it_is_due_and_not_before(queue):
    began = clock()
    queue.add("a", after=5)
    assert await queue.take() == "a"
    assert clock() - began == pytest.approx(5)


@queue_test
async def test_an_earlier_time_goes_before_a_later_one_for_the_same_key(queue):
    began = clock()
    queue.add("a", after=60)
    queue.add("a", after=2)
    queue.add("a", after=30)
    assert await queue.take() == "a"
    assert clock() - began == pytest.approx(2)
    queue.done("a")
    assert await taken(queue, 100) is None


@queue_test
async def test_who_waits_for_a_late_key_gets_an_earlier_one_at_once(queue):
    queue.add("late", after=60)
    waiting = asyncio.create_task(queue.take())
    await asyncio.sleep(1)
    began = clock()
    queue.add("now")
    assert await waiting == "now"
    assert clock() == pytest.approx(began)


@queue_test
async def test_a_turn_that_ended_well_comes_again_after_the_time_it_says(queue):
    queue.add("a")
    await queue.take()
    began = clock()
    queue.done("a", again_after=5)
    assert await queue.take() == "a"
    assert clock() - began == pytest.approx(5)


@queue_test
async def test_an_event_during_a_turn_goes_before_the_time_that_the_turn_says(queue):
    queue.add("a")
    await queue.take()
    queue.add("a")
    queue.done("a", again_after=600)
    assert await taken(queue) == "a"


@queue_test
async def test_failures_wait_twice_as_long_each_time_up_to_a_bound(queue):
    queue.add("a")
    await queue.take()
    waits = []
    for _ in range(9):
        told, before = queue.failed("a"), clock()
        await queue.take()
        assert clock() - before == pytest.approx(told)
        waits.append(told)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@queue_test
async def test_a_success_lets_the_backoff_begin_anew(queue):
    queue.add("a")
    for wanted in (0.5, 1.0):
        await queue.take()
        assert queue.failed("a") == wanted
    await queue.take()
    queue.done("a", again_after=0)
    await queue.take()
    assert queue.failed("a") == 0.5


@queue_test
async def test_a_server_that_asks_for_more_time_gets_it(queue):
    queue.add("a")
    await queue.take()
    began = clock()
    assert queue.failed("a", after=20) == 20
    await queue.take()
    assert clock() - began == pytest.approx(20)


@queue_test
async def test_a_server_that_asks_for_less_time_does_not_shorten_the_backoff(queue):
    queue.add("a")
    await queue.take()
    assert queue.failed("a", after=0.01) == 0.5


@queue_test
async def test_events_during_a_failed_turn_do_not_undo_its_backoff(queue):
    queue.add("a")
    await queue.take()
    began = clock()
    queue.add("a")
    queue.failed("a")
    await queue.take()
    assert clock() - began == pytest.approx(0.5)


@queue_test
async def test_one_keys_failures_delay_no_other(queue):
    for key in "ab":
        queue.add(key)
    assert queue.failed(await queue.take()) == 0.5
    assert await taken(queue) == "b"


@queue_test
async def test_no_two_takers_ever_work_on_the_same_key(queue):
    working: set[str] = set()
    turns: dict[str, int] = dict.fromkeys("abc", 0)

    async def taker(number: int) -> None:
        while True:
            key = await queue.take()
            assert key not in working
            working.add(key)
            turns[key] += 1
            await asyncio.sleep(0.1 * (number + 1))
            working.remove(key)
            if turns[key] % 3:
                queue.done(key)
            else:
                queue.failed(key)

    async def events() -> None:
        for _ in range(100):
            for key in turns:
                queue.add(key)
            await asyncio.sleep(0.07)

    takers = [asyncio.create_task(taker(number)) for number in range(8)]
    await events()
    await asyncio.sleep(10)
    for one in takers:
        one.cancel()
    ended = await asyncio.gather(*takers, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in ended)
    assert min(turns.values()) > 5
    assert not working


@queue_test
async def test_keys_that_are_due_at_one_moment_go_to_as_many_takers(queue):
    takers = [asyncio.create_task(queue.take()) for _ in range(3)]
    await asyncio.sleep(1)
    for key in "abc":
        queue.add(key, after=5)
    began = clock()
    assert sorted(await asyncio.gather(*takers)) == ["a", "b", "c"]
    assert clock() - began == pytest.approx(5)


@queue_test
async def test_all_that_is_due_is_taken_without_a_pass_of_the_event_loop(queue):
    for key in "abc":
        queue.add(key)
    passes: list[None] = []
    asyncio.get_running_loop().call_soon(passes.append, None)
    assert [await queue.take() for _ in range(3)] == ["a", "b", "c"]
    assert not passes


@queue_test
async def test_a_taker_that_gives_up_takes_nothing_with_it(queue):
    assert await taken(queue, 1) is None
    queue.add("a", after=1)
    assert await taken(queue, 0.5) is None
    assert await queue.take() == "a"


@queue_test
async def test_depth_counts_what_is_due_and_neither_what_waits_nor_what_is_worked_on(queue):
    assert (queue.depth, queue.oldest_seconds) == (0, 0)
    queue.add("a")
    queue.add("b")
    queue.add("later", after=60)
    assert queue.depth == 2
    await queue.take()
    assert queue.depth == 1
    await asyncio.sleep(60)
    assert queue.depth == 2


@queue_test
async def test_the_oldest_tells_for_how_long_a_key_is_overdue(queue):
    queue.add("a", after=10)
    assert queue.oldest_seconds == 0
    await asyncio.sleep(12)
    queue.add("b")
    assert queue.oldest_seconds == pytest.approx(2)
    await queue.take()
    assert queue.oldest_seconds == 0


@queue_test
async def test_a_forgotten_key_does_not_come(queue):
    queue.add("a")
    queue.add("b", after=5)
    queue.forget("a")
    queue.forget("b")
    queue.forget("never seen")
    assert queue.depth == 0
    assert await taken(queue, 100) is None


@queue_test
async def test_a_key_that_is_forgotten_while_it_is_worked_on_does_not_come_again(queue):
    queue.add("a")
    await queue.take()
    queue.add("a")
    queue.forget("a")
    queue.done("a")
    assert await taken(queue, 100) is None


@queue_test
async def test_a_forgotten_keys_failures_are_forgotten(queue):
    queue.add("a")
    await queue.take()
    queue.failed("a")
    queue.forget("a")
    queue.add("a")
    await queue.take()
    assert queue.failed("a") == 0.5


@queue_test
async def test_a_cleared_queue_is_empty_and_works_on(queue):
    for key in "abc":
        queue.add(key, after=1)
    queue.clear()
    assert await taken(queue, 100) is None
    queue.add("a")
    assert await taken(queue) == "a"


def test_a_backoff_stays_bounded_after_any_number_of_failures():
    backoff = Backoff(first=1, most=7)
    assert [backoff.after(n) for n in (1, 2, 3, 4, 10_000)] == [1, 2, 4, 7, 7]
