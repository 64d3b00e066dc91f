"""What the status of pods and Deployments tells: ready, going, and what is in the way. Pure."""

from __future__ import annotations

from typing import Any

from llmtaskpool_operator.autoscaler.observation import Problem
from llmtaskpool_operator.cluster.manifests import CONTAINER, Manifest

_FATAL_WAITS = {
    "InvalidImageName": "correct the image's name",
    "ErrImageNeverPull": "load the image onto the node",
    "CreateContainerConfigError": "make what it names, or correct the name",
}
_SLOW_WAITS = {
    "ImagePullBackOff": "check the image's name and the pull secret",
    "ErrImagePull": "check the image's name and the pull secret",
    "CrashLoopBackOff": "read its log: kubectl logs",
}


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
    return _condition(pod, "Ready").get("status") == "True" and not is_going(pod)


def problems(deployment: Manifest | None, pods: tuple[Manifest, ...]) -> tuple[Problem, ...]:
    """What keeps the pool from what it should be, the gravest first, one for each reason."""
    found: dict[str, Problem] = {}
    if deployment is not None:
        failure = _condition(deployment, "ReplicaFailure")
        if failure.get("status") == "True":
            text = f"pods can't be made: {failure.get('message', '')}"
            found["PodsRefused"] = Problem("PodsRefused", text, stalled=True)
        progress = _condition(deployment, "Progressing")
        if progress.get("reason") == "ProgressDeadlineExceeded":
            found["RolloutStuck"] = Problem("RolloutStuck", "new pods don't get ready")
    for pod in pods:
        problem = _pod_problem(pod)
        if problem is not None:
            found.setdefault(problem.reason, problem)
    return tuple(sorted(found.values(), key=lambda problem: not problem.stalled))


def _pod_problem(pod: Manifest) -> Problem | None:
    if is_going(pod):
        return None
    name = name_of(pod)
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("reason") == "Unschedulable":
        return Problem("Unschedulable", f"{name}: {scheduled.get('message', 'no node takes it')}")
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    for status in statuses:
        if status.get("name") != CONTAINER:
            continue
        waiting: dict[str, Any] = (status.get("state") or {}).get("waiting") or {}
        reason = str(waiting.get("reason", ""))
        if reason in _FATAL_WAITS or reason in _SLOW_WAITS:
            remedy = _FATAL_WAITS.get(reason) or _SLOW_WAITS[reason]
            why = str(waiting.get("message") or reason)
            return Problem(reason, f"{name}: {why}: {remedy}", stalled=reason in _FATAL_WAITS)
    return None


def _condition(body: Manifest, kind: str) -> dict[str, Any]:
    conditions = (body.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one.get("type") == kind), {})
