"""Is a kind computing or waiting? Declared first, then measured.

For each kind the CPU seconds of its own thread are held against the seconds it took. A kind
declared ``auto`` moves to the lane that fits; others keep theirs, and their numbers are shown all
the same. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmtaskpool_worker.contract import KindState, LaneName

COMPUTE_FROM = 0.6
IO_UNTIL = 0.3
"""Two thresholds: a kind between them stays where it is (hysteresis)."""
ENOUGH = 8
"""Runs seen since the last move before another."""
HALVE_AT_SECONDS = 600.0
"""Older seconds lose half of their weight whenever so many are summed up."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a kind runs and why."""

    kind: str
    lane: LaneName
    declared: bool
    compute_seconds: float
    waiting_seconds: float
    runs: int
    reason: str


@dataclass(slots=True)
class _Seen:
    lane: LaneName
    declared: bool
    compute_seconds: float = 0.0
    waiting_seconds: float = 0.0
    runs: int = 0
    since_move: int = 0

    def share(self) -> float:
        total = self.compute_seconds + self.waiting_seconds
        return self.compute_seconds / total if total > 0 else 0.0


class Nature:
    """The lanes of all kinds."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Seen] = {}

    def declare(self, kind: str, lane: LaneName, *, movable: bool) -> None:
        """Name a kind's first lane; ``movable``: it was declared ``auto``."""
        self._kinds.setdefault(kind, _Seen(lane, declared=not movable))

    def lane(self, kind: str) -> LaneName:
        """The lane for the next task of ``kind``. Raises KeyError when it was never declared."""
        return self._kinds[kind].lane

    def observe(self, kind: str, compute_seconds: float, waiting_seconds: float) -> None:
        """Take in one run: seconds on a CPU and seconds not on one."""
        seen = self._kinds[kind]
        if seen.compute_seconds + seen.waiting_seconds > HALVE_AT_SECONDS:
            seen.compute_seconds /= 2
            seen.waiting_seconds /= 2
        seen.compute_seconds += max(0.0, compute_seconds)
        seen.waiting_seconds += max(0.0, waiting_seconds)
        seen.runs += 1
        seen.since_move += 1
        if not seen.declared and seen.since_move >= ENOUGH:
            self._settle(seen)

    def verdicts(self) -> list[Verdict]:
        """One verdict per kind, with its numbers."""
        return [_verdict(kind, seen) for kind, seen in sorted(self._kinds.items())]

    @staticmethod
    def _settle(seen: _Seen) -> None:
        share = seen.share()
        target = seen.lane
        if share >= COMPUTE_FROM:
            target = LaneName.COMPUTE
        elif share <= IO_UNTIL:
            target = LaneName.IO
        if target is not seen.lane:
            seen.lane, seen.since_move = target, 0


def kind_states(nature: Nature) -> dict[str, KindState]:
    """All verdicts as the worker's state tells them."""
    return {
        verdict.kind: KindState(
            lane=verdict.lane,
            declared=verdict.declared,
            compute_seconds=verdict.compute_seconds,
            waiting_seconds=verdict.waiting_seconds,
            runs=verdict.runs,
            reason=verdict.reason,
        )
        for verdict in nature.verdicts()
    }


def _verdict(kind: str, seen: _Seen) -> Verdict:
    share = seen.share()
    if seen.declared:
        reason = f"declared {seen.lane}; {share:.0%} of its time is compute"
    elif seen.runs < ENOUGH:
        reason = f"first lane; {seen.runs} of the {ENOUGH} runs needed to judge"
    elif share >= COMPUTE_FROM:
        reason = f"{share:.0%} of its time is compute, at least {COMPUTE_FROM:.0%}"
    elif share <= IO_UNTIL:
        reason = f"{share:.0%} of its time is compute, at most {IO_UNTIL:.0%}"
    else:
        reason = f"{share:.0%} of its time is compute: between the thresholds, stays"
    return Verdict(
        kind,
        seen.lane,
        seen.declared,
        seen.compute_seconds,
        seen.waiting_seconds,
        seen.runs,
        reason,
    )
