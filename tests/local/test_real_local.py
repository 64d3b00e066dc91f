"""The real thing: workers with SmolLM2 and MiniLM behind the front, driven by real clients."""

from __future__ import annotations

import asyncio
import os
import time

import openai
import psutil
import pytest
from fakes.local_rig import until
from llmtaskpool_operator.local.live_view import JsonView
from llmtaskpool_operator.local.pool import LocalOptions, LocalPool
from llmtaskpool_operator.local.run import descendants
from llmtaskpool_operator.local.settings import pool_from_options

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]

START_SECONDS = 240.0


def test_a_real_pool_answers_embeds_streams_through_scale_down_and_gives_its_memory_back():
    async def go():
        others = set(descendants(os.getpid()))  # a cluster that other tests share
        local = LocalPool(
            pool_from_options([], 1, 2),
            LocalOptions(port=0, cores=2),
            JsonView(lambda _: 0),
            time.time,
        )
        await local.start()
        await local.fleet.scale(2)
        loop = asyncio.create_task(local.run())
        try:
            await until(lambda: len(local.front.routed()) == 2, "two are ready", START_SECONDS)
            family = set(descendants(os.getpid())) - others
            assert len(family) >= 6, "two workers with two engines each"
            client = openai.AsyncOpenAI(base_url=local.url + "/v1", api_key="none", max_retries=0)
            answer = await client.chat.completions.create(
                model="smollm2",
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                max_tokens=16,
                temperature=0,
            )
            assert "Paris" in answer.choices[0].message.content
            vectors = await client.embeddings.create(model="minilm", input=["a cat", "a kitten"])
            assert len(vectors.data[0].embedding) == 384

            async def stream() -> list[str]:
                chunks = await client.chat.completions.create(
                    model="smollm2",
                    messages=[{"role": "user", "content": "Write a long story."}],
                    max_tokens=32,
                    temperature=0,
                    stream=True,
                )
                return [c.choices[0].finish_reason async for c in chunks if c.choices]

            streams = [asyncio.create_task(stream()) for _ in range(4)]
            await until(
                lambda: sum(map(local.front.open_connections, local.front.routed())) == 4, "all run"
            )
            await local.fleet.scale(1)
            finished = await asyncio.gather(*streams)
            assert {reasons[-1] for reasons in finished} <= {"length", "stop"}
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            await local.stop(drain_seconds=5.0)
        await until(lambda: not any(map(psutil.pid_exists, family)), "every process is gone")

    asyncio.run(go())
