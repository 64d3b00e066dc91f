"""The typed client, sync and asyncio, over a real pool; and what it does when the pool is away."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from inspect import isasyncgen, isawaitable, signature

import pytest
from fakes.gated_kinds import Work
from fakes.http_rig import Rig, serving, serving_engines, wait_until
from fakes.letters_engine import LettersEngine
from llmtaskpool import (
    AsyncClient,
    Client,
    PoolError,
    Refused,
    TaskFailed,
    Unreachable,
    WaitTimeout,
)
from llmtaskpool.operations import Call, Operations, Pause, pause_after
from llmtaskpool_worker.execution.pool import Rejected


class Both:
    """An AsyncClient that is called as a Client is."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(url, patience_seconds=5)

    def __getattr__(self, name: str):
        def call(*arguments, **more):
            made = getattr(self._client, name)(*arguments, **more)
            if isasyncgen(made):
                return self._loop.run_until_complete(_all_of(made))
            return self._loop.run_until_complete(made) if isawaitable(made) else made

        return call

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


async def _all_of(events) -> list:
    return [event async for event in events]


@pytest.fixture(scope="module")
def work() -> Iterator[Work]:
    work = Work()
    yield work
    work.gate.set()


@pytest.fixture(scope="module")
def rig(work: Work) -> Iterator[Rig]:
    with serving(work.pool) as running:
        yield running


@pytest.fixture(scope="module")
def batches() -> Iterator[Rig]:
    with serving_engines(LettersEngine("echo")) as running:
        yield running


@pytest.fixture(params=["sync", "asyncio"])
def make(request: pytest.FixtureRequest):
    made = []

    def client(url: str):
        one = Client(url, patience_seconds=5) if request.param == "sync" else Both(url)
        made.append(one)
        return one

    yield client
    for one in made:
        one.close()


def test_both_clients_have_the_same_calls() -> None:
    def calls(of: type) -> dict[str, list[str]]:
        return {
            name: list(signature(call).parameters)
            for name, call in vars(of).items()
            if not name.startswith("_")
        }

    assert calls(Client) == calls(AsyncClient)


def test_it_imports_neither_torch_nor_kubernetes_nor_the_operator() -> None:
    code = (
        "import sys, llmtaskpool; heavy = {'torch', 'kubernetes', 'kopf', 'transformers', "
        "'llmtaskpool_operator', 'llmtaskpool_worker'} & {n.split('.')[0] for n in sys.modules}; "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_task_is_submitted_waited_for_listed_and_its_result_is_there(make, rig) -> None:
    client = make(rig.url)
    task = client.submit("add", arguments={"numbers": [1, 2]}, labels={"team": "a"}, weight=2.0)
    done = client.wait(task.id, timeout=30)
    assert (done.state, done.value(), done.labels) == ("succeeded", {"value": 3}, {"team": "a"})
    assert client.get(task.id) == done
    assert task.id in [one.id for one in client.list(labels={"team": "a"}, states=["succeeded"])]
    assert client.list(most=1)[0].id
    assert client.dead_letters() == []


def test_a_graph_s_tasks_come_by_their_names(make, rig) -> None:
    client = make(rig.url)
    one = {"kind": "add", "arguments": {"numbers": [1]}}
    graph = client.graph({"first": one, "second": one | {"depends_on": ["first"]}})
    assert client.wait(graph.tasks["second"].id, timeout=30).state == "succeeded"
    events = list(client.graph_events(graph.id))
    assert [(one.name, one.task.result) for one in events if one.task is not None] == [
        ("first", {"value": 1}),
        ("second", {"value": 1}),
    ]
    assert events[-1].over
    assert events[-1].progress["progress"] == 1.0
    assert {name: one.state for name, one in client.get_graph(graph.id).tasks.items()} == {
        "first": "succeeded",
        "second": "succeeded",
    }
    with pytest.raises(Refused, match="There is no graph"):
        list(client.graph_events("graph-nobody"))


def test_what_fails_says_why_and_what_takes_too_long_goes_on(make, rig) -> None:
    client = make(rig.url)
    failed = client.wait(client.submit("fail").id, timeout=30)
    with pytest.raises(TaskFailed, match="is failed: it broke"):
        failed.value()
    late = client.submit("gated")
    with pytest.raises(WaitTimeout, match="wait again, or cancel it") as told:
        client.wait(late.id, timeout=0.1)
    assert told.value.last.id == late.id
    assert client.cancel(late.id).state == "cancelled"


def test_what_is_refused_names_field_and_remedy(make, rig) -> None:
    client = make(rig.url)
    with pytest.raises(Refused, match="is not one of") as refused:
        client.submit("nonsense")
    assert (refused.value.status, refused.value.param) == (404, "kind")
    with pytest.raises(Refused) as unknown:
        client.get("nobody")
    assert unknown.value.code == "task_not_found"
    with pytest.raises(Refused, match="no dead letter"):
        client.replay(client.submit("add", arguments={"numbers": [1]}).id)


def test_a_batch_is_uploaded_waited_for_and_read(make, batches) -> None:
    client = make(batches.url)
    body = {"model": "echo", "prompt": "abc"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    file = client.upload(json.dumps(line).encode(), expires_after_seconds=3600)
    assert file.expires_at == file.created_at + 3600
    looks = []
    begun = client.create_batch(file.id, "/v1/completions", metadata={"of": "mine"})
    done = client.wait_batch(begun.id, timeout=60, on_look=looks.append)
    assert (done.status, done.counts.completed, done.counts.total) == ("completed", 1, 1)
    assert looks[-1] == done
    into = io.BytesIO()
    assert client.download(done.output_file_id, into) == len(into.getvalue())
    assert json.loads(into.getvalue())["response"]["body"]["choices"][0]["text"] == "abc"
    assert client.list_batches(most=1)[0].id == begun.id
    assert client.get_batch(begun.id) == done
    with pytest.raises(Refused, match="nothing left to cancel"):
        client.cancel_batch(begun.id)
    with pytest.raises(Refused, match="There is no file"):
        client.download("file-none", io.BytesIO())


def test_nobody_at_the_address_is_told_with_the_way_to_name_one(make) -> None:
    client = Client("http://127.0.0.1:1", patience_seconds=0)
    with client, pytest.raises(Unreachable, match="--url or LLMTASKPOOL_URL"):
        client.list()


AGAIN, ONCE = Call("GET", "/"), Call("POST", "/", again=False)


def answer(status: int, code: str | None = None, wait: float | None = None) -> Refused:
    return Refused(status, "no", code=code, retry_after_seconds=wait)


@pytest.mark.parametrize(
    ("call", "error", "pause"),
    [
        (AGAIN, answer(503, wait=3.0), 3.0),
        (AGAIN, answer(503), 0.5),
        (AGAIN, answer(503, wait=9999.0), 60.0),
        (AGAIN, answer(429, wait=2.0), 2.0),
        (AGAIN, answer(502), 0.5),
        (AGAIN, answer(500), None),
        (AGAIN, answer(400), None),
        (AGAIN, answer(404), None),
        (AGAIN, Unreachable("x", sent=True), 0.5),
        (ONCE, Unreachable("x", sent=True), None),
        (ONCE, Unreachable("x", sent=False), 0.5),
        (ONCE, answer(503, "draining", 1.0), 1.0),
        (ONCE, answer(503, "queue_unavailable", 1.0), None),
        (ONCE, answer(502), None),
    ],
)
def test_when_a_call_is_said_again(call: Call, error: PoolError, pause: float | None) -> None:
    assert pause_after(call, error, 0.5) == pause


def test_a_submit_is_said_again_with_the_same_key_until_the_patience_is_over() -> None:
    now = 0.0
    steps = Operations(10.0, lambda: now, lambda: 0.5).submit({"kind": "add", "model": None})
    said = [next(steps)]
    for _ in range(3):
        assert steps.throw(answer(503, wait=3.0)) == Pause(3.0)
        now += 3.0
        said.append(steps.send(None))
    with pytest.raises(Refused):
        steps.throw(answer(503, wait=3.0))
    assert len({one.json["idempotency_key"] for one in said}) == 1
    assert set(said[0].json) == {"kind", "idempotency_key"}


def test_a_wait_outlives_a_pool_that_is_away_for_a_moment(make, rig, work) -> None:
    client = make(rig.url)
    task = client.submit("gated")
    wait_until(lambda: rig.held() >= 1, "it runs")
    there, asked = rig.pool.get, []

    async def away(name):
        asked.append(name)
        if len(asked) == 1:
            raise Rejected("queue_unavailable", "away", retry_after_seconds=1.0)
        work.gate.set()
        return await there(name)

    rig.pool.get = away
    try:
        assert client.wait(task.id, timeout=60).state == "succeeded"
        assert len(asked) >= 2
    finally:
        rig.pool.get = there
        work.gate.clear()  # for the other client
