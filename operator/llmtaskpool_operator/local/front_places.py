"""Who may be connected to the front when it is full: the idle go first, the known keep a share.

A connection rests until its request is whole: one that says nothing, or half a head, holds a
place that others need. Known is who had a good answer: a connection, and the address it came
from. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

_ADDRESSES = 1024
"""Addresses that are remembered for a good answer; the one that was longest without is dropped."""


FRESH_SECONDS = 1.0
"""A connection that is younger may be about to send its first request: it stays."""


@dataclass(slots=True, eq=False)
class Place:
    """One connection, made at ``since`` seconds.

    ``known``: it had a good answer. ``busy``: it waits for one.
    """

    address: str
    since: float
    known: bool = False
    busy: bool = False


@dataclass(slots=True)
class Places:
    """At most ``most`` connections, ``kept`` of them for the known."""

    most: int
    kept: int
    _all: set[Place] = field(default_factory=set)
    _strangers: OrderedDict[Place, None] = field(default_factory=OrderedDict)
    _regulars: OrderedDict[Place, None] = field(default_factory=OrderedDict)
    _addresses: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._all)

    def arrive(self, address: str, now: float) -> tuple[Place | None, Place | None]:
        """A new connection at ``now`` seconds: its place, and the one to close for it.

        It has no place when nobody rests who may be sent away.
        """
        welcome = address in self._addresses
        victim: Place | None = None
        if len(self._all) >= (self.most if welcome else self.most - self.kept):
            victim = self._to_send_away(welcome, now)
            if victim is None:
                return None, None
            self.leave(victim)
        place = Place(address, now)
        self._all.add(place)
        self._strangers[place] = None
        return place, victim

    def _to_send_away(self, welcome: bool, now: float) -> Place | None:
        """The stranger that rests longest; else a known one, while these have their share."""
        stranger = next(iter(self._strangers), None)
        if stranger is not None and now - stranger.since >= FRESH_SECONDS:
            return stranger
        if self._regulars and (welcome or len(self._regulars) > self.kept):
            return next(iter(self._regulars))
        return None

    def begin(self, place: Place) -> None:
        """Its request is whole: it waits for the answer."""
        place.busy = True
        self._strangers.pop(place, None)
        self._regulars.pop(place, None)

    def end(self, place: Place, *, good: bool) -> None:
        """It was answered, and rests."""
        if place not in self._all:
            return
        place.busy = False
        if good:
            place.known = True
            self._addresses[place.address] = None
            self._addresses.move_to_end(place.address)
            if len(self._addresses) > _ADDRESSES:
                self._addresses.popitem(last=False)
        (self._regulars if place.known else self._strangers)[place] = None

    def leave(self, place: Place) -> None:
        """The connection is closed; idempotent."""
        self._all.discard(place)
        self._strangers.pop(place, None)
        self._regulars.pop(place, None)
