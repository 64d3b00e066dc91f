"""The event loop of a worker, for tests that run a part of it in their own process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import uvloop


@pytest.fixture(scope="package", autouse=True)
def the_workers_event_loop() -> Iterator[None]:
    """Loops of this process are those that a worker runs on, here as well."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    yield
    asyncio.set_event_loop_policy(before)
