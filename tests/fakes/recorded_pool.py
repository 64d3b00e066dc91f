"""A pool of fluid on a clock of its own, decided by the loop's own code and recorded by it.

A pod does a pod-second of work a second; work that comes to too few pods waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.autoscaler.decide import PoolDecision, PoolMemory, decide_pool
from llmtaskpool_operator.autoscaler.observation import PodObservation, PoolObservation
from llmtaskpool_operator.autoscaler.reasons import reason_of
from llmtaskpool_operator.replay.record import Recorder
from llmtaskpool_worker.contract import LaneName, LaneState, Phase, Work, WorkerState

BEGAN = 1_800_000_000.0


@dataclass(frozen=True)
class Remembered:
    decided: PoolMemory


@dataclass(frozen=True)
class Done:
    """A turn, as far as a recorder reads it."""

    observed: PoolObservation
    decisions: PoolDecision
    memory: Remembered


@dataclass
class FluidPod:
    ready_at: float
    arrived: float = 0.0
    done: float = 0.0


@dataclass
class FluidPool:
    """Decided every 5 s. ``lines`` is its record, ``sizes`` N after each decision."""

    pool: LLMTaskPool
    replicas: int = 1
    start_up: float = 20.0
    now: float = BEGAN
    memory: PoolMemory = field(default_factory=PoolMemory)
    lines: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    pods: dict[str, FluidPod] = field(default_factory=dict)
    made: int = 0
    waiting: float = 0.0

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.lines.append)
        self.scale(self.replicas, ready_at=self.now)

    def run(self, seconds: float, load: Callable[[float], float]) -> FluidPool:
        """``load`` gives pod-seconds of work per second by the seconds since the beginning."""
        for _ in range(int(seconds / 5)):
            for _ in range(5):
                self.now += 1.0
                self.flow(load(self.now - BEGAN))
            self.turn()
        return self

    def flow(self, work: float) -> None:
        serving = self.serving
        for pod in serving:
            pod.arrived += work / len(serving)
            self.waiting += work / len(serving)
        for pod in serving:
            pod.done += min(1.0, self.waiting / len(serving))
        self.waiting -= min(len(serving), self.waiting)

    @property
    def serving(self) -> list[FluidPod]:
        return [pod for pod in self.pods.values() if pod.ready_at <= self.now]

    def turn(self) -> None:
        seen = self.observation()
        decided, after = decide_pool(self.pool.spec, seen, self.memory, self.now)
        self.recorder.turn(self.pool, self.memory, Done(seen, decided, Remembered(after)))
        self.memory = after
        made, scaling = decided.replicas, self.pool.spec.scaling
        if made is not None and scaling.mode == "Auto" and not scaling.paused:
            self.scale(made.desired, ready_at=self.now + self.start_up)
        self.sizes.append(self.replicas)
        self.reasons.append(reason_of(made) if made is not None else "")

    def scale(self, replicas: int, ready_at: float) -> None:
        while len(self.pods) < replicas:
            self.made += 1
            self.pods[f"pod-{self.made}"] = FluidPod(ready_at)
        while len(self.pods) > replicas:
            self.pods.popitem()  # the youngest; what waited there is worked off elsewhere
        self.replicas = replicas

    def respec(self, pool: LLMTaskPool) -> None:
        meta = pool.metadata.model_copy(update={"generation": self.pool.metadata.generation + 1})
        self.pool = pool.model_copy(update={"metadata": meta})

    def restart(self) -> None:
        """The operator begins anew and remembers nothing."""
        self.memory = PoolMemory()
        self.recorder = Recorder(self.lines.append)

    def observation(self) -> PoolObservation:
        pods = [
            PodObservation(
                name=name,
                ready=pod.ready_at <= self.now,
                state=self.state(name, pod) if pod.ready_at <= self.now else None,
            )
            for name, pod in self.pods.items()
        ]
        return PoolObservation(self.replicas, tuple(pods))

    def state(self, name: str, pod: FluidPod) -> WorkerState:
        busy = self.waiting > 0.01
        lane = LaneState(
            threads=4, threads_cap=64, active=4 if busy else 1, queued=int(busy), queue_limit=99
        )
        return WorkerState(
            worker_id=name,
            started_at=0.0,
            observed_at=0.0,
            phase=Phase.READY,
            threads_generation=1,
            lanes={LaneName.COMPUTE: lane},
            work=Work(
                arrived_seconds_total=pod.arrived,
                done_seconds_total=pod.done,
                waiting_seconds=self.waiting / len(self.serving),
            ),
        )
