"""Rollouts that nobody asked for: a new operator, or another default image, changes all pods.

A few pools go first and all others wait, so that a version that does not work shows on those, and
nodes need not hold the surge of all. What somebody changes of one pool is never held up.
"""

from __future__ import annotations

from llmtaskpool_operator.cluster.store import PoolKey

NAMED = 3
"""Pools that the message of one that waits names."""


class Rollouts:
    """Of all pools, at most ``most`` at one time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: set[PoolKey] = set()
        self._waiting: set[PoolKey] = set()

    def begins(self, key: PoolKey) -> bool:
        """Whether the pool's may begin, or goes on; else it waits."""
        if key in self._running or len(self._running) < self._most:
            self._running.add(key)
            self._waiting.discard(key)
            return True
        self._waiting.add(key)
        return False

    def found(self, key: PoolKey) -> None:
        """One was under way when this operator came."""
        self._running.add(key)

    def held(self, key: PoolKey) -> bool:
        """Whether the pool waits, and there is no room yet."""
        return key in self._waiting and len(self._running) >= self._most

    def waits(self, key: PoolKey) -> str:
        """Why the pool waits; empty when it does not."""
        if key not in self._waiting:
            return ""
        names = [str(one) for one in sorted(self._running)]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return (
            "pods of what the operator now asks for wait: at most "
            f"{self._most} pools are changed at one time, and {', '.join(names[:NAMED])}{more} are "
            "(maxConcurrentRollouts of the chart)"
        )

    def ended(self, key: PoolKey) -> None:
        """All pods of the pool are as they should be, or the pool is gone."""
        self._running.discard(key)
        self._waiting.discard(key)
