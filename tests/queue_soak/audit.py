"""Reads what became of all tasks, from the server's books themselves, when all is quiet."""

from __future__ import annotations

from collections.abc import Iterator

from fakes.queue_servers import QueueServer

from queue_soak.history import Log, short


def audit(server: QueueServer, pool: str, log: Log) -> Iterator[str]:
    """Writes a `final` for each task, and gives those that are dead letters."""
    prefix = f"ltp:{{{pool}}}"
    with server.client() as client:
        for key in client.scan_iter(f"{prefix}:t:*", count=1000):
            task_id = key.decode().rsplit(":", 1)[1]
            s, attempts, short_one = client.hmget(key, "s", "a", "o")
            result = short_one or client.get(f"{prefix}:r:{task_id}")
            state = s.decode() if s else "?"
            log(
                "final",
                id=task_id,
                s=state,
                attempts=int(attempts or 0),
                hash=short(result) if result else None,
            )
            if state == "D":
                yield task_id
