"""Files and batches in the queue's file of SQLite, in a table beside the tasks."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from math import isinf

from llmtaskpool_worker.brokers.journal import Journal
from llmtaskpool_worker.brokers.shelf import Change, NoSpace, Stale, after

_TABLE = """
CREATE TABLE IF NOT EXISTS shelf (
  name TEXT PRIMARY KEY, data BLOB NOT NULL, until REAL
) WITHOUT ROWID
"""
_HERE = "(until IS NULL OR until > ?)"


class FileShelf:
    """A shelf in the file of ``journal``, which is open. ``wall_clock``: seconds of the epoch."""

    shared = False

    def __init__(self, journal: Journal, limit_bytes: int, wall_clock: Callable[[], float]) -> None:
        self._journal, self._limit, self._wall_clock = journal, limit_bytes, wall_clock
        self._held: int | None = None
        """Bytes that lie here; None: not counted yet. Of the file's thread."""

    async def get(self, name: str) -> bytes | None:
        """See Shelf."""
        now = self._wall_clock()

        def read(file: sqlite3.Connection) -> bytes | None:
            self._open(file)
            return _data(file, name, now)

        return await self._journal.run(read)

    async def change(self, change: Change) -> None:
        """See Shelf."""
        now = self._wall_clock()
        try:
            refused = await self._journal.run(lambda file: self._changed(file, change, now))
        except BaseException:
            self._held = None
            raise
        if refused is not None:
            raise refused

    def _changed(
        self, file: sqlite3.Connection, change: Change, now: float
    ) -> Stale | NoSpace | None:
        before = held = self._open(file)
        if change.expect is not None:
            name, expected = change.expect
            there = _data(file, name, now)
            if there is not None and there == change.puts.get(name):
                return None
            if there != expected:
                return Stale()
        for name in (*change.deletes, *change.puts):
            for (size,) in file.execute("SELECT length(data) FROM shelf WHERE name = ?", (name,)):
                held -= size
        held += sum(map(len, change.puts.values()))
        if change.bounded and held > max(before, self._limit):
            return NoSpace(self._limit)
        until = None if isinf(change.keep_seconds) else now + change.keep_seconds
        file.executemany("DELETE FROM shelf WHERE name = ?", [(name,) for name in change.deletes])
        file.executemany(
            "INSERT INTO shelf VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
            "data = excluded.data, until = excluded.until",
            [(name, data, until) for name, data in change.puts.items()],
        )
        file.executemany(
            "UPDATE shelf SET until = ? WHERE name = ?", [(until, name) for name in change.keeps]
        )
        self._held = held
        return None

    async def names(
        self, prefix: str, *, most: int, beyond: str | None = None, newest: bool = False
    ) -> list[str]:
        """See Shelf."""
        low, high = prefix, after(prefix)
        if beyond is not None and newest:
            high = min(high, beyond)
        elif beyond is not None:
            low = max(low, beyond + "\0")
        now = self._wall_clock()
        asked = (
            f"SELECT name FROM shelf WHERE name >= ? AND name < ? AND {_HERE} "  # noqa: S608
            f"ORDER BY name {'DESC' if newest else 'ASC'} LIMIT ?"
        )

        def read(file: sqlite3.Connection) -> list[str]:
            self._open(file)
            return [name for (name,) in file.execute(asked, (low, high, now, most))]

        return await self._journal.run(read)

    async def sweep(self) -> None:
        """See Shelf."""
        now = self._wall_clock()

        def drop(file: sqlite3.Connection) -> None:
            self._open(file)
            if file.execute("DELETE FROM shelf WHERE until <= ?", (now,)).rowcount:
                self._held = None

        await self._journal.run(drop)

    async def held_bytes(self) -> int:
        """See Shelf."""
        return await self._journal.run(self._open)

    def _open(self, file: sqlite3.Connection) -> int:
        """Bytes that lie here; the table is made when it isn't there."""
        if self._held is None:
            file.execute(_TABLE)
            held = file.execute("SELECT coalesce(sum(length(data)), 0) FROM shelf").fetchone()[0]
            self._held = int(held)
        return self._held


def _data(file: sqlite3.Connection, name: str, now: float) -> bytes | None:
    asked = f"SELECT data FROM shelf WHERE name = ? AND {_HERE}"  # noqa: S608
    found = file.execute(asked, (name, now)).fetchone()
    return None if found is None else bytes(found[0])
