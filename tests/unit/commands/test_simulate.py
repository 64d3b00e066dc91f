"""`llmtaskpool simulate` as people type it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from fakes.preloaded import llmtaskpool

LINES = ["arrival_s,prompt_tokens,output_tokens", *(f"{i / 2},800,100" for i in range(600))]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(LINES) + "\n")
    return path


def simulate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return llmtaskpool("simulate", *arguments, environment={**os.environ, "COLUMNS": "100"})


def test_one_law_gives_a_line_a_plot_and_a_picture(trace: Path, tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    answer = simulate(trace, "--plot", picture)
    assert answer.returncode == 0, answer.stderr
    assert "600 requests" in answer.stdout
    assert "replicas that ours asked for" in answer.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_compare_runs_every_law_and_json_is_all_that_is_printed(trace: Path) -> None:
    answer = simulate(trace, "--compare", "--output", "json")
    assert answer.returncode == 0, answer.stderr
    laws = {law["law"]: law for law in json.loads(answer.stdout)["laws"]}
    wanted = {"ours", "literal", "hpa-gpu", "keda-queue", "keda-concurrency", "kpa", "ray-serve"}
    assert wanted <= laws.keys()
    assert all({"slo", "pod_hours", "flaps", "ttft_p95_s"} <= law.keys() for law in laws.values())


def test_a_pool_file_gives_bounds_and_objectives(trace: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool.yaml"
    pool.write_text(
        "apiVersion: llmtaskpool.io/v1alpha1\nkind: LLMTaskPool\nmetadata: {name: p}\n"
        "spec:\n  scaling: {minReplicas: 4, maxReplicas: 5}\n  slo: {ttftSeconds: 0.01}\n"
    )
    answer = simulate(trace, "--pool", pool, "--output", "json")
    assert answer.returncode == 0, answer.stderr
    (law,) = json.loads(answer.stdout)["laws"]
    assert law["max_replicas"] in (4, 5)
    assert law["slo"] == 0  # no prefill takes 10 ms


def test_a_bad_line_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("\n".join([*LINES[:3], "1.0,many,5"]) + "\n")
    answer = simulate(path)
    assert answer.returncode == 2
    assert answer.stderr.splitlines() == [
        "llmtaskpool simulate: bad.csv line 4, column 2 (prompt tokens): 'many': "
        "give a whole number from 1 to 10000000"
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--law", "magic"], "--law 'magic': use one of ours, "),
        (["--output", "xml"], "--output 'xml': use text or json"),
        (["--plot", "out.jpg"], "--plot out.jpg: name a .png file"),
        (["--pool", "none.yaml"], "--pool none.yaml"),
        (["--profile", "none.json"], "--profile: calibration profile none.json"),
        (["--warm-up", "9999"], "--warm-up 9999: the last request arrives at 299.5 s"),
        (["--target", "0"], "--target 0.0: use a number above 0"),
        (["--compare", "--target", "1"], "--target: laws have targets of different units"),
    ],
)
def test_a_bad_option_is_named_with_its_remedy(
    trace: Path, arguments: list[str], said: str
) -> None:
    answer = simulate(trace, *arguments)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"llmtaskpool simulate: {said}")
    assert len(answer.stderr.splitlines()) == 1
