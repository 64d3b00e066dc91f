"""A share of the thread-seconds for those who have waited long, so that nothing waits for ever.

Smith's rule alone starves: what has the lowest P = W / T waits as long as there is other work.
Letting the aged go first, as this queue once did, ends priority when it is needed: as soon as the
oldest of a deep backlog has aged, the queue is first come, first served (5,000 bulk tasks in
front: a chat's p95 wait went from 3.9 s to 3,150 s). So the aged get a share, and no more.

It is a credit in thread-seconds. While somebody who is eligible has waited the ageing bound, each
task that starts adds ``share * T``; while the credit is not negative the oldest goes next, and its
own T is taken off. Of X thread-seconds that start meanwhile the aged so get at least share * X less
one task, and a task with A thread-seconds of older aged work before it starts within

    ageing + A / (share * capacity)

where the capacity is N thread-seconds a second. What the order itself gives to an aged task costs
it nothing. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_AGED_SHARE = 0.03
"""Within 10 % of the weighted mean completion of Smith's rule alone, on real traces at a load of
1.3 for 40 minutes (benchmarks/order.md)."""


@dataclass(slots=True)
class AgedShare:
    """``share`` of 0: never; of 1: the aged go before all others."""

    share: float = DEFAULT_AGED_SHARE
    credit: float = 0.0
    """Thread-seconds that the aged may still have at once."""

    def is_due(self) -> bool:
        """Whether the oldest that has aged goes next."""
        return self.share > 0 and self.credit >= 0

    def started(self, load_seconds: float, *, for_its_age: bool) -> None:
        """A task of so many thread-seconds starts while somebody has aged."""
        self.credit += self.share * load_seconds - (load_seconds if for_its_age else 0.0)

    def pass_for(self, load_seconds: float) -> None:
        """Others wait until a task of so many thread-seconds has started."""
        self.credit = min(self.credit, -self.share * load_seconds)

    def nobody_waits_long(self) -> None:
        """What was left over is not saved up: the next to age is due at once."""
        self.credit = 0.0
