"""The queue's server with the one user for a pool that docs/durability.md says is enough."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.queue_servers import KINDS, QueueServer
from llmtaskpool_worker.brokers.protocol import Outcome, Release
from llmtaskpool_worker.brokers.redis import scripts
from llmtaskpool_worker.scheduling.task import Asked, Returned

from .test_redis_broker import task, wanted, worker

PAGE = Path(__file__).parents[3] / "docs" / "durability.md"


def documented() -> list[str]:
    """The user's rules as the page has them."""
    line = next(one for one in PAGE.read_text().splitlines() if one.startswith("One ACL user"))
    return " ".join(re.findall(r"`([~&+@-][^`]*)`", line)).split()


def used() -> set[str]:
    """Commands of all scripts."""
    texts = "".join(scripts.parts().values())
    return {name.lower() for name in re.findall(r"\b(?:call|try)\('([A-Z]+)'", texts)}


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QueueServer]:
    with QueueServer(tmp_path, request.param) as made:
        yield made


def user_of(server: QueueServer, *without: str) -> str:
    """The URL of the documented user, who may not do some of it."""
    rules = [rule for rule in documented() if rule.lstrip("+") not in without]
    with server.client() as client:
        if server.kind == "redis":  # 7.0 knows no SETINFO
            rules = [rule for rule in rules if rule != "+client|setinfo"]
        client.execute_command("ACL", "SETUSER", "pool", "reset", "on", ">secret", *rules)
    return server.url.replace("redis://", "redis://pool:secret@")


def test_the_page_names_every_command_of_the_scripts_and_the_self_test_tries_it() -> None:
    assert used() <= {rule.lstrip("+") for rule in documented()}
    tried = set(re.findall(r"call\('([A-Z]+)'", scripts.parts()["selftest"]))
    assert {name.lower() for name in tried} | {"time"} == used()


def test_that_user_is_enough_for_a_tasks_whole_life(server: QueueServer) -> None:
    async def story() -> None:
        async with worker(user_of(server), allow_volatile=True) as broker:
            for name in "abc":
                await broker.accept(task(name))
            a, b = await broker.claim(wanted(2))
            await broker.release([Release(b.id, b.fence, "drained")])
            assert len(await broker.list(Asked())) == 3
            await broker.cancel("c")
            (told,) = await broker.commit([Outcome(a.id, a.fence, Returned(1))])
            await broker.sweep()
            states = {view.id: view.state for view in await broker.list(Asked())}
            assert told.view is not None
            expected = {a.id: "succeeded", b.id: "queued", "c": "cancelled"}
            assert {name: state.value for name, state in states.items()} == expected

    asyncio.run(story())


def test_where_a_command_is_missing_the_start_refuses_and_names_the_page(
    server: QueueServer,
) -> None:
    async def story() -> None:
        with pytest.raises(ValueError, match=r"doesn't run our scripts.*docs/durability.md's ACL"):
            async with worker(user_of(server, "zremrangebyrank"), allow_volatile=True):
                pass

    asyncio.run(story())
