"""What workers tell of their GPUs, for the status, the replicas and the threads. Pure.

NVML's utilization is the share of time in which any kernel ran: it says "idle" reliably and is
near 1 at any load (docs/law.md). So by default nothing is sized by it. SM activity is honest, and
what it is at a full batch differs by model and kernels: it bounds threads where a pool says at how
much (threads.compute.smActivityTarget).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

from llmtaskpool_worker.contract import WorkerReport

from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.api.scaling import Metric
from llmtaskpool_operator.api.status import GpuStatus
from llmtaskpool_operator.autoscaler.observation import PodObservation, PoolObservation, Problem
from llmtaskpool_operator.autoscaler.shares import gpu_share, memory_share, sm_activity

DEAD_BAND = 0.05
"""As for the pool's utilization: a status write per tick is noise."""
_GPU_WORDS = ("gpu", "mig-", "gaudi", "tpu")
_ON_CPU = "cpu"


@dataclass(frozen=True, slots=True)
class _Use:
    pod: str
    busy: float | None
    memory: float | None
    activity: float | None


def gpu_status(seen: PoolObservation, before: GpuStatus | None) -> GpuStatus | None:
    """Mean and worst pod of what fresh pods tell; None where none tells of a GPU.

    What moved by no more than DEAD_BAND stays as it was ``before``.
    """
    uses = [
        _Use(pod.name, gpu_share(pod.state), memory_share(pod.state), sm_activity(pod.state))
        for pod in seen.staying
        if pod.state is not None and pod.fresh and pod.state.gpus
    ]
    if not uses:
        return None
    busy = [use.busy for use in uses if use.busy is not None]
    memory = [use.memory for use in uses if use.memory is not None]
    active = [use.activity for use in uses if use.activity is not None]
    worst = max(uses, key=lambda use: (use.busy or 0.0, use.memory or 0.0))
    now = GpuStatus(
        pods=len(uses),
        utilization=_mean(busy),
        highest_utilization=_rounded(max(busy, default=None)),
        memory=_mean(memory),
        highest_memory=_rounded(max(memory, default=None)),
        busiest_pod=worst.pod,
        sm_activity=_mean(active),
        highest_sm_activity=_rounded(max(active, default=None)),
    )
    return before if before is not None and _near(before, now) else now


def _near(before: GpuStatus, now: GpuStatus) -> bool:
    pairs = (
        (before.utilization, now.utilization),
        (before.highest_utilization, now.highest_utilization),
        (before.memory, now.memory),
        (before.highest_memory, now.highest_memory),
        (before.sm_activity, now.sm_activity),
        (before.highest_sm_activity, now.highest_sm_activity),
    )
    return before.pods == now.pods and all(
        one == other or (one is not None and other is not None and abs(one - other) <= DEAD_BAND)
        for one, other in pairs
    )


def _mean(values: Sequence[float]) -> float | None:
    return _rounded(sum(values) / len(values)) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def asks_for_gpu(spec: LLMTaskPoolSpec) -> bool:
    """Whether its pods get a GPU: by a device of its limits, or by claim."""
    named = (
        key.rpartition("/")[2] for key, amount in spec.resources.limits.items() if "/" in key
        if str(amount) != "0"
    )  # fmt: skip
    return bool(spec.resource_claims) or any(word in name for name in named for word in _GPU_WORDS)


def idle_gpu(spec: LLMTaskPoolSpec, pods: Sequence[PodObservation]) -> list[Problem]:
    """A GPU was asked for, and a model of a pod that takes tasks runs without it."""
    if not asks_for_gpu(spec):
        return []
    idle = [
        (pod.name, model)
        for pod in pods
        if pod.ready and pod.fresh and pod.state is not None
        for model, device in sorted(pod.state.model_devices.items())
        if device == _ON_CPU
    ]
    if not idle:
        return []
    pod, model = idle[0]
    more = f" (and {len(idle) - 1} more)" if len(idle) > 1 else ""
    return [
        Problem(
            "GPUIdle",
            f"{pod}: {model} runs on the CPU although spec.resources asks for a GPU{more}: check "
            "that the image has CUDA and the node a driver, remove the option device=cpu, or ask "
            "for no GPU",
        )
    ]


def bounds_by_gpu(spec: LLMTaskPoolSpec) -> bool:
    """Whether the pool asks for any bound of its threads by GPUs."""
    by_metric = spec.scaling.metric is Metric.GPU_UTILIZATION
    return by_metric or spec.threads.compute.sm_activity_target is not None


def thread_caps(spec: LLMTaskPoolSpec, state: WorkerReport, threads: int) -> list[int]:
    """Bounds of a pod's compute threads by its GPUs: of what the pool asks for, and it tells."""
    return caps_by_shares(spec, gpu_share(state), sm_activity(state), threads)


def caps_by_shares(
    spec: LLMTaskPoolSpec, busy: float | None, activity: float | None, threads: int
) -> list[int]:
    """The same of a pod whose GPUs are ``busy`` and whose multiprocessors worked so much."""
    caps = []
    if spec.scaling.metric is Metric.GPU_UTILIZATION:
        caps.append(_cap(busy, threads, spec.scaling.target_utilization))
    if (target := spec.threads.compute.sm_activity_target) is not None:
        caps.append(_cap(activity, threads, target))
    return [cap for cap in caps if cap is not None]


def _cap(share: float | None, threads: int, target: float) -> int | None:
    """The most threads by the equation: N + alpha (U_target - U), with alpha = N / U_target.

    Never below N: over the target threads grow no more, and fall as always, by what they do.
    ``target``: of the GPU, at most 1. None where the pod doesn't tell ``share``.
    """
    if share is None:
        return None
    aim = min(max(target, 0.05), 1.0)
    room = max(aim - share, 0.0)
    return max(threads, floor(threads + threads / aim * room + 1e-9))
