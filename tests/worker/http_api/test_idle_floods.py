"""Idle sockets by the hundred on a real worker: the known stay, and newcomers with a key get in."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress

import httpx
from fakes.attacks import connect
from fakes.http_rig import wait_until
from fakes.plain_http import NO_TLS
from fakes.worker_process import worker_process

KEY = "the-key"
WITH_KEY = {"authorization": f"Bearer {KEY}"}
FEW_DESCRIPTORS = (
    "bash",
    "-c",
    'ulimit -n 420; exec "$0" -m llmtaskpool_worker serve "$@"',
    sys.executable,
)


def gets_in(worker) -> bool:
    with suppress(httpx.TransportError):
        return (
            httpx.get(
                f"{worker.url}/v1/models", headers=WITH_KEY, timeout=5, verify=NO_TLS
            ).status_code
            == 200
        )
    return False


def flood(worker, count: int) -> None:
    with worker.client(headers=WITH_KEY) as known, ExitStack() as held:
        assert known.get("/v1/models").status_code == 200
        kept = next(iter(known._transport._pool.connections))
        for _ in range(count):
            with suppress(OSError):
                held.enter_context(connect(worker))
        wait_until(lambda: gets_in(worker), "a newcomer gets in")
        assert gets_in(worker)
        assert known.get("/v1/models").status_code == 200
        assert next(iter(known._transport._pool.connections)) is kept
        control = httpx.get(f"{worker.control_url}/control/v1/state", timeout=20, verify=NO_TLS)
        assert control.status_code == 200


def test_more_idle_sockets_than_connections_shut_nobody_out():
    """Before: everybody was refused, and those connected before too."""
    with worker_process(
        api_keys=KEY, max_connections="150", header_timeout_seconds="300"
    ) as worker:
        worker.wait_for("ready")
        flood(worker, 400)


def test_more_idle_sockets_than_file_descriptors_shut_nobody_out():
    """Before: nothing could be accepted any more, not even to be refused."""
    with worker_process(
        program=FEW_DESCRIPTORS, api_keys=KEY, header_timeout_seconds="300"
    ) as worker:
        worker.wait_for("ready")
        flood(worker, 600)
