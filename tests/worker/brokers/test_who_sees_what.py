"""What a tenant has made is there for its own keys, and for who runs the pool, on every queue."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from fakes.http_rig import Rig, serving_engines, wait_until
from fakes.letters_engine import LettersEngine
from fakes.queue_servers import KINDS, QueueServer
from llmtaskpool_worker.brokers.protocol import Broker, Wanted
from llmtaskpool_worker.contract import LaneName

from .rigs import task

TENANTS = "team;other,waiting=4;ops,sees=all"
CHAT = {"kind": "chat", "model": "echo", "input": [{"role": "user", "content": "hi"}]}
Ask = Callable[..., httpx.Response]


@contextmanager
def served(folder: Path, queue: str = "memory", **more: object) -> Iterator[tuple[Rig, dict]]:
    """A worker, and a client for each key. What it is asked for is in ``queue``."""
    keys = folder / "keys"
    keys.mkdir()
    for name in ("team", "other", "ops"):
        (keys / name).write_text(f"{name}-key\n")
    settings = {"api_keys": "plain-key", "tenants": TENANTS, "tenant_keys_dir": keys} | more
    with ExitStack() as stack:
        if queue in KINDS:
            server = stack.enter_context(QueueServer(folder / "server", queue))
            settings |= {"queue": server.url, "queue_pool": "team/chat"}
        elif queue == "sqlite":
            settings["queue"] = f"sqlite:{folder}/queue.db"
        engines = LettersEngine("echo"), LettersEngine("vectors", task="embed")
        rig = stack.enter_context(serving_engines(*engines, threads=1, threads_max=1, **settings))
        names = ("team", "other", "ops", "plain")
        yield (
            rig,
            {
                name: stack.enter_context(
                    rig.client(headers={"authorization": f"Bearer {name}-key"})
                )
                for name in names
            },
        )


async def dies(broker: Broker, name: str, tenant: str) -> None:
    """A task whose worker is lost with it: nobody here has such a kind."""
    await broker.accept(task(name, tenant=tenant, kind="gone", max_attempts=1))
    given = await broker.claim(
        Wanted(
            worker="lost",
            fence=f"fence-{name}",
            lane=LaneName.IO,
            groups=("gone",),
            free=lambda _: 1,
            most=1,
            load=lambda _: 1.0,
            lease_seconds=0.05,
        )
    )
    assert [claim.id for claim in given] == [name]


def uploaded(http: httpx.Client, count: int, letters: str = "abc", choices: int = 1) -> str:
    """A file of so many lines."""
    body = {"model": "echo", "prompt": letters, "n": choices}
    line = {"method": "POST", "url": "/v1/completions", "body": body}
    text = "\n".join(json.dumps(line | {"custom_id": f"r{n}"}) for n in range(count))
    stored = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("f", text)})
    assert stored.status_code == 200, stored.text
    found: str = stored.json()["id"]
    return found


def batch_of(http: httpx.Client, file: str) -> httpx.Response:
    return http.post("/v1/batches", json={"input_file_id": file, "endpoint": "/v1/completions"})


def status_of(http: httpx.Client, batch: str) -> str:
    found: str = http.get(f"/v1/batches/{batch}").json()["status"]
    return found


def made(rig: Rig, http: httpx.Client, tenant: str) -> dict[str, str]:
    """One of each thing, by this tenant; their ids."""
    ids = {"file": uploaded(http, 2)}
    ids["batch"] = batch_of(http, ids["file"]).json()["id"]
    ids["task"] = http.post("/v1/tasks", json=CHAT).json()["id"]
    ids["graph"] = http.post("/v1/graphs", json={"tasks": {"one": CHAT}}).json()["id"]
    ids["dead"] = f"dead-of-{tenant}"
    rig.call(dies, rig.pool._ledger.broker, ids["dead"], tenant)
    assert http.get(f"/v1/tasks/{ids['task']}", params={"wait": 60}).json()["state"] == "succeeded"
    wait_until(lambda: status_of(http, ids["batch"]) == "completed", "the batch is completed")
    ids["output"] = http.get(f"/v1/batches/{ids['batch']}").json()["output_file_id"]
    wait_until(
        lambda: http.get(f"/v1/tasks/{ids['dead']}").json()["state"] == "dead",
        "it is a dead letter",
    )
    return ids


ABOUT_ONE = (
    ("GET", "/v1/tasks/{task}"),
    ("GET", "/v1/tasks/{task}?wait=5"),
    ("GET", "/v1/tasks/{task}/events"),
    ("DELETE", "/v1/tasks/{task}"),
    ("GET", "/v1/tasks/{dead}"),
    ("POST", "/v1/tasks/{dead}/replay"),
    ("GET", "/v1/graphs/{graph}"),
    ("GET", "/v1/graphs/{graph}/events"),
    ("GET", "/v1/files/{file}"),
    ("GET", "/v1/files/{file}/content"),
    ("GET", "/v1/files/{output}/content"),
    ("DELETE", "/v1/files/{file}"),
    ("DELETE", "/v1/files/{output}"),
    ("GET", "/v1/batches/{batch}"),
    ("POST", "/v1/batches/{batch}/cancel"),
)
LISTS = ("/v1/tasks", "/v1/dead-letters", "/v1/files", "/v1/batches")


def refused(http: httpx.Client, method: str, path: str, ids: dict[str, str], **body) -> str:
    """What a refusal says, what it was asked for left out."""
    answer = http.request(method, path.format(**ids), **body)
    assert answer.status_code >= 400, (path, answer.text)
    return re.sub("'[^']*'", "IT", f"{answer.status_code} {answer.text}")


def listed(http: httpx.Client, path: str) -> set[str]:
    answer = http.get(path)
    assert answer.status_code == 200, answer.text
    return {one["id"] for one in answer.json()["data"]}


@pytest.mark.parametrize("queue", ["memory", "sqlite", *KINDS])
def test_anothers_tasks_files_and_batches_are_answered_as_if_they_never_were(
    tmp_path: Path, queue: str
) -> None:
    with served(tmp_path, queue) as (rig, clients):
        team, ops = clients["team"], clients["ops"]
        ids = made(rig, team, "team")
        nothing = dict.fromkeys(ids, "there-is-none")
        for name in ("other", "plain"):
            http = clients[name]
            for method, path in ABOUT_ONE:
                told = refused(http, method, path, ids)
                assert told.startswith("404 "), (method, path, told)
                assert told == refused(http, method, path, nothing)
            assert [listed(http, path) for path in LISTS] == [set()] * 4
            # Nor are they to be had by going on from them.
            for path, field, value in (
                ("/v1/batches", "input_file_id", "file"),
                ("/v1/tasks", "depends_on", "task"),
            ):
                by_field = [
                    {"input_file_id": some[value], "endpoint": "/v1/completions"}
                    if field == "input_file_id"
                    else CHAT | {field: [some[value]]}
                    for some in (ids, nothing)
                ]
                told = [refused(http, "POST", path, ids, json=body) for body in by_field]
                assert told[0] == told[1], path
        own = clients["other"].post("/v1/tasks", json=CHAT).json()["id"]
        assert listed(clients["other"], "/v1/tasks") == {own}
        # What others asked for has changed nothing.
        assert team.get(f"/v1/tasks/{ids['task']}").json()["state"] == "succeeded"
        assert team.get(f"/v1/graphs/{ids['graph']}").json()["total"] == 1
        assert team.get(f"/v1/files/{ids['output']}/content").status_code == 200
        assert listed(team, "/v1/dead-letters") == {ids["dead"]}
        assert listed(team, "/v1/batches") == {ids["batch"]}
        assert listed(team, "/v1/files") == {ids["file"], ids["output"]}
        after = team.post("/v1/tasks", json=CHAT | {"depends_on": [ids["task"]]})
        assert after.status_code == 202, after.text
        mine = {ids["task"], ids["dead"], after.json()["id"]}
        assert mine <= listed(team, "/v1/tasks")
        assert own not in listed(team, "/v1/tasks")
        # Who runs the pool sees all, and may do all.
        assert mine | {own} <= listed(ops, "/v1/tasks")
        assert [listed(ops, path) for path in LISTS[1:]] == [
            {ids["dead"]},
            {ids["file"], ids["output"]},
            {ids["batch"]},
        ]
        assert ops.get(f"/v1/graphs/{ids['graph']}/events").status_code == 200
        assert ops.post(f"/v1/tasks/{ids['dead']}/replay").status_code == 202
        assert ops.delete(f"/v1/tasks/{ids['dead']}").json()["state"] == "cancelled"
        assert ops.delete(f"/v1/files/{ids['file']}").status_code == 200
        assert listed(team, "/v1/files") == {ids["output"]}


def test_a_name_for_a_submit_is_its_tenants_and_tells_nobody_of_anothers(tmp_path: Path) -> None:
    with served(tmp_path) as (_, clients):
        same = {"idempotency-key": "same"}
        first = clients["team"].post("/v1/tasks", json=CHAT, headers=same).json()["id"]
        again = clients["team"].post("/v1/tasks", json=CHAT, headers=same).json()["id"]
        others = clients["other"].post("/v1/tasks", json=CHAT | {"weight": 2}, headers=same)
        assert first == again
        assert others.status_code == 202, others.text
        assert others.json()["id"] != first


def test_without_tenants_whoever_has_a_key_sees_everything(tmp_path: Path) -> None:
    """As it always was: keys alone tell nobody apart."""
    more = {"api_keys": "plain-key,team-key", "tenants": "", "tenant_keys_dir": None}
    with served(tmp_path, **more) as (_, clients):
        file, http = uploaded(clients["team"], 1), clients["plain"]
        batch = batch_of(http, file).json()["id"]
        task_id = clients["team"].post("/v1/tasks", json=CHAT).json()["id"]
        assert http.get(f"/v1/tasks/{task_id}").status_code == 200
        assert task_id in listed(http, "/v1/tasks")
        assert listed(clients["team"], "/v1/batches") == {batch}


def test_keys_without_a_name_may_be_those_of_who_runs_the_pool(tmp_path: Path) -> None:
    with served(tmp_path, tenants="team;other;ops;*,sees=all") as (_, clients):
        task_id = clients["team"].post("/v1/tasks", json=CHAT).json()["id"]
        seen = {
            name: http.get(f"/v1/tasks/{task_id}").status_code for name, http in clients.items()
        }
    assert seen == {"team": 200, "other": 404, "ops": 404, "plain": 200}


def test_a_tenant_whose_batch_has_begun_is_answered_all_the_same(tmp_path: Path) -> None:
    """It may have four waiting: its own batch takes at most two of these places."""
    with served(tmp_path) as (_, clients):
        http = clients["other"]
        batch = batch_of(http, uploaded(http, 30, "abcdefgh" * 3)).json()["id"]
        wait_until(lambda: status_of(http, batch) != "validating", "it is fed")
        body = {"model": "echo", "messages": CHAT["input"]}
        asked = 0
        while asked < 10 or status_of(http, batch) == "in_progress":
            answer = http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            asked += 1
        wait_until(lambda: status_of(http, batch) == "completed", "and it is completed")
        found = http.get(f"/v1/batches/{batch}").json()["request_counts"]
        assert found == {"total": 30, "completed": 30, "failed": 0}
        # A line may have more choices than it has places: they make room for each other.
        chosen = batch_of(http, uploaded(http, 2, choices=5)).json()["id"]
        wait_until(lambda: status_of(http, chosen) == "completed", "its choices are drawn")
        assert http.get(f"/v1/batches/{chosen}").json()["request_counts"]["completed"] == 2
        # More texts than may wait are asked for one after the other.
        many = http.post("/v1/embeddings", json={"model": "vectors", "input": ["a"] * 9})
        assert many.status_code == 200, many.text
        assert len(many.json()["data"]) == 9
