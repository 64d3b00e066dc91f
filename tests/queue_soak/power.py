"""What a server that is killed, or whose power goes, forgets: measured while it lives.

With ``everysec`` an answer may go out up to two seconds before its command is written, when the
disk is slow: Redis then waits for the last fsync and goes on. So a file holds what was answered
only at times when the server's own buffer was empty.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import redis
from fakes.queue_servers import QueueServer

EVERY = "everysec"
SECOND = 1.0


class Power:
    """``cut``: whether a death takes what its file got in its last second, as a power loss may."""

    def __init__(self, server: QueueServer, *, cut: bool) -> None:
        self.server, self.cut = server, cut
        self._held: list[tuple[float, Path, int]] = []
        self._began = time.monotonic()

    def look(self) -> None:
        """Notes how long the file is, where it holds all that was answered until now."""
        if self.server.options["appendfsync"] != EVERY:
            return
        now = time.monotonic()
        with self.server.client() as client:
            try:
                told = client.info("persistence")
            except redis.RedisError:
                return
        files = self.server.folder.rglob("*.incr.aof")
        newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
        if newest is not None and not told["aof_buffer_length"]:
            self._held.append((now, newest, newest.stat().st_size))

    def take(self) -> tuple[float, float, int]:
        """Kills: when it died, since when answers may be forgotten, and how many bytes were cut."""
        self.server.kill()
        died = time.monotonic()
        began, self._began = self._began, died
        held, self._held = self._held, []
        if self.server.options["appendonly"] == "no" or self.server.options["appendfsync"] != EVERY:
            return died, died, 0
        since, bytes_cut = began, 0
        if held:
            before = [one for one in held if one[0] <= died - SECOND] if self.cut else held
            since, file, size = (before or held)[-1]
            if self.cut and before:
                bytes_cut = file.stat().st_size - size
                os.truncate(file, size)
        return died, since, bytes_cut
