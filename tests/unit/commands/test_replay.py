"""`llmtaskpool replay` as people type it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fakes.cluster_objects import pool
from fakes.preloaded import llmtaskpool
from fakes.recorded_pool import FluidPool

HEAD = "apiVersion: llmtaskpool.io/v1alpha1\nkind: LLMTaskPool\n"


def burst(at: float) -> float:
    return 6.0 if 100 <= at < 400 else 0.8


def recorded(path: Path, name: str = "chat", **scaling: Any) -> Path:
    made = FluidPool(pool(name, scaling={"maxReplicas": 30, **scaling})).run(900, burst)
    path.write_text("".join(made.lines))
    return path


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return recorded(tmp_path / "record.jsonl")


def replay(*arguments: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "110", "NO_COLOR": "1"}
    return llmtaskpool("replay", *arguments, environment=environment, given=given or "")


def test_another_target_gives_both_numbers_where_they_differ_why_and_plots(
    record: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "out.png"
    answer = replay(record, "--set", "scaling.targetUtilization=0.5", "--plot", picture)
    assert answer.returncode == 0, answer.stderr
    assert "180 of 180 recorded decisions come out again" in answer.stdout
    assert "under target 0.50" in answer.stdout
    assert "over target 0.50" in answer.stdout
    lines = answer.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith((" recorded", " replayed"))] == [
        "recorded",
        "replayed",
    ]
    assert "replicas by minutes" in answer.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_json_is_all_that_is_printed_and_has_both_results_and_every_difference(
    record: Path,
) -> None:
    answer = replay(record, "--set", "scaling.targetUtilization=0.5", "--output", "json")
    assert answer.returncode == 0, answer.stderr
    got = json.loads(answer.stdout)
    assert got["pool"] == "team-a/chat"
    assert got["from"] == "2027-01-15T08:00:05Z"
    assert got["reproduced"] == {"same": 180, "of": 180}
    assert got["replayed"]["pod_hours"] > got["recorded"]["pod_hours"]
    assert got["replayed"]["overloaded_s"] < got["recorded"]["overloaded_s"]
    first = got["differences"][0]
    assert first["recorded"] != first["replayed"]
    assert "target 0.50" in first["replayed_reason"]
    assert len(got["moments"]) == 180


def test_without_a_setting_nothing_differs(record: Path) -> None:
    answer = replay(record)
    assert answer.returncode == 0, answer.stderr
    assert "Both are the same at every moment." in answer.stdout


def test_a_pool_in_advise_is_told_what_auto_would_have_done(tmp_path: Path) -> None:
    record = recorded(tmp_path / "record.jsonl", mode="Advise")
    answer = replay(record)
    assert answer.returncode == 0, answer.stderr
    assert "recorded, mode Advise" in answer.stdout
    assert "1 -> " in answer.stdout


def test_a_pool_file_gives_the_setting_and_set_changes_it(record: Path, tmp_path: Path) -> None:
    file = tmp_path / "pool.yaml"
    file.write_text(
        f"{HEAD}metadata: {{name: other}}\nspec: {{scaling: {{maxReplicas: 4, minReplicas: 2}}}}\n"
    )
    answer = replay(record, "--pool", file, "--set", "scaling.minReplicas=3", "--output", "json")
    assert answer.returncode == 0, answer.stderr
    got = json.loads(answer.stdout)["replayed"]
    assert (got["least_replicas"], got["most_replicas"]) == (3, 4)


def test_a_log_of_several_pools_comes_through_a_pipe(tmp_path: Path) -> None:
    chat = recorded(tmp_path / "chat").read_text()
    batch = recorded(tmp_path / "batch", "batch").read_text()
    log = f"2026-11-26 10:00:00 INFO llmtaskpool.operator: leads\n{chat}{batch}"
    unnamed = replay("-", given=log)
    assert unnamed.returncode == 2
    assert unnamed.stderr == (
        "llmtaskpool replay: --name: the record has several pools: use one of team-a/batch, "
        "team-a/chat\n"
    )
    named = replay("-", "--name", "team-a/batch", given=log)
    assert named.returncode == 0, named.stderr
    assert named.stdout.startswith("team-a/batch: 180 decisions in 14.9 min")
    assert "1 other lines were passed over." in named.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "scaling.targetUtilization=9"], "spec.scaling.targetUtilization: 9: Input"),
        (["--set", "scaling.goal=1"], "spec.scaling.goal: Extra inputs are not permitted: there"),
        (["--set", "scaling.mode.fast=1"], "--set scaling.mode.fast: mode has no fields"),
        (["--set", "threads.io.max=9"], "--set 'threads.io.max=9': write scaling.FIELD=VALUE"),
        (["--set", "scaling.alpha"], "--set 'scaling.alpha': write scaling.FIELD=VALUE"),
        (["--set", "scaling.alpha=[1"], "--set 'scaling.alpha=[1': '[1' is no YAML"),
        (["--set", "scaling.metric=GPUUtilization"], "spec.scaling.metric: 'GPUUtilization': a "),
        (["--set", "scaling.minReplicas=99"], "spec.scaling: scaling.minReplicas is greater than"),
        (["--name", "a/b"], "--name a/b: not in the record: use one of team-a/chat"),
        (["--pool", "/nowhere.yaml"], "--pool /nowhere.yaml: No such file or directory: name"),
        (["--output", "xml"], "--output 'xml': use text or json"),
        (["--plot", "/nowhere/x.png"], "--plot /nowhere/x.png: name a .png file"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(record: Path, arguments, told: str) -> None:
    answer = replay(record, *arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(f"llmtaskpool replay: {told}")
    assert answer.stderr.count("\n") == 1


def test_a_bad_record_is_one_line_with_its_line_field_and_remedy(record: Path) -> None:
    lines = record.read_text().splitlines()
    lines[41] = lines[41].replace('"waiting":', '"waiting":"much","was":')
    record.write_text("\n".join(lines))
    answer = replay(record)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(f"llmtaskpool replay: {record} line 42: waiting: 'much': ")
    assert answer.stderr.endswith(": take the line out, or record anew\n")


def test_settings_in_a_record_that_this_version_does_not_know_are_named(record: Path) -> None:
    record.write_text(record.read_text().replace('"tolerance"', '"leniency"'))
    answer = replay(record)
    assert answer.returncode == 2
    assert answer.stderr == (
        "llmtaskpool replay: team-a/chat: whole.spec.scaling.leniency: Extra inputs are not "
        "permitted: there is no such field: remove it or correct its name: use the llmtaskpool "
        "that wrote the record\n"
    )


def test_a_file_without_a_record_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("INFO nothing of interest\n")
    for path, told in (
        (tmp_path / "log", "no line of a record in it: write one with `llmtaskpool local"),
        (tmp_path / "none", "No such file or directory: name a file that can be read"),
        (tmp_path, "Is a directory: name a file that can be read"),
    ):
        answer = replay(path)
        assert (answer.returncode, answer.stdout) == (2, "")
        assert answer.stderr.startswith(f"llmtaskpool replay: {path}: {told}")
