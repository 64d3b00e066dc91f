"""Tasks that depend on tasks, lists of them and dead letters, as a client sees them."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from fakes.gated_kinds import Work
from fakes.http_rig import serving, wait_until
from llmtaskpool_worker.brokers.protocol import Wanted
from llmtaskpool_worker.contract import LaneName


@pytest.fixture
def work():
    work = Work()
    yield work
    work.gate.set()


@pytest.fixture
def rig(work):
    with serving(work.pool) as running:
        yield running


def add(*numbers, **more) -> dict:
    arguments = {"numbers": list(numbers)} | {k: more.pop(k) for k in ("name",) if k in more}
    return {"kind": "add", "arguments": arguments} | more


def submitted(rig, body: dict) -> dict:
    answer = rig.post("/v1/tasks", body)
    assert answer.status_code == 202, answer.text
    return answer.json()


def ended(rig, task: dict) -> dict:
    return rig.get(f"/v1/tasks/{task['id']}", params={"wait": 20}).json()


def test_a_task_runs_after_those_it_depends_on_with_their_results_in_its_arguments(rig, work):
    first = submitted(rig, {"kind": "gated", "arguments": {"x": 1}})
    second = submitted(rig, add(3, 4))
    ids = [first["id"], second["id"]]
    asked = {"kind": "gated", "arguments": {"of": [{"$result": one} for one in ids]}}
    third = submitted(rig, asked | {"depends_on": ids})
    assert (third["state"], third["depends_on"]) == ("blocked", ids)
    work.gate.set()
    assert ended(rig, third)["result"] == {"value": {"of": [{"x": 1}, 7]}}


def test_a_parent_that_fails_fails_those_that_need_it_and_says_so(rig):
    broken, good = submitted(rig, {"kind": "fail"}), submitted(rig, add(1))
    of = {"depends_on": [broken["id"], good["id"]]}
    needs_all = submitted(rig, add(1) | of)
    after_it = submitted(rig, add(1, depends_on=[needs_all["id"]]))
    needs_one = submitted(rig, add(2) | of | {"need": 1})
    whatever = submitted(rig, add(3) | of | {"on_failure": "continue"})
    for task in (needs_all, after_it):
        failed = ended(rig, task)
        assert (failed["state"], failed["error"]["code"]) == ("failed", "dependency_failed")
    assert ended(rig, needs_one)["result"] == {"value": 2}
    assert ended(rig, whatever)["result"] == {"value": 3}


def test_cancelling_a_task_ends_what_depends_on_it(rig):
    parent = submitted(rig, {"kind": "gated"})
    child = submitted(rig, add(1, depends_on=[parent["id"]]))
    with rig.client() as http:
        assert http.delete(f"/v1/tasks/{parent['id']}").json()["state"] == "cancelled"
    assert ended(rig, child)["error"]["code"] == "dependency_failed"


@pytest.mark.parametrize(
    ("more", "param", "told"),
    [
        ({"depends_on": ["nobody"]}, "depends_on", "there is no task 'nobody'"),
        ({"depends_on": ["a", "a"]}, "depends_on", "'a' twice"),
        ({"need": 1}, "need", "without depends_on"),
        ({"depends_on": ["a"], "need": 2}, "need", "need is 2, and depends_on names 1"),
        ({"depends_on": ["a"], "need": 0}, "need", "need is 0"),
        ({"depends_on": ["a"], "on_failure": "shrug"}, "on_failure", "'shrug'"),
        ({"depends_on": [f"t{n}" for n in range(101)]}, "depends_on", "at most 100"),
        ({"arguments": {"numbers": [{"$result": "x"}]}}, "depends_on", "result of 'x'"),
    ],
)
def test_dependencies_that_cant_be_are_refused_by_field(rig, more, param, told):
    answer = rig.post("/v1/tasks", add(1) | more)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert told in answer.json()["error"]["message"]


def test_a_graph_is_one_call_by_names_and_runs_in_its_order(rig, work):
    graph = {
        "sum": add({"$result": "left"}, {"$result": "right"}, depends_on=["left", "right"]),
        "left": add({"$result": "root"}, 10, name="left", depends_on=["root"]),
        "right": add({"$result": "root"}, 20, name="right", depends_on=["root"]),
        "root": add(1, name="root", labels={"mine": "yes"}),
    }
    answer = rig.post("/v1/graphs", {"tasks": graph})
    assert answer.status_code == 202, answer.text
    told = answer.json()
    assert list(told["tasks"]) == list(graph)
    assert ended(rig, told["tasks"]["sum"])["result"] == {"value": 32}
    assert work.ran[0] == "root"
    listed = rig.get("/v1/tasks", params={"label": f"graph:{told['id']}"}).json()
    assert {task["id"] for task in listed["data"]} == {t["id"] for t in told["tasks"].values()}
    assert told["tasks"]["root"]["labels"]["mine"] == "yes"


def test_a_graph_is_one_stream_and_one_number(rig, work):
    graph = {
        "gated": {"kind": "gated", "arguments": {"x": 5}},
        "quick": add(1),
        "bad": {"kind": "fail"},
        "after": add({"$result": "quick"}, 1, depends_on=["gated", "quick"]),
    }
    answer = rig.post("/v1/graphs", {"tasks": graph})
    graph_id = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/graphs/{graph_id}"
    path = f"/v1/graphs/{graph_id}"
    wait_until(lambda: rig.get(path).json()["ended"] == 2, "two have ended")
    seen = rig.get(path).json()
    assert (seen["state"], seen["progress"], seen["total"]) == ("running", 0.5, 4)
    assert seen["counts"] == {"blocked": 1, "running": 1, "succeeded": 1, "failed": 1}
    assert seen["tasks"]["bad"]["error"]["code"] == "broken"
    events = []
    with rig.client() as http, http.stream("GET", f"{path}/events") as stream:
        for name, data in events_in(stream.iter_lines()):
            events.append((name, data))
            work.gate.set()  # once the stream has begun
    assert [name for name, _ in events if name != "progress"] == ["task"] * 4 + ["end"]
    told = [data for name, data in events if name == "task"]
    assert {one["name"] for one in told[:2]} == {"quick", "bad"}, "it begins with what has ended"
    assert [one["name"] for one in told[2:]] == ["gated", "after"]
    assert told[3]["task"]["result"] == {"value": 2}
    first, *_ = [data for name, data in events if name == "progress"]
    assert (first["progress"], first["ended"]) == (0.5, 2)
    end = events[-1][1]
    assert (end["state"], end["progress"], end["ended"]) == ("failed", 1.0, 4)
    again = rig.get(f"{path}/events").text
    assert again.count("event: task") == 4, "whoever comes later hears all of it"


def test_a_graph_that_isnt_there_is_not_found(rig):
    for path in ("/v1/graphs/graph-x", "/v1/graphs/graph-x/events"):
        answer = rig.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "graph_not_found")


def events_in(lines):
    """Names and data of server-sent events."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


@pytest.mark.parametrize(
    ("tasks", "param", "told"),
    [
        (
            {"a": add(depends_on=["c"]), "b": add(depends_on=["a"]), "c": add(depends_on=["b"])},
            "tasks",
            "a circle, so none of these could ever begin: ",
        ),
        ({"a": add(depends_on=["a"])}, "tasks", "a -> a"),
        ({"a": add(depends_on=["b"])}, "tasks.a.depends_on", "'b', which is no task of this graph"),
        ({"a": {"kind": 3}}, "tasks.a.kind", "kind is 3"),
        ({"a": {"kind": "nonsense"}}, "kind", "is not one of"),
        ({}, "tasks", "at most 1000 tasks"),
        ({"a b": add(1)}, "tasks", ""),
        ({f"t{n}": add(1) for n in range(1001)}, "tasks", "at most 1000"),
    ],
)
def test_a_graph_that_cant_be_is_refused_as_a_whole(rig, tasks, param, told):
    answer = rig.post("/v1/graphs", {"tasks": tasks})
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"].startswith(param)
    assert told in answer.json()["error"]["message"]
    assert rig.held() == 0


def test_a_circle_is_told_with_its_path(rig):
    tasks = {
        "a": add(depends_on=["c"]),
        "b": add(depends_on=["a"]),
        "c": add(depends_on=["b", "out"]),
        "out": add(1),
    }
    message = rig.post("/v1/graphs", {"tasks": tasks}).json()["error"]["message"]
    path = message.split("begin: ")[1].split(".")[0].split(" -> ")
    assert path[0] == path[-1]
    assert set(path) == {"a", "b", "c"}
    for child, parent in pairwise(path):
        assert parent in tasks[child]["depends_on"]


def test_a_graph_that_finds_no_room_leaves_nothing_behind(rig):
    tasks = {f"t{n}": {"kind": "gated"} for n in range(60)}
    answer = rig.post("/v1/graphs", {"tasks": tasks})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    listed = rig.get("/v1/tasks", params={"state": "queued,blocked,running"}).json()
    assert listed["data"] == []


def test_tasks_are_listed_page_by_page_and_what_is_asked_for_wrongly_is_told(rig):
    tasks = [ended(rig, submitted(rig, add(n, labels={"n": str(n % 2)}))) for n in range(5)]
    page = rig.get("/v1/tasks", params={"limit": 2}).json()
    assert [task["id"] for task in page["data"]] == [tasks[4]["id"], tasks[3]["id"]]
    assert page["has_more"]
    rest = rig.get("/v1/tasks", params={"after": tasks[3]["id"], "label": "n:0"}).json()
    assert [task["id"] for task in rest["data"]] == [tasks[2]["id"], tasks[0]["id"]]
    assert not rest["has_more"]
    for wrong, param in (("state=odd", "state"), ("label=x", "label"), ("limit=0", "limit")):
        answer = rig.get(f"/v1/tasks?{wrong}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_dead_letter_is_listed_and_replayed_and_nothing_else_is(rig, work):
    task = submitted(rig, {"kind": "gated", "arguments": {"x": 2}})
    wait_until(lambda: rig.held() == 1, "it runs")

    def lose() -> None:
        broker = rig.pool._ledger.broker
        record = broker._records[task["id"]]
        record.losses = record.task.max_attempts - 1
        broker._lose(record)

    rig.call(lose)
    [dead] = rig.get("/v1/dead-letters").json()["data"]
    assert (dead["id"], dead["state"], dead["error"]["code"]) == (
        task["id"],
        "dead",
        "worker_lost",
    )
    work.gate.set()
    again = rig.post(f"/v1/tasks/{task['id']}/replay")
    assert again.status_code == 202
    assert ended(rig, task)["result"] == {"value": {"x": 2}}
    assert rig.get("/v1/dead-letters").json()["data"] == []
    refused = rig.post(f"/v1/tasks/{task['id']}/replay")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_a_dead_letter")
    assert rig.post("/v1/tasks/nobody/replay").status_code == 404


def test_wanted_is_what_the_broker_is_asked(rig):
    """What a claim asks for names only what this worker can run."""
    wanted = rig.call(rig.pool._running.wanted, rig.pool._lanes[LaneName.IO], 3)
    assert isinstance(wanted, Wanted)
    assert wanted.free("add") > 3
    assert wanted.free("somebody else's kind") == 0
