"""An API server in memory: what KubernetesApi asks of one, with its versions and conflicts."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

from llmtaskpool_operator.cluster.api_client import ApiFailure, Listed

Call = tuple[str, str, str]
"""Verb, kind and name."""


class MemoryApi:
    """Objects by kind, namespace and name. ``calls`` are all requests, ``writes`` those that write.

    ``before`` is called with each request, before it is answered: it may raise what the request
    should, change objects in between, or wait as a slow server would.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Any] = {}
        self.calls: list[Call] = []
        self.bodies: list[Any] = []
        self.before: Callable[[Call], Any] = lambda _call: None
        self._version = 100

    @property
    def writes(self) -> list[Call]:
        return [call for call in self.calls if call[0] not in ("get", "list", "metadata")]

    def put(self, body: Any) -> Any:
        """What somebody else writes: no request, and the generation grows with the spec."""
        meta = body["metadata"]
        key = (body["kind"], meta["namespace"], meta["name"])
        before = self.objects.get(key)
        self._version += 1
        generation = 1
        if before is not None:
            changed = before.get("spec") != body.get("spec")
            generation = before["metadata"]["generation"] + changed
        mine = {"resourceVersion": str(self._version), "generation": generation}
        self.objects[key] = copy.deepcopy(body | {"metadata": meta | mine})
        return copy.deepcopy(self.objects[key])

    def find(self, kind: str, namespace: str, name: str) -> Any:
        return copy.deepcopy(self.objects.get((kind, namespace, name)))

    async def get(self, kind: str, namespace: str, name: str) -> Any:
        await self._asked("get", kind, name)
        return self.find(kind, namespace, name)

    async def metadata(self, kind: str, namespace: str, name: str) -> Any:
        await self._asked("metadata", kind, name)
        found = self.find(kind, namespace, name)
        return found and {"metadata": found["metadata"]}

    async def list(
        self,
        kind: str,
        namespace: str = "",
        selector: str = "",
        kept: Callable[[Any], Any] = lambda body: body,
        *,
        fields: str = "",
    ) -> Listed:
        await self._asked("list", kind, "")
        found = [one for key, one in self.objects.items() if key[0] == kind]
        return Listed(tuple(map(kept, copy.deepcopy(found))), str(self._version))

    async def apply(
        self,
        manifest: Any,
        *,
        version: str | None = None,
        subresource: str = "",
        whole: bool = True,
    ) -> Any:
        kind, meta = manifest["kind"], manifest["metadata"]
        verb = f"apply/{subresource}" if subresource else "apply"
        await self._asked(verb, kind, meta["name"], manifest)
        live = self.find(kind, meta["namespace"], meta["name"])
        if version is not None and live is not None:  # a real server makes what is not there
            self._same(live, version)
        if subresource and live is None:
            raise ApiFailure(404, "404: not found")
        made = self.put(_merged(live or {}, manifest))
        return made if whole else {"metadata": made["metadata"]}

    async def make(self, manifest: Any, *, whole: bool = True) -> Any:
        kind, meta = manifest["kind"], manifest["metadata"]
        await self._asked("make", kind, meta["name"], manifest)
        if self.find(kind, meta["namespace"], meta["name"]) is not None:
            return None
        made = self.put(manifest)
        return made if whole else {"metadata": made["metadata"]}

    async def create(self, manifest: Any) -> Any:
        meta = manifest["metadata"]
        name = meta.get("name") or f"{meta['generateName']}{self._version}"
        await self._asked("create", manifest["kind"], name, manifest)
        if self.find(manifest["kind"], meta["namespace"], name) is not None:
            raise ApiFailure(409, "409: already exists")
        return self.put(manifest | {"metadata": meta | {"name": name}})

    async def replace(self, manifest: Any) -> Any:
        meta = manifest["metadata"]
        await self._asked("replace", manifest["kind"], meta["name"], manifest)
        live = self.find(manifest["kind"], meta["namespace"], meta["name"])
        self._same(live, meta["resourceVersion"])
        return self.put(manifest)

    async def merge(
        self, kind: str, namespace: str, name: str, patch: Any, *, subresource: str = ""
    ) -> Any:
        verb = f"merge/{subresource}" if subresource else "merge"
        await self._asked(verb, kind, name, patch)
        live = self.find(kind, namespace, name)
        if live is None:
            raise ApiFailure(404, "404: not found")
        if "resourceVersion" in patch.get("metadata", {}):
            self._same(live, patch["metadata"]["resourceVersion"])
        return self.put(_merged(live, patch))

    def _same(self, live: Any, version: str) -> None:
        if live is None or live["metadata"]["resourceVersion"] != version:
            raise ApiFailure(409, "409: the object has been modified")

    async def _asked(self, verb: str, kind: str, name: str, body: Any = None) -> None:
        call = (verb, kind, name)
        self.calls.append(call)
        self.bodies.append(copy.deepcopy(body))
        if asyncio.iscoroutine(waiting := self.before(call)):
            await waiting


def _merged(live: Any, patch: Any) -> Any:
    """A JSON merge patch; for the manifests here server-side apply does the same."""
    if not isinstance(live, dict) or not isinstance(patch, dict):
        return patch
    merged = {**live, **{key: _merged(live.get(key), value) for key, value in patch.items()}}
    return {key: value for key, value in merged.items() if value is not None}
