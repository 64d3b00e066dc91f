"""The batches on a shelf: made, looked at, cancelled; and written by the one who feeds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from llmtaskpool_worker.brokers.shelf import Change, Shelf, Stale
from llmtaskpool_worker.execution.batch import BatchRecord, Written, cancelled, taken
from llmtaskpool_worker.execution.files import FileRecord, Files, reached

FOUND_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Seen:
    """A batch as it was read, and as it lies there: who changes it names what he saw."""

    batch: BatchRecord
    raw: bytes


class BatchBooks:
    """The batches on the shelf of ``files``. ``new_id`` makes ids that rise with time."""

    def __init__(
        self, files: Files, wall_clock: Callable[[], float], new_id: Callable[[], str]
    ) -> None:
        self.files = files
        self._shelf: Shelf = files.shelf
        self._wall_clock, self._new_id = wall_clock, new_id

    @property
    def shared(self) -> bool:
        """Whether other workers feed batches of the same shelf."""
        return self._shelf.shared

    def now(self) -> int:
        """Seconds since the epoch."""
        return int(self._wall_clock())

    async def create(
        self,
        source: FileRecord,
        endpoint: str,
        window: tuple[str, int],
        metadata: Mapping[str, str] | None,
        keep_seconds: int,
        tenant: str = "",
    ) -> BatchRecord:
        """A batch of ``tenant`` over a file. ``window`` is its text and its seconds.

        Raises Rejected; NoSpace.
        """
        now = self.now()
        text, seconds = window
        await self.files.keep_until(source, now + seconds)
        batch = BatchRecord(
            id=f"batch_{self._new_id()}",
            endpoint=endpoint,
            input_file_id=source.id,
            completion_window=text,
            created_at=now,
            expires_at=now + seconds,
            keep_seconds=keep_seconds,
            output=Written(f"file-{self._new_id()}"),
            error=Written(f"file-{self._new_id()}"),
            metadata=metadata,
            tenant=tenant,
        )
        puts = {_name(batch.id): encoded(batch), f"open/{batch.id}": b"1"}
        with reached():
            await self._shelf.change(
                Change(puts, expect=(_name(batch.id), None), keep_seconds=self.keep(batch))
            )
        return batch

    async def look(self, batch_id: str) -> Seen | None:
        """None: there is none, or it can't be read (it is of a newer version). Unavailable."""
        raw = await self._shelf.get(_name(batch_id))
        if raw is None:
            return None
        try:
            return Seen(msgspec.json.decode(raw, type=BatchRecord), raw)
        except msgspec.DecodeError:
            return None

    async def get(self, batch_id: str) -> BatchRecord | None:
        """As ``look``, for clients. Raises Rejected."""
        with reached():
            seen = await self.look(batch_id)
        return None if seen is None else seen.batch

    async def listed(
        self, *, after: str | None, most: int, tenant: str | None = None
    ) -> list[BatchRecord]:
        """The newest first; ``tenant``: None: of any. Raises Rejected."""
        found: list[BatchRecord] = []
        beyond = None if after is None else _name(after)
        while len(found) < most:
            with reached():
                names = await self._shelf.names("batch/", most=most, beyond=beyond, newest=True)
                seen = [await self.look(name.removeprefix("batch/")) for name in names]
            found += [one.batch for one in seen if one and tenant in (None, one.batch.tenant)]
            if len(names) < most:
                break
            beyond = names[-1]
        return found[:most]

    async def cancel(self, batch_id: str) -> BatchRecord | None:
        """Want no more of it; None: there is none. Raises Rejected."""
        with reached():
            while (seen := await self.look(batch_id)) is not None:
                batch = cancelled(seen.batch, self.now())
                if batch == seen.batch:
                    return batch
                try:
                    await self.write(seen, batch)
                except Stale:
                    continue
                return batch
        return None

    async def uses(self, file_id: str) -> BatchRecord | None:
        """A batch that has not ended and reads this file. Raises Rejected."""
        with reached():
            for batch_id in await self.open():
                seen = await self.look(batch_id)
                if seen is not None and seen.batch.input_file_id == file_id:
                    return seen.batch
        return None

    async def open(self) -> list[str]:
        """Ids of batches that have not ended, the oldest first. Raises Unavailable."""
        found: list[str] = []
        beyond = None
        while True:
            names = await self._shelf.names("open/", most=FOUND_AT_ONCE, beyond=beyond)
            found += [name.removeprefix("open/") for name in names]
            if len(names) < FOUND_AT_ONCE:
                return found
            beyond = names[-1]

    async def take(self, seen: Seen, worker: str) -> Seen:
        """``worker`` feeds it from here on. Raises Stale, Unavailable."""
        return await self.write(seen, taken(seen.batch, worker))

    async def done(self, batch_id: str) -> bytes:
        """Which of its lines have ended. Raises Unavailable."""
        return await self._shelf.get(f"done/{batch_id}") or b""

    async def write(
        self,
        seen: Seen,
        batch: BatchRecord,
        puts: Mapping[str, bytes] | None = None,
        *,
        bounded: bool = False,
    ) -> Seen:
        """Put ``batch`` in the place of what was seen, and these beside it.

        With its end what only its feeding needs goes. Raises Stale, Unavailable, NoSpace.
        """
        raw = encoded(batch)
        ended = (f"open/{batch.id}", f"done/{batch.id}") if batch.ended else ()
        await self._shelf.change(
            Change(
                {**(puts or {}), _name(batch.id): raw},
                deletes=ended,
                expect=(_name(batch.id), seen.raw),
                keep_seconds=self.keep(batch),
                bounded=bounded,
            )
        )
        return Seen(batch, raw)

    def keep(self, batch: BatchRecord) -> float:
        """Seconds from now that it and what it writes are kept."""
        left = 0 if batch.ended else max(0, batch.expires_at - self.now())
        return left + batch.keep_seconds


def encoded(batch: BatchRecord) -> bytes:
    """As it lies on the shelf."""
    return msgspec.json.encode(batch)


def _name(batch_id: str) -> str:
    return f"batch/{batch_id}"
