"""What is in a queue's file when its worker is gone, and what the next one makes of it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable
from pathlib import Path

import pytest
from llmtaskpool_worker.brokers import journal
from llmtaskpool_worker.brokers.protocol import (
    WORKER_LOST,
    Commit,
    Release,
    Unavailable,
)
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.scheduling.task import (
    Asked,
    Returned,
    StateChanged,
    TaskError,
    TaskState,
)

from .rigs import Clock, Rig, opened, task


def play(story: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(story, 60))  # type: ignore[arg-type]


async def told(rig: Rig, *names: str) -> list[tuple[str, int, bool]]:
    """State, attempts and whether a result is there, of each of these."""
    views = [await rig.broker.get(name) for name in names]
    return [(view.state.value, view.attempts, view.result is not None) for view in views]


def test_what_waited_waits_what_ran_runs_again_alone_and_what_ended_can_be_read(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        file, clock = tmp_path / "queue.db", Clock()
        async with opened(file, clock=clock) as before:
            for name in ("ended", "runs", "waits", "failed", "cancelled"):
                await before.broker.accept(task(name, labels={"n": name}, key=name))
            await before.end(await before.take(), Returned({"ü": [1, None]}))
            await before.take()
            await before.broker.cancel("cancelled")
            third = await before.take()
            await before.broker.release([Release(third.id, third.fence, "later", counts=False)])
            third = (await before.claim(most=2))[1]
            await before.end(third, TaskError("broken", "it broke"))
            promised = (await before.broker.get("ended")).result_expires_at
        clock.now += 5
        async with opened(file, clock=clock) as after:
            assert await told(after, "ended", "runs", "waits", "failed", "cancelled") == [
                ("succeeded", 1, True),
                ("queued", 1, False),
                ("queued", 1, False),
                ("failed", 1, False),
                ("cancelled", 0, False),
            ]
            kept = await after.broker.get("ended")
            assert kept.result == Returned({"ü": [1, None]})
            assert kept.result_expires_at == pytest.approx(promised)
            assert (await after.broker.get("failed")).error == TaskError("broken", "it broke")
            assert (await after.broker.accept(task("x", key="ended"))).view.id == "ended"
            claims = await after.claim(most=9)
            assert [(c.id, c.attempt, c.alone) for c in claims] == [
                ("runs", 2, True),
                ("waits", 2, True),
            ]
            assert claims[0].request == task("runs", labels={"n": "runs"}, key="runs").request
            assert (await after.end(claims[0])).commit is Commit.TAKEN
            heard = [event async for event in after.broker.events("ended")]
            assert heard[-1] == StateChanged(TaskState.SUCCEEDED)

    play(story())


def test_a_task_that_takes_its_worker_along_three_times_is_a_dead_letter(tmp_path: Path) -> None:
    async def story() -> None:
        file, clock = tmp_path / "queue.db", Clock()
        async with opened(file, clock=clock) as rig:
            await rig.broker.accept(task("poison", value="bad"))
            await rig.broker.accept(task("after it", after=["poison"]))
            await rig.take()
        for attempt in (2, 3):
            async with opened(file, clock=clock) as rig:
                assert (await rig.take()).attempt == attempt
        for _ in range(2):
            async with opened(file, clock=clock) as rig:
                assert await rig.claim() == []
                dead = await rig.broker.get("poison")
                assert (dead.state, dead.error.code) == (TaskState.DEAD, WORKER_LOST)
                assert (await rig.broker.get("after it")).state is TaskState.FAILED
                assert rig.broker.depth().dead == 1
        async with opened(file, clock=clock) as rig:
            await rig.broker.replay("poison")
        async with opened(file, clock=clock) as rig:
            claim = await rig.take()
            assert (claim.attempt, claim.request.payload.arguments) == (1, {"v": "bad"})

    play(story())


def test_a_claim_and_an_end_write_a_few_kilobytes_to_the_disk(tmp_path: Path) -> None:
    async def story() -> None:
        file = tmp_path / "queue.db"
        log = tmp_path / "queue.db-wal"
        async with opened(file) as rig:
            for number in range(50):
                await rig.broker.accept(task(f"t{number}", value="x" * 500))
            written = log.stat().st_size
            await rig.end(await rig.take())
            assert 0 < log.stat().st_size - written < 6 * 1024  # one page of 4 kB each was more

    play(story())


def test_time_goes_on_while_no_worker_is_there(tmp_path: Path) -> None:
    async def story() -> None:
        file, clock = tmp_path / "queue.db", Clock()
        async with opened(file, clock=clock) as rig:
            await rig.run("old")
            await rig.broker.accept(task("impatient", patience_seconds=50))
            await rig.broker.accept(task("patient", patience_seconds=5000))
            await rig.broker.accept(task("delayed", delay_seconds=500))
        clock.now += 1000
        async with opened(file, clock=clock) as rig:
            swept = await rig.broker.sweep()
            assert [view.id for view in swept.ended] == ["impatient"]
            assert [c.id for c in await rig.claim(most=9)] == ["patient", "delayed"]
            assert await rig.broker.get("old") is None, "kept as long as was promised"
        async with opened(file, clock=clock) as rig:
            assert await rig.broker.get("old") is None
            assert (await rig.broker.get("impatient")).state is TaskState.EXPIRED

    play(story())


def test_what_depends_on_others_does_so_after_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        file, clock = tmp_path / "queue.db", Clock()
        async with opened(file, clock=clock) as rig:
            for name in "ab":
                await rig.broker.accept(task(name))
            await rig.broker.accept(task("child", after="ab"))
            await rig.end(await rig.take())
        async with opened(file, clock=clock) as rig:
            [claim] = await rig.claim(most=9)
            assert claim.id == "b"
            await rig.end(claim)
            assert (await rig.take()).id == "child"

    play(story())


def test_chats_end_with_their_connection_and_are_not_raised_from_the_dead(tmp_path: Path) -> None:
    async def story() -> None:
        file = tmp_path / "queue.db"
        async with opened(file) as rig:
            await rig.broker.accept(task("chat", attended=True, bound_to="w"))
            await rig.broker.accept(task("waiting chat", attended=True, bound_to="w"))
            await rig.broker.accept(task("bulk"))
            assert (await rig.take()).id == "chat"
            assert rig.broker.depth().bound == 2
        async with opened(file) as rig:
            assert await rig.broker.get("chat") is None
            assert [claim.id for claim in await rig.claim(most=9)] == ["bulk"]

    play(story())


def test_a_worker_that_is_about_to_end_takes_only_what_ends_with_it(tmp_path: Path) -> None:
    async def story() -> None:
        file = tmp_path / "queue.db"
        async with opened(file) as rig:
            await rig.broker.accept(task("bulk", weight=9.0))
            await rig.broker.accept(task("chat", attended=True, bound_to="w"))
            await rig.broker.accept(task("other chat", attended=True, bound_to="w"))
            claims = await rig.claim(most=1, only_bound=True)
            assert [claim.id for claim in claims] == ["chat"]
            given_up = await rig.broker.give_up(TaskError("draining", "it stops"))
            assert [view.id for view in given_up] == ["other chat"]
        async with opened(file) as rig:
            assert [claim.id for claim in await rig.claim(most=9)] == ["bulk"]

    play(story())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE tasks SET request = x'99' WHERE id = 'b'", "a newer worker wrote it"),
        ("UPDATE tasks SET request = x'01c1' WHERE id = 'b'", "the request is damaged"),
        ("UPDATE tasks SET request = NULL WHERE id = 'b'", "request is missing"),
        ("UPDATE tasks SET request = 'text' WHERE id = 'b'", "request is missing"),
        ("UPDATE tasks SET state = 'levitating' WHERE id = 'b'", "damaged"),
        ("UPDATE tasks SET books = x'' WHERE id = 'b'", "damaged"),
        ("UPDATE tasks SET books = x'7f80' WHERE id = 'b'", "a newer worker wrote them"),
        ("UPDATE tasks SET accepted_at = 'yesterday' WHERE id = 'b'", "damaged"),
        ("UPDATE tasks SET state = 'succeeded', ended_at = 1 WHERE id = 'b'", "result is missing"),
    ],
)
def test_what_cant_be_read_goes_into_quarantine_and_stops_nobody(
    tmp_path: Path, change: str, reason: str
) -> None:
    async def story() -> None:
        file = tmp_path / "queue.db"
        async with opened(file) as rig:
            for name in "abc":
                await rig.broker.accept(task(name))
        with sqlite3.connect(file) as by_hand:
            by_hand.execute(change)
        by_hand.close()
        for _ in range(2):
            async with opened(file) as rig:
                assert rig.broker.depth().quarantined == 1
                listed = await rig.broker.list(Asked())
                assert [view.id for view in listed] == ["c", "a"]
        async with opened(file) as rig:
            assert [claim.id for claim in await rig.claim(most=9)] == ["a", "c"]
        by_hand = sqlite3.connect(file)
        [(name, why)] = by_hand.execute("SELECT id, reason FROM quarantine").fetchall()
        by_hand.close()
        assert name == "b"
        assert reason in why

    play(story())


def _something_else(file: Path) -> None:
    with sqlite3.connect(file) as made:
        made.execute("CREATE TABLE songs (name TEXT)")
    made.close()


def _newer(file: Path) -> None:
    async def make() -> None:
        async with opened(file):
            pass

    asyncio.run(make())
    with sqlite3.connect(file) as made:
        made.execute(f"PRAGMA user_version = {journal.VERSION + 1}")
    made.close()


def _torn(file: Path) -> None:
    async def make() -> None:
        async with opened(file) as rig:
            for number in range(50):
                await rig.broker.accept(task(f"t{number}"))

    asyncio.run(make())
    data = bytearray(file.read_bytes())
    data[4096:12288] = b"\xff" * 8192
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("spoil", "remedy"),
    [
        (lambda file: file.write_bytes(b"a shopping list, and no database" * 40), "put it aside"),
        (_something_else, "a database of something else: give another file"),
        (_newer, f"of version {journal.VERSION + 1}.*start the newer worker"),
        (_torn, "put it aside, and try sqlite3's .recover"),
        (lambda file: file.mkdir(), "check its folder"),
    ],
)
def test_a_file_that_cant_be_used_is_told_with_the_remedy(
    tmp_path: Path, spoil, remedy: str
) -> None:
    file = tmp_path / "queue.db"
    spoil(file)

    async def story() -> None:
        with pytest.raises(ValueError, match=remedy) as refused:
            async with opened(file):
                pass
        assert str(tmp_path) not in str(refused.value)

    play(story())


def test_a_file_has_one_owner(tmp_path: Path) -> None:
    async def story() -> None:
        file = tmp_path / "queue.db"
        async with opened(file) as first:
            with pytest.raises(ValueError, match="belongs to another process"):
                async with opened(file):
                    pass
            await first.broker.accept(task("a"))
        async with opened(file) as second:
            assert [claim.id for claim in await second.claim()] == ["a"]

    play(story())


def full(rig: Rig, pages: int | None) -> None:
    """The disk of a rig's file has no room beyond so many pages; None: it has."""
    file = rig.broker._journal._file
    file.execute(f"PRAGMA max_page_count = {pages or 1_000_000}")


def test_a_full_disk_refuses_tasks_loses_none_and_is_got_over(tmp_path: Path) -> None:
    async def story() -> None:
        file, big = tmp_path / "queue.db", "x" * 300_000
        async with opened(file) as rig:
            await rig.broker.accept(task("first"))
            full(rig, 1)
            with pytest.raises(Unavailable) as refused:
                await rig.broker.accept(task("second", value=big))
            assert refused.value.reason == "the queue's disk is full"
            assert refused.value.retry_after_seconds >= 1
            assert await rig.broker.get("second") is None
            assert rig.broker.depth().error
            await rig.broker.accept(task("chat", attended=True, bound_to="w", weight=9.0))
            chat = await rig.take()
            assert (await rig.end(chat, Returned(big))).commit is Commit.TAKEN
            claim = await rig.take()
            with pytest.raises(Unavailable):
                await rig.end(claim, Returned(big))
            assert (await rig.broker.get("first")).state is TaskState.RUNNING
            full(rig, None)
            assert (await rig.end(claim, Returned(big))).commit is Commit.TAKEN
            assert not (await rig.broker.accept(task("second", value=big))).known
            assert rig.broker.depth().error is None
        async with opened(file) as rig:
            assert await told(rig, "first", "second") == [
                ("succeeded", 1, True),
                ("queued", 0, False),
            ]

    play(story())


def test_a_claim_that_cant_be_written_is_not_given(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path / "queue.db") as rig:
            await rig.broker.accept(task("a"))
            file, rig.broker._journal._file = rig.broker._journal._file, None
            with pytest.raises(Unavailable):
                await rig.claim()
            assert rig.broker.depth().lanes[LaneName.IO].waiting == 1
            rig.broker._journal._file = file
            claim = await rig.take()
            assert (claim.id, claim.attempt) == ("a", 1)

    play(story())


def test_whatever_is_asked_at_once_with_the_same_key_is_one_task(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path / "queue.db") as rig:
            asked = [rig.broker.accept(task(f"t{n}", key="k")) for n in range(9)]
            receipts = await asyncio.gather(*asked)
            assert {receipt.view.id for receipt in receipts} == {"t0"}
            assert [receipt.known for receipt in receipts].count(False) == 1
            assert len(await rig.claim(most=9)) == 1

    play(story())


def test_who_goes_while_its_task_is_written_leaves_it_accepted(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path / "queue.db") as rig:
            asking = asyncio.ensure_future(rig.broker.accept(task("a")))
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert (await rig.broker.cancel("a")).commit is Commit.TAKEN
            await rig.broker.accept(task("b"))
            assert [claim.id for claim in await rig.claim(most=9)] == ["b"]

    play(story())


@pytest.mark.parametrize("first", ["cancel", "commit"])
def test_a_cancel_and_a_commit_at_once_are_one_end_in_the_books_and_in_the_file(
    tmp_path: Path, first: str
) -> None:
    async def story() -> None:
        file = tmp_path / "queue.db"
        async with opened(file) as rig:
            await rig.broker.accept(task("a"))
            claim = await rig.take()
            both = [rig.broker.cancel("a"), rig.end(claim)]
            if first == "commit":
                both.reverse()
            answers = await asyncio.gather(*both)
            assert [answer.commit for answer in answers] == [Commit.TAKEN, Commit.LOST]
            state = (await rig.broker.get("a")).state
        async with opened(file) as rig:
            assert (await rig.broker.get("a")).state is state
        assert state is (TaskState.CANCELLED if first == "cancel" else TaskState.SUCCEEDED)

    play(story())


def test_the_shelf_is_in_the_file_and_is_there_after_a_restart(tmp_path):
    from llmtaskpool_worker.brokers.shelf import Change

    async def told():
        async with opened(tmp_path / "queue.db") as rig:
            await rig.broker.shelf(100).change(Change({"a": b"1"}))
        async with opened(tmp_path / "queue.db") as rig:
            shelf = rig.broker.shelf(100)
            assert (await shelf.get("a"), await shelf.held_bytes()) == (b"1", 1)

    asyncio.run(told())
