"""How nice the steps of one engine are to those of others on the same processors.

A kernel shares a busy processor by weights of its own: each level of a thread's nice value is 1.25
times the next (sched(7); ``sched_prio_to_weight`` in Linux' kernel/sched/core.c). So that tasks'
weights hold for processors as for threads, an engine whose heaviest task weighs w, beside one of
w_max, is

    n = floor(ln(w_max / w) / ln 1.25)

levels nicer, in bands of BAND and at most MOST: W = 0.1 beside W = 1 is 10, a ninth of its share. A
processor that nobody else wants is its all the same. Pure.
"""

from __future__ import annotations

from math import log

BAND = 5
"""Each level in use is a thread of an engine's, so there are few; rounded to the less nice."""
MOST = 19
_A_LEVEL = log(1.25)


def niceness(weight: float, most: float) -> int:
    """n of an engine whose heaviest task has this weight, beside a heaviest of all of ``most``."""
    if weight >= most:
        return 0
    levels = min(MOST, int(log(most / weight) / _A_LEVEL))
    return levels if levels == MOST else levels - levels % BAND
