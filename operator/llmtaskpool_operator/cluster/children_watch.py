"""Children that somebody deletes or changes: heard of at once, by their metadata alone.

Of a Service, an account, a policy or a budget nothing else is asked for, and nothing is kept but
its name. The Secret is not watched: who may list Secrets may read them. It is looked at when a
pod waits for a volume, the one moment at which its absence harms.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from llmtaskpool_operator.cluster.api_client import MANAGER, ApiFailure, KubernetesApi
from llmtaskpool_operator.cluster.manifests import POOL_LABEL, Manifest
from llmtaskpool_operator.cluster.store import PoolKey

CHILDREN = (
    "Service",
    "ServiceAccount",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "PersistentVolumeClaim",
)
STREAM_SECONDS = 240
AGAIN_SECONDS = 5.0
REFUSED_SECONDS = 300.0
"""Without the right to watch, children are looked at every ten minutes, as before."""
_Names = set[tuple[PoolKey, str]]

log = logging.getLogger("llmtaskpool.operator")


class ChildrenWatch:
    """``changed`` is told of each pool one of whose children is gone or somebody else wrote."""

    def __init__(
        self,
        api: KubernetesApi,
        namespaces: Sequence[str],
        changed: Callable[[PoolKey], None],
    ) -> None:
        self._api = api
        self._namespaces = namespaces or ("",)
        self._changed = changed
        self._known: dict[tuple[str, str], _Names] = {}

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as watches:
            for kind in CHILDREN:
                for namespace in self._namespaces:
                    watches.create_task(self._follow(kind, namespace))

    async def _follow(self, kind: str, namespace: str) -> None:
        while True:
            try:
                version = await self._list(kind, namespace)
                while True:
                    version = await self._stream(kind, namespace, version)
            except ApiFailure as failure:
                if failure.code == 410:
                    continue
                refused = failure.code == 403
                if refused:
                    log.warning("%s is not watched: %s", kind, failure)
                await asyncio.sleep(REFUSED_SECONDS if refused else AGAIN_SECONDS)

    async def _list(self, kind: str, namespace: str) -> str:
        listed = await self._api.list(kind, namespace, POOL_LABEL, _named, whole=False)
        names = {found for one in listed.items if (found := _name(one)) is not None}
        for key, _ in self._known.get((kind, namespace), names) - names:
            self._changed(key)  # it went while nobody watched
        self._known[kind, namespace] = names
        return listed.version

    async def _stream(self, kind: str, namespace: str, version: str) -> str:
        """Follow until the stream ends; the version to go on from."""
        known = self._known[kind, namespace]
        events = self._api.watch(kind, namespace, POOL_LABEL, version, STREAM_SECONDS)
        async for happened, body in events:
            version = str(body.get("metadata", {}).get("resourceVersion") or version)
            found = _name(body)
            if found is None:
                continue
            if happened == "DELETED":
                known.discard(found)
                self._changed(found[0])
            elif happened == "ADDED":
                known.add(found)
            elif happened == "MODIFIED" and _written_by_others(body):
                self._changed(found[0])
        return version


def _named(body: Manifest) -> Manifest:
    meta = body.get("metadata", {})
    return {"metadata": {key: meta.get(key) for key in ("name", "namespace", "labels")}}


def _name(body: Manifest) -> tuple[PoolKey, str] | None:
    meta = body.get("metadata", {})
    pool = (meta.get("labels") or {}).get(POOL_LABEL)
    return (PoolKey(str(meta.get("namespace")), pool), str(meta.get("name"))) if pool else None


def _written_by_others(body: Manifest) -> bool:
    """Whether somebody else wrote more than its status, and not before the operator did.

    Times are of whole seconds: of two writes in one, a look too many harms nobody.
    """
    writers: list[Any] = body.get("metadata", {}).get("managedFields") or []
    latest = {True: "", False: ""}
    for one in writers:
        if not one.get("subresource"):
            ours = one.get("manager") == MANAGER
            latest[ours] = max(latest[ours], str(one.get("time", "")))
    return bool(latest[False]) and latest[False] >= latest[True]
