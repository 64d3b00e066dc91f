"""Which worker a request goes to."""

from __future__ import annotations

import asyncio

import pytest
from llmtaskpool_operator.local.routing import RoutingTable, owner_of

TASK = "0af" * 10 + "00"


@pytest.mark.parametrize(
    ("target", "owner"),
    [
        (f"/v1/tasks/worker-1-{TASK}", "worker-1"),
        (f"/v1/tasks/worker-1-{TASK}?wait=1", "worker-1"),
        (f"/v1/tasks/a.b-c_d-{TASK}/events", "a.b-c_d"),
        (f"/v1/graphs/graph-worker-1-{TASK}/events", "worker-1"),
        (f"/v1/graphs/graph-{TASK}", None),
        (f"/v1/tasks/worker-1-{TASK}0", None),
        (f"/v1/tasks/-{TASK}", None),
        (f"/x/v1/tasks/worker-1-{TASK}", None),
        (f"/v1/files/file-{TASK}-worker-1", "worker-1"),
        (f"/v1/files/file-{TASK}-a.b-c_d/content", "a.b-c_d"),
        (f"/v1/batches/batch_{TASK}-worker-1/cancel", "worker-1"),
        (f"/v1/files/file-{TASK}", None),
        ("/v1/tasks", None),
        ("/v1/chat/completions", None),
    ],
)
def test_a_task_is_asked_about_where_its_id_says(target: str, owner: str | None):
    assert owner_of(target) == owner


def test_files_and_batches_meet_at_the_worker_that_has_been_here_longest():
    table = RoutingTable(0.1, lambda: False)
    assert table.keeper("/v1/files") is None
    table.route("a", "127.0.0.1", 1)
    table.route("b", "127.0.0.1", 2)
    assert table.keeper("/v1/chat/completions") is None
    assert {table.keeper(at) for at in ("/v1/files", "/v1/batches", "/v1/files?limit=1")} == {"a"}
    assert table.keeper(f"/v1/batches/batch_{TASK}-b") == "b"
    table.unroute("a")
    assert table.keeper("/v1/files") == "b"


def test_a_silent_worker_gets_no_new_request_until_it_answers():
    async def go():
        table = RoutingTable(0.1, lambda: False)
        table.route("a", "127.0.0.1", 1)
        table.route("b", "127.0.0.1", 2)
        table.silence("a", silent=True)
        assert table.routed() == ["b"]
        assert [(await table.pick(set())).worker_id for _ in range(3)] == ["b"] * 3
        assert await table.pick({"b"}) is None
        assert (await table.pick(set(), "a")).worker_id == "a"  # who else could know?
        table.silence("a", silent=False)
        assert (await table.pick({"b"})).worker_id == "a"

    asyncio.run(go())


def test_a_request_that_waits_goes_to_the_worker_that_answers_again():
    async def go():
        table = RoutingTable(20.0, lambda: True)
        table.route("a", "127.0.0.1", 1)
        table.silence("a", silent=True)
        waiting = asyncio.create_task(table.pick(set()))
        await asyncio.sleep(0)
        assert not waiting.done()
        table.silence("a", silent=False)
        assert (await waiting).worker_id == "a"

    asyncio.run(go())
