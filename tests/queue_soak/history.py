"""What clients and workers of the shared queue saw, one JSON line each, in a file per process.

`t` is CLOCK_MONOTONIC of one machine. A call has a beginning `t0` (before it was sent) and an end
`t` (after its answer); an answer that never came is `unknown`, which is neither done nor undone.

  {"e":"config","attempts":K,"lease":s,"loads":{line:T},"ageing":s,"share":s,"capacity":threads}
  {"e":"accept","t0","t","id","w","k","key","out":"ok|same|full|unknown","known","deps","need"}
  {"e":"claim","t0","t","id","fence","attempt","by"}         one line per task that was given
  {"e":"start","t","id","fence","by"}                        its handler runs from now on
  {"e":"renew","t0","t","id","fence","out":"ok|lost|unknown"}
  {"e":"commit","t0","t","id","fence","by","s","hash","out":"ok|lost|unknown"}
  {"e":"release","t0","t","id","fence"}
  {"e":"cancel","t0","t","id","out":"C|other|unknown"}
  {"e":"crash","t","what":"worker","by"}
  {"e":"crash","t","what":"server","since"}    what was written after `since` may be gone
  {"e":"final","t","id","s","attempts","hash"} read by an auditor when all is quiet
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Log:
    """Lines that are in the kernel's hands before the next thing happens: SIGKILL loses none."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = os.open(folder / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, event: str, **fields: Any) -> None:
        fields.setdefault("t", time.monotonic())
        os.write(self._file, json.dumps({"e": event, **fields}).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def read(folder: Path) -> list[Event]:
    events = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                events.append(json.loads(line))
            except ValueError:
                continue  # the half line of a process that was killed while it wrote
    return events


def summary(events: list[Event]) -> dict[str, int]:
    counts = Counter(e["e"] for e in events)
    counts.update(f"{e['e']} {e['out']}" for e in events if "out" in e)
    counts.update(f"ended {e['s']}" for e in events if e["e"] == "final")
    return dict(counts)
