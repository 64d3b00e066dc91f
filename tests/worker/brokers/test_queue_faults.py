"""What the shared queue promises holds while all breaks, and the judge of that is no fool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from queue_soak.checker import check
from queue_soak.faults import FAULTS
from queue_soak.inside import Plan, Run, aged_plan, plan_for
from queue_soak.outside import Breaking, Soak

AT_ONCE = 15
TRIES = 8
"""A fault does harm when something happens at the wrong time, which a short run may miss."""


def test_each_fault_that_is_put_in_on_purpose_is_found(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    async def main() -> dict[str, str]:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(number: int, fault: str) -> tuple[str, str]:
            told = ""
            for seed in range(TRIES):
                async with places:
                    folder = tmp_path / f"{number}-{seed}"
                    run = Run(folder, plan_for(fault), "valkey", fault, seed)
                    problems = check(await run.go())
                found = [f"{len(cases)} {name}" for name, cases in problems.items()]
                words = FAULTS[fault].says
                told = ", ".join(one for one in found if any(word in one for word in words))
                if told:
                    break
            return fault, told

        return dict(await asyncio.gather(*(one(i, f) for i, f in enumerate(FAULTS))))

    found = asyncio.run(main())
    say("seeded faults: " + "; ".join(f"{fault}: {told}" for fault, told in found.items()))
    assert [fault for fault, told in found.items() if not told] == []


def test_the_order_and_the_bound_of_the_aged_are_kept_under_more_work_than_there_are_threads(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    async def main() -> list[Run]:
        ordered = Run(tmp_path / "ordered", plan_for("the weakest goes first"), "redis", None, 1)
        aged = Run(tmp_path / "aged", aged_plan(), "valkey", None, 1)
        histories = await asyncio.gather(ordered.go(), aged.go())
        for run, history in zip((ordered, aged), histories, strict=True):
            say(f"{run.folder.name}: {run.counts}")
            assert check(history) == {}
        return [ordered, aged]

    for run in asyncio.run(main()):
        assert run.counts["accepted"] > 100


def test_what_a_power_loss_takes_from_the_server_its_clients_say_again(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    async def main() -> tuple[Run, list[dict]]:
        everysec = {"appendfsync": "everysec"}
        plan = Plan(seconds=6.0, kills=(2.0, 3.6, 5.2), cut=True, server=everysec)
        run = Run(tmp_path, plan, "redis", None, seed=3)
        return run, await run.go()

    run, history = asyncio.run(main())
    there = {e["id"] for e in history if e["e"] == "final"}
    accepted = {e["id"] for e in history if e["e"] == "accept" and e["out"] == "ok"}
    say(f"cut by a second, 3 times: {run.counts}, gone: {len(accepted - there)}")
    assert check(history) == {}
    assert run.counts["servers killed"] == 3
    assert accepted <= there


def test_nothing_is_lost_when_workers_and_server_are_killed_stopped_and_cut_off_with_always(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    """With clocks that are an hour wrong, poisonous tasks, and each key said three times."""
    soak = Soak(tmp_path, Breaking(cut_off_every=2.2))
    history = soak.go()
    say(f"SIGKILL, SIGSTOP and silence, fsync always: {soak.told()}")
    assert check(history) == {}
    assert soak.counts["accepted and gone"] == 0
    broken = ("workers killed", "workers stopped", "workers cut off", "servers killed")
    assert min(soak.counts[n] for n in broken) >= 2


def test_old_and_new_workers_share_a_queue_and_each_takes_what_it_can_serve(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    plan = Breaking(seconds=4.0, versions=(1, 2), kind="redis", server_every=1e9, stop_every=1e9)
    soak = Soak(tmp_path, plan)
    history = soak.go()
    say(f"versions 1 and 2 on one queue: {soak.told()}")
    assert check(history) == {}
    assert soak.counts["accepted and gone"] == 0
    news = {e["id"] for e in history if e["e"] == "accept" and e["by"] == "c1"}
    takers = {e["by"] for e in history if e["e"] == "claim" and e["id"] in news}
    olds = {e["by"] for e in history if e["e"] == "claim" and e["id"] not in news}
    assert {soak.versions[name] for name in takers} == {2}
    assert {soak.versions[name] for name in olds} == {1, 2}
