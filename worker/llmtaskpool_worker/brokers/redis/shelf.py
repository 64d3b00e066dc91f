"""Files and batches on the server that the pool's workers share: each change is one script."""

from __future__ import annotations

from collections.abc import Callable
from math import isinf

from llmtaskpool_worker.brokers.redis.courier import Call
from llmtaskpool_worker.brokers.shelf import Change, NoSpace, Stale, after

SWEPT_AT_ONCE = 200


class ServerShelf:
    """A shelf on the server. ``call`` asks for a script of it, see Session."""

    shared = True

    def __init__(self, call: Callable[..., Call], limit_bytes: int) -> None:
        self._call, self._limit = call, limit_bytes

    async def get(self, name: str) -> bytes | None:
        """See Shelf."""
        found = await self._call("shelf", "get", name)
        return None if found is None else bytes(found)

    async def change(self, change: Change) -> None:
        """See Shelf."""
        decides, expected = change.expect or ("", None)
        keep = -1 if isinf(change.keep_seconds) else round(change.keep_seconds * 1000)
        puts = [part for put in change.puts.items() for part in put]
        answer = await self._call(
            "shelve",
            *(decides, "none" if expected is None else "is", expected or b""),
            *(keep, self._limit if change.bounded else 0, len(change.puts), len(change.deletes)),
            *puts,
            *change.deletes,
            *change.keeps,
        )
        if answer == b"stale":
            raise Stale
        if answer == b"full":
            raise NoSpace(self._limit)

    async def names(
        self, prefix: str, *, most: int, beyond: str | None = None, newest: bool = False
    ) -> list[str]:
        """See Shelf."""
        order = "newest" if newest else "oldest"
        asked = ("names", prefix, after(prefix), most, beyond or "", order)
        return [bytes(name).decode() for name in await self._call("shelf", *asked)]

    async def sweep(self) -> None:
        """See Shelf."""
        await self._call("shelf", "sweep", SWEPT_AT_ONCE)

    async def held_bytes(self) -> int:
        """See Shelf."""
        return int(await self._call("shelf", "held"))
