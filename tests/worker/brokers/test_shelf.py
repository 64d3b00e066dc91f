"""Where files and batches lie: what is promised of it, over every broker's."""

from __future__ import annotations

import asyncio

import pytest
from llmtaskpool_worker.brokers.shelf import Change, NoSpace, Stale
from llmtaskpool_worker.scheduling.limits import Limits

from .rigs import RIGS

pytestmark = pytest.mark.parametrize("made", RIGS, ids=lambda rig: rig.__name__)


def run(made, story):
    async def told():
        async with made(Limits()) as rig:
            await story(rig, rig.broker.shelf(1000))

    asyncio.run(told())


def test_what_is_put_is_there_with_others_of_its_step_until_its_time_is_over(made):
    async def story(rig, shelf):
        await shelf.change(Change({"chunk/a": b"\0\xff", "file/a": b"1"}, keep_seconds=0.3))
        await shelf.change(Change({"file/b": b"2"}))
        assert [await shelf.get(name) for name in ("chunk/a", "file/a", "none")] == [
            b"\0\xff",
            b"1",
            None,
        ]
        assert await shelf.held_bytes() == 4
        await rig.later(0.4)
        assert [await shelf.get(name) for name in ("chunk/a", "file/b")] == [None, b"2"]
        assert await shelf.names("file/", most=9) == ["file/b"]
        await shelf.sweep()
        assert await shelf.held_bytes() == 1
        await shelf.change(Change(deletes=["file/b", "never"]))
        assert (await shelf.get("file/b"), await shelf.held_bytes()) == (None, 0)

    run(made, story)


def test_what_is_kept_longer_outlives_the_time_it_was_put_with(made):
    async def story(rig, shelf):
        await shelf.change(Change({"a": b"1", "b": b"2"}, keep_seconds=0.3))
        await shelf.change(Change({"c": b"3"}, keeps=["a", "never"], keep_seconds=90))
        await rig.later(0.4)
        assert await shelf.names("a", most=9) == ["a"]
        assert [await shelf.get(n) for n in ("a", "b", "c", "never")] == [b"1", None, b"3", None]

    run(made, story)


def test_names_come_in_order_from_either_end_and_page_by_page(made):
    async def story(_, shelf):
        for name in ("a/2", "a/1", "b/1", "a/3", "a"):
            await shelf.change(Change({name: b"x"}))
        assert await shelf.names("a/", most=2) == ["a/1", "a/2"]
        assert await shelf.names("a/", most=2, beyond="a/2") == ["a/3"]
        assert await shelf.names("a/", most=2, newest=True) == ["a/3", "a/2"]
        assert await shelf.names("a/", most=9, newest=True, beyond="a/2") == ["a/1"]

    run(made, story)


def test_a_step_that_was_decided_on_what_is_old_changes_nothing(made):
    async def story(_, shelf):
        first = Change({"batch": b"1", "part": b"p"}, expect=("batch", None))
        await shelf.change(first)
        await shelf.change(first)  # said again: it was done
        await shelf.change(Change({"batch": b"2"}, expect=("batch", b"1")))
        for change in (
            Change({"batch": b"3", "part": b"q"}, ["part"], expect=("batch", b"1")),
            Change({"batch": b"3"}, expect=("batch", None)),
            Change({"other": b"3"}, expect=("nothing", b"1")),
        ):
            with pytest.raises(Stale):
                await shelf.change(change)
        assert [await shelf.get(n) for n in ("batch", "part", "other")] == [b"2", b"p", None]

    run(made, story)


def test_beyond_its_bound_nothing_is_kept_but_what_ends_things(made):
    async def story(_, shelf):
        await shelf.change(Change({"a": b"x" * 900}))
        with pytest.raises(NoSpace, match="1000 bytes"):
            await shelf.change(Change({"b": b"x" * 101, "c": b""}))
        assert await shelf.get("c") is None
        await shelf.change(Change({"a": b"x" * 1000}))  # it takes the place of the other
        await shelf.change(Change({"end": b"x" * 10}, bounded=False))
        await shelf.change(Change(deletes=["a"]))
        await shelf.change(Change({"b": b"x" * 900}))
        assert await shelf.held_bytes() == 910

    run(made, story)
