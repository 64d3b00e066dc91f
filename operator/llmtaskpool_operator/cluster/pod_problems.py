"""What is in the way of a pool's pods, each with its remedy. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmtaskpool_operator.autoscaler.observation import Problem
from llmtaskpool_operator.cluster.manifests import CONTAINER, Manifest
from llmtaskpool_operator.cluster.pod_facts import (
    condition,
    is_going,
    is_late,
    is_lost,
    is_ready,
    name_of,
    rolls_out,
    seconds,
)

_FATAL_WAITS = {
    "InvalidImageName": "correct the image's name",
    "ErrImageNeverPull": "load the image onto the node",
    "CreateContainerConfigError": "make what it names, or correct the name",
}
_SLOW_WAITS = {
    "ImagePullBackOff": "check the image's name and the pull secret",
    "ErrImagePull": "check the image's name and the pull secret",
    "CrashLoopBackOff": "read its log: kubectl logs",
    "CreateContainerError": "the message is the node's: kubectl describe pod",
    "RunContainerError": "the message is the node's: kubectl describe pod",
}
_ON_ITS_WAY = ("", "ContainerCreating", "PodInitializing")
_TRIES = 2
"""A container that has ended so often without its pod getting ready does not start by waiting."""
SILENT_SECONDS = 3.0
"""A container that is still being made after so long may wait for a volume that never comes."""
_WORDS_MAX = 300


def problems(
    deployment: Manifest | None,
    pods: Sequence[Manifest],
    *,
    now: float = 0.0,
    memory: object = None,
    warned: Mapping[str, Problem] | None = None,
) -> tuple[Problem, ...]:
    """What keeps the pool from what it should be, the gravest first, one for each reason.

    ``now`` is in seconds since the epoch; ``memory`` is the limit of a pod; ``warned`` what
    events say of pods that start in silence, by pod. While a rollout goes on, a pod that can't
    start stalls it.
    """
    found: dict[str, Problem] = {}
    if deployment is not None:
        failure = condition(deployment, "ReplicaFailure")
        if failure.get("status") == "True":
            text = f"pods can't be made: {failure.get('message', '')}"
            found["PodsRefused"] = Problem("PodsRefused", text, stalled=True)
    rolling = rolls_out(deployment)
    for pod in pods:
        problem = (warned or {}).get(name_of(pod)) or _pod_problem(pod, now, memory, rolling)
        if problem is not None:
            found.setdefault(problem.reason, problem)
    if deployment is not None and is_late(deployment):
        text = "new pods did not get ready in the time that a start may take"
        found["RolloutStuck"] = Problem("RolloutStuck", text, stalled=True)
    return tuple(sorted(found.values(), key=lambda problem: not problem.stalled))


def starting_in_silence(pods: Sequence[Manifest], now: float) -> tuple[Manifest, ...]:
    """Pods that have a node, but for seconds no container, and no reason told in their status."""
    return tuple(pod for pod in pods if _silent(pod, now))


def _silent(pod: Manifest, now: float) -> bool:
    placed = condition(pod, "PodScheduled")
    since = seconds(placed.get("lastTransitionTime"))
    if is_going(pod) or placed.get("status") != "True" or since is None:
        return False
    waits = [_waiting(status).get("reason", "") for _, status in _statuses(pod)]
    made = any("waiting" not in (status.get("state") or {}) for _, status in _statuses(pod))
    return now - since >= SILENT_SECONDS and not made and set(waits) <= set(_ON_ITS_WAY)


def _pod_problem(pod: Manifest, now: float, memory: object, rolling: bool) -> Problem | None:
    name = name_of(pod)
    if is_lost(pod, now):
        text = (
            f"{name}: should have ended by {pod['metadata']['deletionTimestamp']}, and its node "
            "does not say that it has: mend the node, or if it is gone for good: "
            f"kubectl delete pod {name} --force"
        )
        return Problem("StuckTerminating", text)
    if is_going(pod):
        return None
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("reason") == "Unschedulable":
        return Problem("Unschedulable", f"{name}: {scheduled.get('message', 'no node takes it')}")
    if scheduled.get("reason") == "SchedulingGated":
        text = (
            "a scheduling gate holds it: whoever set the gate (Kueue: for want of quota) lifts it"
        )
        return Problem("SchedulingGated", f"{name}: {text}")
    for kind, status in _statuses(pod):
        of = "" if status.get("name") == CONTAINER else f"{kind} {status.get('name')}: "
        problem = _container_problem(pod, f"{name}: {of}", status, memory, rolling)
        if problem is not None:
            return problem
    return None


def _container_problem(
    pod: Manifest, whose: str, status: Mapping[str, Any], memory: object, rolling: bool
) -> Problem | None:
    done = ((status.get("state") or {}).get("terminated") or {}).get("exitCode") == 0
    if done or (status.get("ready") and is_ready(pod)):
        return None
    reason, restarts = str(_waiting(status).get("reason", "")), int(status.get("restartCount") or 0)
    ended = _ended(status)
    if ended.get("reason") == "OOMKilled":
        limit = ((status.get("resources") or {}).get("limits") or {}).get("memory") or memory
        why = f"its memory limit of {limit}" if limit else "its node's memory, it has no limit"
        text = (
            f"{whose}OOMKilled: it took more than {why}: raise spec.resources.limits.memory, or "
            "ask for less: fewer threads, a shorter context_length, a smaller model"
        )
        return Problem("OOMKilled", text, stalled=rolling)
    if reason == "CrashLoopBackOff" or (
        reason in _ON_ITS_WAY and restarts >= _TRIES and not status.get("ready")
    ):
        why = _last_words(ended) or _waiting(status).get("message") or "CrashLoopBackOff"
        log = f" {name_of(pod)} -c {status.get('name')} --previous"
        text = f"{whose}{why}: {_SLOW_WAITS['CrashLoopBackOff']}{log}"
        return Problem("CrashLoopBackOff", text, stalled=rolling)
    if reason in _ON_ITS_WAY:
        return None
    remedy = _FATAL_WAITS.get(reason) or _SLOW_WAITS.get(reason)
    why = str(_waiting(status).get("message") or reason)[:_WORDS_MAX]
    if remedy is None:  # a word that a later kubelet has
        text = f"{whose}{reason}: {why}: kubectl describe pod {name_of(pod)}"
        return Problem("ContainerWaits", text, stalled=rolling)
    fatal = reason in _FATAL_WAITS
    return Problem(reason, f"{whose}{why}: {remedy}", stalled=fatal or rolling)


def _statuses(pod: Manifest) -> list[tuple[str, Mapping[str, Any]]]:
    """Its containers' statuses in the order in which they start, with what each is."""
    status = pod.get("status") or {}
    first = [("init container", one) for one in status.get("initContainerStatuses") or ()]
    return first + [("container", one) for one in status.get("containerStatuses") or ()]


def _waiting(status: Mapping[str, Any]) -> Mapping[str, Any]:
    return (status.get("state") or {}).get("waiting") or {}


def _ended(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """How it ended last, empty when it has not, or has with success."""
    for state in ("state", "lastState"):
        ended = (status.get(state) or {}).get("terminated") or {}
        if ended and ended.get("exitCode") != 0:
            found: Mapping[str, Any] = ended
            return found
    return {}


def _last_words(ended: Mapping[str, Any]) -> str:
    if not ended:
        return ""
    lines = [line for line in str(ended.get("message") or "").splitlines() if line.strip()]
    words = f": {lines[-1].strip()[:_WORDS_MAX]}" if lines else ""
    return f"it ended with exit code {ended.get('exitCode')}{words}"
