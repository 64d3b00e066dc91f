"""The HTTP corpus (tests/fakes/http_corpus.py) over the front and a worker behind it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from fakes.http_corpus import CASES, Case, Got, corpus_worker, exchange
from llmtaskpool_operator.local.front import Front


@pytest.fixture(scope="module")
def port():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    front = Front()

    async def start(worker_port: int) -> int:
        front.route("worker-1", "127.0.0.1", worker_port)
        return await front.start("127.0.0.1", 0)

    with corpus_worker() as rig:
        yield asyncio.run_coroutine_threadsafe(start(rig.port), loop).result(20)
        asyncio.run_coroutine_threadsafe(front.stop(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    loop.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_front_answers_each_request_of_the_corpus_once_and_as_told(port: int, case: Case):
    assert exchange(port, case) == Got(case.statuses, case.kept, case.interim, case.until_closed)
