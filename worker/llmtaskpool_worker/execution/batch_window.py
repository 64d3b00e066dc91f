"""How much of all batches that a worker feeds is under way at one time."""

from __future__ import annotations

import asyncio


class Window:
    """At most so many lines, and bytes of their text; a lone line always may."""

    def __init__(self, lines: int, text_bytes: int) -> None:
        self.lines, self._bytes = lines, text_bytes
        self._held = self._held_bytes = 0
        self._changed = asyncio.Condition()

    @property
    def held(self) -> int:
        """Lines that are under way."""
        return self._held

    async def enter(self, size: int) -> None:
        """Wait for room. Who waits first is first, so batches take turns."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: (
                    not self._held
                    or (self._held < self.lines and self._held_bytes + size <= self._bytes)
                )
            )
            self._held += 1
            self._held_bytes += size

    async def leave(self, size: int, lines: int = 1) -> None:
        """Their outcome is written, or they are given up."""
        async with self._changed:
            self._held -= lines
            self._held_bytes -= size
            self._changed.notify_all()
