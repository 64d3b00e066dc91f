"""Whose tasks they are: what each tenant may have at once, and a fair share of the threads.

A tenant is who shows an API key. Where there are tenants each sees its own tasks, files and
batches alone; without any setting of them everybody sees everything. Priority goes first and
fairness is among equals: in the ordinary turn a task is ranked by P x F = W x F / T, where

    F = clamp((share / all shares) / (use / all use), 1/16, 16)

over the tenants that have used anything lately; use is the thread-seconds that started for them,
and halves every 5 minutes. Who has used nothing yet among others has F = 16, and with one tenant
alone F is 1, so that the order is as if there were none. Pure; seconds are of the caller's clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

HALF_LIFE_SECONDS = 300.0
MOST_FAVOUR = 16.0
FORGOTTEN_SECONDS, FORGOTTEN_SHARE = 1e-9, 1e-6
"""Who has used less than this lately, or so little beside who has used most, has used nothing."""
EACH = "*"
"""In a setting: each tenant that isn't named."""
OF_KEY = "key-"
"""Tenants that have no name are called so, with a few digits of their key's digest."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """None: no bound. ``waiting`` tasks may wait and ``running`` be at work, of the whole queue;
    ``weight`` is the largest W. ``share`` is in proportion to the others'. ``sees_all``: also what
    is of others, as who runs the pool does."""

    waiting: int | None = None
    running: int | None = None
    weight: float | None = None
    share: float = 1.0
    sees_all: bool = False


@dataclass(frozen=True, slots=True)
class Tenants:
    """The limits by name, and those of ``each`` who has no name. Without keys nobody has any."""

    named: Mapping[str, TenantLimits] = field(default_factory=dict)
    each: TenantLimits = TenantLimits()
    apart: bool = False
    """Whether there are any: else nobody is told apart from others in what he may see."""

    def sight(self, tenant: str) -> str | None:
        """Whose tasks, files and batches a tenant sees: its own name; None: everybody's."""
        everything = not self.apart or not tenant or self.of(tenant).sees_all
        return None if everything else tenant

    def may_wait(self, tenant: str, *, of_a_batch: bool = False) -> int | None:
        """As many of a tenant's tasks wait at most; None: no bound.

        The line of a batch comes in only where at most half of that waits: its own batches leave
        room for what the tenant's people wait for.
        """
        most = self.of(tenant).waiting
        return most if most is None or not of_a_batch else max(1, most // 2)

    def of(self, tenant: str) -> TenantLimits:
        """What holds for a tenant; '' is who showed no key, as none is asked for."""
        return self.named.get(tenant, self.each) if tenant else _NOBODY

    @property
    def bound_running(self) -> bool:
        """Whether anybody's tasks at work are bounded."""
        every = (self.each, *self.named.values())
        return any(limits.running is not None for limits in every)


_NOBODY = TenantLimits()
_WHOLE = ("waiting", "running")
_SEES, _ALL = "sees", "all"
_NUMBERS = (*_WHOLE, "weight", "share")


def parse_tenants(text: str) -> Tenants:
    """``name[,share=2][,waiting=100][,running=8][,weight=10][,sees=all]``, with semicolons between.

    The name ``*`` is each tenant that has none. Raises ValueError with the remedy.
    """
    found: dict[str, TenantLimits] = {}
    for entry in filter(None, (part.strip() for part in re.split(r"[;\n]", text))):
        name, *parts = (part.strip() for part in entry.split(","))
        if name != EACH and (not _NAME.fullmatch(name) or name.startswith(OF_KEY)):
            raise ValueError(
                f"{name[:40]!r} is no name of a tenant: use small letters, digits and -, not "
                f"{OF_KEY} at the beginning; {EACH} is each who has no name"
            )
        if name in found:
            raise ValueError(f"{name} is there twice: give each tenant one entry")
        found[name] = TenantLimits(**dict(_limit(name, part) for part in parts))
    apart, each = bool(found), found.pop(EACH, TenantLimits())
    return Tenants(found, each, apart)


def _limit(name: str, part: str) -> tuple[str, Any]:
    key, _, value = part.partition("=")
    if key == _SEES:
        if value != _ALL:
            raise ValueError(f"{name}: sees is {value[:40]!r}: write sees=all, or leave it out")
        return "sees_all", True
    if key not in _NUMBERS:
        known = f"{', '.join(_NUMBERS)}: write one=number, or sees=all"
        raise ValueError(f"{name}: {key[:40]!r} is none of {known}")
    try:
        number: float = int(value) if key in _WHOLE else float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < inf or (key in _WHOLE and number != int(number)):
        sort = "whole number of at least 1" if key in _WHOLE else "number above 0"
        raise ValueError(f"{name}: {key} is {value[:40]!r}: give a {sort}")
    return key, number


class FairShares:
    """What tenants have used lately, as one worker has started it."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._used: dict[str, float] = {}
        self._at = -inf
        self._factors: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        """Thread-seconds that started for each, since this process began."""

    def started(self, tenant: str, load_seconds: float, now: float) -> None:
        """A task of so many thread-seconds starts."""
        if not tenant:
            return
        self._decay(now)
        self._used[tenant] = self._used.get(tenant, 0.0) + load_seconds
        self.seconds[tenant] = self.seconds.get(tenant, 0.0) + load_seconds
        self._factors.clear()

    def favours(self, now: float) -> bool:
        """Whether tenants differ: else all have the factor 1."""
        if now - self._at > HALF_LIFE_SECONDS / 60:
            self._decay(now)
        return bool(self._used)

    def favour(self, tenant: str) -> float:
        """F. Of who showed no key it is 1."""
        found = self._factors.get(tenant)
        if found is None:
            found = self._factors[tenant] = self._factor(tenant)
        return found

    def _factor(self, tenant: str) -> float:
        if not tenant:
            return 1.0
        names = self._used.keys() | {tenant}
        if len(names) == 1:
            return 1.0
        use = self._used.get(tenant, 0.0) / sum(self._used.values())
        shares = sum(self._tenants.of(name).share for name in names)
        share = self._tenants.of(tenant).share / shares
        most = MOST_FAVOUR
        return most if use * most <= share else max(1 / most, share / use)

    def _decay(self, now: float) -> None:
        past = now - self._at
        if past <= 0:
            return
        self._at = now
        if not self._used:
            return
        left = 0.5 ** (past / HALF_LIFE_SECONDS)
        decayed = {name: used * left for name, used in self._used.items()}
        least = max(FORGOTTEN_SECONDS, FORGOTTEN_SHARE * max(decayed.values()))
        self._used = {name: used for name, used in decayed.items() if used > least}
        self._factors.clear()
