"""A worker of its own process for a benchmark, from when it is ready until that is over."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def ready_worker(*options: str, **settings: str) -> AsyncIterator[tuple[Process, int, int]]:
    """Its process, data port and control port; ``settings`` by their names without LLMTASKPOOL_."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llmtaskpool_worker", "serve", "--die-with-parent"),
        *("--port", "0", "--control-port", "0", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ
        | {"LLMTASKPOOL_LOG_LEVEL": "error"}
        | {f"LLMTASKPOOL_{name}": value for name, value in settings.items()},
    )
    assert process.stdout is not None
    ports: dict[str, int] = {}
    try:
        async for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "listening":
                ports = event
            elif event["event"] == "ready":
                break
            assert event["event"] != "failed", line
        reading = asyncio.create_task(_drop(process.stdout))
        yield process, ports["data_port"], ports["control_port"]
        reading.cancel()
    finally:
        process.terminate()
        await process.wait()


async def _drop(stream: asyncio.StreamReader) -> None:
    while await stream.readline():
        pass
