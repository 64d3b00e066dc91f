"""A real worker over a queue's file: killed, stopped, without a disk, and started again."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from fakes.http_rig import wait_until
from fakes.worker_process import WorkerProcess, worker_process

from .target import Target, submit


@pytest.fixture
def target() -> Iterator[Target]:
    target = Target()
    yield target
    target.close()


@contextmanager
def working(
    file: Path, target: Target, threads: int = 2, **more: str
) -> Iterator[tuple[WorkerProcess, httpx.Client]]:
    settings = {"io_threads": str(threads), "fetch_hosts": target.host, "grace_seconds": "0"}
    with worker_process("--queue", f"sqlite:{file}", **(settings | more)) as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            yield worker, http


def kill(worker: WorkerProcess) -> None:
    worker.process.kill()
    worker.process.wait(20)


def ended(http: httpx.Client, task_id: str) -> dict:
    return http.get(f"/v1/tasks/{task_id}", params={"wait": 50}).json()


def test_after_kill_9_every_accepted_task_ends_with_one_result(
    tmp_path: Path, target: Target
) -> None:
    file = tmp_path / "queue.db"
    with working(file, target) as (worker, http):
        done = submit(http, target, "done", labels={"mine": "yes"})
        assert done["durable"] is True
        assert "survives the end of the worker" in done["note"]
        read = ended(http, done["id"])
        assert read["state"] == "succeeded"
        running = [submit(http, target, f"slow/{n}")["id"] for n in range(2)]
        wait_until(lambda: len(target.asked) == 3, "two run")
        waiting = [submit(http, target, f"w{n}", idempotency_key=f"w{n}")["id"] for n in range(20)]
        kill(worker)
    target.gate.set()
    target.most = 0
    with working(file, target) as (_, http):
        again = http.get(f"/v1/tasks/{done['id']}").json()
        assert again["result"] == read["result"]
        assert again["result_expires_at"] == pytest.approx(read["result_expires_at"], abs=1)
        assert again["labels"] == {"mine": "yes"}
        assert submit(http, target, "w3", idempotency_key="w3")["id"] == waiting[3]
        views = {task_id: ended(http, task_id) for task_id in running + waiting}
        assert {view["state"] for view in views.values()} == {"succeeded"}
        assert [views[task_id]["attempts"] for task_id in running] == [2, 2]
        assert {views[task_id]["attempts"] for task_id in waiting} == {1}
    times = Counter(target.asked)
    assert [times[f"/slow/{n}"] for n in range(2)] == [2, 2]
    assert {times[f"/w{n}"] for n in range(20)} == {1}, "none of them ran twice"


def test_what_took_its_worker_along_each_time_is_dead_and_takes_no_other_with_it(
    tmp_path: Path, target: Target
) -> None:
    file = tmp_path / "queue.db"
    with working(file, target) as (worker, http):
        poison = submit(http, target, "slow/poison", weight=9.0)["id"]
        beside = submit(http, target, "slow/beside")["id"]
        others = [submit(http, target, f"o{n}")["id"] for n in range(3)]
        wait_until(lambda: len(target.asked) == 2, "both run")
        kill(worker)
    for times in (2, 3):
        with working(file, target) as (worker, _):
            wait_until(lambda t=times: target.asked.count("/slow/poison") == t, "it runs again")
            assert target.at_once <= times + 1, "alone, beside those whose worker is gone"
            assert "/o0" not in target.asked
            kill(worker)
    target.gate.set()
    with working(file, target) as (_, http):
        dead = http.get(f"/v1/tasks/{poison}").json()
        assert (dead["state"], dead["error"]["code"], dead["attempts"]) == (
            "dead",
            "worker_lost",
            3,
        )
        for task_id in (beside, *others):
            assert ended(http, task_id)["state"] == "succeeded"


def test_a_worker_that_is_stopped_leaves_what_waits_to_the_next(
    tmp_path: Path, target: Target
) -> None:
    file = tmp_path / "queue.db"
    with working(file, target, threads=1) as (worker, http):
        ids = [submit(http, target, f"slow/{n}")["id"] for n in range(3)]
        wait_until(lambda: len(target.asked) == 1, "one runs")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.exit_code(30) == 0
    target.gate.set()
    with working(file, target, threads=1) as (_, http):
        views = [ended(http, task_id) for task_id in ids]
    assert {view["state"] for view in views} == {"succeeded"}
    assert [view["attempts"] for view in views] == [2, 1, 1]


def test_a_disk_without_room_is_503_with_retry_after_and_nothing_ends_the_worker(
    tmp_path: Path, target: Target
) -> None:
    file = tmp_path / "queue.db"
    with working(file, target) as (worker, http):
        process = psutil.Process(worker.pid)
        process.rlimit(psutil.RLIMIT_FSIZE, (400_000, -1))
        accepted, refused = [], None
        for number in range(40):
            answer = http.post(
                "/v1/tasks",
                json={
                    "kind": "io.fetch",
                    "labels": {f"l{n}": "x" * 250 for n in range(30)},
                    "arguments": {"url": f"http://{target.host}/slow/{number}"},
                },
            )
            if answer.status_code != 202:
                refused = answer
                break
            accepted.append(answer.json()["id"])
        assert refused is not None
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert str(tmp_path) not in refused.text
        assert http.get("/readyz").status_code == 200
        process.rlimit(psutil.RLIMIT_FSIZE, (-1, -1))
        target.gate.set()
        accepted.append(submit(http, target, "there is room")["id"])
        for task_id in accepted:
            assert ended(http, task_id)["state"] == "succeeded"


def test_a_second_worker_on_the_file_is_told_whose_it_is(tmp_path: Path, target: Target) -> None:
    file = tmp_path / "queue.db"
    with working(file, target), worker_process("--queue", f"sqlite:{file}") as second:
        assert second.exit_code(30) == 2
        told = "".join(second.errors)
        assert "LLMTASKPOOL_QUEUE (--queue): the queue's file queue.db belongs to another" in told
        assert "Traceback" not in told


@pytest.mark.parametrize("queue", ["sqlite:", "postgres://x", "sqlite"])
def test_a_queue_that_is_none_is_told_with_those_there_are(queue: str) -> None:
    with worker_process("--queue", queue) as worker:
        assert worker.exit_code(30) == 2
        assert "names no queue: it is memory, sqlite:PATH" in "".join(worker.errors)
