"""A worker's files and batches, made of its settings; begun and ended with it."""

from __future__ import annotations

from dataclasses import dataclass

from llmtaskpool_worker.assembly.queue import ids_of
from llmtaskpool_worker.assembly.settings import Settings
from llmtaskpool_worker.brokers.protocol import Broker
from llmtaskpool_worker.execution.batch_books import BatchBooks
from llmtaskpool_worker.execution.batch_work import BatchWork
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.execution.files import Files
from llmtaskpool_worker.execution.graphs import GraphBooks
from llmtaskpool_worker.execution.ids import ids
from llmtaskpool_worker.http_api.batches_api import Batches
from llmtaskpool_worker.http_api.catalog import Catalog
from llmtaskpool_worker.http_api.line_answers import LineAnswers
from llmtaskpool_worker.http_api.metrics import Metrics
from llmtaskpool_worker.http_api.server import Clocks


@dataclass(frozen=True, slots=True)
class BatchService:
    """What a worker does for batches. ``routes`` are for its data port.

    ``graphs`` lie where batches do.
    """

    routes: Batches
    lines: LineAnswers
    graphs: GraphBooks

    def start(self) -> None:
        """Feed batches from now on."""
        self.routes.work.start()

    async def stop(self, seconds: float) -> None:
        """Begin no line, let what runs end for so long, and leave the rest to others."""
        self.routes.work.leave()
        await self.lines.give_up_waiting()
        await self.routes.work.stop(seconds)


def batches_of(
    settings: Settings,
    broker: Broker,
    pool: Dispatcher,
    catalog: Catalog,
    metrics: Metrics,
    clocks: Clocks,
    *,
    feeds: bool = True,
) -> BatchService:
    """Batches that lie beside the tasks of ``broker``, and are asked of ``pool``.

    ``feeds``: here; else by the workers of the queue.
    """
    limits = settings.http_limits()
    rising = ids()
    # Of a queue that is not shared they tell who has it, in the end: they sort by time.
    whose = "" if broker.shared else f"-{settings.worker_id}"

    def new_id() -> str:
        return rising() + whose

    files = Files(
        broker.shelf(settings.file_store_bytes),
        settings.file_limits(limits.body_bytes),
        clocks.wall,
        new_id,
    )
    books = BatchBooks(files, clocks.wall, new_id)
    lines = LineAnswers(pool, catalog, limits, clocks.wall, settings.tenants)
    work = BatchWork(
        books, lines, settings.worker_id, clocks.monotonic, metrics.lines_ended, feeds=feeds
    )
    pool.batches = lambda: work.wanted
    metrics.follow_batches(lambda: work.open, lambda: work.held_bytes)
    graphs = GraphBooks(files.shelf, ids_of(broker, settings.worker_id))
    return BatchService(Batches(books, work), lines, graphs)
