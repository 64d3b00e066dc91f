"""Free TCP ports that nobody takes by accident between the choice and the start."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from rig.errors import RigError

_claims: list[socket.socket] = []
"""UDP sockets on the numbers of chosen ports: nobody uses them, and the kernel gives each once."""


def _first_ephemeral() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return 32768


def is_free(host: str, port: int) -> bool:
    """Whether a listener could bind there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def choose(host: str, count: int) -> list[int]:
    """`count` free ports below the kernel's ephemeral range, in which any client may sit.

    Nobody else who chooses so gets one of them before this process has ended, bound or not.
    """
    top = _first_ephemeral()
    candidates = random.Random().sample(range(top // 2, top), 500)  # noqa: S311 (no secret)
    free: list[int] = []
    for port in candidates:
        if _claimed(host, port):
            free.append(port)
        if len(free) == count:
            return free
    raise RigError(
        f"no {count} free ports between {top // 2} and {top} on {host}",
        "look at `ss -ltn` for what holds them",
    )


def _claimed(host: str, port: int) -> bool:
    """Whether the port is free and now this process's."""
    claim = socket.socket(type=socket.SOCK_DGRAM)
    try:
        claim.bind((host, port))
    except OSError:
        claim.close()
        return False
    if not is_free(host, port):
        claim.close()
        return False
    _claims.append(claim)
    return True


def require_free(host: str, port: int) -> None:
    """Raise a RigError when a port that a person asked for is taken."""
    if not is_free(host, port):
        raise RigError(
            f"port {port} on {host} is in use",
            f"leave --port out (a free one is chosen), or see `ss -ltnp sport = :{port}`",
        )
