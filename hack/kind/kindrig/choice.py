"""Which cluster tests talk to, and why: the order that docs/rig.md tells."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rig.errors import RigError

from kindrig import cluster

GIVEN = "LLMTASKPOOL_TEST_KUBECONFIG"
ASSETS = "KUBEBUILDER_ASSETS"


class Where(StrEnum):
    """The kinds of cluster, the first wish first."""

    GIVEN = "a named cluster"
    KIND = "kind"
    ASSETS = "an API server alone"
    RIG = "the rig"


@dataclass(frozen=True, slots=True)
class Choice:
    """A kind of cluster and the reason for it. `kubeconfig` only where somebody named one."""

    where: Where
    why: str
    kubeconfig: Path | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


def choose(
    environment: Mapping[str, str], no_kind: Callable[[], str | None], *, server_only: bool = False
) -> Choice:
    """The first of the order that can be had; `no_kind` tells why kind can't, or None.

    ``server_only``: an API server without controllers is enough. Raises RigError when the named
    kubeconfig is not there, since tests on another cluster than the one named would mislead.
    """
    if given := environment.get(GIVEN):
        if not Path(given).is_file():
            raise RigError(f"{GIVEN}={given}: no such file", "name a kubeconfig, or unset it")
        return Choice(Where.GIVEN, f"{GIVEN}={given}", Path(given))
    reason = no_kind()
    if reason is None:
        return Choice(Where.KIND, "a Docker runs here, and kind is there")
    if server_only and (assets := environment.get(ASSETS)):
        return Choice(Where.ASSETS, f"{ASSETS}={assets}; not kind, as {reason}")
    return Choice(Where.RIG, f"not kind, as {reason}")


@functools.cache
def chosen(*, server_only: bool = False) -> Choice:
    """The choice of this process, made once: all of its tests talk to the same cluster."""
    return choose(os.environ, cluster.why_not, server_only=server_only)


def lines(folder: Path, items: Iterable[object], fixtures: Mapping[str, bool]) -> list[str]:
    """What pytest prints above the tests of a folder: a line for each cluster that they use.

    ``items`` are pytest's collected tests; ``fixtures`` maps those that give a cluster to whether
    an API server alone is enough for them.
    """
    here = [item for item in items if getattr(item, "path", Path()).is_relative_to(folder)]
    used = {name for item in here for name in getattr(item, "fixturenames", ())}
    where = f"{folder.parent.name}/{folder.name}"
    return told(where, {name: alone for name, alone in fixtures.items() if name in used})


def told(where: str, fixtures: Mapping[str, bool]) -> list[str]:
    """A line for each of these fixtures of a folder: which cluster it gives, and why."""
    return [
        f"cluster of {where}, `{name}`: {_reason(server_only=server_only)}"
        for name, server_only in fixtures.items()
    ]


def _reason(*, server_only: bool) -> str:
    try:
        return str(chosen(server_only=server_only))
    except RigError as error:  # the tests that ask for it fail with it
        return error.problem
