"""Two real workers on one server: any of them takes any task and answers for any task."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from fakes.http_rig import wait_until
from fakes.queue_servers import KINDS, QueueServer
from fakes.worker_process import WorkerProcess, worker_process

from .target import Target, submit

LEASE_SECONDS = 15.0


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QueueServer]:
    with QueueServer(tmp_path / "server", request.param) as started:
        yield started


@pytest.fixture
def target() -> Iterator[Target]:
    target = Target()
    yield target
    target.close()


@contextmanager
def working(
    name: str, server: QueueServer, target: Target, threads: int = 2, **more: str
) -> Iterator[tuple[WorkerProcess, httpx.Client]]:
    settings = {
        "queue": server.url,
        "queue_pool": "team/chat",
        "worker_id": name,
        "io_threads": str(threads),
        "fetch_hosts": target.host,
        "grace_seconds": "0",
    }
    with worker_process(**(settings | more)) as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            yield worker, http


def ended(http: httpx.Client, task_id: str) -> dict:
    return http.get(f"/v1/tasks/{task_id}", params={"wait": 50}).json()


def test_after_kill_9_of_a_worker_all_its_tasks_end_with_one_result_each(
    server: QueueServer, target: Target
) -> None:
    """20 wait and 4 run when it is killed; another worker does them within the lease and 10 s."""
    with ExitStack() as stack:
        first, http = stack.enter_context(working("first", server, target, threads=4))
        running = [submit(http, target, f"slow/{n}")["id"] for n in range(4)]
        wait_until(lambda: len(target.asked) == 4, "four run")
        waiting = [submit(http, target, f"w{n}")["id"] for n in range(20)]
        first.process.kill()
        first.process.wait(20)
        killed_at = time.monotonic()
        target.gate.set()
        _, other = stack.enter_context(working("second", server, target, threads=4))
        views = {task_id: ended(other, task_id) for task_id in running + waiting}
        took = time.monotonic() - killed_at
    assert {view["state"] for view in views.values()} == {"succeeded"}
    assert [views[task_id]["attempts"] for task_id in running] == [2] * 4
    assert {views[task_id]["attempts"] for task_id in waiting} == {1}
    assert took < LEASE_SECONDS + 10 + 20, "a start of a worker on a busy machine is in it"
    times = Counter(target.asked)
    assert {times[f"/w{n}"] for n in range(20)} == {1}, "none of them ran twice"


def test_any_worker_takes_a_task_and_any_answers_for_it(
    server: QueueServer, target: Target
) -> None:
    with (
        working("a", server, target, threads=1) as (_, a),
        working("b", server, target, threads=1) as (_, b),
    ):
        accepted = [submit(a, target, f"slow/{n}") for n in range(2)]
        assert accepted[0]["durable"] is True
        wait_until(lambda: target.at_once == 2, "both run, one in each worker")
        third = submit(a, target, "third", idempotency_key="k")
        assert submit(b, target, "third", idempotency_key="k")["id"] == third["id"]
        assert b.get(f"/v1/tasks/{third['id']}").json()["state"] == "queued"
        cancelled = submit(a, target, "cancelled")
        assert b.delete(f"/v1/tasks/{cancelled['id']}").json()["state"] == "cancelled"
        target.gate.set()
        for one in [*accepted, third]:
            views = [ended(http, one["id"]) for http in (a, b)]
            assert views[0]["state"] == views[1]["state"] == "succeeded"
            assert views[0]["result"] == views[1]["result"]
        with a.stream("GET", f"/v1/tasks/{third['id']}/events") as events:
            assert "succeeded" in events.read().decode()
        fetch = {"kind": "io.fetch", "arguments": {"url": f"http://{target.host}/of-a-graph"}}
        graph = a.post("/v1/graphs", json={"tasks": {"one": fetch, "two": fetch}}).json()
        with b.stream("GET", f"/v1/graphs/{graph['id']}/events") as events:
            said = events.read().decode()
        assert said.count("event: task") == 2
        assert b.get(f"/v1/graphs/{graph['id']}").json()["progress"] == 1.0
    assert "/cancelled" not in target.asked


def test_a_worker_refuses_a_server_that_may_lose_tasks_and_says_what_to_do(
    tmp_path: Path,
) -> None:
    with (
        QueueServer(tmp_path, appendonly="no") as unfit,
        worker_process(queue=unfit.url) as worker,
    ):
        assert worker.exit_code() == 2
        assert "appendonly yes" in "".join(worker.errors)


def test_the_servers_address_may_stand_in_a_file(
    server: QueueServer, target: Target, tmp_path: Path
) -> None:
    file = tmp_path / "url"
    file.write_text(f"{server.url}\n")
    with working("w", server, target, queue="memory", queue_file=str(file)) as (_, http):
        assert submit(http, target, "one")["durable"] is True
    with worker_process(queue_file=str(tmp_path / "none")) as worker:
        assert worker.exit_code() == 2
        assert "can't be read" in "".join(worker.errors)


def test_a_queues_password_is_never_shown(target: Target) -> None:
    with worker_process(queue="rdis://user:secret-of-mine@there") as worker:
        assert worker.exit_code() == 2
        told = "".join(worker.errors)
        assert "redis://" in told
        assert "secret-of-mine" not in told
