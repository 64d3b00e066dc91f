"""What every broker promises."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from llmtaskpool_worker.brokers.protocol import (
    DEPENDENCY_FAILED,
    WORKER_LOST,
    Commit,
    Full,
    IdempotencyConflict,
    Release,
    UnknownParent,
)
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.task import (
    Asked,
    Returned,
    StateChanged,
    TaskError,
    TaskState,
    TextDelta,
)

from .rigs import RIGS, Rig, held, task

Story = Callable[[Rig], Awaitable[None]]
Play = Callable[..., None]


@pytest.fixture(params=RIGS, ids=lambda make: make.__name__)
def play(request: pytest.FixtureRequest) -> Play:
    """Run a story against a broker of its own."""

    def run(story: Story, limits: Limits | None = None) -> None:
        async def whole() -> None:
            async with request.param(limits or Limits()) as rig:
                await story(rig)

        asyncio.run(asyncio.wait_for(whole(), 60))

    return run


async def state_of(rig: Rig, name: str) -> str:
    view = await rig.broker.get(name)
    return "forgotten" if view is None else view.state.value


def test_a_task_goes_from_queued_over_running_to_its_result(play: Play) -> None:
    async def story(rig: Rig) -> None:
        receipt = await rig.broker.accept(task("a"))
        assert (receipt.view.state, receipt.known) == (TaskState.QUEUED, False)
        await rig.later(0.01)
        claim = await rig.take()
        assert (claim.id, claim.attempt, claim.alone) == ("a", 1, False)
        assert claim.request == task("a").request
        running = await rig.broker.get("a")
        assert running is not None
        assert (running.state, running.attempts) == (TaskState.RUNNING, 1)
        assert running.started_at > running.submitted_at
        committed = await rig.end(claim, Returned(7))
        assert committed.commit is Commit.TAKEN
        view = committed.view
        assert (view.state, view.result) == (TaskState.SUCCEEDED, Returned(7))
        assert view == await rig.broker.get("a")
        assert view.result_expires_at > view.ended_at

    play(story)


def test_the_same_outcome_said_again_is_taken_once(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a"))
        claim = await rig.take()
        assert (await rig.end(claim, Returned("one"))).commit is Commit.TAKEN
        again = await rig.end(claim, Returned("two"))
        assert (again.commit, again.view.result) == (Commit.HAD, Returned("one"))

    play(story)


def test_the_same_submission_said_again_is_the_same_task(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a"))
        assert (await rig.broker.accept(task("a"))).known
        assert len(await rig.claim(most=9)) == 1

    play(story)


def test_an_old_fence_changes_nothing(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a"))
        old = await rig.take()
        await rig.broker.release([Release("a", old.fence, "crashed")])
        new = await rig.take()
        assert new.fence != old.fence
        assert new.attempt == 2
        assert (await rig.end(old, Returned("old"))).commit is Commit.LOST
        assert await rig.broker.renew([held(old), held(new)], 100.0) == {"a"}
        await rig.broker.release([Release("a", old.fence, "again")])
        rig.broker.publish(held(old), TextDelta("old", (1,)))
        assert await state_of(rig, "a") == "running"
        committed = await rig.end(new, Returned("new"))
        assert (committed.commit, committed.view.result) == (Commit.TAKEN, Returned("new"))
        assert (await rig.end(old, Returned("old"))).commit is Commit.LOST

    play(story)


def test_an_attempt_that_has_not_begun_is_not_counted(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a"))
        for _ in range(5):
            claim = await rig.take()
            assert claim.attempt == 1
            await rig.broker.release([Release("a", claim.fence, "no room", counts=False)])

    play(story)


def test_what_is_highest_by_weight_over_load_goes_first_and_equals_in_turn(play: Play) -> None:
    async def story(rig: Rig) -> None:
        for name, weight, line in (
            ("long", 2.0, "slow"),
            ("one", 1.0, "quick"),
            ("two", 1.0, "quick"),
            ("urgent", 30.0, "slow"),
        ):
            await rig.broker.accept(task(name, weight=weight, line=line))
        loads = {"slow": 10.0, "quick": 1.0}
        claims = await rig.claim(most=2, loads=loads)
        assert [claim.id for claim in claims] == ["urgent", "one"]
        assert claims[0].line.cost_class == "slow"
        loads["quick"] = 100.0  # learned meanwhile
        claims = await rig.claim(most=9, loads=loads)
        assert [claim.id for claim in claims] == ["long", "two"]

    play(story)


def test_a_group_without_slots_holds_up_no_other(play: Play) -> None:
    async def story(rig: Rig) -> None:
        for name, kind in (("a", "busy"), ("b", "k"), ("c", "k"), ("d", "other")):
            await rig.broker.accept(task(name, kind=kind, weight=9.0 if name == "a" else 1.0))
        claims = await rig.claim(most=9, free={"busy": 0, "k": 1})
        assert [claim.id for claim in claims] == ["b"]

    play(story)


def test_a_claimer_can_ask_for_what_is_above_its_own(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a", weight=2.0))
        assert await rig.claim(above=2.0) == []
        assert [claim.id for claim in await rig.claim(above=1.9)] == ["a"]

    play(story)


def test_the_most_urgent_that_waits_is_seen_and_is_promised_a_place_while_it_waits(
    play: Play,
) -> None:
    async def story(rig: Rig) -> None:
        loads = {"slow": 10.0, "quick": 1.0}

        async def first() -> tuple[str, float] | None:
            head = await rig.broker.peek(rig.wanted(loads=loads))
            return None if head is None else (head.id, head.priority)

        assert await first() is None
        await rig.broker.accept(task("a long one", weight=2.0, line="slow"))
        assert await first() == ("a long one", 0.2)
        await rig.broker.accept(task("b", line="quick"))
        await rig.broker.accept(task("c", line="quick"))
        assert await first() == ("b", 1.0)
        head = await rig.broker.peek(rig.wanted(loads=loads))
        assert head is not None
        assert await rig.broker.promise(head)
        assert (await rig.take(loads=loads)).id == "b"
        assert not await rig.broker.promise(head)
        assert await first() == ("c", 1.0)
        await rig.broker.cancel("c")
        await rig.broker.sweep()
        assert await first() == ("a long one", 0.2)
        assert (await rig.take(loads=loads)).id == "a long one"
        assert await first() is None

    play(story)


def test_the_aged_have_their_share_unless_the_thread_is_for_an_urgent_one(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("old", weight=0.1))
        await rig.broker.accept(task("older than it looks", weight=0.2))
        await rig.later(0.4)
        for name in ("x", "y"):
            await rig.broker.accept(task(name, weight=9.0))
        assert (await rig.take(by_age=False)).id == "x"
        assert (await rig.take()).id == "old"
        assert (await rig.take()).id == "y"

    play(story, Limits(ageing_seconds=0.3))


def test_a_full_line_takes_nothing_more_and_tells_its_bound(play: Play) -> None:
    async def story(rig: Rig) -> None:
        for name in "ab":
            await rig.broker.accept(task(name))
        with pytest.raises(Full) as full:
            await rig.broker.accept(task("c"))
        assert (full.value.bound, full.value.limit) == ("tasks", 2)
        assert (await rig.broker.accept(task("a"))).known, "what is there is told all the same"
        await rig.take()
        await rig.broker.accept(task("c"))

    play(story, Limits(io=LaneLimits(1, 1, queue_tasks=2)))


def test_so_many_of_a_group_may_wait_and_others_are_not_held_up(play: Play) -> None:
    async def story(rig: Rig) -> None:
        for name in ("a1", "a2"):
            await rig.broker.accept(task(name, kind="a", group_most=2, key=name))
        with pytest.raises(Full) as refused:
            await rig.broker.accept(task("a3", kind="a", group_most=2))
        assert (refused.value.bound, refused.value.limit) == ("model", 2)
        assert await rig.broker.get("a3") is None
        again = await rig.broker.accept(task("a4", kind="a", group_most=2, key="a2"))
        assert (again.known, again.view.id) == (True, "a2"), "what is there is answered for"
        await rig.broker.accept(task("b1", kind="b", group_most=1))
        await rig.broker.accept(task("c1", kind="c"))
        await rig.broker.cancel("a1")
        await rig.broker.accept(task("a3", kind="a", group_most=2))

    play(story)


def test_one_key_is_one_task_and_another_body_conflicts(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a", key="k"))
        receipt = await rig.broker.accept(task("b", key="k"))
        assert (receipt.known, receipt.view.id) == (True, "a")
        assert not (await rig.broker.accept(task("c", key="other"))).known
        with pytest.raises(IdempotencyConflict):
            await rig.broker.accept(task("b", key="k", value=2))
        await rig.end(await rig.take())
        assert (await rig.broker.accept(task("d", key="k"))).view.id == "a"

    play(story)


def test_what_waited_as_long_as_it_may_is_expired_and_never_given(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a", patience_seconds=0.2))
        await rig.broker.accept(task("b"))
        await rig.later(0.3)
        assert [claim.id for claim in await rig.claim(most=9)] == ["b"]
        ended = (await rig.broker.sweep()).ended
        assert [(view.id, view.state.value) for view in ended] == [("a", "expired")]
        assert (await rig.broker.get("a")).error.code == "queue_timeout"
        assert (await rig.broker.sweep()).ended == [], "each end is told once"

    play(story)


def test_what_is_delayed_waits_for_its_time(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a", delay_seconds=0.2))
        assert await rig.claim() == []
        assert await state_of(rig, "a") == "delayed"
        depth = rig.broker.depth()
        assert (depth.delayed, depth.lanes[LaneName.IO].waiting) == (1, 1)
        await rig.later(0.3)
        await rig.broker.sweep()
        assert (await rig.take()).id == "a"

    play(story)


def test_a_task_whose_lease_ends_runs_again_alone_and_is_dead_at_last(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a", max_attempts=2))
        first = await rig.take(lease_seconds=0.2)
        await rig.later(0.3)
        assert list((await rig.broker.sweep()).returned) == ["a"]
        assert rig.lost == ["a"]
        second = await rig.take(lease_seconds=0.2)
        assert (second.attempt, second.alone) == (2, True)
        assert (await rig.end(first)).commit is Commit.LOST
        await rig.later(0.3)
        ended = (await rig.broker.sweep()).ended
        assert [(v.id, v.state, v.error.code) for v in ended] == [
            ("a", TaskState.DEAD, WORKER_LOST)
        ]
        assert (await rig.end(second)).commit is Commit.LOST
        assert await rig.claim() == []
        assert rig.broker.depth().dead == 1

    play(story)


def test_a_dead_letter_is_listed_and_can_be_replayed(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a", max_attempts=1))
        await rig.broker.accept(task("b", weight=0.1))
        await rig.take(lease_seconds=0.2)
        await rig.later(0.3)
        await rig.broker.sweep()
        dead = await rig.broker.list(Asked(states={TaskState.DEAD}))
        assert [view.id for view in dead] == ["a"]
        assert await rig.broker.replay("b") is None
        assert (await rig.broker.replay("a")).state is TaskState.QUEUED
        claim = await rig.take()
        assert (claim.id, claim.attempt, claim.request) == ("a", 1, task("a").request)
        assert (await rig.end(claim)).view.state is TaskState.SUCCEEDED
        assert rig.broker.depth().dead == 0

    play(story)


def test_a_lease_that_is_renewed_does_not_end(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a"))
        claim = await rig.take(lease_seconds=0.4)
        for _ in range(4):
            await rig.later(0.2)
            assert await rig.broker.renew([held(claim)], 0.4) == frozenset()
            assert not (await rig.broker.sweep()).returned
        assert (await rig.end(claim)).commit is Commit.TAKEN

    play(story)


def test_what_was_cancelled_is_never_given_and_never_committed(play: Play) -> None:
    async def story(rig: Rig) -> None:
        for name in ("runs", "waits"):
            await rig.broker.accept(task(name))
        claim = await rig.take()
        for name in ("runs", "waits"):
            answer = await rig.broker.cancel(name)
            assert (answer.commit, answer.view.state) == (Commit.TAKEN, TaskState.CANCELLED)
            assert (await rig.broker.cancel(name)).commit is Commit.HAD
        assert await rig.claim(most=9) == []
        assert (await rig.end(claim)).commit is Commit.LOST
        assert "runs" in rig.lost or await rig.broker.renew([held(claim)], 1.0) == {"runs"}
        assert (await rig.broker.cancel("unknown")).view is None

    play(story)


def test_what_has_ended_cant_be_cancelled(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.run("a")
        answer = await rig.broker.cancel("a")
        assert (answer.commit, answer.view.state) == (Commit.LOST, TaskState.SUCCEEDED)

    play(story)


def test_a_released_task_forgets_what_it_had_said(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a"))
        first = await rig.take()
        rig.broker.publish(held(first), TextDelta("lost", (1,)))
        await rig.broker.release([Release("a", first.fence, "crashed")])
        listening = asyncio.create_task(said(rig, "a"))
        second = await rig.take()
        rig.broker.publish(held(second), TextDelta("kept", (2,)))
        await rig.end(second)
        events = await listening
        assert [e.text for e in events if isinstance(e, TextDelta)] == ["kept"]

    play(story)


async def said(rig: Rig, name: str) -> list[object]:
    return [event async for event in rig.broker.events(name)]


def test_every_listener_hears_everything_that_is_said_while_it_listens(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a"))
        waiting = asyncio.create_task(rig.broker.wait("a"))
        listeners = [asyncio.create_task(said(rig, "a")) for _ in range(2)]
        claim = await rig.take()
        await rig.later(0.05)
        assert rig.broker.watched("a")
        rig.broker.publish(held(claim), TextDelta("x", (1,)))
        await rig.later(0.05)
        await rig.end(claim)
        for heard in await asyncio.gather(*listeners):
            assert TextDelta("x", (1,)) in heard
            assert heard[-1] == StateChanged(TaskState.SUCCEEDED)
        assert (await waiting).result == Returned(1)

    play(story)


def test_a_run_that_begins_anew_under_its_claim_is_one_attempt_more(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a"))
        claim = await rig.take()
        rig.broker.publish(held(claim), TextDelta("gone", (1,)))
        rig.broker.publish(held(claim), StateChanged(TaskState.QUEUED, "the engine crashed"))
        assert await rig.claim() == [], "it is claimed still"
        rig.broker.publish(held(claim), StateChanged(TaskState.RUNNING))
        committed = await rig.end(claim)
        assert committed.commit is Commit.TAKEN
        assert committed.view.attempts == 2

    play(story)


def test_a_task_waits_for_what_it_depends_on(play: Play) -> None:
    async def story(rig: Rig) -> None:
        for name in "ab":
            await rig.broker.accept(task(name))
        receipt = await rig.broker.accept(task("c", after="ab"))
        assert receipt.view.state is TaskState.BLOCKED
        claims = await rig.claim(most=9)
        assert [claim.id for claim in claims] == ["a", "b"]
        await rig.end(claims[0])
        assert await rig.claim() == []
        await rig.end(claims[1])
        assert (await rig.take()).id == "c"

    play(story)


def test_too_few_that_can_succeed_fail_what_depends_on_them_and_so_on(play: Play) -> None:
    async def story(rig: Rig) -> None:
        for name in "ab":
            await rig.broker.accept(task(name))
        await rig.broker.accept(task("all", after="ab"))
        await rig.broker.accept(task("one", after="ab", need=(1,)))
        await rig.broker.accept(task("whatever", after="ab", need=(None, "continue")))
        await rig.broker.accept(task("grandchild", after=["all"]))
        a, b = await rig.claim(most=9)
        await rig.end(a, TaskError("broken", "it broke"))
        ended = {view.id: view for view in (await rig.broker.sweep()).ended}
        assert set(ended) == {"all", "grandchild"}
        assert {view.error.code for view in ended.values()} == {DEPENDENCY_FAILED}
        await rig.end(b)
        assert {claim.id for claim in await rig.claim(most=9)} == {"one", "whatever"}
        late = await rig.broker.accept(task("late", after=["all"]))
        assert (late.view.state, late.view.error.code) == (TaskState.FAILED, DEPENDENCY_FAILED)

    play(story)


def test_cancel_and_expiry_of_a_parent_count_as_its_failure(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("a", patience_seconds=0.2))
        await rig.broker.accept(task("b"))
        for parent in "ab":
            await rig.broker.accept(task(f"after {parent}", after=[parent]))
        await rig.broker.cancel("b")
        await rig.later(0.3)
        await rig.broker.sweep()
        for parent in "ab":
            assert await state_of(rig, f"after {parent}") == "failed"

    play(story)


def test_a_task_cant_depend_on_what_isnt_there(play: Play) -> None:
    async def story(rig: Rig) -> None:
        with pytest.raises(UnknownParent) as unknown:
            await rig.broker.accept(task("a", after=["nobody"]))
        assert unknown.value.parent == "nobody"
        assert await rig.broker.get("a") is None

    play(story)


def test_what_something_urgent_depends_on_is_as_urgent(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.accept(task("bulk", weight=0.1))
        await rig.broker.accept(task("parent", weight=0.1))
        await rig.broker.accept(task("between", weight=0.1, after=["parent"]))
        await rig.broker.accept(task("ordinary", weight=1.0))
        await rig.broker.accept(task("urgent", weight=9.0, after=["between"]))
        order = []
        while claims := await rig.claim():
            order.append(claims[0].id)
            await rig.end(claims[0])
        assert order == ["parent", "between", "urgent", "ordinary", "bulk"]

    play(story)


def test_tasks_are_listed_newest_first_by_state_and_label_page_by_page(play: Play) -> None:
    async def story(rig: Rig) -> None:
        for number in range(5):
            label = {"batch": "x" if number % 2 else "y"}
            await rig.broker.accept(task(f"t{number}", labels=label))
            await rig.later(0.002)
        await rig.end(await rig.take())
        listed = await rig.broker.list(Asked(states={TaskState.QUEUED}, limit=2))
        assert [view.id for view in listed] == ["t4", "t3"]
        listed = await rig.broker.list(Asked(after="t3"))
        assert [view.id for view in listed] == ["t2", "t1", "t0"]
        assert listed[-1].result is None, "a list has no results"
        listed = await rig.broker.list(Asked(labels={"batch": "x"}))
        assert [view.id for view in listed] == ["t3", "t1"]

    play(story)


def test_who_is_idle_is_woken_when_work_comes(play: Play) -> None:
    async def story(rig: Rig) -> None:
        await rig.broker.wait_for_work(LaneName.IO, ("k",), 0.05)
        waiting = asyncio.create_task(rig.broker.wait_for_work(LaneName.IO, ("k",), 20.0))
        await asyncio.sleep(0.05)
        await rig.broker.accept(task("a"))
        assert await asyncio.wait_for(waiting, 5)

    play(story)


def test_the_depth_tells_what_waits_where(play: Play) -> None:
    async def story(rig: Rig) -> None:
        for name in "abc":
            await rig.broker.accept(task(name))
        await rig.broker.accept(task("d", after="a"))
        claim = await rig.take()
        await rig.broker.sweep()
        depth = rig.broker.depth()
        lane = depth.lanes[LaneName.IO]
        assert (lane.waiting, lane.work_seconds) == (3, pytest.approx(3.0))
        assert (depth.groups["k"].waiting, depth.blocked, depth.running) == (2, 1, 1)
        await rig.end(claim)
        for other in await rig.claim(most=9):
            await rig.end(other)
        await rig.broker.sweep()
        lane = rig.broker.depth().lanes[LaneName.IO]
        assert (lane.waiting, lane.work_seconds) == (0, pytest.approx(0.0))

    play(story)
