"""How much of their prompts tasks had not to compute, because others began alike. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

MOST_REUSED = 0.95
"""The end of a prompt is always computed."""


class Reuse:
    """The share of prompt tokens that was kept from others, of the last tasks of a class."""

    def __init__(self, keep: int, enough: int) -> None:
        self._keep, self._enough = keep, enough
        self._last: dict[Hashable, deque[tuple[int, int]]] = {}
        self._sums: dict[Hashable, tuple[int, int]] = {}
        """Of what is in ``_last``: a queue asks for them after each step."""

    def observe(self, key: Hashable, prompt_tokens: int, reused: int) -> None:
        """One task that finished."""
        last = self._last.get(key)
        if last is None:
            last = self._last[key] = deque(maxlen=self._keep)
        out = last[0] if len(last) == self._keep else (0, 0)
        new = (min(reused, prompt_tokens), prompt_tokens)
        last.append(new)
        of_reused, of_all = self._sums.get(key, (0, 0))
        self._sums[key] = (of_reused + new[0] - out[0], of_all + new[1] - out[1])

    def share(self, *keys: Hashable) -> float:
        """``reused / prompt tokens`` of the first key that has enough tasks; 0 where none has."""
        for key in keys:
            last = self._last.get(key, ())
            if len(last) >= self._enough:
                reused, total = self._sums[key]
                return min(reused / total, MOST_REUSED) if total else 0.0
        return 0.0
