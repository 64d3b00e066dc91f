"""What the status of pods and Deployments tells: ready, going, lost, rolled out. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from llmtaskpool_operator.cluster.manifests import Manifest

LOST_SECONDS = 10.0
"""A pod that should have ended so long ago: its node does not tell of it any more."""


def name_of(pod: Manifest) -> str:
    """Its name."""
    return str(pod["metadata"]["name"])


def address(pod: Manifest) -> str | None:
    """Its IP, with the brackets that an IPv6 address needs in a URL."""
    ip = (pod.get("status") or {}).get("podIP")
    return None if not ip else f"[{ip}]" if ":" in ip else str(ip)


def is_going(pod: Manifest) -> bool:
    """It was deleted and finishes what it has."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def is_over(pod: Manifest) -> bool:
    """Its containers ended for good; its ReplicaSet has another in its place."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def is_ready(pod: Manifest) -> bool:
    """Kubernetes says that it takes requests."""
    return condition(pod, "Ready").get("status") == "True" and not is_going(pod)


def is_lost(pod: Manifest, now: float) -> bool:
    """It was deleted and should be gone, grace and all, but its node has not said so."""
    ends = seconds(pod["metadata"].get("deletionTimestamp"))
    return ends is not None and now > ends + LOST_SECONDS


def seconds(time: object) -> float | None:
    """An RFC 3339 time as seconds since the epoch; None where there is none."""
    try:
        return datetime.fromisoformat(str(time)).timestamp()
    except ValueError:
        return None


def rollout(deployment: Manifest) -> str:
    """What a change of the Deployment still waits for; empty when all pods are of it."""
    status, meta = deployment.get("status") or {}, deployment.get("metadata") or {}
    total, updated = int(status.get("replicas") or 0), int(status.get("updatedReplicas") or 0)
    if int(status.get("observedGeneration") or 0) < int(meta.get("generation") or 0):
        return "Kubernetes has not looked at the last change of the Deployment yet"
    if total > updated:
        return f"{updated} of {total} pods are as the spec says now: {total - updated} old ones go"
    return ""


def is_late(deployment: Manifest) -> bool:
    """Whether its new pods did not get ready in the time that a start may take."""
    return condition(deployment, "Progressing").get("reason") == "ProgressDeadlineExceeded"


def rolls_out(deployment: Manifest | None) -> bool:
    """Whether pods of a template are started that none of has ever got all ready."""
    if deployment is None:
        return False
    progress = condition(deployment, "Progressing")
    new = progress.get("reason") not in (None, "NewReplicaSetAvailable")
    return new or bool(rollout(deployment))


def condition(body: Manifest, kind: str) -> dict[str, Any]:
    """Its condition of that type, empty when it has none."""
    conditions = (body.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one.get("type") == kind), {})
