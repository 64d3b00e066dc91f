"""What this process holds of memory."""

from __future__ import annotations

import os

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def rss_bytes() -> int | None:
    """Resident memory of this process; None where Linux's /proc is missing."""
    try:
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123  read at each state: no Path
            return int(statm.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None
