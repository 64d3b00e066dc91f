"""What the shared queue does on real servers, Redis 7.0 and Valkey 9."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes.cutting_proxy import CuttingProxy
from fakes.queue_servers import KINDS, QueueServer
from llmtaskpool_worker.brokers.protocol import (
    Claim,
    Commit,
    Dependencies,
    Held,
    Line,
    Outcome,
    Release,
    Submission,
    Unavailable,
    Wanted,
)
from llmtaskpool_worker.brokers.redis.broker import RedisBroker
from llmtaskpool_worker.brokers.redis.link import Address
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.execution.ids import short_ids
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.task import (
    Asked,
    Call,
    Returned,
    StateChanged,
    TaskError,
    TaskRequest,
    TaskState,
    TextDelta,
)
from llmtaskpool_worker.scheduling.task_queue import TaskQueue, Waiting

POOL = "team/chat"
PREFIX = f"ltp:{{{POOL}}}"
numbers = itertools.count()


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[QueueServer]:
    with QueueServer(tmp_path_factory.mktemp("server"), request.param) as started:
        yield started


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        with request.getfixturevalue("server").client() as client:
            client.flushall()
            client.config_set("maxmemory", 0)


@asynccontextmanager
async def worker(
    url: str, name: str = "w", limits: Limits | None = None, **options: Any
) -> AsyncIterator[RedisBroker]:
    lost: list[str] = []
    broker = RedisBroker(Address(url), POOL, limits or Limits(), time.monotonic, **options)
    await broker.start(name, lost.append)
    broker.lost = lost  # type: ignore[attr-defined]
    try:
        yield broker
    finally:
        await broker.close()


def task(name: str, weight: float = 1.0, line: str = "c", **more: Any) -> Submission:
    said: dict[str, Any] = {
        "id": name,
        "request": TaskRequest("k", Call({"v": name}), weight=weight),
        "lane": LaneName.IO,
        "group": "k",
        "line": Line(line),
        "load_seconds": 1.0,
        "priority": weight,
        "work_seconds": 1.0,
        "size_bytes": 100,
        "patience_seconds": 600.0,
        "run_seconds": 60.0,
    }
    return Submission(**(said | more))


def wanted(
    most: int = 1, load: Callable[[Line], float] = lambda _: 1.0, lease: float = 30.0, **more: Any
) -> Wanted:
    said: dict[str, Any] = {
        "worker": "w",
        "fence": str(next(numbers)),
        "lane": LaneName.IO,
        "groups": ("k",),
        "free": lambda _: most,
        "most": most,
        "load": load,
        "lease_seconds": lease,
    }
    return Wanted(**(said | more))


async def one(broker: RedisBroker, **more: Any) -> Claim:
    (claim,) = await broker.claim(wanted(**more))
    return claim


def end(claim: Claim, value: Any = 1) -> Outcome:
    return Outcome(claim.id, claim.fence, Returned(value))


# --- the order --------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_tasks_go_in_the_order_of_the_queue_in_memory_while_t_changes(
    server: QueueServer, share: float
) -> None:
    """With a share: all have aged from the beginning, so their credit decides as well."""

    async def main() -> None:
        rng = random.Random(4)
        limits = Limits(ageing_seconds=0.001 if share else 1e6, aged_share=share)
        loads = {f"c{i}": 0.1 * 1.7**i for i in range(8)}
        queue = TaskQueue(
            load=lambda line: loads[str(line)],
            max_tasks=1000,
            max_bytes=10**9,
            ageing_seconds=limits.ageing_seconds,
            aged_share=share,
        )
        async with worker(server.url, limits=limits) as broker:
            for number in range(120):
                name, line = f"t{number:03}", rng.choice(list(loads))
                weight = rng.choice([0.25, 1.0, 1.0, 4.0])
                await broker.accept(task(name, weight, line))
                queue.push(Waiting(name, "k", line, weight, float(number)))
                if share:
                    await asyncio.sleep(0.001)  # of the same millisecond the id decides
            await asyncio.sleep(0.01)
            taken, expected = [], []
            while claims := await broker.claim(
                wanted(rng.randint(1, 5), lambda line, now=loads: now[line.cost_class])
            ):
                taken += [claim.id for claim in claims]
                for _ in claims:
                    item = queue.take(1e6 if share else 0.0, lambda _: True)
                    assert item is not None
                    expected.append(item.id)
                loads = {line: load * rng.uniform(0.5, 2.0) for line, load in loads.items()}
            assert len(taken) == 120
            assert taken == expected

    asyncio.run(main())


def test_what_another_worker_accepted_is_seen_and_one_worker_alone_makes_way_for_it(
    server: QueueServer,
) -> None:
    async def main() -> None:
        async with worker(server.url, "a") as a, worker(server.url, "b") as b:
            assert await a.peek(wanted()) is None
            await b.accept(task("urgent", 9.0))
            await b.accept(task("ordinary"))
            await a.sweep()
            head = await a.peek(wanted())
            assert head is not None
            assert (head.id, head.group, head.priority) == ("urgent", "k", 9.0)
            assert [await one.promise(head) for one in (a, b, a)] == [True, False, True]
            assert (await one(b)).id == "urgent"
            assert not await a.promise(head)
            assert await a.peek(wanted()) is None, "what is gone is not looked at again"
            await a.sweep()
            assert (await a.peek(wanted())).id == "ordinary"

    asyncio.run(main())


def test_who_is_waited_for_by_something_urgent_goes_first_however_light_its_line_was(
    server: QueueServer,
) -> None:
    """The server knows of each line what its head weighs at most, and looks at no other."""

    async def main() -> None:
        async with worker(server.url) as broker:
            await broker.accept(task("parent", 1.0, "light"))
            await broker.accept(task("ordinary", 2.0, "heavy"))
            await broker.accept(
                task("urgent", 9.0, "heavy", dependencies=Dependencies(("parent",)))
            )
            assert [(await one(broker)).id for _ in range(2)] == ["parent", "ordinary"]

    asyncio.run(main())


def test_lines_whose_tasks_were_cancelled_stop_nobody_and_wake_nobody(server: QueueServer) -> None:
    async def main() -> None:
        async with worker(server.url) as broker:
            await broker.accept(task("gone", 9.0, "heavy"))
            await broker.accept(task("gone-too", 8.0, "heavy"))
            await broker.accept(task("left", 1.0, "light"))
            await broker.cancel("gone")
            await broker.cancel("gone-too")
            assert await broker.wait_for_work(LaneName.IO, ("k",), 1.0)
            assert [claim.id for claim in await broker.claim(wanted(4))] == ["left"]
            assert not await broker.wait_for_work(LaneName.IO, ("k",), 0.05)
            assert await broker.claim(wanted(4)) == []
            await broker.accept(task("back", 1.0, "heavy"))
            assert await broker.wait_for_work(LaneName.IO, ("k",), 1.0)
            assert (await one(broker)).id == "back"

    asyncio.run(main())


def test_what_waits_takes_at_most_a_kilobyte_of_a_valkey_server_with_half_of_it_its_input(
    tmp_path: Path,
) -> None:
    """By the ids, the names and the bounds of the product; 1,000 bytes with 512 of the input."""
    tasks, new_id = 4000, short_ids()

    async def fill(url: str) -> None:
        async with worker(url, limits=Limits(io=LaneLimits(1, 1, queue_tasks=10**5))) as broker:
            for start in range(0, tasks, 500):
                await asyncio.gather(
                    *(
                        broker.accept(
                            task(
                                new_id(),
                                weight,
                                f"chat|model|{weight}",
                                request=TaskRequest("k", Call({"body": "x" * 512}), weight=weight),
                                load_seconds=0.1234,
                                patience_seconds=86_400.0,
                            )
                        )
                        for weight in (start % 7 + 0.5, 20.0)
                        for _ in range(250)
                    )
                )

    with QueueServer(tmp_path, "valkey") as started:
        asyncio.run(fill(started.url))
        with started.client() as client:
            client.config_set("appendonly", "no")  # what is on its way to the file is no task's
            before = started.used_memory()
            client.execute_command("FLUSHALL", "SYNC")
            assert (before - started.used_memory()) / tasks <= 1000


def test_a_group_without_a_free_slot_holds_up_no_other(server: QueueServer) -> None:
    async def main() -> None:
        async with worker(server.url) as broker:
            await broker.accept(task("urgent", 100.0, group="full"))
            await broker.accept(task("other", 1.0, group="k"))
            free = {"full": 0, "k": 1}
            claim = await one(broker, groups=("full", "k"), free=free.__getitem__)
            assert claim.id == "other"

    asyncio.run(main())


# --- what happens to claims -------------------------------------------------------------------


def test_a_claim_whose_answer_was_lost_goes_back_in_line_and_was_no_attempt(
    server: QueueServer,
) -> None:
    async def main() -> None:
        async with CuttingProxy(server.port) as proxy, worker(proxy.url) as broker:
            await broker.accept(task("before"))
            await one(broker)
            await broker.accept(task("a"))
            proxy.lose_answers = True
            with pytest.raises(Unavailable):
                await broker.claim(wanted())
            with server.client() as client:
                assert client.hget(f"{PREFIX}:t:a", "s") == b"r"
            proxy.lose_answers = False
            claim = await one(broker)
            assert (claim.id, claim.attempt) == ("a", 1)

    asyncio.run(main())


def test_a_commit_whose_answer_was_lost_is_said_again_and_told_as_taken_once(
    server: QueueServer,
) -> None:
    async def main() -> None:
        async with CuttingProxy(server.port) as proxy, worker(proxy.url) as broker:
            await broker.accept(task("a"))
            claim = await one(broker)
            proxy.lose_answers = True
            committing = asyncio.create_task(broker.commit([end(claim, 7)]))
            await asyncio.sleep(0.2)
            proxy.lose_answers = False
            (done,) = await committing
            assert done.commit in (Commit.TAKEN, Commit.HAD)
            assert done.view is not None
            assert done.view.result == Returned(7)

    asyncio.run(main())


def test_a_caller_that_is_cancelled_leaves_nobody_elses_answer_and_no_claim_behind(
    server: QueueServer,
) -> None:
    async def main() -> None:
        async with worker(server.url) as broker:
            for number in range(20):
                await broker.accept(task(f"t{number:02}"))
                claiming = asyncio.create_task(broker.claim(wanted()))
                await asyncio.sleep(0)
                claiming.cancel()
                await asyncio.gather(claiming, return_exceptions=True)
                view = await broker.get(f"t{number:02}")
                assert view is not None
                assert view.id == f"t{number:02}"
            await asyncio.sleep(0.05)
            claims = await broker.claim(wanted(64))
            assert [claim.attempt for claim in claims] == [1] * 20

    asyncio.run(main())


def test_what_ran_when_its_worker_was_lost_runs_alone_and_after_three_times_never_again(
    server: QueueServer,
) -> None:
    async def main() -> None:
        async with worker(server.url) as broker:
            await broker.accept(task("a"))
            alone = []
            for _ in range(3):
                claim = await one(broker, lease=0.02)
                alone.append(claim.alone)
                await asyncio.sleep(0.05)
                swept = await broker.sweep()
            assert alone == [False, True, True]
            assert [view.state for view in swept.ended] == [TaskState.DEAD]
            assert (await broker.commit([end(claim)]))[0].commit is Commit.LOST
            assert broker.depth().dead == 1
            replayed = await broker.replay("a")
            assert replayed is not None
            assert (replayed.state, replayed.attempts) == (TaskState.QUEUED, 0)
            again = await one(broker)
            assert (again.attempt, again.alone) == (1, False)
            assert (await broker.commit([end(again)]))[0].commit is Commit.TAKEN

    asyncio.run(main())


def test_leases_end_for_nobody_when_the_servers_clock_was_set(server: QueueServer) -> None:
    async def main() -> None:
        async with worker(server.url, lease_seconds=0.2) as broker:
            await broker.accept(task("a"))
            claim = await one(broker, lease=0.2)
            await asyncio.sleep(0.3)
            broker._session._ahead += 3600  # as if the server's clock had gone on by an hour
            assert list((await broker.sweep()).returned) == []
            assert (await broker.commit([end(claim)]))[0].commit is Commit.TAKEN

    asyncio.run(main())


def test_a_restarted_container_with_its_old_name_does_not_excuse_what_killed_it(
    server: QueueServer,
) -> None:
    async def main() -> None:
        async with worker(server.url, "pod-0") as first:
            await first.accept(task("poison"))
            await one(first, lease=0.02)
        async with worker(server.url, "pod-0") as second:
            await asyncio.sleep(0.05)
            assert await second.recover("pod-0", []) == 0
            assert list((await second.sweep()).returned) == ["poison"]
            assert (await one(second)).attempt == 2

    asyncio.run(main())


def test_what_waits_for_a_client_of_a_lost_worker_is_cancelled(
    server: QueueServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtaskpool_worker.brokers.redis.sweeping.SILENT_MS", 100)

    async def main() -> None:
        async with worker(server.url, "lives") as lives:
            async with worker(server.url, "dies") as dies:
                await dies.accept(task("chat", bound_to="dies"))
                await dies.accept(task("batch"))
                await dies.sweep()
                assert dies.depth().bound == 1
            await asyncio.sleep(0.2)
            swept = await lives.sweep()
            assert [(view.id, view.state) for view in swept.ended] == [
                ("chat", TaskState.CANCELLED)
            ]
            assert (await one(lives)).id == "batch"

    asyncio.run(main())


def test_a_worker_that_is_about_to_end_takes_only_what_ends_with_it(server: QueueServer) -> None:
    async def main() -> None:
        async with worker(server.url, "here") as here, worker(server.url, "there") as there:
            await here.accept(task("mine", bound_to="here"))
            await here.accept(task("mine-too", 2.0, bound_to="here"))
            await there.accept(task("theirs", 50.0, bound_to="there"))
            await here.accept(task("anybodys", 50.0))
            claims = await here.claim(wanted(5, only_bound=True))
            assert [claim.id for claim in claims] == ["mine-too", "mine"]

    asyncio.run(main())


# --- what is in the way -----------------------------------------------------------------------


def test_what_is_damaged_or_foreign_is_put_aside_with_a_reason_and_stops_nobody(
    server: QueueServer,
) -> None:
    group, line = "1:io:k", "c\t"

    async def main() -> None:
        async with worker(server.url) as broker:
            for name in ("damaged", "later", "lost", "good"):
                await broker.accept(task(name, 5.0 if name != "good" else 1.0))
            with server.client() as client:
                client.zadd(f"{PREFIX}:q:{group}:{line}", {"nobodys": -100})
                client.zadd(f"{PREFIX}:q:{group}:{line}", {"text": -90, "future": -80})
                client.set(f"{PREFIX}:t:text", "not a hash")
                client.hset(f"{PREFIX}:t:future", mapping={"v": "9", "s": "q"})
                client.zadd(f"{PREFIX}:c:{group}", {"broken\t": 1})
                client.set(f"{PREFIX}:q:{group}:broken\t", "not a sorted set")
                client.set(f"{PREFIX}:b:damaged", b"\0\0\0\0\0\0\1garbage")
                client.set(f"{PREFIX}:b:later", b"\0\0\0\0\0\0\x09whatever")
                client.delete(f"{PREFIX}:b:lost")
                (claim,) = await broker.claim(wanted(8))
                assert claim.id == "good"
                reasons = {k.decode(): v.decode() for k, v in client.hgetall(f"{PREFIX}:y").items()}
            assert reasons["nobodys"] == "no books"
            assert reasons["text"] == "not a hash"
            assert reasons["future"] == "version 9"
            assert "damaged" in reasons["damaged"]
            assert "newer worker" in reasons["later"]
            assert reasons[f"{PREFIX}:q:{group}:broken\t"] == "a key of a wrong type"
            damaged, lost = await broker.get("damaged"), await broker.get("lost")
            assert damaged is not None
            assert damaged.state is TaskState.DEAD
            assert damaged.error is not None
            assert damaged.error.code == "quarantined"
            assert lost is not None
            assert (lost.state, lost.error and lost.error.code) == (TaskState.FAILED, "input_lost")
            await broker.sweep()
            assert broker.depth().quarantined == 6

    asyncio.run(main())


def test_a_task_whose_books_are_damaged_takes_none_along_that_was_claimed_with_it(
    server: QueueServer,
) -> None:
    async def main() -> None:
        async with worker(server.url) as broker:
            for name in ("a", "odd", "z"):
                await broker.accept(task(name))
            with server.client() as client:
                client.hset(f"{PREFIX}:t:odd", "w", "heavy")
                seen = await broker.get("odd")
                assert seen is not None
                assert seen.error is not None
                assert (seen.state, seen.error.code) == (TaskState.DEAD, "quarantined")
                asked = Asked(states=frozenset({TaskState.QUEUED}))
                assert [view.id for view in await broker.list(asked)] == ["z", "a"]
                claims = await broker.claim(wanted(8))
                assert [claim.id for claim in claims] == ["a", "z"]
                assert client.hget(f"{PREFIX}:y", "odd") == b"its books are damaged"

    asyncio.run(main())


def test_what_runs_in_a_worker_of_a_long_name_has_its_books_in_the_small_form(
    server: QueueServer,
) -> None:
    name = "embeddings-of-the-search-team-7c9d8b6f5-abcde"

    async def main() -> None:
        async with worker(server.url, name) as broker:
            await broker.accept(task("a"))
            claim = await one(broker, worker=name, fence=f"{name}.0123456789abcdef.1")
            with server.client() as client:
                assert client.object("ENCODING", f"{PREFIX}:t:a") == b"listpack"
            await broker.commit([end(claim)])
            assert (await broker.get("a")).state is TaskState.SUCCEEDED

    asyncio.run(main())


def test_a_full_server_takes_no_task_and_lets_what_it_has_end(server: QueueServer) -> None:
    async def main() -> None:
        async with worker(server.url) as broker:
            await broker.accept(task("a"))
            await broker.accept(task("b"))
            first = await one(broker)
            with server.client() as client:
                client.config_set("maxmemory", 1)
                with pytest.raises(Unavailable) as refused:
                    await broker.accept(task("c"))
                assert "maxmemory" in refused.value.reason
                assert refused.value.retry_after_seconds >= 1
                assert await broker.get("c") is None
                assert (await broker.commit([end(first)]))[0].commit is Commit.TAKEN
                second = await one(broker)
                assert not await broker.renew([Held(second.id, second.fence)], 30.0)
                await broker.release([Release(second.id, second.fence, "drain", counts=False)])
                await broker.sweep()
                client.config_set("maxmemory", 0)
            assert not (await broker.accept(task("c"))).known
            assert {c.id for c in await broker.claim(wanted(5))} == {"b", "c"}

    asyncio.run(main())


def test_a_server_that_forgot_its_scripts_is_told_them_again(server: QueueServer) -> None:
    async def main() -> None:
        async with worker(server.url) as broker:
            await broker.accept(task("a"))
            with server.client() as client:
                client.script_flush()
            assert (await one(broker)).id == "a"

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"maxmemory-policy": "allkeys-lru"}, "maxmemory-policy noeviction"),
        ({"appendonly": "no"}, "appendonly yes"),
        ({"replicaof": "127.0.0.1 1"}, "primary"),
    ],
    ids=["evicts", "forgets", "is a replica"],
)
def test_a_server_that_may_lose_tasks_is_refused_with_the_remedy(
    tmp_path: Path, kind: str, options: dict[str, str], says: str
) -> None:
    async def main() -> None:
        with QueueServer(tmp_path, kind, **options) as unfit:
            with pytest.raises(ValueError, match=says):
                async with worker(unfit.url):
                    pass
            if "replicaof" not in options:
                async with worker(unfit.url, allow_volatile=True) as broker:
                    await broker.accept(task("a"))
                    assert broker.durability.durable is ("appendonly" not in options)

    asyncio.run(main())


def test_a_worker_starts_while_the_server_is_away_and_serves_when_it_comes(tmp_path: Path) -> None:
    async def main() -> None:
        late = QueueServer(tmp_path)
        async with worker(late.url) as broker:
            accepting = asyncio.create_task(broker.accept(task("early")))
            await asyncio.sleep(0.1)
            with late:
                assert (await accepting).view.id == "early"
                assert broker.durability.name == "everysec"
                late.kill()
                with pytest.raises(Unavailable):
                    await asyncio.wait_for(broker.get("early"), 30)
                assert broker.depth().error is not None
                late.start()
                assert await broker.get("early") is not None

    asyncio.run(main())


def appended(folder: Path) -> tuple[Path, int]:
    """The server's append-only file, and how long it is."""
    (file,) = folder.rglob("*.incr.aof")
    return file, file.stat().st_size


def forget(server: QueueServer, file: Path, size: int) -> None:
    """The server dies, and comes back with what its file had when it was so long."""
    server.kill()
    os.truncate(file, size)
    server.start()


def test_an_attempt_counts_where_the_server_forgets_that_its_lease_ran_out(tmp_path: Path) -> None:
    """What goes back uncounted is what a worker never heard of, and of this one it has heard."""

    async def main() -> None:
        with QueueServer(tmp_path, "redis", appendfsync="always") as server:
            async with worker(server.url, lease_seconds=0.05) as broker:
                await broker.accept(task("a", max_attempts=2))
                assert (await one(broker, lease=0.05)).attempt == 1
                file, size = appended(tmp_path)
                await asyncio.sleep(0.1)
                assert list((await broker.sweep()).returned) == ["a"]
                assert await broker.renew([Held("a", "w.0")], 0.05) == frozenset({"a"})
                forget(server, file, size)
                known = await broker.get("a")
                assert known is not None
                assert known.state is TaskState.RUNNING
                await asyncio.sleep(0.1)
                assert list((await broker.sweep()).returned) == ["a"]
                assert (await one(broker, lease=0.05)).attempt == 2

    asyncio.run(main())


def test_what_a_server_forgets_again_and_again_is_there_after_each_time(tmp_path: Path) -> None:
    """It comes back each time with what it had before the task, and the worker says it again."""

    async def main() -> None:
        past = 0.0
        with QueueServer(tmp_path, "redis", appendfsync="always") as server:
            broker = RedisBroker(
                Address(server.url), POOL, Limits(), lambda: time.monotonic() + past
            )
            await broker.start("w", lambda _: None)
            file, size = appended(tmp_path)
            await broker.accept(task("a"))
            for _ in range(4):
                forget(server, file, size)
                known = await broker.get("a")
                assert known is not None
                assert known.state is TaskState.QUEUED
                past += 3.0
            await broker.close()

    asyncio.run(main())


# --- what is heard ----------------------------------------------------------------------------


def test_a_task_is_followed_from_another_worker_also_when_its_connection_is_cut_meanwhile(
    server: QueueServer,
) -> None:
    async def main() -> None:
        async with (
            CuttingProxy(server.port) as proxy,
            worker(server.url, "runs") as runs,
            worker(proxy.url, "listens") as listens,
        ):
            await runs.accept(task("a"))
            heard: list[Any] = []

            async def listen() -> None:
                heard.extend([event async for event in listens.events("a")])

            listening = asyncio.create_task(listen())
            await asyncio.sleep(0.1)
            claim = await one(runs)
            held = Held(claim.id, claim.fence)
            for number in range(60):
                runs.publish(held, TextDelta(f"{number} ", (number,)))
                if number == 20:
                    proxy.cut()
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.7)
            assert runs.watched("a")
            await runs.commit([end(claim)])
            await asyncio.wait_for(listening, 20)
            texts = "".join(event.text for event in heard if isinstance(event, TextDelta))
            assert texts == "".join(f"{number} " for number in range(60))
            states = [event.state for event in heard if isinstance(event, StateChanged)]
            assert states[0] is TaskState.QUEUED
            assert states[-1] is TaskState.SUCCEEDED

    asyncio.run(main())


def test_who_waits_elsewhere_hears_of_the_end_and_of_a_cancel(server: QueueServer) -> None:
    async def main() -> None:
        async with worker(server.url, "runs") as runs, worker(server.url, "asks") as asks:
            await asks.accept(task("a"))
            waiting = asyncio.create_task(asks.wait("a"))
            claim = await one(runs)
            await asks.cancel("a")
            assert (await asyncio.wait_for(waiting, 10)).state is TaskState.CANCELLED
            for _ in range(100):
                if runs.lost:  # type: ignore[attr-defined]
                    break
                await asyncio.sleep(0.02)
            assert runs.lost == ["a"]  # type: ignore[attr-defined]
            assert (await runs.commit([end(claim)]))[0].commit is Commit.LOST
            with pytest.raises(KeyError):
                await asks.wait("nobody")

    asyncio.run(main())


def test_a_dependants_claim_and_view_name_what_it_depends_on(server: QueueServer) -> None:
    async def main() -> None:
        async with worker(server.url) as broker:
            for name in ("a", "b"):
                await broker.accept(task(name))
            receipt = await broker.accept(task("c", dependencies=Dependencies(("a", "b"))))
            assert receipt.view.depends_on == ("a", "b")
            await broker.commit([end(claim) for claim in await broker.claim(wanted(2))])
            claim = await one(broker)
            assert (claim.id, claim.parents) == ("c", ("a", "b"))
            (done,) = await broker.commit([end(claim)])
            assert done.view == await broker.get("c")

    asyncio.run(main())


def test_idle_workers_are_woken_one_for_each_task(server: QueueServer) -> None:
    async def main() -> None:
        async with worker(server.url, "a") as a, worker(server.url, "b") as b:
            waits = [
                asyncio.create_task(broker.wait_for_work(LaneName.IO, ("k",), 0.9))
                for broker in (a, b)
            ]
            await asyncio.sleep(0.1)
            await a.accept(task("t"))
            assert sorted(await asyncio.gather(*waits)) == [False, True]

    asyncio.run(main())


def test_an_error_of_the_task_is_kept_as_its_own(server: QueueServer) -> None:
    async def main() -> None:
        async with worker(server.url) as broker:
            await broker.accept(task("a"))
            claim = await one(broker)
            error = TaskError("handler_failed", "the handler raised ValueError")
            (done,) = await broker.commit([Outcome(claim.id, claim.fence, error)])
            view = await broker.get("a")
            assert done.view is not None
            assert view is not None
            assert view.error == done.view.error == error

    asyncio.run(main())
