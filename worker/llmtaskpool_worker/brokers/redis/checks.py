"""What a server must be before a pool's tasks are given to it: each refusal names the remedy."""

from __future__ import annotations

from dataclasses import dataclass

from redis.exceptions import NoPermissionError, ResponseError

from llmtaskpool_worker.brokers.protocol import Durability
from llmtaskpool_worker.brokers.redis.link import Link

LEAST_VERSION = 7
SECONDS = 5.0
_PROMISES = {
    "always": "kept on the server's disk before the answer: survives workers, the server and its "
    "machine",
    "everysec": "kept by the server: survives workers and the server's process; a power loss of "
    "its machine may take the last second",
    "no": "kept by the server: survives workers; what the server's machine had not yet written "
    "goes with it",
    "unknown": "kept by the server in its append-only file; how soon it is on disk is not told",
    "volatile": "kept in the server's memory: survives workers, and not the server",
}


@dataclass(frozen=True, slots=True)
class Server:
    """What a server is: a new ``run_id`` is another process, which may know less."""

    run_id: str
    durability: Durability


async def examine(link: Link, *, allow_volatile: bool) -> Server:
    """What this server is and promises. Raises ValueError with the remedy, and trouble.GONE.

    ``allow_volatile``: a server that may lose what it accepted is taken all the same.
    """
    info, fsync = await link.ask([("INFO",), ("CONFIG", "GET", "appendfsync")], SECONDS)
    if isinstance(info, NoPermissionError):
        raise ValueError(  # noqa: TRY004 - it is the server that is of the wrong kind
            "the queue's server doesn't let this user read INFO: allow +info, +evalsha and "
            "+script|load (docs/queue.md has the whole ACL)"
        )
    if isinstance(info, ResponseError):
        raise info
    facts = info_of(info)
    refuse = _complaint(facts, allow_volatile=allow_volatile)
    if refuse is not None:
        raise ValueError(refuse)
    if facts.get("aof_enabled") != "1":
        name = "volatile"
    elif isinstance(fsync, ResponseError) or len(fsync) < 2:  # no right to read it
        name = "unknown"
    else:
        name = fsync[1].decode() if isinstance(fsync[1], bytes) else str(fsync[1])
    note = _PROMISES.get(name, _PROMISES["unknown"])
    return Server(facts.get("run_id", ""), Durability(name, name != "volatile", note))


def info_of(text: bytes | str) -> dict[str, str]:
    """The fields of an INFO answer."""
    lines = (text.decode() if isinstance(text, bytes) else text).splitlines()
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name: value.strip() for name, _, value in pairs}


def _complaint(facts: dict[str, str], *, allow_volatile: bool) -> str | None:
    version = facts.get("redis_version", "0")
    if int(version.split(".", 1)[0] or 0) < LEAST_VERSION:
        return (
            f"the queue's server is Redis {version}: Redis {LEAST_VERSION} or newer, or Valkey, is "
            "needed"
        )
    if facts.get("role") != "master":
        return (
            f"the queue's server is a {facts.get('role', 'server of unknown role')}: name its "
            "primary, or its sentinels (redis+sentinel://)"
        )
    if allow_volatile:
        return None
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        return (
            f"the queue's server has maxmemory-policy {policy}, by which it throws tasks away when "
            "its memory is full: set maxmemory-policy noeviction, or allow a volatile queue "
            "(allowVolatile)"
        )
    if facts.get("aof_enabled") != "1":
        return (
            "the queue's server keeps no append-only file, so a restart loses all tasks: set "
            "appendonly yes, or allow a volatile queue (allowVolatile)"
        )
    return None
