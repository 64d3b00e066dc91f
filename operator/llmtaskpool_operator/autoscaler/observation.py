"""What was observed of a pool, and its reduction to what the law asks. Pure.

Rates come from counters that start at 0 with each worker process: they are taken per pod and
summed, so a pod that comes, goes or restarts can't make them wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite

from llmtaskpool_worker.contract import GateState, LaneName, LaneState, WorkerReport

from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.api.scaling import Metric
from llmtaskpool_operator.autoscaler.law import DEFAULTS, Observed, backlog_drain_seconds
from llmtaskpool_operator.autoscaler.shares import gpu_share


@dataclass(frozen=True, slots=True)
class PodObservation:
    """One pod (or local worker process). ``state`` None: it did not answer.

    ``age_seconds`` is the age of ``state``; ``ready``: it takes tasks; ``draining``: it goes.
    ``error`` is what was wrong with its last answer, with the field's name where it is one field.
    ``lost``: it drains, should long have ended, and nobody can say whether it has. ``address`` is
    host and port of what it serves, where somebody has to be told of it.
    """

    name: str
    ready: bool
    draining: bool = False
    lost: bool = False
    state: WorkerReport | None = None
    age_seconds: float = 0.0
    error: str | None = None
    address: str | None = None

    @property
    def fresh(self) -> bool:
        """Whether its state may be believed to be of now."""
        return self.state is not None and self.age_seconds <= DEFAULTS.stale_seconds


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the pool's way: one word and a sentence with the remedy.

    ``stalled``: it does not go away by itself. ``blocks``: while it lasts the pool can't be ready,
    however many of its pods are.
    """

    reason: str
    message: str
    stalled: bool = False
    blocks: bool = False


@dataclass(frozen=True, slots=True)
class GateObservation:
    """The gate of a pool that may sleep: ``pods`` hold requests while no worker is there.

    ``routed``: the pool's Service leads to the gate, and not to the workers. ``stands``: the pool
    is to have one; else what is left of it is let go once it is not needed. ``problem``: why it
    can't start.
    """

    pods: tuple[PodObservation, ...] = ()
    routed: bool = False
    stands: bool = True
    problem: str | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return any(pod.ready and not pod.draining for pod in self.pods)

    @property
    def held(self) -> int:
        """Requests that wait in it for a worker."""
        return sum(gate.held for gate in self._gates())

    @property
    def asks(self) -> bool:
        """Whether somebody wants a worker, or wanted one just now."""
        if any(gate.held or gate.recent for gate in self._gates()):
            return True
        return any(_shared_work(pod) for pod in self.pods)

    @property
    def silent(self) -> bool:
        """Whether it serves and nobody knows what it holds."""
        return any(pod.ready and not pod.fresh for pod in self.pods)

    def _gates(self) -> list[GateState]:
        states = (pod.state for pod in self.pods if pod.fresh)
        return [state.gate for state in states if state is not None and state.gate is not None]


@dataclass(frozen=True, slots=True)
class PoolObservation:
    """The pool now. ``replicas`` is what was asked for, starting ones counted.

    ``rival`` is who else writes the replicas that are the operator's to decide, if anybody.
    ``scalable``: there is, or will be, something of this pool's to ask for replicas.
    ``rollout`` is what a change of the pods still waits for; empty when each is as it should be.
    ``wakes``: somebody holds requests and asks for a pod while there is none. ``gate`` is who does
    so on a cluster; None where a pool has none.
    """

    replicas: int
    pods: tuple[PodObservation, ...] = ()
    problems: tuple[Problem, ...] = ()
    rival: str | None = None
    scalable: bool = True
    rollout: str = ""
    wakes: bool = True
    gate: GateObservation | None = None

    @property
    def staying(self) -> tuple[PodObservation, ...]:
        """The pods that don't drain."""
        return tuple(pod for pod in self.pods if not pod.draining)

    @property
    def at_work(self) -> bool:
        """Whether anything runs, waits or is held, or nobody can say so: no time to sleep."""
        states = [pod.state for pod in self.staying if pod.fresh and pod.state is not None]
        if any(lane.active or lane.queued for state in states for lane in state.lanes.values()):
            return True
        # Between two lines, or while it waits before it asks again, a batch has nothing in line.
        if any(state.queue is not None and state.queue.batches for state in states):
            return True
        return self.gate is not None and (self.gate.asks or self.gate.silent)

    @property
    def missing(self) -> tuple[str, ...]:
        """Ready pods that don't report."""
        return tuple(pod.name for pod in self.staying if pod.ready and not pod.fresh)


@dataclass(frozen=True, slots=True)
class Counters:
    """One pod's counters at one moment, and whether all its threads were busy with more waiting.

    ``up_seconds``: how long its process had counted.
    """

    arrived: float
    done: float
    saturated: bool
    up_seconds: float = 0.0

    def share_within(self, seconds: float) -> float:
        """Which part of what they count belongs to the last ``seconds``.

        All, where the process is that young. It may also be an old one that was silent, or that
        this operator, just started, hears for the first time: its whole life is no arrival of now.
        """
        return 1.0 if self.up_seconds <= seconds else seconds / self.up_seconds


_UNSEEN = Counters(inf, 0.0, saturated=False)
"""Of a pod that no sample before has."""


@dataclass(frozen=True, slots=True)
class History:
    """Samples of the averaging window, oldest first: (time, counters by pod)."""

    samples: tuple[tuple[float, dict[str, Counters]], ...] = ()

    def extended(self, seen: PoolObservation, now: float, window_seconds: float) -> History:
        """With the sample of now, and one that is as old as the window as its beginning."""
        counters = {
            pod.name: _counters(pod.state)
            for pod in seen.pods
            if pod.state is not None and pod.fresh
        }
        return self._with(now, counters, window_seconds)

    def again(self, now: float, window_seconds: float) -> History:
        """With the last sample again: the pods say the same now."""
        return self._with(now, self.samples[-1][1], window_seconds) if self.samples else self

    def _with(self, now: float, counters: dict[str, Counters], window_seconds: float) -> History:
        samples = [*self.samples, (now, counters)]
        while len(samples) > 2 and now - samples[1][0] >= window_seconds:
            samples.pop(0)
        return History(tuple(samples))

    def arrival_rate(self, period_seconds: float) -> float | None:
        """Pod-seconds of work that arrived per second; None before there are two samples."""
        if len(self.samples) < 2:
            return None
        arrived = 0.0
        began, first = self.samples[0]
        known = {name: (began, counters) for name, counters in first.items()}
        for at, after in self.samples[1:]:
            for name, counters in after.items():
                then, seen = known.get(name, (began, _UNSEEN))
                if seen.arrived <= counters.arrived:
                    arrived += counters.arrived - seen.arrived
                else:
                    arrived += counters.arrived * counters.share_within(at - then)
                known[name] = at, counters
        return arrived / max(self._span(), period_seconds)

    def arrived_lately(self) -> float | None:
        """Pod-seconds of work that arrived since the sample before; None without one."""
        last = History(self.samples[-2:])
        rate = last.arrival_rate(0.0) if last._span() > 0 else None
        return None if rate is None else rate * last._span()

    def saturated_rate(self, window_seconds: float) -> float | None:
        """Work done per pod-second while all pods were saturated for a whole window, else None."""
        if self._span() < 0.9 * window_seconds:
            return None
        first, last = self.samples[0][1], self.samples[-1][1]
        for _, counters in self.samples:
            if counters.keys() != last.keys() or not all(c.saturated for c in counters.values()):
                return None
        done = sum(last[name].done - first[name].done for name in last)
        return done / (self._span() * len(last)) if last and done >= 0 else None

    def _span(self) -> float:
        return self.samples[-1][0] - self.samples[0][0] if self.samples else 0.0


def observed_replicas(spec: LLMTaskPoolSpec, seen: PoolObservation, history: History) -> Observed:
    """The law's inputs for replicas, in the units of the pool's metric."""
    reporting = tuple(pod for pod in seen.staying if pod.fresh)
    states = [pod.state for pod in reporting if pod.state is not None]
    running: float | None = None
    waiting = 0.0
    match spec.scaling.metric:
        case Metric.OFFERED_WORK:
            drain = spec.scaling.backlog_drain_seconds or backlog_drain_seconds(
                spec.slo.ttft_seconds
            )
            running = history.arrival_rate(DEFAULTS.period_seconds) if states else None
            waiting = of_pool([(state, state.work.waiting_seconds) for state in states]) / drain
        case Metric.THREAD_UTILIZATION:
            lanes = [(state, state.lanes[LaneName.COMPUTE]) for state in states]
            running = _sum([lane.active / max(1, lane.threads) for _, lane in lanes])
            waiting = of_pool([(s, lane.queued / max(1, lane.threads)) for s, lane in lanes])
        case Metric.GPU_UTILIZATION:
            shares = [gpu_share(state) for state in states]
            running = _sum([share for share in shares if share is not None])
    if not states and seen.gate is not None and seen.gate.ready and not seen.gate.silent:
        running = 0.0  # nobody works, and the gate says whether anybody should
    starting = seen.replicas > 0 and not any(pod.ready for pod in seen.staying)
    return Observed(
        current=seen.replicas,
        # A pool whose pods all start has no demand yet that anybody could have counted.
        running=None if starting and not states else running,
        waiting=waiting,
        complete=not seen.missing and not lacking(spec, seen),
        age_seconds=min((pod.age_seconds for pod in reporting), default=0.0),
        saturated_rate=history.saturated_rate(spec.scaling.averaging_seconds),
        busy=seen.at_work,
    )


def lacking(spec: LLMTaskPoolSpec, seen: PoolObservation) -> tuple[str, ...]:
    """Ready pods that report, but not the number that the pool's metric is made of."""
    if spec.scaling.metric is not Metric.GPU_UTILIZATION:
        return ()  # all others are required of an answer
    return tuple(
        pod.name
        for pod in seen.staying
        if pod.ready and pod.fresh and pod.state is not None and gpu_share(pod.state) is None
    )


def observed_threads(lane: LaneState, sharers: int = 1) -> Observed:
    """The law's inputs for one lane of one pod; ``sharers``: pods that have its queue, too."""
    return Observed(
        current=lane.threads,
        running=float(lane.active),
        waiting=lane.queued / max(1, sharers),
        cap=max(1, lane.threads_cap),
    )


def _counters(state: WorkerReport) -> Counters:
    compute = state.lanes.get(LaneName.COMPUTE)
    saturated = compute is not None and compute.queued > 0 and compute.active >= compute.threads
    arrived, done = state.work.arrived_seconds_total, state.work.done_seconds_total
    return Counters(
        arrived if isfinite(arrived) else 0.0,
        done if isfinite(done) else 0.0,
        saturated,
        max(0.0, state.observed_at - state.started_at),
    )


def of_pool(values: Sequence[tuple[WorkerReport, float]]) -> float:
    """What pods say of their queues, for the pool: of one that they share each tells all of it."""
    shared = [value for state, value in values if shares_queue(state)]
    own = sum((value for state, value in values if not shares_queue(state)), 0.0)
    return own + (sum(shared) / len(shared) if shared else 0.0)


def shares_queue(state: WorkerReport) -> bool:
    """Whether its queue is the pool's."""
    return state.queue is not None and state.queue.shared


def _shared_work(pod: PodObservation) -> bool:
    """Whether tasks wait or run, or a batch is to go on, in the queue that a gate shares."""
    state = pod.state
    if not pod.fresh or state is None or state.queue is None or not shares_queue(state):
        return False
    queue = state.queue
    return bool(queue.running or queue.batches) or any(lane.queued for lane in state.lanes.values())


def _sum(values: list[float]) -> float | None:
    return sum(values) if values else None
