"""Which operator serves a pool, where several see it: the first, for as long as it lives.

The claim stands on the Secret with the pool's control token, the one child that every pool has
and that only its operator writes: whoever makes it first has the pool, by one write that can't
succeed twice. Whether the holder lives shows in its Lease, which all operators may read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmtaskpool_operator.cluster.api_client import ApiFailure, KubernetesApi
from llmtaskpool_operator.cluster.manifests import OPERATOR, Manifest

LOOK_SECONDS = 5.0
"""A Lease is read this often, however many pools its operator has."""
LEASE_SECONDS = 15.0
_GONE = (403, 404)
"""With its operator go the Lease and the right of all to read it."""


class ServedByAnother(Exception):
    """The pool is another operator's, which lives; the message names it."""


@dataclass(slots=True)
class _Known:
    mark: object
    changed_at: float
    read_at: float
    lasts: float
    gone: bool = False


class OtherOperators:
    """Whether they live. ``clock`` gives seconds and goes forward."""

    def __init__(self, api: KubernetesApi, own: str, clock: Callable[[], float]) -> None:
        self._api = api
        self._own = own
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def check(self, secret: Manifest | None) -> None:
        """Raises ServedByAnother when another that lives has claimed the pool; ApiFailure."""
        meta = (secret or {}).get("metadata") or {}
        claim = str((meta.get("annotations") or {}).get(OPERATOR) or self._own)
        if claim != self._own and await self.lives(claim):
            raise ServedByAnother(claim)

    async def lives(self, who: str) -> bool:
        """Whether that operator renews its Lease. Raises ApiFailure."""
        known, now = self._known.get(who), self._clock()
        if known is None or now >= known.read_at + LOOK_SECONDS:
            known = self._known[who] = await self._read(who, known, now)
        # Counted on our own clock, from the last change that we saw: clocks may differ.
        return not known.gone and now < known.changed_at + known.lasts

    async def _read(self, who: str, known: _Known | None, now: float) -> _Known:
        namespace, _, name = who.partition("/")
        try:
            lease = await self._api.get("Lease", namespace, name)
        except ApiFailure as failure:
            if failure.code not in _GONE:
                raise
            lease = None
        if lease is None:
            return _Known(None, now, now, 0.0, gone=True)
        spec = lease.get("spec") or {}
        mark = (spec.get("holderIdentity"), spec.get("renewTime"))
        same = known is not None and known.mark == mark
        changed_at = known.changed_at if known is not None and same else now
        lasts = max(LEASE_SECONDS, float(spec.get("leaseDurationSeconds") or 0.0))
        return _Known(mark, changed_at, now, lasts)
