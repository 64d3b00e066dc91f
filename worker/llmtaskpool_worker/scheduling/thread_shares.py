"""Of a lane's threads, those that each model can count on while others have work too.

P = W / T orders tasks, and across models it is blind to who waits: T of an embedding is some
milliseconds, so a flood of them at a tenth of the weight outranks every chat, and would hold all
threads though the chat's engine is idle. So each holder of threads (a model; all handlers together)
with work has at least

    G = max(1, floor(N x w / sum of w))

of N, with w the weight of the strongest that waits for it, or else of its last to start. It takes
them at once, also where others hold more than theirs: those start nothing until they are back. At
most as many as are guaranteed run beyond N, so fewer than 2 N (N + holders - 1 where N is small).
What is left is given by P alone, so nothing stays unused, and with one holder there is nothing to
share. This is the guarantee of weighted max-min fairness (Bertsekas and Gallager, *Data Networks*,
1992, section 6.5.2); what one leaves goes by P and not by w. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping


def guaranteed(threads: int, weights: Mapping[str, float]) -> dict[str, int]:
    """G of each of ``weights``, all above 0, of N threads."""
    total = sum(weights.values())
    return {name: max(1, int(threads * (w / total))) for name, w in weights.items()}
