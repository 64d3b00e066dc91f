"""How much a client may send, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """The bounds in force, in bytes, counts and seconds."""

    header_bytes: int = 64 * 1024
    header_count: int = 128
    header_seconds: float = 10.0
    body_bytes: int = 8 * 1024 * 1024
    body_seconds: float = 60.0
    bodies_bytes: int = 256 * 1024 * 1024
    """What the bodies of all requests may hold of memory at one time, read and parsed."""
    json_depth: int = 64
    json_values: int = 100_000
    connections: int = 4096
    unread_seconds: float = 60.0
    """A client that takes nothing of what is sent for so long is cut off."""
