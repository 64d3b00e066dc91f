"""Which tasks are of a graph: kept beside the tasks, so that any worker answers for all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from llmtaskpool_worker.brokers.shelf import Change, MemoryShelf, NoSpace, Shelf
from llmtaskpool_worker.execution.acceptance import rejecting
from llmtaskpool_worker.execution.pool import Rejected

KEPT_SECONDS = 7 * 86_400.0
"""A graph is known for so long after it was accepted."""
MEMORY_BYTES = 16 * 1024 * 1024
_OF = "graph-"


@dataclass(frozen=True, slots=True)
class Graph:
    """The ids of its tasks by their names, and whose it is."""

    tasks: dict[str, str]
    tenant: str = ""


class GraphBooks:
    """The graphs on a shelf. ``new_id`` makes ids that tell who has them, where that matters."""

    def __init__(self, shelf: Shelf, new_id: Callable[[], str]) -> None:
        self._shelf, self._new_id = shelf, new_id

    @classmethod
    def in_memory(cls, clock: Callable[[], float], new_id: Callable[[], str]) -> GraphBooks:
        """Graphs that are known as long as this process lives."""
        return cls(MemoryShelf(MEMORY_BYTES, clock), new_id)

    def new_id(self) -> str:
        """Of a graph."""
        return _OF + self._new_id()

    async def keep(self, graph_id: str, graph: Graph) -> None:
        """It is known from now on. Raises Rejected."""
        change = Change(
            {f"graph/{graph_id}": msgspec.json.encode(graph)}, keep_seconds=KEPT_SECONDS
        )
        try:
            with rejecting():
                await self._shelf.change(change)
        except NoSpace as full:
            raise Rejected(
                "results_full",
                f"there is no room to keep which tasks are of the graph: files, batches and graphs "
                f"hold the {full.limit_bytes} bytes that they may: delete files, or raise "
                "LLMTASKPOOL_FILE_STORE_BYTES",
                retry_after_seconds=60.0,
            ) from None

    async def get(self, graph_id: str) -> Graph | None:
        """As it was kept; None: there is none, or it can't be read. Raises Rejected."""
        with rejecting():
            kept = await self._shelf.get(f"graph/{graph_id}")
        try:
            return None if kept is None else msgspec.json.decode(kept, type=Graph)
        except msgspec.DecodeError:
            return None
