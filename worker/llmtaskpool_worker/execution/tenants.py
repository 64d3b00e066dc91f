"""What a worker knows of tenants: what it has started for each, and what it has refused them."""

from __future__ import annotations

from collections.abc import Callable

from llmtaskpool_worker.brokers.protocol import Depth
from llmtaskpool_worker.contract import TenantState
from llmtaskpool_worker.scheduling.tenants import FairShares, TenantLimits, Tenants


class TenantBooks:
    """One worker's. ``limits`` are the pool's."""

    def __init__(self, limits: Tenants, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._shares = FairShares(limits)
        self._refused: dict[str, int] = {}
        self._seen: dict[str, None] = {}
        """In the order in which they came, so that who is told of once is told of again."""

    def of(self, tenant: str) -> TenantLimits:
        """What holds for a tenant."""
        return self._limits.of(tenant)

    def started(self, tenant: str, load_seconds: float) -> None:
        """A task of so many thread-seconds was claimed here."""
        self._shares.started(tenant, load_seconds, self._clock())

    def refused(self, tenant: str) -> None:
        """A task was turned away."""
        if tenant:
            self._refused[tenant] = self._refused.get(tenant, 0) + 1

    def favour(self) -> Callable[[str], float] | None:
        """F of each tenant now; None: they are all alike."""
        return self._shares.favour if self._shares.favours(self._clock()) else None

    def states(self, depth: Depth) -> dict[str, TenantState]:
        """Of all that wait, run, or have done anything here."""
        names = depth.tenants.keys() | self._shares.seconds.keys() | self._refused.keys()
        self._seen |= dict.fromkeys(sorted(names - self._seen.keys()))
        return {
            name: TenantState(
                waiting=max(0, (counts := depth.tenants.get(name, (0, 0)))[0]),
                running=max(0, counts[1]),
                started_seconds_total=self._shares.seconds.get(name, 0.0),
                refused_total=self._refused.get(name, 0),
            )
            for name in self._seen
        }
