"""Supervision of worker processes: start, restart, drain, end, and no orphans."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from fakes.local_rig import DEADLINE_SECONDS, TOKEN, eventually, local_rig, until, whole_state
from llmtaskpool_operator.local.fleet import FleetLimits, Unstartable
from llmtaskpool_operator.local.health import HealthLimits
from llmtaskpool_operator.workers.backoff import Backoff

TESTS = Path(__file__).parents[1]


def test_as_many_workers_run_as_were_asked_for():
    async def go():
        async with local_rig(3) as rig:
            assert len(rig.front.routed()) == 3
            await rig.scale(1)
            assert len(rig.front.routed()) == 1

    asyncio.run(go())


def test_scaling_and_tending_at_once_starts_no_worker_too_many():
    async def go():
        async with local_rig(0) as rig:
            await asyncio.gather(rig.fleet.scale(2), rig.fleet.tend(), rig.fleet.tend())
            assert len(rig.fleet.workers) == 2

    asyncio.run(go())


def test_victims_go_first_when_there_are_too_many():
    async def go():
        async with local_rig(3) as rig:
            await rig.fleet.scale(2, victims=["worker-2"])
            await rig.settled(2)
            assert sorted(rig.front.routed()) == ["worker-1", "worker-3"]

    asyncio.run(go())


def test_an_idle_worker_goes_before_a_busy_one():
    async def go():
        async with local_rig(2) as rig, rig.client() as client:
            running = asyncio.create_task(rig.work(client, 2.0))
            await until(lambda: any(map(rig.front.open_connections, rig.front.routed())), "it runs")
            busy = next(w for w in rig.fleet.members() if rig.front.open_connections(w.id))
            assert busy.in_flight == 0, "no report says so yet: the front knows it"
            await rig.fleet.scale(1)
            await rig.settled(1)
            assert rig.front.routed() == [busy.id]
            assert (await running).status_code == 200

    asyncio.run(go())


def test_the_control_token_is_in_no_command_line():
    async def go():
        async with local_rig(1) as rig:
            process = psutil.Process(rig.fleet.members()[0].pid)
            assert TOKEN not in " ".join(process.cmdline())
            assert process.environ()["LLMTASKPOOL_CONTROL_TOKENS"] == TOKEN

    asyncio.run(go())


def test_failures_in_a_row_wait_longer_each_time_and_health_forgets_them():
    async def go():
        limits = FleetLimits(backoff=Backoff(first=0.05, most=0.2), healthy_seconds=0.3)
        async with local_rig(1, limits=limits) as rig:
            for _ in range(4):
                worker = rig.fleet.members()[0]
                os.kill(worker.pid, signal.SIGKILL)
                await until(lambda w=worker: w.id not in rig.fleet.workers, "it is gone")
                await rig.settled(1)
            waits = [n.rpartition(" in ")[2] for n in rig.notices if "ended by itself" in n]
            assert waits == ["0.05 s", "0.1 s", "0.2 s", "0.2 s"]

            async def forgotten():
                await rig.fleet.tend()
                return rig.fleet.failures == 0

            await eventually(forgotten, "health forgets the failures")

    asyncio.run(go())


def test_settings_that_no_worker_can_use_are_told_once_in_its_own_words():
    async def go():
        async with local_rig(0, exit_at_once=2) as rig:
            await rig.fleet.scale(1)

            async def tended():
                await rig.fleet.tend()
                return False

            with pytest.raises(Unstartable, match="stand-in: told to fail"):
                await eventually(tended, "it is told")

    asyncio.run(go())


def test_a_worker_that_ignores_sigterm_is_killed_after_its_grace():
    async def go():
        limits = FleetLimits(drain_seconds=1.0, grace_seconds=0.2)
        async with local_rig(1, limits=limits, ignore_sigterm=1) as rig:
            await rig.scale(0)

    asyncio.run(go())


def test_work_over_the_drain_budget_ends_with_the_worker():
    async def go():
        limits = FleetLimits(drain_seconds=0.3, grace_seconds=0.3)
        async with local_rig(1, limits=limits) as rig, rig.client() as client:
            running = asyncio.create_task(rig.work(client, 60.0))
            await until(lambda: rig.front.open_connections("worker-1") == 1, "it runs")
            await rig.scale(0)
            assert (await running).status_code == 502
            assert any("budget is used up" in notice for notice in rig.notices)

    asyncio.run(go())


def test_a_worker_that_is_still_starting_can_be_taken_back():
    async def go():
        async with local_rig(0, ready_seconds=60) as rig:
            await rig.fleet.scale(1)
            await until(lambda: rig.fleet.members()[0].data_port is not None, "it listens")
            await rig.scale(0)

    asyncio.run(go())


PARENT = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from fakes.local_rig import local_rig

async def go():
    async with local_rig(2) as rig:
        print(*(worker.pid for worker in rig.fleet.members()), flush=True)
        await asyncio.Event().wait()

asyncio.run(go())
"""


def test_nothing_is_left_after_kill_9_of_the_parent_engines_included():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(tests=str(TESTS))], stdout=subprocess.PIPE, text=True
    )
    try:
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        engines = [child for worker in workers for child in worker.children(recursive=True)]
        assert len(workers) == 2
        assert len(engines) == 2
        os.kill(parent.pid, signal.SIGKILL)
        _gone, left = psutil.wait_procs(workers + engines, timeout=DEADLINE_SECONDS)
        assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]
    finally:
        parent.kill()
        parent.wait()


def test_state_is_read_from_workers_and_missing_answers_have_a_reason():
    async def go():
        async with local_rig(1) as rig:
            worker = rig.fleet.members()[0]
            assert await worker.observe(time.monotonic()) is not None
            assert (await whole_state(worker)).worker_id == "worker-1"
            os.kill(worker.pid, signal.SIGSTOP)
            try:
                assert await worker.observe(time.monotonic()) is None
                assert worker.unreachable == "no answer within 2 s"
            finally:
                os.kill(worker.pid, signal.SIGCONT)
            assert await worker.observe(time.monotonic()) is not None

    asyncio.run(go())


def test_a_hung_worker_gets_no_more_requests_and_is_replaced_and_nobody_waits_for_ever():
    async def go():
        health = HealthLimits(silent_seconds=0.5, lost_seconds=2.5, lost_asks=1)
        async with local_rig(2, health=health) as rig, rig.client() as client:

            async def watched():
                while True:
                    await rig.fleet.observe(time.monotonic())
                    await rig.fleet.tend()
                    await asyncio.sleep(0.05)

            watching = asyncio.create_task(watched())
            hung, other = rig.fleet.members()
            os.kill(hung.pid, signal.SIGSTOP)
            caught = [asyncio.create_task(rig.work(client, 0.01)) for _ in range(24)]
            await until(lambda: rig.front.routed() == [other.id], "it is taken out")
            later = await asyncio.gather(*(rig.work(client, 0.01) for _ in range(24)))
            assert {answer.status_code for answer in later} == {200}
            answers = await asyncio.gather(*caught)
            assert {answer.status_code for answer in answers} == {200, 502}
            lost = [answer.json() for answer in answers if answer.status_code == 502]
            assert {one["error"]["code"] for one in lost} == {"worker_lost"}
            await until(lambda: len(rig.front.routed()) == 2, "it is replaced")
            assert hung.id not in rig.fleet.workers
            watching.cancel()

    asyncio.run(go())


def test_a_worker_that_pauses_is_routed_again_and_keeps_its_requests():
    async def go():
        health = HealthLimits(silent_seconds=0.5, lost_seconds=600.0)
        async with local_rig(1, health=health) as rig, rig.client() as client:
            worker = rig.fleet.members()[0]
            os.kill(worker.pid, signal.SIGSTOP)
            caught = asyncio.create_task(rig.work(client, 0.01))

            async def silent():
                await rig.fleet.observe(time.monotonic())
                return not rig.front.routed()

            await eventually(silent, "it is taken out")
            held = asyncio.create_task(rig.work(client, 0.01))
            os.kill(worker.pid, signal.SIGCONT)
            await rig.fleet.observe(time.monotonic())
            assert rig.front.routed() == [worker.id]
            assert [(await one).status_code for one in (caught, held)] == [200, 200]
            assert rig.fleet.restarts == 0

    asyncio.run(go())


def test_a_worker_that_says_it_is_stuck_gets_no_requests_and_is_replaced(tmp_path: Path):
    async def go():
        mark = tmp_path / "stuck"
        health = HealthLimits(stuck_seconds=0.3)
        async with local_rig(1, health=health, stuck_file=mark) as rig:
            mark.touch()
            await rig.fleet.observe(time.monotonic())
            assert rig.front.routed() == []
            assert rig.fleet.any_starting()
            await asyncio.sleep(0.3)
            await rig.fleet.observe(time.monotonic())
            mark.unlink()
            await until(lambda: "worker-1" not in rig.fleet.workers, "it is ended")
            await rig.settled(1)
            assert rig.front.routed() == ["worker-2"]

    asyncio.run(go())
