"""Queues that people would pick instead: four worker processes each, a job that does nothing.

Runs in the peer's own environment, which benchmarks/shared_queue.py makes:

    python benchmarks/shared_queue_peers.py PEER fill URL TASKS BODY_BYTES
    python benchmarks/shared_queue_peers.py PEER work URL NUMBER
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

URL = os.environ.get("QUEUE_URL", "")
SLOTS = 16
"""Jobs that a worker process has at one time, where it can have several."""


async def noop_async(ctx: Any, *, body: str) -> None:
    """Of SAQ and arq."""


# --- SAQ --------------------------------------------------------------------------------------


async def saq_fill(tasks: int, body: str) -> None:
    """Enqueue."""
    from saq import Queue

    queue = Queue.from_url(URL)
    await queue.connect()
    for start in range(0, tasks, 500):
        await asyncio.gather(
            *(
                queue.enqueue("noop_async", body=body, ttl=600)
                for _ in range(min(500, tasks - start))
            )
        )
    await queue.disconnect()


async def saq_work() -> None:
    """Run."""
    from saq import Queue, Worker

    queue = Queue.from_url(URL)
    await queue.connect()
    await Worker(queue, [noop_async], concurrency=SLOTS).start()


# --- arq --------------------------------------------------------------------------------------


def arq_settings() -> Any:
    """Where the server is."""
    from arq.connections import RedisSettings

    return RedisSettings.from_dsn(URL)


async def arq_fill(tasks: int, body: str) -> None:
    """Enqueue."""
    from arq import create_pool

    pool = await create_pool(arq_settings())
    for _ in range(tasks):
        await pool.enqueue_job("noop_async", body=body)
    await pool.aclose()


async def arq_work() -> None:
    """Run."""
    from arq.worker import Worker

    worker = Worker(
        [noop_async],
        redis_settings=arq_settings(),
        max_jobs=SLOTS,
        keep_result=600,
        log_results=False,
        handle_signals=False,
    )
    await worker.async_run()


# --- Celery -----------------------------------------------------------------------------------


def celery_app() -> Any:
    """Without results: it has no store for them here."""
    from celery import Celery

    app = Celery("peers", broker=URL)
    app.conf.update(
        task_ignore_result=True,
        worker_prefetch_multiplier=4,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )

    @app.task(name="noop")
    def noop(body: str) -> None:
        """Nothing."""

    return app, noop


def celery_fill(tasks: int, body: str) -> None:
    """Enqueue, over one connection."""
    app, noop = celery_app()
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for _ in range(tasks):
            noop.apply_async((body,), producer=producer)


def celery_work(number: str) -> None:
    """Run: a parent and one child that it forks."""
    app, _ = celery_app()
    app.worker_main(
        ["worker", "--concurrency=1", f"--hostname=w{number}@h", "--loglevel=ERROR"]
        + ["--without-gossip", "--without-mingle"]
    )


# --- Dramatiq ---------------------------------------------------------------------------------


def dramatiq_actor() -> tuple[Any, Any]:
    """Without results; its prefetch has no order of priorities."""
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    broker = RedisBroker(url=URL)
    dramatiq.set_broker(broker)

    @dramatiq.actor(actor_name="noop")
    def noop(body: str) -> None:
        """Nothing."""

    return broker, noop


def dramatiq_fill(tasks: int, body: str) -> None:
    """Enqueue."""
    _, noop = dramatiq_actor()
    for _ in range(tasks):
        noop.send(body)


def dramatiq_work() -> None:
    """Run."""
    import time

    from dramatiq import Worker

    broker, _ = dramatiq_actor()
    Worker(broker, worker_threads=SLOTS, worker_timeout=100).start()
    while True:
        time.sleep(60)


def main() -> None:
    """See the head of this file."""
    peer, what, url, *rest = sys.argv[1:]
    global URL
    URL = os.environ["QUEUE_URL"] = url
    function = globals()[f"{peer}_{what}"]
    args: tuple[Any, ...] = ()
    if what == "fill":
        args = (int(rest[0]), os.urandom(int(rest[1]) // 2).hex())
    elif peer == "celery":
        args = (rest[0],)
    result = function(*args)
    if asyncio.iscoroutine(result):
        asyncio.run(result)


if __name__ == "__main__":
    main()
