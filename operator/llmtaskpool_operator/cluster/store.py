"""What the operator knows of the cluster: pools, their Deployments and their pods.

Fed by watch events and by lists; an older state never replaces a newer one, so both may come in
any order. Lists also mend what a watch has missed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from sys import intern
from typing import Any

from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.cluster.differences import REPLICAS, only_field
from llmtaskpool_operator.cluster.identity import is_gates
from llmtaskpool_operator.cluster.manifests import POOL_LABEL, Manifest

LONGEST_WORD = 200
WATCHED = (KIND, "Deployment", "Pod")
_POD_METADATA = (
    "name", "namespace", "uid", "resourceVersion", "labels", "annotations", "deletionTimestamp",
)  # fmt: skip
_POD_STATUS = ("phase", "podIP", "conditions", "containerStatuses", "initContainerStatuses")


@dataclass(frozen=True, slots=True, order=True)
class PoolKey:
    """Where a pool is."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(slots=True)
class _Known:
    """Objects of one kind, by pool and name."""

    by_pool: dict[PoolKey, dict[str, Manifest]] = field(default_factory=dict)
    removed: dict[tuple[PoolKey, str], int] = field(default_factory=dict)
    listed: dict[str, int] = field(default_factory=dict)
    """The newest list's version by namespace, "" for all."""

    def missing(self, key: PoolKey, version: int) -> bool:
        """Whether a list that is newer than this unknown object did not have it."""
        return any(self.listed.get(scope, -1) >= version for scope in ("", key.namespace))


class ClusterStore:
    """``changed(key, kind)`` is told of what asks for a turn of a pool: an object of that kind."""

    def __init__(self, changed: Callable[[PoolKey, str], None]) -> None:
        self._changed = changed
        self._known = {kind: _Known() for kind in WATCHED}

    def pools(self) -> tuple[PoolKey, ...]:
        """All pools that are known."""
        return tuple(self._known[KIND].by_pool)

    def pool(self, key: PoolKey) -> Manifest | None:
        """The pool, as last seen."""
        return self._known[KIND].by_pool.get(key, {}).get(key.name)

    def deployment(self, key: PoolKey) -> Manifest | None:
        """The pool's Deployment."""
        return self._known["Deployment"].by_pool.get(key, {}).get(key.name)

    def gate(self, key: PoolKey, name: str) -> Manifest | None:
        """The Deployment of the pool's gate, which is called so."""
        return self._known["Deployment"].by_pool.get(key, {}).get(name)

    def objects(self, key: PoolKey) -> tuple[Manifest, ...]:
        """All that is known of a pool: the very same objects, in the same order, while none of
        them has changed, come or gone."""
        kinds = self._known.values()
        return tuple(one for known in kinds for one in known.by_pool.get(key, {}).values())

    def drop_template(self, key: PoolKey) -> Manifest | None:
        """Keep the pool's Deployment without its template, which is as it should be; return that.

        Nobody asks for a template that agrees, and it is the most of a Deployment's memory. Who
        has to compare again reads it anew.
        """
        live = self.deployment(key)
        if live is None or not has_template(live):
            return live
        spec = {name: value for name, value in live["spec"].items() if name != "template"}
        slim = self._known["Deployment"].by_pool[key][key.name] = live | {"spec": spec}
        return slim

    def pods(self, key: PoolKey) -> tuple[Manifest, ...]:
        """The pool's workers' pods, by name."""
        return self._pods(key, of_gate=False)

    def gate_pods(self, key: PoolKey) -> tuple[Manifest, ...]:
        """The pods of its gate, by name."""
        return self._pods(key, of_gate=True)

    def _pods(self, key: PoolKey, *, of_gate: bool) -> tuple[Manifest, ...]:
        pods = self._known["Pod"].by_pool.get(key, {})
        found = (pods[name] for name in sorted(pods))
        return tuple(
            pod for pod in found if is_gates(pod["metadata"].get("labels") or {}) is of_gate
        )

    def seen(self, kind: str, body: Manifest) -> None:
        """An object is as ``body`` says, unless something newer is known."""
        key = _pool_of(kind, body)
        if key is None:
            return
        known, name = self._known[kind], body["metadata"]["name"]
        before = known.by_pool.get(key, {}).get(name)
        version = version_of(body)
        if before is not None and version_of(before) >= version:
            return
        if known.removed.get((key, name), -1) >= version:
            return
        if before is None and known.missing(key, version):
            return
        known.by_pool.setdefault(key, {})[name] = _interned(kept(kind, body))
        if before is None or _asks_for_turn(kind, before, body):
            self._changed(key, kind)

    def gone(self, kind: str, body: Manifest) -> None:
        """An object was deleted; ``body`` is its last state."""
        key = _pool_of(kind, body)
        if key is None:
            return
        known, name = self._known[kind], body["metadata"]["name"]
        current = known.by_pool.get(key, {}).get(name)
        if current is not None and version_of(current) > version_of(body):
            return  # it was made again in the meantime
        # A list that was asked for before must not bring it back.
        known.removed[key, name] = version_of(body)
        self._drop(kind, key, name)
        self._changed(key, kind)

    def listed(self, kind: str, items: Iterable[Manifest], version: str, within: str = "") -> None:
        """All objects of a kind (of one namespace if given) are these, at that resource version."""
        at, found = _number(version), set()
        for item in items:
            if (key := _pool_of(kind, item)) is not None:
                found.add((key, item["metadata"]["name"]))
                self.seen(kind, item)
                if kind == KIND:
                    self._pruned(key, item)
        known = self._known[kind]
        for key, objects in list(known.by_pool.items()):
            if within and key.namespace != within:
                continue
            for name, body in list(objects.items()):
                if (key, name) not in found and version_of(body) <= at:
                    self._drop(kind, key, name)
                    self._changed(key, kind)
        known.removed = {key: gone for key, gone in known.removed.items() if gone > at}
        known.listed[within] = max(at, known.listed.get(within, -1))

    def _pruned(self, key: PoolKey, body: Manifest) -> None:
        """Take the other spec that a list has of a pool in an unchanged version.

        Its CRD has changed: the server leaves out fields that it no longer knows, gives the pool
        no new version for that, and tells no watch.
        """
        before = self.pool(key)
        if before is None or version_of(before) != version_of(body):
            return
        if before.get("spec") != body.get("spec"):
            self._known[KIND].by_pool[key][key.name] = _interned(kept(KIND, body))
            self._changed(key, KIND)

    def _drop(self, kind: str, key: PoolKey, name: str) -> None:
        objects = self._known[kind].by_pool.get(key, {})
        objects.pop(name, None)
        if not objects:
            self._known[kind].by_pool.pop(key, None)


def _pool_of(kind: str, body: Manifest) -> PoolKey | None:
    meta = body.get("metadata", {})
    namespace, name = str(meta.get("namespace", "")), meta.get("name")
    if kind != KIND:
        name = (meta.get("labels") or {}).get(POOL_LABEL)
    return PoolKey(namespace, str(name)) if name else None


def _asks_for_turn(kind: str, before: Mapping[str, Manifest], after: Manifest) -> bool:
    """Our own status writes come back as events: those are no news."""
    if kind != KIND:
        return True
    old, new = before["metadata"], after["metadata"]
    return any(
        old.get(name) != new.get(name) for name in ("generation", "uid", "deletionTimestamp")
    )


def kept(kind: str, body: Manifest) -> Manifest:
    """What the operator reads of an object: thousands of whole pods would be 100 MB and more."""
    if kind == "Pod":
        meta, status = body["metadata"], body.get("status") or {}
        return {
            "metadata": {name: meta[name] for name in _POD_METADATA if name in meta},
            "status": {name: status[name] for name in _POD_STATUS if name in status},
        }
    if kind == KIND and isinstance(body.get("status"), dict):
        body = body | {"status": json.dumps(body["status"])}
    writers = body["metadata"].get("managedFields")
    if not writers:
        return body
    writers = [entry for entry in (only_field(one, REPLICAS) for one in writers) if entry]
    return body | {"metadata": body["metadata"] | {"managedFields": writers}}


def status_in(pool: Manifest) -> Manifest:
    """The status of a pool of the store, where it is text: it is read once, and 4 KB as objects."""
    status = pool.get("status")
    found: Manifest = json.loads(status) if isinstance(status, str) else status or {}
    return found


def has_template(deployment: Manifest) -> bool:
    """Whether it is whole: one that agreed is kept without."""
    return "template" in deployment.get("spec", {})


def _interned(value: Any) -> Any:
    """The value with each of its words held once, however many objects have it.

    A thousand Deployments are a thousand times the same words; each decoded JSON brings its own.
    """
    if isinstance(value, dict):
        return {intern(key): _interned(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_interned(part) for part in value]
    return intern(value) if type(value) is str and len(value) <= LONGEST_WORD else value


def version_of(body: Manifest) -> int:
    """The resource version of an object as a number, 0 when it has none."""
    return _number(str(body.get("metadata", {}).get("resourceVersion", "")))


def _number(version: str) -> int:
    """Resource versions of one kind are ordered numbers since Kubernetes 1.35."""
    return int(version) if version.isdecimal() else 0
