"""What the API server is told of a pool: its status where that is worth a write, and events."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from llmtaskpool_operator.api.names import API_VERSION, KIND
from llmtaskpool_operator.api.status import LLMTaskPoolStatus
from llmtaskpool_operator.autoscaler.telling import Note, rfc3339, worth_writing
from llmtaskpool_operator.cluster.api_client import ApiFailure, KubernetesApi
from llmtaskpool_operator.cluster.manifests import Manifest
from llmtaskpool_operator.cluster.store import status_in

log = logging.getLogger("llmtaskpool.operator")


@dataclass(slots=True)
class Told:
    """What was told of one pool, from turn to turn."""

    written: str | None = None
    """The status as it was written, in JSON: as objects it is four times as large."""
    status: LLMTaskPoolStatus | None = None
    """The same as an object: at rest the next turn's is this one."""
    at: float = float("-inf")
    """When the status was written, or of a new pool, when it could first have been."""


class Teller:
    """``name`` is this replica's; ``clock`` gives seconds since the epoch."""

    def __init__(self, api: KubernetesApi, name: str, clock: Callable[[], float]) -> None:
        self._api, self._name, self._clock = api, name, clock

    async def status(self, body: Manifest, told: Told, status: LLMTaskPoolStatus) -> None:
        """Write it, where it says more than was told. Raises ApiFailure, Fenced."""
        if status is told.status:
            return
        wanted, now = status.wire(), self._clock()
        text = json.dumps(wanted)
        if text == told.written:
            told.status = status
            return
        known = status_in(body) if told.written is None else json.loads(told.written)
        if told.at == float("-inf") and _never_seen(body):
            told.at = now
        if not worth_writing(known, wanted, now - told.at):
            return
        meta = body["metadata"]
        manifest = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {name: meta[name] for name in ("name", "namespace", "uid")},
            "status": wanted,
        }
        await self._api.apply(manifest, subresource="status", whole=False)
        told.written, told.status, told.at = text, status, now

    async def event(self, body: Manifest, note: Note) -> None:
        """Events are for people: one that can't be written stops nothing. Raises Fenced."""
        meta, at = body["metadata"], self._clock()
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{meta['name']}-", "namespace": meta["namespace"]},
            "eventTime": rfc3339(at, microseconds=True),
            "reportingController": "llmtaskpool.io/operator",
            "reportingInstance": self._name[:128],
            "type": note.type,
            "reason": note.reason,
            "action": note.action,
            "note": note.text[:1024],
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
        }
        try:
            await self._api.create(event)
        except ApiFailure as failure:
            log.warning("%s/%s: event not written: %s", meta["namespace"], meta["name"], failure)


def _never_seen(body: Manifest) -> bool:
    """Whether the pool's status is none of an operator's: absent, or the CRD's default."""
    status = status_in(body)
    return not status.get("observedGeneration") and isinstance(status.get("conditions", []), list)
