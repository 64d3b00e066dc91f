"""The whole worker in one process: engines, pool, catalog and servers, made, run and ended."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from llmtaskpool_worker.assembly.batches import BatchService, batches_of
from llmtaskpool_worker.assembly.catalogued_engine import Announce, CataloguedEngine, LoadCodec
from llmtaskpool_worker.assembly.descriptors import CONTROL_CONNECTIONS, connections_allowed
from llmtaskpool_worker.assembly.engine_settings import tell_engines
from llmtaskpool_worker.assembly.keys import keys_of
from llmtaskpool_worker.assembly.queue import broker_of, ids_of, read_queue
from llmtaskpool_worker.assembly.resident import rss_bytes
from llmtaskpool_worker.assembly.settings import Settings, SettingsError
from llmtaskpool_worker.assembly.sharing import on_this_machine
from llmtaskpool_worker.brokers.protocol import Broker
from llmtaskpool_worker.contract import GpuReading, Phase
from llmtaskpool_worker.engines.model_spec import MOST_TOKENS
from llmtaskpool_worker.engines.protocol import Engine, ModelSpec
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.gpu import gpu_reader
from llmtaskpool_worker.http_api.catalog import Catalog, Model
from llmtaskpool_worker.http_api.loop_lag import watch_loop
from llmtaskpool_worker.http_api.metrics import Metrics
from llmtaskpool_worker.http_api.server import Clocks, HttpServer, control_app, data_app
from llmtaskpool_worker.kinds.io import register_io_kinds
from llmtaskpool_worker.kinds.registry import Kinds, load_entry_points

log = logging.getLogger("llmtaskpool.worker")

MakeEngine = Callable[[ModelSpec], Engine]

CLEAN_UP_SECONDS = 5.0
"""After the grace period, engines and connections get so long to end."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What ``build`` made; ``data`` and ``control`` do not listen yet."""

    pool: Dispatcher
    catalog: Catalog
    metrics: Metrics
    data: HttpServer
    control: HttpServer
    batches: BatchService
    leaving: asyncio.Event
    """Set: it is about to end; unready, and no connection is kept."""


def build(
    settings: Settings,
    *,
    make_engine: MakeEngine,
    load_codec: LoadCodec,
    clocks: Clocks,
    kinds: Kinds,
    announce: Announce,
    gpus: Callable[[], tuple[GpuReading, ...]] = tuple,
) -> Worker:
    """Make a worker of its parts; nothing is started. Raises KeysUnreadable."""
    created = int(clocks.wall())
    codecs: dict[str, Any] = {}
    models: list[Model] = []
    engines: list[Engine] = []
    for spec in on_this_machine(settings.model_specs()):
        model = Model(spec.name, spec.task, created)
        model.token_ids = spec.options.get("token_ids") is True
        model.aliases = spec.aliases
        model.forwards = spec.forwards
        model.most_tokens = spec.options.get(MOST_TOKENS)
        models.append(model)
        engines.append(CataloguedEngine(make_engine(spec), model, codecs, load_codec, announce))
    catalog = Catalog(models)
    broker = broker_for(settings, clocks)
    pool = _pool(settings, broker, engines, codecs, kinds, clocks, gpus)
    metrics = Metrics(pool.state)
    pool.on_ended = metrics.task_ended
    batches = batches_of(settings, broker, pool, catalog, metrics, clocks)
    keys, tokens = keys_of(settings, clocks.monotonic)
    limits, alive = settings.http_limits(), settings.keep_alive_seconds
    leaving = asyncio.Event()
    data = data_app(
        pool,
        catalog,
        metrics,
        keys,
        limits,
        clocks,
        heartbeat_seconds=settings.heartbeat_seconds,
        leaving=leaving.is_set,
        cors_origins=settings.cors_origins,
        batches=batches.routes,
        graphs=batches.graphs,
    )
    control = control_app(pool, tokens, limits)
    few = replace(limits, connections=min(limits.connections, CONTROL_CONNECTIONS))
    return Worker(
        pool,
        catalog,
        metrics,
        HttpServer(data, settings.host, settings.port, limits, alive),
        HttpServer(control, settings.control_host, settings.control_port, few, alive),
        batches,
        leaving,
    )


def broker_for(settings: Settings, clocks: Clocks) -> Broker:
    """The queue that the settings name; not started."""
    return broker_of(
        settings.queue if settings.queue_file is None else read_queue(settings.queue_file),
        settings.pool_limits(),
        clocks.monotonic,
        clocks.wall,
        pool=settings.queue_pool,
        allow_volatile=settings.queue_allow_volatile,
    )


def _pool(
    settings: Settings,
    broker: Broker,
    engines: Sequence[Engine],
    codecs: Mapping[str, Any],
    kinds: Kinds,
    clocks: Clocks,
    gpus: Callable[[], tuple[GpuReading, ...]],
) -> Dispatcher:
    return Dispatcher(
        engines=engines,
        tokenizers=codecs,
        kinds=kinds,
        limits=settings.pool_limits(),
        broker=broker,
        worker_id=settings.worker_id,
        clock=clocks.monotonic,
        wall_clock=clocks.wall,
        new_id=ids_of(broker, settings.worker_id),
        gpus=gpus,
        rss_bytes=rss_bytes,
        profiles=settings.calibration(),
    )


def announce_on_stdout(line: dict[str, Any]) -> None:
    """One JSON line on standard output, for whoever started this process."""
    try:
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        log.warning("nobody reads standard output")


def make_engine(spec: ModelSpec) -> Engine:
    """The engine of a model: a server's, or a process of our own."""
    if spec.forwards:
        from llmtaskpool_worker.engines.upstream.address import address_of
        from llmtaskpool_worker.engines.upstream.engine import UpstreamEngine  # it imports aiohttp

        return UpstreamEngine(spec, address_of(spec.source))
    from llmtaskpool_worker.engines.process import EngineProcess

    return EngineProcess(spec)


def prepared(settings: Settings) -> tuple[Settings, Kinds]:
    """The settings as this process can keep them, and the kinds of calls that it has."""
    tell_engines(settings)
    allowed = connections_allowed(settings.max_connections)
    settings = settings.model_copy(update={"max_connections": allowed})
    kinds = Kinds()
    register_io_kinds(kinds, data_dir=settings.data_dir, fetch_hosts=settings.fetch_hosts)
    load_entry_points(kinds)
    return settings, kinds


async def open_queue(pool: Dispatcher) -> None:
    """Raises SettingsError: the queue can't be used."""
    try:
        await pool.open()
    except ValueError as error:
        raise SettingsError(f"LLMTASKPOOL_QUEUE (--queue): {error}") from None


async def run(settings: Settings, announce: Announce = announce_on_stdout) -> int:
    """Serve until SIGTERM or SIGINT; the exit code.

    The first signal drains: unready, with connections closed after each answer, for
    ``unroute_seconds``; then no new tasks, up to ``grace_seconds`` for what is accepted, error
    frames for the rest. The second ends the process at once.

    Raises:
        KeysUnreadable, OSError: a key file or an address can't be had.
        SettingsError: a setting's file can't be used.
    """
    from llmtaskpool_worker.text.tokens import load_tokenizer

    settings, kinds = prepared(settings)
    worker = build(
        settings,
        make_engine=make_engine,
        load_codec=load_tokenizer,
        clocks=Clocks(time.monotonic, time.time),
        kinds=kinds,
        announce=announce,
        gpus=gpu_reader().read,
    )
    return await run_worker(worker, settings, announce)


async def run_worker(worker: Worker, settings: Settings, announce: Announce) -> int:
    """Listen, start, serve, and end in order; the exit code."""
    # What is there from the start stays: a full collection walked all of it, for 50 ms and more,
    # whenever a large body had made many objects.
    gc.collect()
    gc.freeze()
    stopping = asyncio.Event()
    on_signals(stopping)
    await open_queue(worker.pool)
    ports = await worker.data.start(), await worker.control.start()
    announce({"event": "listening", "data_port": ports[0], "control_port": ports[1]})
    await worker.pool.start()
    worker.batches.start()
    telling = asyncio.create_task(_tell_phase(worker, announce))
    watching = asyncio.create_task(watch_loop(worker.metrics.loop_was_late))
    try:
        await stopping.wait()
        announce({"event": "draining"})
        worker.leaving.set()
        await asyncio.sleep(settings.unroute_seconds)
        ends_at = time.monotonic() + settings.grace_seconds
        worker.pool.drain(settings.grace_seconds)
        await worker.batches.stop(settings.grace_seconds)
        await worker.pool.stop(max(0.0, ends_at - time.monotonic()))
    finally:
        telling.cancel()
        watching.cancel()
        await asyncio.gather(worker.data.stop(), worker.control.stop())
    announce({"event": "stopped"})
    return 0


def on_signals(stopping: asyncio.Event) -> None:
    """SIGTERM and SIGINT set ``stopping``; a second one ends the process at once."""

    def on_signal(number: int) -> None:
        if stopping.is_set():
            os._exit(128 + number)  # engines end with their parent
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)


async def _tell_phase(worker: Worker, announce: Announce) -> None:
    """Announce the first time that the worker is ready, or that it can't be."""
    told: Phase | None = None
    while True:
        phase = worker.pool.state().phase
        if phase is not told and phase in (Phase.READY, Phase.FAILED):
            announce({"event": phase.value})
            told = phase
        await asyncio.sleep(0.05 if told is None else 1.0)
