"""Which replica leads, by a Lease: one acts, the others wait with warm watches.

Own code, because ``kubernetes.aio.leaderelection`` does not bound its requests: behind an API
server that hangs, a replica would believe for minutes that it leads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from llmtaskpool_operator.autoscaler.telling import rfc3339
from llmtaskpool_operator.cluster.api_client import ApiFailure, KubernetesApi
from llmtaskpool_operator.cluster.manifests import Manifest

log = logging.getLogger("llmtaskpool.election")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, as client-go's defaults: who can't renew for ``renew`` stops, after ``lease``
    another may begin, and everyone tries each ``retry``."""

    lease: float = 15.0
    renew: float = 10.0
    retry: float = 2.0


class Election:
    """``leads`` is the fence: it says no from the moment on that a renewal is overdue.

    ``clock`` is in seconds, goes forward, and goes on while the process stands still; ``wall`` is
    in seconds since the epoch. ``api`` must not be fenced. With ``owner``, an ownerReference, the
    lease goes when that does.
    """

    def __init__(
        self,
        api: KubernetesApi,
        *,
        name: str,
        namespace: str,
        identity: str,
        clock: Callable[[], float],
        wall: Callable[[], float],
        timing: Timing | None = None,
        owner: Manifest | None = None,
    ) -> None:
        self._api = api
        self._name = name
        self._namespace = namespace
        self._identity = identity
        self._clock = clock
        self._wall = wall
        self._timing = timing or Timing()
        self._owned = {} if owner is None else {"ownerReferences": [owner]}
        self._valid_until = float("-inf")
        self._seen: tuple[tuple[str, object] | None, float] = (None, float("-inf"))

    def leads(self) -> bool:
        """Whether this replica may write now."""
        return self._clock() < self._valid_until

    async def run(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait for the lease, ``lead`` while it is held, and begin anew; until cancelled.

        ``lead`` is cancelled when the lease is lost. Raises what ``lead`` raises.
        """
        while True:
            told = ""
            while not await self._renewed():
                holder = self._seen[0][0] if self._seen[0] is not None else ""
                if holder != told:
                    told, lease = holder, f"{self._namespace}/{self._name}"
                    log.info("%s stands by: %s leads, by Lease %s", self._identity, holder, lease)
                await asyncio.sleep(self._timing.retry)
            log.info("%s leads", self._identity)
            leading = asyncio.create_task(lead())
            try:
                await self._hold(leading)
            finally:
                leading.cancel()
                await asyncio.gather(leading, return_exceptions=True)
                await self._release()
            if leading.done() and not leading.cancelled() and leading.exception():
                await leading
            log.warning("%s leads no more", self._identity)

    async def _hold(self, leading: asyncio.Task[None]) -> None:
        """Renew until that is overdue or ``leading`` ends."""
        while self.leads() and not leading.done():
            await asyncio.wait({leading}, timeout=self._timing.retry)
            await self._renewed()

    async def _renewed(self) -> bool:
        """Whether the lease is ours now; a request that fails is no reason to think so."""
        asked_at = self._clock()
        try:
            async with asyncio.timeout(self._timing.renew / 2):
                written = await self._write()
        except (ApiFailure, TimeoutError) as failure:
            log.warning("the lease was not renewed: %s", failure or "no answer")
            return False
        if written:
            # Counted from when it was asked: the server may have written it at once.
            self._valid_until = asked_at + self._timing.renew
        return written

    async def _write(self) -> bool:
        lease = await self._api.get("Lease", self._namespace, self._name)
        if lease is None:
            await self._api.create(self._ours(None))
            return True
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity")
        if holder not in (None, "", self._identity):
            mark = (str(holder), spec.get("renewTime"))
            if self._seen[0] != mark:
                # Expiry is counted on our own clock from the last change: clocks may differ.
                self._seen = (mark, self._clock())
            lasts = float(spec.get("leaseDurationSeconds") or self._timing.lease)
            if self._clock() < self._seen[1] + lasts:
                return False
        await self._api.replace(self._ours(lease))
        return True

    async def _release(self) -> None:
        """Let another have it at once; if that fails it expires."""
        if not self.leads():
            return
        self._valid_until = float("-inf")
        try:
            async with asyncio.timeout(self._timing.renew / 2):
                lease = await self._api.get("Lease", self._namespace, self._name)
                if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                    lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                    await self._api.replace(lease)
        except (ApiFailure, TimeoutError) as failure:
            log.warning("the lease was not given up: %s", failure or "no answer")

    def _ours(self, lease: Manifest | None) -> Manifest:
        """The lease with us as its holder, as of now; of the version that was read."""
        now = rfc3339(self._wall(), microseconds=True)
        spec = {} if lease is None else dict(lease.get("spec") or {})
        if spec.get("holderIdentity") != self._identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (lease is not None)
        spec["holderIdentity"] = self._identity
        spec["leaseDurationSeconds"] = int(self._timing.lease)
        spec["renewTime"] = now
        named = {"name": self._name, "namespace": self._namespace}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": (named if lease is None else lease["metadata"]) | self._owned,
            "spec": spec,
        }
