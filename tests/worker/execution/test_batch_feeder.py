"""A batch while it is fed: what passes, what doesn't, who may write, and what is found guilty."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any

import pytest
from llmtaskpool_worker.brokers.protocol import Unavailable
from llmtaskpool_worker.brokers.shelf import Change, MemoryShelf
from llmtaskpool_worker.execution import batch_feeder
from llmtaskpool_worker.execution.batch import BatchRecord
from llmtaskpool_worker.execution.batch_books import BatchBooks
from llmtaskpool_worker.execution.batch_feeder import Feeder
from llmtaskpool_worker.execution.batch_lines import LineAnswer
from llmtaskpool_worker.execution.batch_window import Window
from llmtaskpool_worker.execution.files import FileLimits, Files
from llmtaskpool_worker.execution.ids import ids

GOOD = LineAnswer(200, b'{"good":true}', "req_1")


def bad(code: str, status: int = 503) -> LineAnswer:
    return LineAnswer(status, json.dumps({"error": {"code": code}}).encode(), "req_1", code, 0.0)


class Asked:
    """Answers lines as a test says; by their prompt."""

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()
        self.now: set[str] = set()
        self.most = 0
        self.room: int | None = None
        self.gate = asyncio.Event()
        self.answer: Callable[[str], Awaitable[LineAnswer]] = self.good

    async def good(self, _: str) -> LineAnswer:
        return GOOD

    def may_wait(self, _: str) -> int | None:
        return self.room

    async def held(self, _: str) -> LineAnswer:
        await self.gate.wait()
        return GOOD

    async def ask(
        self, endpoint: str, body: bytes, patience_seconds: float, tenant: str
    ) -> LineAnswer:
        prompt = json.loads(body)["prompt"]
        self.times[prompt] += 1
        self.now.add(prompt)
        self.most = max(self.most, len(self.now))
        try:
            return await self.answer(prompt)
        finally:
            self.now.discard(prompt)


class Shelf(MemoryShelf):
    """One that can be away."""

    away = False

    async def change(self, change: Change) -> None:
        if self.away:
            raise Unavailable("away", 0.01)
        await super().change(change)


class Stand:
    """Books over a shelf in memory, and a wall clock that a test sets."""

    def __init__(self, limit_bytes: int = 1_000_000, window_lines: int = 64) -> None:
        self.wall, self.window_lines = 1e9, window_lines
        self.shelf = Shelf(limit_bytes, time.monotonic)
        new_id = ids()
        files = Files(self.shelf, FileLimits(), lambda: self.wall, new_id)
        self.books = BatchBooks(files, lambda: self.wall, new_id)
        self.asked = Asked()

    async def batch(self, *prompts: str) -> str:
        upload = self.books.files.begin()
        for prompt in prompts:
            line = {"custom_id": prompt, "url": "/v1/completions", "body": {"prompt": prompt}}
            await upload.write(json.dumps(line).encode() + b"\n")
        source = await upload.finish("f", "batch", 7200)
        made = await self.books.create(source, "/v1/completions", ("1h", 3600), None, 7200)
        return made.id

    async def fed(self, batch_id: str, worker: str = "w") -> asyncio.Task[None]:
        """A worker takes it and begins; cancelled, it was killed."""
        seen = await self.books.look(batch_id)
        assert seen is not None
        seen = await self.books.take(seen, worker)
        feeder = Feeder(
            self.books, seen, self.asked, Window(self.window_lines, 10**6), time.monotonic
        )
        return asyncio.create_task(feeder.run())

    async def kill(self, feeding: asyncio.Task[None]) -> None:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)

    async def now(self, batch_id: str) -> BatchRecord:
        found = await self.books.get(batch_id)
        assert found is not None
        return found

    async def is_so(self, batch_id: str, what: Callable[[BatchRecord], Any]) -> bool:
        return bool(what(await self.now(batch_id)))

    async def lines(self, file_id: str) -> dict[str, dict]:
        record = await self.books.files.get(file_id)
        if record is None:
            return {}
        text = b"".join([piece async for piece in self.books.files.read(record)])
        assert len(text) == record.bytes
        read = [json.loads(line) for line in text.splitlines()]
        assert len({one["custom_id"] for one in read}) == len(read), "none is answered twice"
        return {one["custom_id"]: one for one in read}


def play(story: Callable[[Stand], Awaitable[None]], **chosen) -> None:
    async def told() -> None:
        async with asyncio.timeout(60):
            await story(Stand(**chosen))

    asyncio.run(told())


async def until(true: Callable[[], Any]) -> None:
    """Until ``true()``, or what it awaits, is."""
    while True:
        found = true()
        if await found if isawaitable(found) else found:
            return
        await asyncio.sleep(0.005)


def names(count: int) -> list[str]:
    return [f"p{n}" for n in range(count)]


def test_what_passes_is_waited_for_and_what_may_be_the_worker_s_doing_is_tried_four_times(
    monkeypatch,
):
    monkeypatch.setattr(batch_feeder, "LONGEST_PAUSE_SECONDS", 0.0)

    async def story(stand: Stand) -> None:
        async def answer(prompt: str) -> LineAnswer:
            if prompt == "full" and stand.asked.times[prompt] < 9:
                return bad("queue_full", 429)
            if prompt == "died" and stand.asked.times[prompt] < 3:
                return bad("engine_died")
            return {"deadly": bad("engine_died"), "wrong": bad("x", 400)}.get(prompt, GOOD)

        stand.asked.answer = answer
        batch = await stand.batch("full", "died", "deadly", "wrong", "good")
        await (await stand.fed(batch))
        ended = await stand.now(batch)
        assert (ended.status, ended.completed, ended.failed) == ("completed", 3, 2)
        assert dict(stand.asked.times) == {
            "full": 9, "died": 3, "deadly": 4, "wrong": 1, "good": 1,
        }  # fmt: skip
        assert set(await stand.lines(ended.error.id)) == {"deadly", "wrong"}

    play(story)


def test_when_the_window_is_over_what_was_answered_stays_and_the_rest_is_told():
    async def story(stand: Stand) -> None:
        stand.asked.answer = lambda p: (
            stand.asked.good(p) if p in ("p0", "p1") else stand.asked.held(p)
        )
        batch = await stand.batch(*names(100))
        feeding = await stand.fed(batch)
        await until(lambda: stand.is_so(batch, lambda now: now.completed == 2))
        stand.wall += 3601
        await feeding
        ended = await stand.now(batch)
        assert (ended.status, ended.completed, ended.failed) == ("expired", 2, 98)
        assert set(await stand.lines(ended.output.id)) == {"p0", "p1"}
        rest = await stand.lines(ended.error.id)
        assert {one["error"]["code"] for one in rest.values()} == {"batch_expired"}
        assert ended.stamps["finalizing"] <= ended.stamps["expired"]

    play(story)


def test_who_was_taken_for_lost_changes_nothing_any_more():
    async def story(stand: Stand) -> None:
        stand.asked.answer = stand.asked.held
        batch = await stand.batch(*names(10))
        slow = await stand.fed(batch, "slow")
        await until(lambda: len(stand.asked.now) == 10)
        other = await stand.fed(batch, "other")
        stand.asked.gate.set()  # both hear of every line
        await asyncio.gather(slow, other)
        ended = await stand.now(batch)
        assert (ended.status, ended.completed, ended.failed) == ("completed", 10, 0)
        assert set(await stand.lines(ended.output.id)) == set(names(10))

    play(story)


@pytest.mark.parametrize(("seconds", "window_lines"), [(0.2, 64), (60.0, 1024)])
def test_a_line_with_which_three_workers_are_lost_ends_and_no_other_ends_with_it(
    seconds, window_lines, monkeypatch
):
    """Whether the others' ends were written before the workers were lost, or not."""
    monkeypatch.setattr(batch_feeder, "WRITE_SECONDS", seconds)

    async def story(stand: Stand) -> None:
        batch = await stand.batch(*names(20))
        stand.asked.answer = lambda p: stand.asked.held(p) if p == "p7" else stand.asked.good(p)
        lost = 0
        while not (await stand.now(batch)).ended and lost < 9:
            stand.asked.most = 0
            feeding = await stand.fed(batch, f"w{lost}")
            await until(lambda task=feeding: "p7" in stand.asked.now or task.done())
            if "p7" not in stand.asked.now:
                break
            await stand.kill(feeding)
            lost += 1
        ended = await stand.now(batch)
        assert lost == 3
        assert (ended.status, ended.completed, ended.failed) == ("completed", 19, 1)
        refused = await stand.lines(ended.error.id)
        assert refused["p7"]["error"]["code"] == "worker_lost"
        assert "p7" not in await stand.lines(ended.output.id)

    play(story, window_lines=window_lines)


def test_after_a_loss_a_batch_goes_on_carefully_and_after_two_line_by_line():
    async def story(stand: Stand) -> None:
        stand.asked.answer = stand.asked.held
        batch = await stand.batch(*names(30))
        for worker, at_once in (("a", 30), ("b", 8), ("c", 1)):
            stand.asked.most = 0
            feeding = await stand.fed(batch, worker)
            await until(lambda n=at_once: len(stand.asked.now) == n)
            await asyncio.sleep(0.05)
            assert stand.asked.most == at_once
            if at_once > 1:
                await stand.kill(feeding)
        stand.asked.gate.set()
        await feeding
        ended = await stand.now(batch)
        assert (ended.status, ended.completed) == ("completed", 30), "no innocent is lost"

    play(story)


def test_a_worker_that_takes_its_own_batch_again_was_not_lost():
    async def story(stand: Stand) -> None:
        stand.asked.answer = stand.asked.held
        batch = await stand.batch(*names(30))
        for _ in range(3):
            feeding = await stand.fed(batch, "same")
            await until(lambda: len(stand.asked.now) == 30)
            await stand.kill(feeding)

    play(story)


def test_where_there_is_no_space_it_waits_says_so_and_goes_on(monkeypatch):
    monkeypatch.setattr(batch_feeder, "LOOK_SECONDS", 0.02)

    async def story(stand: Stand) -> None:
        batch = await stand.batch(*names(5))
        left = 20_000 - await stand.shelf.held_bytes()
        await stand.shelf.change(Change({"ballast": b"x" * left}))
        feeding = await stand.fed(batch)
        await until(lambda: stand.is_so(batch, lambda now: now.errors))
        [error] = (await stand.now(batch)).errors
        assert error.code == "files_full"
        assert "raise LLMTASKPOOL_FILE_STORE_BYTES" in error.message
        assert not feeding.done()
        await stand.shelf.change(Change(deletes=["ballast"]))
        await feeding
        assert (await stand.now(batch)).completed == 5
        assert set(stand.asked.times.values()) == {1}, "what was answered is not asked again"

    play(story, limit_bytes=20_000)


def test_a_place_that_is_away_for_a_moment_loses_nothing():
    async def story(stand: Stand) -> None:
        stand.asked.answer = stand.asked.held
        batch = await stand.batch(*names(10))
        feeding = await stand.fed(batch)
        await until(lambda: len(stand.asked.now) == 10)
        stand.shelf.away = True
        stand.asked.gate.set()
        await until(lambda: not stand.asked.now)
        await asyncio.sleep(0.5)
        assert (await stand.now(batch)).completed == 0
        stand.shelf.away = False
        await feeding
        ended = await stand.now(batch)
        assert (ended.status, ended.completed) == ("completed", 10)
        assert len(await stand.lines(ended.output.id)) == 10

    play(story)


@pytest.mark.parametrize("answered", [True, False])
def test_an_input_file_that_is_gone_fails_the_batch_with_the_remedy(answered: bool):
    async def story(stand: Stand) -> None:
        batch = await stand.batch(*names(3))
        if answered:
            stand.asked.answer = stand.asked.held
            feeding = await stand.fed(batch)
            await until(lambda: len(stand.asked.now) == 3)
            await stand.kill(feeding)
        source = await stand.books.files.get((await stand.now(batch)).input_file_id)
        assert source is not None
        await stand.books.files.delete(source)
        await (await stand.fed(batch))
        ended = await stand.now(batch)
        assert ended.status == "failed"
        assert "upload it again" in ended.errors[0].message

    play(story)


def test_a_batch_asks_no_more_lines_at_a_time_than_its_tenant_has_places_for() -> None:
    """Else all of a window is refused again and again, each line after a longer pause."""
    places, taken = 4, 0

    async def story(stand: Stand) -> None:
        async def answer(_: str) -> LineAnswer:
            nonlocal taken
            if taken >= places:
                return bad("tenant_full", 429)
            taken += 1
            await asyncio.sleep(0.002)
            taken -= 1
            return GOOD

        stand.asked.room, stand.asked.answer = 2, answer
        batch = await stand.batch(*(f"p{number}" for number in range(60)))
        await stand.fed(batch)
        await until(lambda: stand.is_so(batch, lambda one: one.status == "completed"))
        assert (await stand.now(batch)).completed == 60
        assert stand.asked.most <= places + 2
        assert stand.asked.times.total() <= 120, "few are asked twice, also on a busy machine"

    play(story)
