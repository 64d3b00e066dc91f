"""`spec.cache`: where weights are kept between pods. Pure.

A folder of a node (hostPath) is none of the choices: Pod Security restricted forbids it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from llmtaskpool_operator.api.resources import Quantity
from llmtaskpool_operator.api.rules import Name, Rule, Wire


class ClaimTemplate(Wire):
    """A claim that the operator makes for the pool, and that goes with it."""

    size: Quantity
    """How much room it has. It can be raised later where the class allows it."""
    storage_class_name: Name | None = None
    """Class of storage; none: the cluster's default."""
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    """ReadWriteMany: pods on all nodes share it. ReadWriteOnce: only those on one node, so that
    the pool's pods must be on one (`affinity`)."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.accessMode == oldSelf.accessMode && "
            "has(self.storageClassName) == has(oldSelf.storageClassName) && "
            "(!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
            "accessMode",
            "the class and access mode of a claim can't change: make one of your own and name it "
            "in cache.claimName",
            lambda _: True,  # it is about two objects: only a server has both
        ),
    )


class EmptyDirCache(Wire):
    """A folder of each pod alone, gone with it."""

    size_limit: Quantity | None = None
    """The most that it may hold; a pod that has more is evicted. None: the node's disk."""
    medium: Literal["", "Memory"] = ""
    """Memory: in memory, which counts to the pod's limit."""


class Cache(Wire):
    """Where downloaded and converted weights are kept; one of the three."""

    claim_name: Name | None = None
    """A PersistentVolumeClaim that is there: ReadWriteMany for pods on all nodes."""
    claim_template: ClaimTemplate | None = None
    """A claim that the operator makes, `POOL-cache`."""
    empty_dir: EmptyDirCache | None = None
    """A folder of each pod: every pod downloads for itself. The default."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.claimName), has(self.claimTemplate), has(self.emptyDir)]"
            ".filter(given, given).size() <= 1",
            "claimName",
            "cache is one of claimName, claimTemplate and emptyDir: remove the others",
            lambda c: (
                sum(one is not None for one in (c.claim_name, c.claim_template, c.empty_dir)) <= 1
            ),
        ),
    )
