"""The task routes as a client sees them, over a pool without engines."""

from __future__ import annotations

import json
import threading
from contextlib import closing

import pytest
from fakes.fake_pool import FakePool, Running, wait_for_ever
from fakes.http_rig import serving, wait_until
from llmtaskpool_worker.scheduling.task import Call, Embed, Generate, Generated


@pytest.fixture(scope="module")
def rig():
    with serving() as running:
        yield running


SUM = {"kind": "sum", "arguments": {"numbers": [1, 2, 3]}}


def test_a_task_is_accepted_with_its_place_and_says_that_a_lost_pod_loses_it(rig):
    answer = rig.post("/v1/tasks", SUM | {"weight": 2, "labels": {"team": "a"}})
    assert answer.status_code == 202
    body = answer.json()
    assert answer.headers["location"] == f"/v1/tasks/{body['id']}"
    assert body["weight"] == 2
    assert body["priority"] == 4
    assert body["labels"] == {"team": "a"}
    assert body["durable"] is False
    assert "lost" in body["note"]


def test_a_task_is_told_from_its_acceptance_on_until_when_its_result_is_kept(rig):
    task = rig.post("/v1/tasks", SUM).json()
    assert task["result_expires_at"] == pytest.approx(task["submitted_at"] + 600, abs=1)
    ended = rig.get(f"/v1/tasks/{task['id']}?wait=10").json()
    assert ended["result_expires_at"] >= task["result_expires_at"]


def test_waiting_for_a_task_gives_its_result(rig):
    task = rig.post("/v1/tasks", SUM).json()
    ended = rig.get(f"/v1/tasks/{task['id']}?wait=10").json()
    assert ended["state"] == "succeeded"
    assert ended["result"] == {"value": 6}
    assert ended["ended_at"] >= ended["submitted_at"] > 1_600_000_000


def test_waiting_is_over_after_the_seconds_asked_for():
    with serving(lambda clock: FakePool(clock, script=wait_for_ever)) as rig:
        task = rig.post("/v1/tasks", SUM).json()
        assert rig.get(f"/v1/tasks/{task['id']}?wait=0.05").json()["state"] == "running"


def test_a_client_that_leaves_its_waiting_leaves_the_task_running():
    with serving(lambda clock: FakePool(clock, script=wait_for_ever)) as rig:
        task = rig.post("/v1/tasks", SUM).json()
        with closing(rig.connect()) as made:
            made.sendall(f"GET /v1/tasks/{task['id']}?wait=60 HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert rig.get("/v1/models").status_code == 200
        assert rig.held() == 1


@pytest.mark.parametrize("how", ["header", "field"])
def test_an_idempotency_key_gives_the_same_task_again(rig, how):
    key = f"key-{how}"
    body = SUM | ({"idempotency_key": key} if how == "field" else {})
    headers = {"Idempotency-Key": key} if how == "header" else {}
    ids = {rig.post("/v1/tasks", body, headers=headers).json()["id"] for _ in range(3)}
    assert len(ids) == 1


def test_a_task_is_cancelled_by_delete():
    with serving(lambda clock: FakePool(clock, script=wait_for_ever)) as rig, rig.client() as http:
        task = rig.post("/v1/tasks", SUM).json()
        assert http.delete(f"/v1/tasks/{task['id']}").json()["state"] == "cancelled"
        assert rig.held() == 0
        assert http.delete(f"/v1/tasks/{task['id']}").json()["state"] == "cancelled"
        assert http.delete("/v1/tasks/none").status_code == 404


def test_the_payload_of_each_kind_reaches_the_pool(rig):
    chat = {
        "kind": "chat",
        "model": "echo",
        "input": [{"role": "user", "content": "hi"}],
        "arguments": {"max_tokens": 3, "temperature": 0, "stop": ["x"]},
        "deadline_seconds": 5,
        "timeout_seconds": 7.5,
    }
    assert rig.post("/v1/tasks", chat).status_code == 202
    request = rig.pool.requests[-1]
    assert isinstance(request.payload, Generate)
    assert (request.payload.max_tokens, request.payload.stop) == (3, ("x",))
    assert (request.queue_timeout_seconds, request.timeout_seconds) == (5, 7.5)
    rig.post("/v1/tasks", {"kind": "generate", "model": "echo", "input": [1, 2]})
    assert rig.pool.requests[-1].payload.prompt == (1, 2)
    rig.post("/v1/tasks", {"kind": "embed", "model": "vectors", "input": "ab"})
    assert rig.pool.requests[-1].payload == Embed((97, 98))
    rig.post("/v1/tasks", SUM, headers={"x-llmtaskpool-weight": "3"})
    assert rig.pool.requests[-1].payload == Call({"numbers": [1, 2, 3]})
    assert rig.pool.requests[-1].weight == 3


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "kind"),
        ({"kind": 5}, "kind"),
        ({"kind": "sum", "arguments": []}, "arguments"),
        ({"kind": "sum", "input": "x"}, "input"),
        ({"kind": "sum", "weight": 0}, "weight"),
        ({"kind": "sum", "deadline_seconds": -1}, "deadline_seconds"),
        ({"kind": "sum", "timeout_seconds": 10**400}, "timeout_seconds"),
        ({"kind": "sum", "idempotency_key": ""}, "idempotency_key"),
        ({"kind": "sum", "labels": {"a": 1}}, "labels.a"),
        ({"kind": "sum", "wieght": 1}, "wieght"),
        ({"kind": "nothing"}, "kind"),
        ({"kind": "chat", "input": []}, "model"),
        ({"kind": "chat", "model": "echo", "input": []}, "input"),
        (
            {"kind": "chat", "model": "echo", "input": [{"role": "x", "content": ""}]},
            "input[0].role",
        ),
        ({"kind": "chat", "model": "echo"}, "input"),
        ({"kind": "generate", "model": "echo", "input": ["a", "b"]}, "input"),
        ({"kind": "generate", "model": "echo", "input": ""}, "input"),
        (
            {"kind": "generate", "model": "echo", "input": "a", "arguments": {"max_tokens": 0}},
            "arguments.max_tokens",
        ),
        (
            {"kind": "generate", "model": "echo", "input": "a", "arguments": {"max_tokens": 999}},
            "arguments.max_tokens",
        ),
        ({"kind": "generate", "model": "echo", "input": "a", "arguments": {"n": 2}}, "arguments.n"),
        ({"kind": "embed", "model": "vectors", "input": [-1]}, "input"),
        ({"kind": "embed", "model": "vectors"}, "input"),
    ],
)
def test_a_bad_field_of_a_task_is_named_and_refused(rig, body, field):
    before = len(rig.pool.requests)
    answer = rig.post("/v1/tasks", body)
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == field, answer.text
    assert len(rig.pool.requests) == before


@pytest.mark.parametrize("wait", ["x", "-1", "nan", "301", "inf"])
def test_a_bad_wait_is_named(rig, wait):
    task = rig.post("/v1/tasks", SUM).json()
    answer = rig.get(f"/v1/tasks/{task['id']}?wait={wait}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "wait"


def test_an_unknown_task_is_404(rig):
    for path in ("/v1/tasks/none", "/v1/tasks/none/events"):
        assert rig.get(path).json()["error"]["code"] == "task_not_found"


def events_of(text: str) -> list[tuple[int, str, dict]]:
    events = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        events.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return events


async def two_words(run: Running) -> None:
    run.start()
    run.say("one ", 1)
    run.say("two", 2)
    run.succeed(Generated("one two", (1, 2), 3, "stop"))


def test_events_are_numbered_replayed_from_the_start_and_resumed():
    with serving(lambda clock: FakePool(clock, script=two_words)) as rig:
        task = rig.post("/v1/tasks", {"kind": "generate", "model": "echo", "input": "abc"}).json()
        path = f"/v1/tasks/{task['id']}"
        assert rig.get(f"{path}?wait=10").json()["result"]["text"] == "one two"
        events = events_of(rig.get(f"{path}/events").text)
        assert [number for number, _, _ in events] == list(range(6))
        assert [name for _, name, _ in events] == ["state", "state", "text", "text", "state", "end"]
        assert events[2][2]["text"] + events[3][2]["text"] == "one two"
        assert events[-1][2]["state"] == "succeeded"
        resumed = events_of(rig.get(f"{path}/events", headers={"last-event-id": "2"}).text)
        assert resumed == events[3:]


def test_events_come_while_the_task_runs_and_end_with_it():
    with serving(lambda clock: FakePool(clock, script=wait_for_ever)) as rig:
        task = rig.post("/v1/tasks", SUM).json()
        seen: list[str] = []

        def follow() -> None:
            with rig.client() as http, http.stream("GET", f"/v1/tasks/{task['id']}/events") as got:
                seen.extend(line for line in got.iter_lines() if line.startswith("event"))

        follower = threading.Thread(target=follow)
        follower.start()
        wait_until(lambda: "event: text" in seen, "the first word was seen")
        rig.call(rig.pool.cancel, task["id"])
        follower.join(20)
        assert seen[-1] == "event: end"
