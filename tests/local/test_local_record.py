"""Decisions of a real local pool, recorded under load and replayed from the file."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from fakes.local_process import QUICK, cli, local
from fakes.local_rig import DEADLINE_SECONDS
from fakes.plain_http import NO_TLS
from fakes.preloaded import llmtaskpool

IDLE_DECISIONS = 2


def burst(url: str, seconds: float) -> list[int]:
    """About three workers' worth of work for some seconds, and then nothing for some."""

    async def send() -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=NO_TLS) as client:
            jobs = []
            for _ in range(int(seconds / 0.1)):
                body = {"seconds": 1.2}
                jobs.append(asyncio.create_task(client.post("/v1/chat/completions", json=body)))
                await asyncio.sleep(0.1)
            return [answer.status_code for answer in await asyncio.gather(*jobs)]

    return asyncio.run(send())


def recorded(path: Path, seconds: float, **scaling: Any) -> None:
    """A pool lives through a burst and the quiet after it, and writes a record."""
    spec = {**QUICK, "scaling": QUICK["scaling"] | {"maxReplicas": 6} | scaling}
    with local(spec=spec, record=path, ready_seconds=1) as pool:
        pool.ready(1)
        assert set(burst(pool.url, seconds)) == {200}
        seen = decisions(path)
        eventually_true(lambda: decisions(path) >= seen + IDLE_DECISIONS)


def eventually_true(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 2 * DEADLINE_SECONDS
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def decisions(path: Path) -> int:
    return path.read_text().count("\n")


def replay(path: Path, *arguments: str) -> dict[str, Any]:
    done = llmtaskpool(
        "replay", path, *arguments, "--output", "json",
        environment=os.environ, timeout=DEADLINE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_record_of_a_burst_gives_its_own_decisions_again_and_others_for_another_target(
    tmp_path: Path,
) -> None:
    path = tmp_path / "record.jsonl"
    recorded(path, 18.0)
    again = replay(path)
    assert again["decisions"] >= 5
    assert again["reproduced"] == {"same": again["decisions"], "of": again["decisions"]}
    assert again["differences"] == []
    assert again["recorded"] == again["replayed"]
    assert again["recorded"]["most_replicas"] > 1
    assert again["start_up_measured"]
    other = replay(path, "--set", "scaling.maxReplicas=1")
    assert other["recorded"] == again["recorded"]
    assert other["replayed"]["most_replicas"] == 1
    assert other["replayed"]["pod_hours"] < other["recorded"]["pod_hours"]
    assert other["replayed"]["backlog_pod_s"] > other["recorded"]["backlog_pod_s"]


def test_a_pool_that_only_advises_serves_and_its_record_tells_what_auto_would_have_done(
    tmp_path: Path,
) -> None:
    path = tmp_path / "record.jsonl"
    recorded(path, 13.0, mode="Advise")
    told = replay(path, "--start-up", "0")
    assert told["mode"] == "Advise"
    assert told["recorded"]["most_replicas"] == 1
    assert told["recorded"]["changes"] == 0
    assert told["replayed"]["most_replicas"] > 1
    assert told["replayed"]["backlog_pod_s"] < told["recorded"]["backlog_pod_s"]
    assert "over target" in told["differences"][0]["replayed_reason"]


def test_a_record_that_can_not_be_written_is_bad_input_that_names_the_option() -> None:
    told = cli("--record", "/nowhere/record.jsonl", "--port", "0")
    assert told.returncode == 2
    assert told.stderr == (
        "llmtaskpool local: --record /nowhere/record.jsonl: No such file or directory: "
        "name a file that can be written\n"
    )
