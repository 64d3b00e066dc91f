"""How nice the steps of one engine are to those of others on the same processors.

A kernel shares a busy processor by weights of its own: each level of a thread's nice value is 1.25
times the next (sched(7); ``sched_prio_to_weight`` in Linux' kernel/sched/core.c). So that tasks'
weights hold for processors as for threads, an engine whose heaviest task weighs w, beside one of
w_max, is

    n = min(10, floor(ln(w_max / w) / ln 1.25))

levels nicer, in bands of BAND. A processor that nobody else wants is its all the same.

A step that has begun nice can't be hurried (a thread becomes nicer and never less so), and at ten
levels it may take ten times as long on a busy machine. So w is that of the heaviest within
LATELY_SECONDS: an engine that has bulk and urgent tasks is not nice, and one of bulk alone lets the
first urgent one wait for a slow step, and none after it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log

BAND = 5
"""Each level in use is a thread of an engine's, so there are few; rounded to the less nice."""
MOST = 10
"""A ninth of what others get of a busy processor is the least: what runs is to end, too."""
LATELY_SECONDS = 60.0
_A_LEVEL = log(1.25)


def niceness(weight: float, most: float) -> int:
    """n of an engine whose heaviest task has this weight, beside a heaviest of all of ``most``."""
    if weight >= most:
        return 0
    # Not the logarithm of their ratio, which may be beyond what a float holds.
    levels = min(MOST, int((log(most) - log(weight)) / _A_LEVEL))
    return levels - levels % BAND


@dataclass(slots=True)
class Lately:
    """The heaviest weight of LATELY_SECONDS."""

    weight: float = 0.0
    until: float = -inf

    def seen(self, weight: float, now: float) -> float:
        """Take in what runs now; the heaviest lately."""
        if weight >= self.weight or now >= self.until:
            self.weight, self.until = weight, now + LATELY_SECONDS
        return self.weight
