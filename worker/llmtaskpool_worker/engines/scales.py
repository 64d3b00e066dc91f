"""What an engine's process tells of the memory that it holds. Imports no torch."""

from __future__ import annotations

import msgspec


class Memory(msgspec.Struct, frozen=True, tag="memory"):
    """What the engine's process holds, as in ``memory_budget_bytes``; each second while it works.

    ``given_back_bytes`` answers Trim: what it held before it and not after.
    """

    own_bytes: int
    given_back_bytes: int = 0
