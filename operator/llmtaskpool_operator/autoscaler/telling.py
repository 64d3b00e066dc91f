"""What is told of a turn: status beyond a dead band, events on transitions. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from llmtaskpool_operator.api.status import ConditionType, LLMTaskPoolStatus
from llmtaskpool_operator.autoscaler.plan import Action, SetReplicas

REFRESH_SECONDS = 10.0
"""Numbers that move with the load are written at most this often."""
COUNTS_SECONDS = 1.0
"""Counts of pods at most this often: twenty that start together are no twenty writes."""
_MOVING = ("threads", "queued", "utilization")
_COUNTS = ("replicas", "readyReplicas", "drainingReplicas")


@dataclass(frozen=True, slots=True)
class Note:
    """One event on the pool."""

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    text: str


def worth_writing(known: Mapping[str, Any], wanted: Mapping[str, Any], since: float) -> bool:
    """Whether a status is to be written now, ``since`` seconds after the last write."""
    if known == wanted:
        return False
    if since >= REFRESH_SECONDS:
        return True
    if not known.get("observedGeneration") and since < COUNTS_SECONDS and _on_its_way(wanted):
        return False  # the CRD's default says as much; what comes of it is told at once
    old, new = _steady(known), _steady(wanted)
    if since < COUNTS_SECONDS:
        old, new = ({k: v for k, v in one.items() if k not in _COUNTS} for one in (old, new))
    return old != new


def notes(
    before: LLMTaskPoolStatus | None,
    status: LLMTaskPoolStatus,
    replicas: int,
    plan: Sequence[Action],
) -> tuple[Note, ...]:
    """Events of a turn that saw so many ``replicas``: their change, and conditions that turn."""
    made = [
        Note(
            "Normal",
            "ScalingReplicas",
            "Scale",
            f"{replicas} -> {action.replicas}: {action.reason}",
        )
        for action in plan
        if isinstance(action, SetReplicas)
    ]
    if status is before:
        return tuple(made)
    old = _by_type(before)
    for kind, condition in _by_type(status).items():
        if kind in _TOLD and condition[0] not in ("Unknown", _known_as(old, kind)):
            good = condition[0] == _TOLD[kind]
            made.append(
                Note(
                    "Normal" if good else "Warning",
                    f"{kind}{condition[0]}",
                    "Observe",
                    condition[1],
                )
            )
    for kind in (ConditionType.STALLED.value, ConditionType.SCALING_CONFLICT.value):
        now = _by_type(status).get(kind)
        if now is not None and kind not in old:
            made.append(Note("Warning", kind, "Observe", now[1]))
    return tuple(made)


_TOLD = {
    ConditionType.METRICS_AVAILABLE.value: "True",
    ConditionType.DEGRADED.value: "False",
}
"""Conditions whose turns are events, with the value that is good."""


def _on_its_way(status: Mapping[str, Any]) -> bool:
    """Of a new pool: its pods start, and nothing is wrong."""
    now = {one["type"]: one["status"] for one in status.get("conditions") or ()}
    return now.get("Ready") == "False" and "Stalled" not in now and now.get("Degraded") == "False"


def _known_as(old: Mapping[str, tuple[str, str]], kind: str) -> str:
    """What a condition was; who did not know expected the best: every new pool gets there."""
    status = old[kind][0] if kind in old else "Unknown"
    return _TOLD[kind] if status == "Unknown" else status


def rfc3339(at: float, *, microseconds: bool = False) -> str:
    """Seconds since the epoch as Kubernetes writes times."""
    text = datetime.fromtimestamp(at, UTC).isoformat(
        timespec="microseconds" if microseconds else "seconds"
    )
    return text.replace("+00:00", "Z")


def _by_type(status: LLMTaskPoolStatus | None) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.message) for c in (status.conditions if status else ())}


def _steady(status: Mapping[str, Any]) -> dict[str, Any]:
    """Without what moves with the load, and without decisions about threads."""
    kept = {key: value for key, value in status.items() if key not in _MOVING}
    decisions = kept.get("lastDecisions") or ()
    kept["lastDecisions"] = [one for one in decisions if one.get("what") == "replicas"]
    kept["conditions"] = [
        {"type": one["type"], "status": one["status"], "reason": one["reason"]}
        for one in kept.get("conditions") or ()
    ]
    return kept
