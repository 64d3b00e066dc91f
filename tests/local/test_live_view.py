"""What a local pool shows: on terminals, in pipes and as JSON lines."""

from __future__ import annotations

import io
import json
import re

from llmtaskpool_operator.local.live_view import (
    JsonView,
    Line,
    LiveView,
    PlainView,
    Snapshot,
    WorkerRow,
    view_for,
)
from llmtaskpool_worker.contract import LaneName, LaneState
from rich.console import Console

LANES = {
    LaneName.COMPUTE: LaneState(threads=7, threads_cap=16, active=5, queued=31, queue_limit=99),
    LaneName.IO: LaneState(threads=8, threads_cap=64, active=1, queued=0, queue_limit=99),
}
READY = WorkerRow("worker-1", "ready", 12.0, LANES, 6, ("smollm2 weights", 1.0), 700 * 2**20)
STARTING = WorkerRow("worker-2", "starting", 1.0, loading=("smollm2 weights", 0.42))
SNAPSHOT = Snapshot("pool", "http://h:1", 2, 1, (1, 4), 1.37, 0.9, (READY, STARTING))


def shown(show, **console) -> str:
    text = io.StringIO()
    view = LiveView(Console(file=text, width=120, **console))
    show(view)
    view.close()
    return text.getvalue()


def test_the_table_has_threads_queues_phases_utilization_and_why():
    def show(view):
        view.show(SNAPSHOT)
        view.tell(Line(3.0, "decision", "1 -> 2 replicas: utilization 1.37 over target 0.90"))

    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(show, force_terminal=True, no_color=True))
    for part in (
        "http://h:1/v1",
        "1 ready / 2 desired (1..4)",
        "utilization 1.37 of target 0.90",
        "31",
        "700 MiB",
        "smollm2 weights 42%",
        "3.0 s  1 -> 2 replicas: utilization 1.37 over target 0.90",
    ):
        assert part in text


def test_no_color_leaves_no_colours(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)  # CI sets it
    colored = shown(lambda view: view.show(SNAPSHOT), force_terminal=True)
    plain = shown(lambda view: view.show(SNAPSHOT), force_terminal=True, no_color=True)
    assert "\x1b[32m" in colored
    assert "\x1b[32m" not in plain


def test_off_a_terminal_only_what_changed_is_printed_as_plain_lines():
    text = io.StringIO()
    view = view_for("text", Console(file=text, width=40))
    assert isinstance(view, PlainView)
    view.show(SNAPSHOT)
    view.show(SNAPSHOT)
    view.tell(Line(3.0, "notice", "worker-1 [is] ready " + "x" * 100))
    lines = text.getvalue().splitlines()
    assert lines == [
        "replicas: 1 ready of 2 (worker-1 ready, worker-2 starting)",
        "worker-2 loads: smollm2 weights 42%",
        "   3.0 s  worker-1 [is] ready " + "x" * 100,
    ]


def test_json_output_is_one_object_per_line_and_says_each_change_once():
    lines: list[str] = []
    view = JsonView(lines.append)
    view.show(SNAPSHOT)
    view.show(SNAPSHOT)
    view.tell(Line(3.0, "decision", "why"))
    view.say("for eyes only")
    state, decision = (json.loads(line) for line in lines)
    assert state["workers"]["worker-1"] == {"phase": "ready", "threads": {"compute": 7, "io": 8}}
    assert (state["desired"], state["ready"], state["utilization"]) == (2, 1, 1.37)
    assert decision == {"event": "decision", "at": 3.0, "message": "why"}
