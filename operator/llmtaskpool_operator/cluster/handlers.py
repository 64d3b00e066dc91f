"""kopf, the watch engine: events of pools, Deployments and pods go into the store; nothing else.

Only event handlers: create, update, timer and daemon handlers would write annotations and
finalizers into the objects that they watch.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import kopf

from llmtaskpool_operator.api.names import GROUP, KIND, PLURAL, VERSION
from llmtaskpool_operator.cluster.manifests import POOL_LABEL
from llmtaskpool_operator.cluster.store import ClusterStore
from llmtaskpool_operator.cluster.watch_proof import WatchProof

_RESOURCES = {
    KIND: (GROUP, VERSION, PLURAL),
    "Deployment": ("apps", "v1", "deployments"),
    "Pod": ("", "v1", "pods"),
}
RESTART_SECONDS = 5.0
LONGEST_BACKOFF_SECONDS = 5.0

log = logging.getLogger("llmtaskpool.operator")


async def watch(
    store: ClusterStore,
    proof: WatchProof,
    namespaces: Sequence[str],
    stopping: asyncio.Event,
    ready: asyncio.Event,
) -> None:
    """Watch until ``stopping`` is set or a signal comes; no ``namespaces`` means all.

    Installs handlers for SIGTERM and SIGINT. Sets ``ready`` when watching begins.
    """
    while True:
        try:
            await _watch(store, proof, namespaces, stopping, ready)
        except Exception as error:  # kopf gives up on what it can't explain; we begin anew
            log.warning("the watches ended: %s: %s; they begin anew", type(error).__name__, error)
            await asyncio.sleep(RESTART_SECONDS)
        else:
            return


class _Backoffs:
    """Seconds between requests that failed, without end: a server may be down for long.

    kopf ends with the last of them, and an operator that ends has to be started by the kubelet,
    which takes its time when that happens often.
    """

    def __iter__(self) -> Iterator[float]:
        return chain((1.0, 1.0, 2.0, 3.0), repeat(LONGEST_BACKOFF_SECONDS))


async def _watch(
    store: ClusterStore,
    proof: WatchProof,
    namespaces: Sequence[str],
    stopping: asyncio.Event,
    ready: asyncio.Event,
) -> None:
    registry = kopf.OperatorRegistry()
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # the CRD is there before this starts; no RBAC for CRDs
    settings.watching.chunk_size = 500
    settings.networking.error_backoffs = _Backoffs()
    # What kopf keeps to know what changed: a third of its time, and event handlers don't ask.
    settings.persistence.diffbase_storage = _NoDifferences()
    settings.persistence.progress_storage = _NoProgress()
    settings.queueing.idle_timeout = 1.0  # thousands of pods: tasks that wait cost memory
    for group, version, plural in (_RESOURCES["Deployment"], _RESOURCES["Pod"]):
        settings.watching.label_selectors[group, version, plural] = POOL_LABEL
    kopf.on.login(registry=registry)(_login)
    for kind, resource in _RESOURCES.items():
        kopf.on.event(*resource, registry=registry, id=f"watch-{kind}")(_fed(store, proof, kind))
    await kopf.operator(
        registry=registry,
        settings=settings,
        standalone=True,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
        stop_flag=stopping,
        ready_flag=ready,
    )


class _NoDifferences(kopf.DiffBaseStorage):
    """Event handlers ask for no difference to the last event."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):
    """Event handlers have no progress that would outlive them."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: Any) -> Any:
        return essence


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    account = kopf.login_with_service_account(**kwargs)
    if account is None:
        return kopf.login_with_kubeconfig(**kwargs)
    # kopf would ask the cluster's DNS for kubernetes.default.svc: one part more that may be down.
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return account
    return replace(
        account, server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    )


def _fed(store: ClusterStore, proof: WatchProof, kind: str) -> Any:
    async def on_event(event: kopf.RawEvent, **_: Any) -> None:
        body = dict(event["object"])
        proof.delivered(kind, body)
        if event["type"] == "DELETED":
            store.gone(kind, body)
        else:
            store.seen(kind, body)

    return on_event
