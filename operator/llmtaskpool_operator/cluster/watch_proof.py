"""Whether the watches bring what is there: what lists show, held against what watches delivered.

A resync mends what a watch missed, so nothing else would tell that the watch has died, and the
operator would be slow by a resync from then on. The proof costs no write, no right and no
request: each list names the newest version of its kind, and a watch that works has delivered
that version or one after it. (A watch that missed nothing but a deletion shows at the next write
of that kind; kopf itself opens a stream anew that was silent for 70 s.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmtaskpool_operator.cluster.manifests import Manifest
from llmtaskpool_operator.cluster.store import version_of

LATE_SECONDS = 15.0
"""A watch that lags for longer is no watch; one on a busy server lags by less than 2 s."""


@dataclass(slots=True)
class _Stream:
    """``owed``: a version that a list showed ``since`` then and that was not delivered yet."""

    delivered: int = 0
    owed: int | None = None
    since: float = 0.0
    proven: bool = False


class WatchProof:
    """``scoped``: there is a stream for each namespace, and not one for all. ``clock``: seconds."""

    def __init__(self, clock: Callable[[], float], *, scoped: bool = False) -> None:
        self._clock = clock
        self._scoped = scoped
        self._streams: dict[tuple[str, str], _Stream] = {}

    def delivered(self, kind: str, body: Manifest) -> None:
        """A watch brought this object, changed or deleted."""
        namespace = str(body.get("metadata", {}).get("namespace", ""))
        stream = self._stream(kind, namespace if self._scoped else "")
        stream.delivered = max(stream.delivered, version_of(body))
        if stream.owed is not None and stream.delivered >= stream.owed:
            stream.owed, stream.proven = None, True

    def listed(self, kind: str, bodies: Iterable[Manifest], within: str = "") -> None:
        """These are all objects of a kind, of one namespace if given."""
        newest = max(map(version_of, bodies), default=0)
        stream = self._stream(kind, within)
        if newest <= stream.delivered:
            stream.owed, stream.proven = None, True
        elif stream.owed is None:
            stream.owed, stream.since = newest, self._clock()
        else:
            # What was owed may be deleted by now; what is there was there then, undelivered too.
            stream.owed = min(stream.owed, newest)

    def behind(self) -> dict[str, float]:
        """Seconds that the watch of each kind has owed something; 0 for one that works."""
        now = self._clock()
        found: dict[str, float] = {}
        for (kind, _), stream in self._streams.items():
            seconds = 0.0 if stream.owed is None else max(0.0, now - stream.since)
            found[kind] = max(seconds, found.get(kind, 0.0))
        return found

    def fault(self) -> str:
        """Why the watches are not to be relied on, in a sentence; empty when they are."""
        for kind, seconds in self.behind().items():
            if seconds > LATE_SECONDS:
                return f"the watch of {kind} has not brought for {seconds:.0f} s what lists show"
        unproven = sorted({kind for (kind, _), one in self._streams.items() if not one.proven})
        return f"the watch of {', '.join(unproven)} has not caught up yet" if unproven else ""

    def _stream(self, kind: str, scope: str) -> _Stream:
        return self._streams.setdefault((kind, scope), _Stream())
