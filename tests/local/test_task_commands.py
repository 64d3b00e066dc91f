"""Tasks from the command line: what is printed, and with which code it ends."""

from __future__ import annotations

import json

import pytest
from fakes.gated_kinds import Work
from fakes.http_rig import serving, wait_until
from llmtaskpool_operator.__main__ import app
from llmtaskpool_worker.execution.pool import Rejected
from typer.testing import CliRunner


@pytest.fixture
def work():
    work = Work()
    yield work
    work.gate.set()


@pytest.fixture
def rig(work):
    with serving(work.pool) as running:
        yield running


def cli(rig, *arguments: str, **more):
    return CliRunner().invoke(app, [*arguments, "--url", rig.url], **more)


def lines(told) -> list[dict]:
    return [json.loads(line) for line in told.stdout.splitlines()]


def test_a_task_is_submitted_and_waited_for(rig):
    told = cli(rig, "submit", "add", "--arguments", '{"numbers": [1, 2]}', "--label", "a=b")
    assert told.exit_code == 0, told.output
    task_id = told.stdout.strip()
    told = cli(rig, "wait", task_id, "--output", "json")
    assert told.exit_code == 0
    [task] = lines(told)
    assert (task["result"], task["labels"]) == ({"value": 3}, {"a": "b"})
    told = cli(rig, "list")
    assert told.exit_code == 0
    assert f"{task_id} add succeeded 1" in " ".join(told.stdout.split())


def test_a_whole_task_comes_from_a_file_or_from_standard_input(rig, tmp_path):
    file = tmp_path / "task.json"
    file.write_text('{"kind": "add", "arguments": {"numbers": [4]}}')
    for name, given in ((str(file), None), ("-", file.read_text())):
        told = cli(rig, "submit", "--file", name, "--wait", "--output", "json", input=given)
        assert told.exit_code == 0, told.output
        assert lines(told)[0]["result"] == {"value": 4}


def test_what_fails_is_1_what_takes_too_long_is_124_and_what_is_unknown_3(rig):
    failed = cli(rig, "submit", "fail", "--wait")
    assert failed.exit_code == 1
    assert "it broke" in failed.stdout
    late = cli(rig, "submit", "gated", "--wait", "--timeout", "0.1", "--output", "json")
    assert late.exit_code == 124
    assert lines(late)[0]["state"] == "running"
    unknown = cli(rig, "wait", "nobody")
    assert unknown.exit_code == 3
    assert "There is no task" in unknown.stderr


def test_a_pool_that_is_away_for_a_moment_is_waited_for(rig, work):
    """Before: a worker that was killed and came back was the end of the waiting, with 2."""
    task_id = cli(rig, "submit", "gated").stdout.strip()
    there, asked = rig.pool.get, []

    async def away(name):
        asked.append(name)
        if len(asked) < 4:
            raise Rejected("queue_unavailable", "away", retry_after_seconds=1.0)
        work.gate.set()
        return await there(name)

    rig.pool.get = away
    assert cli(rig, "wait", task_id).exit_code == 0
    assert len(asked) >= 4
    asked.clear()
    assert cli(rig, "wait", task_id, "--timeout", "0.2").exit_code == 2


def test_tasks_are_cancelled_by_id_and_by_label_and_take_with_them_what_depends_on_them(rig):
    parent = cli(rig, "submit", "gated", "--label", "batch=1").stdout.strip()
    child = cli(
        rig, "submit", "add", "--arguments", '{"numbers": [1]}', "--after", parent
    ).stdout.strip()
    other = cli(rig, "submit", "gated").stdout.strip()
    told = cli(rig, "cancel", "--label", "batch=1", "--output", "json")
    assert [(task["id"], task["state"]) for task in lines(told)] == [(parent, "cancelled")]
    assert cli(rig, "cancel", other).exit_code == 0
    listed = {task["id"]: task["state"] for task in lines(cli(rig, "list", "--output", "json"))}
    assert listed == {parent: "cancelled", child: "failed", other: "cancelled"}
    assert cli(rig, "cancel", "nobody").exit_code == 3


def test_dead_letters_are_listed_and_replayed(rig, work):
    task_id = cli(rig, "submit", "gated").stdout.strip()
    wait_until(lambda: rig.held() == 1, "it runs")

    def lose() -> None:
        broker = rig.pool._ledger.broker
        record = broker._records[task_id]
        record.losses = record.task.max_attempts - 1
        broker._lose(record)

    rig.call(lose)
    told = cli(rig, "dead-letters", "--output", "json")
    assert [(task["id"], task["state"]) for task in lines(told)] == [(task_id, "dead")]
    work.gate.set()
    assert cli(rig, "dead-letters", "--replay", task_id).exit_code == 0
    assert cli(rig, "wait", task_id).exit_code == 0
    again = cli(rig, "dead-letters", "--replay", task_id)
    assert again.exit_code == 2
    assert "no dead letter" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["submit"], "name a KIND, or give the whole task with --file"),
        (["submit", "x", "--arguments", "[1]"], "--arguments: it is list: write a JSON object"),
        (["submit", "x", "--arguments", "{"], "--arguments: it is no JSON"),
        (["submit", "x", "--label", "x"], "--label 'x': write NAME=VALUE"),
        (["submit", "--file", "/nowhere/x"], "--file /nowhere/x: No such file"),
        (["submit", "nonsense"], "kind 'nonsense' is not one of"),
        (["cancel"], "name ids of tasks, or one or more --label"),
        (["list", "--state", "odd"], "state is 'odd'"),
        (["list", "--output", "xml"], "--output 'xml': use text or json"),
    ],
)
def test_what_is_asked_wrongly_is_one_line_with_the_remedy(rig, arguments, told):
    answer = cli(rig, *arguments)
    assert answer.exit_code in (2, 3), answer.output
    assert told in answer.stderr
    assert answer.stderr.startswith(f"llmtaskpool {arguments[0]}: ")
    assert answer.stderr.count("\n") == 1


def test_a_pool_that_is_not_there_is_told_with_the_way_to_name_one():
    told = CliRunner().invoke(app, ["list", "--url", "http://127.0.0.1:1"])
    assert told.exit_code == 2
    assert "http://127.0.0.1:1 does not answer" in told.stderr
    assert "--url or LLMTASKPOOL_URL" in told.stderr


def graph_of(rig, **tasks: dict) -> str:
    answer = rig.post("/v1/graphs", {"tasks": tasks})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def test_a_whole_graph_is_waited_for_by_its_id(rig, work):
    graph = graph_of(
        rig,
        root={"kind": "add", "arguments": {"numbers": [1]}},
        leaf={
            "kind": "add",
            "depends_on": ["root"],
            "arguments": {"numbers": [{"$result": "root"}, 2]},
        },
    )
    told = cli(rig, "wait", graph, "--output", "json")
    assert told.exit_code == 0, told.output
    assert [(task["name"], task["result"]) for task in lines(told)] == [
        ("root", {"value": 1}),
        ("leaf", {"value": 3}),
    ]
    slow = graph_of(rig, gated={"kind": "gated"}, bad={"kind": "fail"})
    counts = {"running": 1, "failed": 1}
    wait_until(lambda: rig.get(f"/v1/graphs/{slow}").json()["counts"] == counts, "one has ended")
    late = cli(rig, "wait", slow, "--timeout", "0.5", "--output", "json")
    assert late.exit_code == 124
    assert {task["name"]: task["state"] for task in lines(late)} == {
        "gated": "running",
        "bad": "failed",
    }
    work.gate.set()
    assert cli(rig, "wait", slow).exit_code == 1
    unknown = cli(rig, "wait", "graph-nobody")
    assert unknown.exit_code == 3
    assert "There is no graph" in unknown.stderr
