"""What a replica law sees in the simulator, what it has to offer, and our own law in that form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from llmtaskpool_worker.contract import GpuReading, LaneName, LaneState, Phase, WorkerReport

from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.autoscaler import law
from llmtaskpool_operator.autoscaler.decide import replica_policy
from llmtaskpool_operator.autoscaler.observation import (
    History,
    PodObservation,
    PoolObservation,
    observed_replicas,
)


@dataclass(frozen=True, slots=True)
class PodSample:
    """One pod as its last scrape showed it.

    Work is in pod-seconds; ``arrived_work`` and ``done_work`` are counters that start at 0 with
    the pod. ``sm_activity`` (share of the arithmetic in use) and ``gpu_busy`` (share of the time
    in which any kernel ran, NVML's number) are means since the scrape before, None where lost.
    ``queued`` and ``waiting_work`` are the pod's even share of the pool's queue.
    """

    name: str
    ready: bool
    draining: bool
    running: int
    queued: int
    threads: int
    threads_cap: int
    arrived_work: float
    done_work: float
    waiting_work: float
    sm_activity: float | None
    gpu_busy: float | None


@dataclass(frozen=True, slots=True)
class PoolSample:
    """The pool at one tick of a law.

    ``replicas`` is what is asked for now, between ``minimum`` and ``maximum``, pods that start
    counted and those that drain not. ``pods`` are those that existed at the last scrape that
    has come through; it is ``age_seconds`` old.
    """

    now: float
    replicas: int
    minimum: int
    maximum: int
    age_seconds: float
    pods: tuple[PodSample, ...]

    @property
    def serving(self) -> tuple[PodSample, ...]:
        """Pods that take tasks: ready and not draining."""
        return tuple(pod for pod in self.pods if pod.ready and not pod.draining)

    @property
    def ready(self) -> int:
        """How many pods take tasks."""
        return len(self.serving)

    @property
    def running(self) -> int:
        """Tasks that hold a thread (prefill or decode), over all pods."""
        return sum(pod.running for pod in self.pods)

    @property
    def queued(self) -> int:
        """Tasks that wait for a thread."""
        return sum(pod.queued for pod in self.pods)

    @property
    def concurrency(self) -> int:
        """Tasks that run or wait: what a proxy counts as in flight."""
        return self.running + self.queued

    @property
    def threads(self) -> int:
        """Threads of the pods that take tasks."""
        return sum(pod.threads for pod in self.serving)

    @property
    def sm_activity(self) -> float | None:
        """Mean over the pods that take tasks; None where it is lost or there are none."""
        return _mean([pod.sm_activity for pod in self.serving])

    @property
    def gpu_busy(self) -> float | None:
        """NVML's number, mean over the pods that take tasks; None as for ``sm_activity``."""
        return _mean([pod.gpu_busy for pod in self.serving])


class ReplicaLaw(Protocol):
    """A law that sizes a pool. It may keep state: one object serves one run."""

    @property
    def name(self) -> str:
        """Its name in tables and for ``--law``."""

    @property
    def period_seconds(self) -> float:
        """How often it decides."""

    def decide(self, sample: PoolSample) -> int:
        """The replicas it wants now; the simulator keeps them within the pool's bounds."""


class Ours:
    """The product's law: its reduction of what was observed, and ``law.decide``, as it is."""

    name = "ours"
    period_seconds = law.DEFAULTS.period_seconds

    def __init__(self, spec: LLMTaskPoolSpec) -> None:
        self._spec = spec
        self._policy = replica_policy(spec, 0.0)
        self._history = History()
        self._memory = law.Memory()

    def decide(self, sample: PoolSample) -> int:
        """The decision of the operator's loop for the same observation."""
        return self.decision(sample).desired

    def decision(self, sample: PoolSample) -> law.Decision:
        """The same with everything that went into it, to explain it."""
        seen = as_observation(sample)
        self._history = self._history.extended(
            seen, sample.now, self._spec.scaling.averaging_seconds
        )
        observed = observed_replicas(self._spec, seen, self._history)
        decision, self._memory = law.decide(self._policy, observed, self._memory, sample.now)
        return decision


def as_observation(sample: PoolSample) -> PoolObservation:
    """A sample in the words of the operator's loop."""
    return PoolObservation(
        replicas=sample.replicas,
        pods=tuple(
            PodObservation(
                name=pod.name,
                ready=pod.ready,
                draining=pod.draining,
                state=_state(pod) if pod.ready else None,
                age_seconds=sample.age_seconds,
            )
            for pod in sample.pods
        ),
    )


_LANE = LaneState(threads=0, threads_cap=0, active=0, queued=0, queue_limit=0)
_GPU = GpuReading(index=0, name="simulated")
_STATE = WorkerReport(started_at=0, observed_at=0, phase=Phase.READY, lanes={})


def _state(pod: PodSample) -> WorkerReport:
    # Copies are not validated: the numbers are the simulator's own, and there are millions.
    lane = _LANE.model_copy(
        update={
            "threads": pod.threads,
            "threads_cap": pod.threads_cap,
            "active": pod.running,
            "queued": pod.queued,
        }
    )
    work = _STATE.work.model_copy(
        update={
            "arrived_seconds_total": pod.arrived_work,
            "done_seconds_total": pod.done_work,
            "waiting_seconds": pod.waiting_work,
        }
    )
    update: dict[str, Any] = {"lanes": {LaneName.COMPUTE: lane}, "work": work}
    if pod.gpu_busy is not None:
        seen = {"utilization": pod.gpu_busy, "sm_activity": pod.sm_activity}
        update["gpus"] = (_GPU.model_copy(update=seen),)
    return _STATE.model_copy(update=update)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
