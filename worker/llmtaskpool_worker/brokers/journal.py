"""A file of SQLite that one process owns: what it holds, and writes that are grouped.

All of it happens in one thread beside the event loop. Whatever is asked for while a write is under
way goes with the next one, in one transaction and, where it has to survive a loss of power, one
fsync: the busier it is, the less each write costs.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from llmtaskpool_worker.brokers.refusals import Unavailable

log = logging.getLogger("llmtaskpool.queue")

T = TypeVar("T")

APPLICATION = 0x6C747071
"""SQLite's application_id of our files: "ltpq"."""
VERSION = 1
"""SQLite's user_version; raised when older workers can't use the file any more."""
RETRY_AFTER_SECONDS = 5.0
PAGE_BYTES = 1024
"""Each claim and each end changes one row, and writes the whole page that it is in."""
PAGES_OF_A_LOG = 4096
"""So many pages are written to the log before they are copied to their places in the file."""

_TABLES = """
CREATE TABLE tasks (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  state TEXT NOT NULL,
  accepted_at REAL NOT NULL,
  started_at REAL,
  ended_at REAL,
  expires_at REAL,
  attempts INTEGER NOT NULL DEFAULT 0,
  losses INTEGER NOT NULL DEFAULT 0,
  alone INTEGER NOT NULL DEFAULT 0,
  fence TEXT NOT NULL DEFAULT '',
  books BLOB NOT NULL,
  request BLOB,
  result BLOB
);
CREATE TABLE quarantine (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT, reason TEXT NOT NULL, found_at REAL NOT NULL,
  state TEXT, books BLOB, request BLOB, result BLOB
);
"""
_OVER = "state IN ('succeeded', 'failed', 'cancelled', 'expired', 'dead')"


@dataclass(frozen=True, slots=True)
class Row:
    """A task as it lies in the file; times are seconds since the epoch."""

    id: str
    state: str
    accepted_at: float
    started_at: float | None
    ended_at: float | None
    expires_at: float | None
    attempts: int
    losses: int
    alone: int
    fence: str
    books: bytes
    request: bytes | None
    result: bytes | None


_COLUMNS = ", ".join(field.name for field in fields(Row))
_values = attrgetter(*(field.name for field in fields(Row)))
_INSERT = f"INSERT INTO tasks ({_COLUMNS}) VALUES ({', '.join('?' * len(fields(Row)))})"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Write:
    """One statement. ``safe``: it has to survive a loss of power."""

    statement: str
    values: Sequence[Any]
    safe: bool = False


def insert(row: Row) -> Write:
    """An accepted task."""
    return Write(_INSERT, _values(row), safe=True)


def given(task_id: str, attempts: int, fence: str, started_at: float | None) -> Write:
    """A claim: written before its run begins, so that a lost worker is known by it."""
    return Write(
        "UPDATE tasks SET state = 'running', attempts = ?, fence = ?, started_at = ? "  # noqa: S608
        f"WHERE id = ? AND NOT {_OVER}",
        (attempts, fence, started_at, task_id),
    )


def waiting(task_id: str, attempts: int, losses: int, alone: bool) -> Write:
    """It waits again."""
    return Write(
        "UPDATE tasks SET state = 'queued', fence = '', attempts = ?, losses = ?, alone = ? "  # noqa: S608
        f"WHERE id = ? AND NOT {_OVER}",
        (attempts, losses, int(alone), task_id),
    )


def replayed(task_id: str) -> Write:
    """A dead letter waits again, with no attempts."""
    return Write(
        "UPDATE tasks SET state = 'queued', fence = '', attempts = 0, losses = 0, "
        "ended_at = NULL, expires_at = NULL, result = NULL WHERE id = ? AND state = 'dead'",
        (task_id,),
        safe=True,
    )


@dataclass(frozen=True, slots=True)
class End:
    """What is written of a task that ends; times are seconds since the epoch."""

    id: str
    state: str
    ended_at: float
    expires_at: float | None
    losses: int
    request: bytes
    result: bytes | None


_END = (
    "UPDATE tasks SET state = ?, ended_at = ?, expires_at = ?, losses = ?, request = ?, result = ? "  # noqa: S608
    f"WHERE id = ? AND NOT {_OVER}"
)


def ended(end: End, fence: str | None = None) -> Write:
    """An end, if there was none; by this fence, where one is named."""
    values = (end.state, end.ended_at, end.expires_at, end.losses, end.request, end.result, end.id)
    if fence is None:
        return Write(_END, values, safe=True)
    return Write(_END + " AND fence = ?", (*values, fence), safe=True)


def forgotten(task_id: str) -> Write:
    """Nobody can ask for it any more."""
    return Write("DELETE FROM tasks WHERE id = ?", (task_id,))


def quarantined(row: Row, reason: str, now: float) -> list[Write]:
    """Out of the way, with a reason, for somebody to look at."""
    return [
        Write(
            "INSERT INTO quarantine (id, reason, found_at, state, books, request, result) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (row.id, reason, now, row.state, row.books, row.request, row.result),
        ),
        Write("DELETE FROM tasks WHERE id = ?", (row.id,)),
    ]


class Journal:
    """The file at ``path``. All calls are from one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="queue-file")
        self._file: sqlite3.Connection | None = None
        self._asked: list[tuple[Sequence[Write], asyncio.Future[None] | None]] = []
        self._writing: asyncio.Task[None] | None = None
        self._safe: bool | None = None
        self.error: str | None = None
        """Why the last write failed; None when it did not."""

    async def open(self) -> tuple[list[Row], int]:
        """What is in the file, in the order of acceptance; and how much is in quarantine.

        Raises ValueError with the remedy.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def close(self) -> None:
        """Write what is left, and let go of the file. Idempotent."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        file, self._file = self._file, None
        if file is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, file.close)
        self._thread.shutdown(wait=False)

    async def write(self, *writes: Write) -> None:
        """All of these, in one transaction. Raises Unavailable: then none was written."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ask(writes, done)
        await done

    def note(self, *writes: Write) -> None:
        """The same, and nobody waits for it: it is worked out again after a restart."""
        self._ask(writes, None)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What ``work`` makes of the file, in one transaction that survives a loss of power.

        Raises Unavailable: then nothing was changed.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._run, work)
        except (sqlite3.Error, RuntimeError) as error:  # RuntimeError: it is closed
            raise Unavailable(_told(str(error)), RETRY_AFTER_SECONDS) from None

    def _ask(self, writes: Sequence[Write], done: asyncio.Future[None] | None) -> None:
        self._asked.append((writes, done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._asked:
            asked, self._asked = self._asked, []
            failed = await loop.run_in_executor(
                self._thread, self._commit, [writes for writes, _ in asked]
            )
            for (_, done), reason in zip(asked, failed, strict=True):
                if reason is not None:
                    if self.error != reason:
                        log.error("queue file not written", extra={"error": reason})
                    if done is not None and not done.done():
                        done.set_exception(Unavailable(_told(reason), RETRY_AFTER_SECONDS))
                elif done is not None and not done.done():
                    done.set_result(None)
                self.error = reason

    # --- in the thread ----------------------------------------------------------------------

    def _open(self) -> tuple[list[Row], int]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            file = sqlite3.connect(
                self._path, timeout=2.0, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ValueError(
                f"the queue's file {self._path.name} can't be opened ({why}): check its folder"
            ) from None
        try:
            return self._read(file)
        except sqlite3.OperationalError as error:
            file.close()
            if "locked" in str(error):
                raise ValueError(
                    f"the queue's file {self._path.name} belongs to another process: one worker "
                    "owns it; end that one, or give each its own file"
                ) from None
            raise ValueError(f"the queue's file {self._path.name} can't be used: {error}") from None
        except sqlite3.DatabaseError as error:
            file.close()
            raise ValueError(
                f"the queue's file {self._path.name} can't be read ({error}): put it aside, and "
                "try sqlite3's .recover on it"
            ) from None
        except BaseException:
            file.close()
            raise

    def _read(self, file: sqlite3.Connection) -> tuple[list[Row], int]:
        file.execute("PRAGMA locking_mode = EXCLUSIVE")
        file.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new file; an old one keeps its own
        file.execute("PRAGMA journal_mode = WAL")
        file.execute(f"PRAGMA wal_autocheckpoint = {PAGES_OF_A_LOG}")
        file.execute("BEGIN IMMEDIATE")
        version = file.execute("PRAGMA user_version").fetchone()[0]
        ours = file.execute("PRAGMA application_id").fetchone()[0] == APPLICATION
        empty = not file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        file.execute("COMMIT")
        if not ours and not empty:
            raise ValueError(
                f"{self._path.name} is a database of something else: give another file"
            )
        if version > VERSION:
            raise ValueError(
                f"the queue's file {self._path.name} is of version {version}, and this worker "
                f"reads up to {VERSION}: start the newer worker, or give another file"
            )
        if empty:
            file.executescript(
                f"BEGIN; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};"
                f"{_TABLES} COMMIT;"
            )
        self._file = file
        read = file.execute(f"SELECT {_COLUMNS} FROM tasks ORDER BY number")  # noqa: S608
        rows = [Row(*one) for one in read]
        return rows, file.execute("SELECT count(*) FROM quarantine").fetchone()[0]

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        file = self._file
        if file is None:
            raise sqlite3.ProgrammingError("it is closed")
        self._be_safe(file, safe=True)
        file.execute("BEGIN IMMEDIATE")
        try:
            made = work(file)
            file.execute("COMMIT")
        except BaseException:
            if file.in_transaction:
                file.execute("ROLLBACK")
            raise
        return made

    def _be_safe(self, file: sqlite3.Connection, *, safe: bool) -> None:
        if safe is not self._safe:
            file.execute(f"PRAGMA synchronous = {'FULL' if safe else 'NORMAL'}")
            self._safe = safe

    def _commit(self, asked: list[Sequence[Write]]) -> list[str | None]:
        """Why each of them was not written; None: it was."""
        reason = self._transact([write for writes in asked for write in writes])
        if reason is None or len(asked) == 1:
            return [reason] * len(asked)
        return [self._transact(writes) for writes in asked]  # one bad one fails no other

    def _transact(self, writes: Sequence[Write]) -> str | None:
        file = self._file
        if file is None:
            return "it is closed"
        try:
            self._be_safe(file, safe=any(write.safe for write in writes))
            file.execute("BEGIN IMMEDIATE")
            for statement, same in groupby(writes, key=attrgetter("statement")):
                file.executemany(statement, [write.values for write in same])
            file.execute("COMMIT")
        except (sqlite3.Error, OverflowError, ValueError) as error:
            if file.in_transaction:
                file.execute("ROLLBACK")
            return str(error)
        return None


def _told(reason: str) -> str:
    full = "full" in reason
    return "the queue's disk is full" if full else "the queue's file can't be written"
