"""Whether a live object has all that we want of it; what the server adds is its own. Pure."""

from __future__ import annotations

from typing import Any

from llmtaskpool_operator.api.quantities import number
from llmtaskpool_operator.cluster.manifests import Manifest

REPLICAS = ("spec", "replicas")
"""The one field of which the operator asks who else writes it."""
_AMOUNTS = ("limits", "requests", "sizeLimit")
"""Only in these are 1 and "1000m" equal: anywhere else "1" and "01" are two words."""


def agrees(wanted: Any, live: Any, *, amounts: bool = False) -> bool:
    """Whether every value of ``wanted`` is in ``live``.

    Lists must have the same length and order. An empty value may be absent, as the server drops
    it. ``amounts``: these are quantities, which may be written differently.
    """
    if isinstance(wanted, dict):
        if not isinstance(live, dict):
            return not wanted and live is None
        return all(
            agrees(value, live.get(key), amounts=amounts or key in _AMOUNTS)
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        if not isinstance(live, list):
            return not wanted and live is None
        return len(wanted) == len(live) and all(map(agrees, wanted, live))
    if wanted == live or (live is None and wanted in ("", False)):
        return True
    if not amounts or isinstance(wanted, bool) or isinstance(live, bool) or live is None:
        return False
    one, other = number(wanted), number(live)
    return one is not None and one == other


def owned_by(live: Manifest, uid: str) -> bool:
    """Whether the pool with this uid is the object's controller."""
    owners = live.get("metadata", {}).get("ownerReferences") or ()
    return any(owner.get("uid") == uid and owner.get("controller") for owner in owners)


def only_field(entry: Manifest, path: tuple[str, ...]) -> Manifest | None:
    """An entry of managedFields with nothing but the field at ``path``; None if it has it not."""
    if not _owns(entry, path):
        return None
    fields: Manifest = {}
    for part in reversed(path):
        fields = {f"f:{part}": fields}
    return {name: entry[name] for name in ("manager", "time") if name in entry} | {
        "fieldsV1": fields
    }


def writer_of(live: Manifest, path: tuple[str, ...]) -> str | None:
    """Who, by managedFields, last wrote the field at ``path``; None when nobody is on record."""
    latest = last_write(live, path)
    return latest[1] if latest else None


def last_write(live: Manifest, path: tuple[str, ...]) -> tuple[str, str] | None:
    """When, as an RFC 3339 time, and by whom the field at ``path`` was written last."""
    latest: tuple[str, str] | None = None
    for entry in live.get("metadata", {}).get("managedFields") or ():
        if _owns(entry, path):
            found = (str(entry.get("time", "")), str(entry.get("manager", "unknown")))
            latest = max(latest, found) if latest else found
    return latest


def _owns(entry: Manifest, path: tuple[str, ...]) -> bool:
    fields: Any = entry.get("fieldsV1", {})
    for part in path:
        fields = fields.get(f"f:{part}") if isinstance(fields, dict) else None
    return fields is not None
