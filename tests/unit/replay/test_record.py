"""What a pool records of its decisions, where it goes, and what is refused when it is read."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from fakes.cluster_objects import NAME, NAMESPACE, pool, worker_state
from fakes.controller_rig import AT_REST, Rig
from fakes.recorded_pool import FluidPool
from llmtaskpool_operator.replay.record import BadRecord, Record, Recorder
from llmtaskpool_operator.replay.record_file import RecordFile


def recorded(seconds: float = 700, **scaling: object) -> list[str]:
    return FluidPool(pool(scaling=scaling)).run(seconds, lambda at: 2.0).lines


def test_a_line_says_what_was_seen_what_was_decided_and_why() -> None:
    line = json.loads(recorded()[1])
    assert line["pool"] == f"{NAMESPACE}/{NAME}"
    assert (line["current"], line["ready"], line["desired"]) == (1, 1, 3)
    assert (line["arrived"], line["backlog"], line["running"]) == pytest.approx((10.0, 10.0, 2.0))
    assert line["reason"].startswith("1 -> 3 replicas: utilization 2.17 over target 0.90")


def test_a_line_is_whole_at_the_beginning_and_every_five_minutes() -> None:
    whole = [place for place, line in enumerate(map(json.loads, recorded())) if "whole" in line]
    assert whole == [0, 60, 120]


def test_a_line_of_an_hour_takes_less_than_half_a_kilobyte() -> None:
    lines = recorded(3600)
    assert sum(map(len, lines)) / len(lines) < 500


def test_the_operator_records_the_pools_that_it_was_told_to_record() -> None:
    for pools, expected in (((f"{NAMESPACE}/{NAME}",), 3), (("all",), 3), (("team-b/chat",), 0)):
        lines: list[str] = []
        rig = Rig(scaling={"maxReplicas": 8}, **AT_REST)
        rig.controller = rig.another(Recorder(lines.append, pools))
        rig.turn()
        rig.cluster.pods("a", state=worker_state("a"))
        for _ in range(12):  # turns of a second: most decide about threads alone
            rig.now += 1
            rig.turn()
        assert len(lines) == expected


def test_an_operator_that_takes_over_begins_a_record_of_its_own() -> None:
    lines: list[str] = []
    rig = Rig(**AT_REST)
    for _ in range(2):
        rig.controller = rig.another(Recorder(lines.append))
        for _ in range(3):
            rig.now += 5
            rig.turn()
    began = [json.loads(line).get("whole", {}).get("began") for line in lines]
    assert began == [True, None, None, True, None, None]


def test_a_record_file_of_bounded_size_keeps_the_newest_lines(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    file = RecordFile(path, pytest.fail, limit=1000)
    for number in range(100):
        file.write(f"line {number:03}, and more of it so that it takes fifty bytes\n")
    file.close()
    both = (tmp_path / "record.jsonl.1").read_text() + path.read_text()
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "record.jsonl.1"]
    assert both.splitlines()[-1].startswith("line 099")
    assert len(both.splitlines()) > 17
    assert len(both) <= 2000


def test_a_record_goes_on_in_the_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    for text in ("first\n", "second\n"):
        file = RecordFile(path, pytest.fail)
        file.write(text)
        file.close()
    assert path.read_text() == "first\nsecond\n"


def test_a_disk_that_is_full_is_told_once_and_stops_nothing() -> None:
    told: list[str] = []
    file = RecordFile(Path("/dev/full"), told.append)
    for _ in range(3):
        file.write("a line\n")
    assert len(told) == 1
    assert "/dev/full" in told[0]
    assert "No space left" in told[0] or str(errno.ENOSPC) in told[0]


def test_lines_of_a_log_are_read_with_what_stands_before_them_and_the_rest_is_passed_over() -> None:
    lines = recorded()
    log = ["2026-01-01 INFO llmtaskpool.operator: team-a/chat: 1 -> 3\n", "\n"]
    log += [f"[pod/llmtaskpool-operator-7/operator] 2026-01-01T00:00:00Z {line}" for line in lines]
    record = Record()
    record.add(log, "log")
    assert record.other == 1
    assert len(record.of(f"{NAMESPACE}/{NAME}")) == len(lines)


def test_records_of_two_replicas_are_put_together_in_order_of_time_each_moment_once() -> None:
    lines = recorded()
    record = Record()
    record.add([*lines[70:], *lines[:80]], "log")
    moments = record.of(f"{NAMESPACE}/{NAME}")
    assert [line.at for line in moments] == sorted({line.at for line in moments})
    assert len(moments) == len(lines)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda line: line | {"current": -1}, "record line 3: current: -1: "),
        (lambda line: line | {"ready": "two"}, "record line 3: ready: 'two': "),
        (lambda line: {k: v for k, v in line.items() if k != "kappa"}, "record line 3: kappa: "),
        (lambda line: line | {"at": None}, "record line 3: at: None: "),
        (lambda line: {"record": 2} | {"record": 2, "new": 1}, "record line 3: record: 2: "),
    ],
)
def test_a_line_that_is_none_is_refused_by_its_number_field_and_value(change, named: str) -> None:
    lines = recorded(50)
    odd = change(json.loads(lines[2]))
    lines[2] = json.dumps(odd, separators=(",", ":"))
    with pytest.raises(BadRecord) as error:
        Record().add(lines, "record")
    assert str(error.value).startswith(named)
    assert "take the line out" in str(error.value) or "use the one that" in str(error.value)


def test_a_line_that_was_cut_off_is_refused_by_its_number() -> None:
    lines = recorded(50)
    with pytest.raises(BadRecord, match=r"record line 10: line: .*: take the line out"):
        Record().add([*lines[:9], lines[9][:60]], "record")


def test_lines_without_any_that_is_whole_are_too_few() -> None:
    record = Record()
    record.add(recorded(200)[1:], "record")
    with pytest.raises(BadRecord, match="record for longer"):
        record.of(f"{NAMESPACE}/{NAME}")
