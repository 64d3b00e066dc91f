"""A gate: a worker's HTTP without its threads and models, in front of a pool that may sleep."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace

from llmtaskpool_worker.assembly.batches import BatchService, batches_of
from llmtaskpool_worker.assembly.catalogued_engine import Announce
from llmtaskpool_worker.assembly.descriptors import CONTROL_CONNECTIONS
from llmtaskpool_worker.assembly.keys import keys_of
from llmtaskpool_worker.assembly.queue import ids_of
from llmtaskpool_worker.assembly.resident import rss_bytes
from llmtaskpool_worker.assembly.settings import Settings
from llmtaskpool_worker.assembly.worker import (
    announce_on_stdout,
    broker_for,
    on_signals,
    open_queue,
    prepared,
)
from llmtaskpool_worker.contract import OPEN_ROUTES, WorkerState
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.browsers import Cors
from llmtaskpool_worker.http_api.catalog import Catalog, Model
from llmtaskpool_worker.http_api.gate import Gate, GateControl
from llmtaskpool_worker.http_api.holding import Holding
from llmtaskpool_worker.http_api.metrics import Metrics
from llmtaskpool_worker.http_api.passing import Passing
from llmtaskpool_worker.http_api.server import (
    CONTROL_BODY_BYTES,
    Clocks,
    HttpServer,
    assemble,
    data_routes,
)
from llmtaskpool_worker.kinds.registry import Kinds


@dataclass(frozen=True, slots=True)
class GateProcess:
    """What ``build`` made; nothing listens yet."""

    pool: Dispatcher
    holding: Holding
    passing: Passing
    batches: BatchService
    data: HttpServer
    control: HttpServer
    leaving: asyncio.Event


def build(settings: Settings, kinds: Kinds, clocks: Clocks) -> GateProcess:
    """Make a gate of its parts. Raises KeysUnreadable."""
    limits = settings.pool_limits()
    limits = replace(
        limits, compute=replace(limits.compute, threads=0), io=replace(limits.io, threads=0)
    )
    broker = broker_for(settings, clocks)
    pool = Dispatcher(
        kinds=kinds,
        limits=limits,
        broker=broker,
        worker_id=settings.worker_id,
        clock=clocks.monotonic,
        wall_clock=clocks.wall,
        new_id=ids_of(broker, settings.worker_id),
        rss_bytes=rss_bytes,
    )
    holding, passing = Holding(clocks.monotonic), Passing()
    leaving = asyncio.Event()

    def state() -> WorkerState:
        told = pool.state().model_copy(update={"gate": holding.state()})
        if broker.shared:
            return told
        # Nothing waits in its own queue: beside those of workers it would look like room.
        none = {lane: one.model_copy(update={"queue_limit": 0}) for lane, one in told.lanes.items()}
        return told.model_copy(update={"lanes": none})

    metrics = Metrics(state)
    pool.on_ended = metrics.task_ended
    http = settings.http_limits()
    bodies = Bodies(http)
    catalog = _catalog(settings, int(clocks.wall()))
    # Their lines are fed by workers: here are the files, where the queue is shared, and the batches
    # are counted, as one that nobody feeds puts nothing in line.
    batches = batches_of(settings, broker, pool, catalog, metrics, clocks, feeds=False)
    own = data_routes(
        pool, catalog, metrics, bodies, http, clocks,
        heartbeat_seconds=settings.heartbeat_seconds, batches=batches.routes,
        graphs=batches.graphs,
    )  # fmt: skip
    gate = Gate(
        holding,
        passing,
        bodies,
        shared=broker.shared,
        patience_seconds=settings.queue_timeout_seconds,
        clock=clocks.monotonic,
    )
    keys, tokens = keys_of(settings, clocks.monotonic)
    # Once workers are there, a client's next request is to go to one by itself.
    closes = lambda: leaving.is_set() or holding.has_workers  # noqa: E731
    app = assemble(gate.routes(own), keys, OPEN_ROUTES, closes)
    few = replace(
        http,
        body_bytes=min(http.body_bytes, CONTROL_BODY_BYTES),
        connections=min(http.connections, CONTROL_CONNECTIONS),
    )
    control = assemble(GateControl(state, holding, Bodies(few)).routes(), tokens, frozenset())
    origins, alive = settings.cors_origins, settings.keep_alive_seconds
    return GateProcess(
        pool,
        holding,
        passing,
        batches,
        HttpServer(
            Cors(app, origins) if origins else app, settings.host, settings.port, http, alive
        ),
        HttpServer(control, settings.control_host, settings.control_port, few, alive),
        leaving,
    )


def _catalog(settings: Settings, created: int) -> Catalog:
    """The models' names: what they can do is known where they are loaded."""
    models = []
    for spec in settings.model_specs():
        model = Model(spec.name, spec.task, created)
        model.aliases, model.forwards = spec.aliases, spec.forwards
        models.append(model)
    return Catalog(models)


async def run(settings: Settings, announce: Announce = announce_on_stdout) -> int:
    """Serve until SIGTERM or SIGINT; the exit code.

    The first signal lets it finish: it goes on holding and passing on, for ``unroute_seconds`` at
    least and ``grace_seconds`` at most, and ends when it holds nothing. It stays ready: where no
    other gate is, Kubernetes sends requests to one that ends, too. The second ends it at once.

    Raises:
        KeysUnreadable, OSError: a key file or an address can't be had.
        SettingsError: a setting's file can't be used.
    """
    settings, kinds = prepared(settings)
    made = build(settings, kinds, Clocks(time.monotonic, time.time))
    stopping = asyncio.Event()
    on_signals(stopping)
    await open_queue(made.pool)
    made.passing.open(settings.max_header_bytes)
    ports = await made.data.start(), await made.control.start()
    announce({"event": "listening", "data_port": ports[0], "control_port": ports[1]})
    await made.pool.start()
    made.batches.start()
    announce({"event": "ready"})
    try:
        await stopping.wait()
        announce({"event": "draining"})
        made.leaving.set()
        await asyncio.sleep(settings.unroute_seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(made.holding.rest(), settings.grace_seconds)
        made.holding.close()
        await made.batches.stop(0.0)
        await made.pool.stop(0.0)
    finally:
        await asyncio.gather(made.data.stop(), made.control.stop())
        await made.passing.close()
    announce({"event": "stopped"})
    return 0
