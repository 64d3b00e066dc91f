"""Children that somebody deletes or changes are heard of, whatever a watch goes through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fakes.cluster_objects import NAME, NAMESPACE
from llmtaskpool_operator.cluster import children_watch
from llmtaskpool_operator.cluster.api_client import ApiFailure, Listed
from llmtaskpool_operator.cluster.children_watch import CHILDREN, ChildrenWatch
from llmtaskpool_operator.cluster.store import PoolKey

KEY = PoolKey(NAMESPACE, NAME)
BY_US = [{"manager": "llmtaskpool", "time": "2026-01-01T00:00:00Z"}]
BY_OTHERS = [*BY_US, {"manager": "kubectl-edit", "time": "2026-01-01T00:00:09Z"}]


def child(name: str, version: int = 5, pool: str | None = NAME, writers: Any = BY_US) -> Any:
    labels = {"llmtaskpool.io/pool": pool} if pool else {}
    meta = {"name": name, "namespace": NAMESPACE, "labels": labels, "managedFields": writers}
    return {"metadata": meta | {"resourceVersion": str(version)}}


class Server:
    """Answers lists and watches of each kind with what its scripts say, then stands still."""

    def __init__(self, lists: list[list[Any]], streams: list[list[Any]]) -> None:
        self.lists, self.streams = lists, streams
        self.waits, self.namespaces = 0, 1
        self.asked: list[tuple[str, str, str]] = []
        self.idle = asyncio.Event()

    async def list(self, kind: str, namespace: str, *_: Any, **more: Any) -> Listed:
        assert more["whole"] is False
        if kind != CHILDREN[0]:
            return Listed((), "1")
        self.asked.append(("list", namespace, ""))
        return Listed(tuple(self.lists.pop(0)), "10")

    async def watch(
        self, kind: str, namespace: str, selector: str, version: str, _seconds: int
    ) -> AsyncIterator[tuple[str, Any]]:
        assert selector == "llmtaskpool.io/pool"
        if kind == CHILDREN[0]:
            self.asked.append(("watch", namespace, version))
        if kind != CHILDREN[0] or not self.streams:
            self.waits += 1
            if self.waits == len(CHILDREN) * self.namespaces:
                self.idle.set()
            await asyncio.Event().wait()
        for event in self.streams.pop(0):
            if isinstance(event, Exception):
                raise event
            yield event


def heard(lists: list[list[Any]], streams: list[list[Any]], *namespaces: str) -> Any:
    async def run() -> Any:
        server, told = Server(lists, streams), []
        server.namespaces = max(1, len(namespaces))
        watch = ChildrenWatch(server, namespaces, told.append)
        task = asyncio.create_task(watch.run())
        async with asyncio.timeout(10):
            await server.idle.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return told, server.asked

    return asyncio.run(run())


def test_a_child_that_is_deleted_is_told_and_one_that_we_write_is_not() -> None:
    events = [
        ("ADDED", child("a")),
        ("MODIFIED", child("a", 6)),
        ("BOOKMARK", {"metadata": {"resourceVersion": "8"}}),
        ("DELETED", child("a", 9)),
        ("DELETED", child("theirs", 9, pool=None)),
    ]
    told, asked = heard([[]], [events])
    assert told == [KEY]
    assert asked[-1] == ("watch", "", "9")  # it goes on from there, without another list


def test_a_child_that_somebody_else_writes_is_told_and_the_status_of_one_is_not() -> None:
    status = [*BY_US, {"manager": "kcm", "subresource": "status", "time": "2027-01-01T00:00:00Z"}]
    told, _ = heard([[]], [[("MODIFIED", child("a", 6, writers=status))]])
    assert told == []
    told, _ = heard([[]], [[("MODIFIED", child("a", 6, writers=BY_OTHERS))]])
    assert told == [KEY]


def test_of_two_writes_in_one_second_the_other_ones_is_told() -> None:
    other = {"manager": "kubectl-edit", "time": BY_US[0]["time"]}
    for writers in ([*BY_US, other], [other, *BY_US]):
        told, _ = heard([[]], [[("MODIFIED", child("a", 6, writers=writers))]])
        assert told == [KEY]
    before = {"manager": "kubectl-edit", "time": "2025-12-31T23:59:59Z"}
    told, _ = heard([[]], [[("MODIFIED", child("a", 6, writers=[before, *BY_US]))]])
    assert told == []


def test_what_went_while_nobody_watched_shows_at_the_next_list() -> None:
    expired = [ApiFailure(410, "410: too old")]
    told, asked = heard([[child("a"), child("b")], [child("b")]], [expired])
    assert told == [KEY]
    assert [one[0] for one in asked] == ["list", "watch", "list", "watch"]


def test_a_watch_that_breaks_begins_anew(monkeypatch: Any) -> None:
    monkeypatch.setattr(children_watch, "AGAIN_SECONDS", 0.0)
    broken = [("ADDED", child("a")), ApiFailure(0, "a watch stood still")]
    told, _ = heard([[], []], [broken])
    assert told == [KEY]


def test_each_namespace_that_is_served_is_watched_alone() -> None:
    _, asked = heard([[], []], [], "team-a", "team-b")
    assert {one[:2] for one in asked} == {
        (v, n) for v in ("list", "watch") for n in ("team-a", "team-b")
    }
