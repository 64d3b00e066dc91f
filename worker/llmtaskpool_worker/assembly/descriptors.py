"""File descriptors: as many connections as the process can hold, and some for its own work."""

from __future__ import annotations

import logging
import resource

OWN = 256
"""For engines, pipes, files and io tasks."""

CONTROL_CONNECTIONS = 128
"""Most connections of the control port: the operator's replicas, and a person or two."""

log = logging.getLogger("llmtaskpool.worker")


def connections_allowed(wanted: int) -> int:
    """How many of the ``wanted`` data connections this process has descriptors for.

    The soft limit (RLIMIT_NOFILE) is raised as far as it is needed and the hard one lets. Without
    a descriptor left nothing can be accepted, not even to be refused, on either port.
    """
    needed = wanted + CONTROL_CONNECTIONS + OWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        if most > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = max(soft // 4, soft - CONTROL_CONNECTIONS - OWN)
    log.warning(
        "fewer connections than asked for",
        extra={"wanted": wanted, "allowed": allowed, "descriptors": soft},
    )
    return allowed
