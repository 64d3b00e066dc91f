"""A pool over a virtual clock: pods and queue by events, laws at ticks. Pure.

One tick is a second, in this order: what happened before it; pods become ready; a scrape, when
one is due; the replica law, when it is due, on the newest scrape that has come through; threads.
The same trace, settings and law give the same numbers on every run: nothing here is random.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import ceil, inf

import numpy as np
from llmtaskpool_worker.scheduling.latency_guard import SMOOTHING, LatencyGuard
from llmtaskpool_worker.scheduling.priority import QueuePolicy
from numpy.typing import NDArray

from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.autoscaler import law
from llmtaskpool_operator.autoscaler.decide import thread_policy
from llmtaskpool_operator.autoscaler.gpu import bounds_by_gpu, caps_by_shares
from llmtaskpool_operator.autoscaler.plan import victims
from llmtaskpool_operator.simulation.fleet import Fleet
from llmtaskpool_operator.simulation.laws import PodSample, PoolSample, ReplicaLaw, as_observation
from llmtaskpool_operator.simulation.pod import Pod
from llmtaskpool_operator.simulation.service import LLAMA2_70B, PodModel
from llmtaskpool_operator.simulation.trace import Trace

FLAP_SECONDS = 600.0
"""A change against the direction of the last one within this time is a flap."""
LONGEST_TAIL_SECONDS = 3600
"""How long after the last arrival a run may go on; who isn't served by then has missed."""


@dataclass(frozen=True, slots=True)
class Setting:
    """All of a run but the trace and the law. Times in seconds.

    ``first_come``: the queue in order of arrival, and not by the spec's policy.
    ``fixed_threads``: N of every pod; None: the product's thread law and latency guard tune it.
    Requests that arrive before ``warm_up`` are not scored and pods before it cost nothing.
    ``gpu_lost``: (from, to) without the GPU's numbers.
    """

    spec: LLMTaskPoolSpec
    model: PodModel = LLAMA2_70B
    scrape_seconds: int = 5
    lag_seconds: int = 5
    fixed_threads: int | None = None
    first_come: bool = False
    initial_replicas: int | None = None
    warm_up: float = 0.0
    gpu_lost: tuple[float, float] | None = None

    @property
    def minimum(self) -> int:
        """The least replicas; scaling to zero is not simulated."""
        return max(1, self.spec.scaling.min_replicas)


@dataclass(frozen=True, slots=True)
class Moment:
    """The pool at one scrape, for plots."""

    at: float
    asked: int
    ready: int
    queued: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    ``slo``: the share of scored requests within both objectives. Times in seconds; NaN where
    nothing was scored. ``pod_hours`` counts pods from asked for to gone, from the end of the
    warm-up to the last arrival. ``last_done``: when the last request that was served ended.
    ``missed_at``: arrivals of the scored requests that missed.
    """

    law: str
    slo: float
    pod_hours: float
    actions: int
    flaps: int
    ttft_p50: float
    ttft_p95: float
    ttft_p99: float
    tpot_missed: float
    requests: int
    unfinished: int
    last_done: float
    moments: tuple[Moment, ...]
    changes: tuple[tuple[float, int], ...]
    missed_at: NDArray[np.float64]


def offered_work(trace: Trace, setting: Setting) -> NDArray[np.float64]:
    """Pod-seconds of each request, its real output length known."""
    model = setting.model
    per_token = model.seconds_per_token(setting.spec.slo.tpot_seconds)
    return np.asarray(model.prefill(trace.uncached) + per_token * trace.output)


def first_replicas(trace: Trace, setting: Setting) -> int:
    """Enough for the first five minutes at the default target, whatever the law.

    So a run doesn't begin with a cold start, and all laws begin alike.
    """
    if setting.initial_replicas is not None:
        wanted = setting.initial_replicas
    else:
        span = min(300.0, max(trace.seconds, 1.0))
        work = float(offered_work(trace, setting)[trace.arrival < span].sum())
        wanted = ceil(work / span / law.DEFAULTS.target)
    return min(max(wanted, setting.minimum), setting.spec.scaling.max_replicas)


def simulate(
    trace: Trace, setting: Setting, replica_law: ReplicaLaw,
    progress: Callable[[float], None] = lambda _: None,
) -> Outcome:  # fmt: skip
    """Run the trace; ``progress`` is told the share that is done, now and then."""
    run = _Run(trace, setting, replica_law)
    end = ceil(trace.seconds)
    period = max(1, round(replica_law.period_seconds))
    tick = 0
    while tick < end or (run.fleet.finished < len(trace) and tick < end + LONGEST_TAIL_SECONDS):
        tick += 1
        run.fleet.advance(float(tick))
        run.start_and_stop(tick)
        if tick % setting.scrape_seconds == 0:
            run.scrape(tick, keep=tick <= end)
        if tick % period == 0:
            run.decide(tick)
        if setting.fixed_threads is None:
            run.tune_threads(float(tick))
        if tick % 60 == 0:
            progress(min(1.0, tick / max(end, 1)))
    progress(1.0)
    return run.outcome(float(end), replica_law.name)


class _Run:
    """The state of one run."""

    def __init__(self, trace: Trace, setting: Setting, replica_law: ReplicaLaw) -> None:
        spec, model = setting.spec, setting.model
        self._trace, self._setting, self._law = trace, setting, replica_law
        policy = QueuePolicy(spec.queue.policy)
        self.fleet = Fleet(
            model, trace, tpot_slo_seconds=spec.slo.tpot_seconds,
            queue=None if setting.first_come else policy,
            ageing_seconds=inf if setting.first_come else spec.queue.ageing_seconds,
            aged_share=spec.queue.aged_share,
        )  # fmt: skip
        self._threads = setting.fixed_threads or spec.threads.compute.initial
        lane = thread_policy(spec.threads.compute)
        if spec.threads.compute.mode == "Fixed":
            lane = replace(lane, minimum=self._threads, maximum=self._threads)
        self._thread_law = _thread_law(lane)
        self._born = 0
        self._gone: list[Pod] = []
        self._scrapes: deque[tuple[int, tuple[PodSample, ...]]] = deque()
        self._moments: list[Moment] = []
        self._changes: list[tuple[float, int]] = []
        self.asked = first_replicas(trace, setting)
        for place in range(self.asked):
            self._ask(0.0, 0.0)
            self.fleet.open(place, 0.0)

    def _ask(self, now: float, ready_at: float) -> None:
        serving = [p.threads for p in self.fleet.pods if p.ready and not p.draining]
        # A new pod starts with what the pool has, as the operator does it.
        pod = Pod(f"pod-{self._born:05}", now, ready_at, max(serving, default=self._threads))
        pod.guard = LatencyGuard(self._setting.spec.slo.tpot_seconds)
        pod.threads_cap = self.fleet.knee
        self._born += 1
        self.fleet.add(pod)

    def start_and_stop(self, tick: int) -> None:
        """Pods whose start-up is over take work; drained ones go."""
        self._gone += self.fleet.remove_gone(float(tick))
        for place, pod in enumerate(self.fleet.pods):
            if not pod.ready and not pod.draining and pod.ready_at <= tick:
                self.fleet.open(place, float(tick))

    def scrape(self, tick: int, *, keep: bool) -> None:
        """Take a sample of every pod; it comes through after the lag."""
        fleet = self.fleet
        fleet.share_out_arrivals()
        lost = self._setting.gpu_lost
        gpu = lost is None or not lost[0] <= tick < lost[1]
        serving = sum(pod.ready and not pod.draining for pod in fleet.pods)
        each, odd = divmod(fleet.queued, max(1, serving))
        waiting = fleet.queued_work / max(1, serving)
        samples = []
        for pod in fleet.pods:
            owner = pod.ready and not pod.draining
            if pod.ready:
                pod.settle(float(tick))
            every = self._setting.scrape_seconds
            # Settled to the tick, rounding may leave a little more than all of the time.
            pod.sm_activity = min(1.0, pod.sm_seconds / every) if gpu else None
            pod.gpu_busy = min(1.0, pod.busy_seconds / every) if gpu else None
            samples.append(
                PodSample(
                    name=pod.name,
                    ready=pod.ready,
                    draining=pod.draining,
                    running=pod.running,
                    queued=each + (odd > 0) if owner else 0,
                    threads=pod.threads,
                    threads_cap=pod.threads_cap,
                    arrived_work=pod.arrived,
                    done_work=pod.done_work,
                    waiting_work=fleet.unfinished_prefill(pod) + (waiting if owner else 0.0),
                    sm_activity=pod.sm_activity,
                    gpu_busy=pod.gpu_busy,
                )
            )
            odd -= owner
            pod.sm_seconds = pod.busy_seconds = 0.0
        self._scrapes.append((tick, tuple(samples)))
        if keep:
            self._moments.append(Moment(float(tick), self.asked, serving, fleet.queued))

    def decide(self, tick: int) -> None:
        """Ask the law and do what it says, within the bounds."""
        newest = tick - self._setting.lag_seconds
        while len(self._scrapes) > 1 and self._scrapes[1][0] <= newest:
            self._scrapes.popleft()
        if not self._scrapes or self._scrapes[0][0] > newest:
            return
        at, pods = self._scrapes[0]
        scaling = self._setting.spec.scaling
        sample = PoolSample(
            now=float(tick),
            replicas=self.asked,
            minimum=self._setting.minimum,
            maximum=scaling.max_replicas,
            age_seconds=float(tick - at),
            pods=pods,
        )
        wanted = min(max(self._law.decide(sample), sample.minimum), sample.maximum)
        if wanted > self.asked:
            for _ in range(wanted - self.asked):
                self._ask(float(tick), tick + self._setting.model.start_up_seconds)
        elif wanted < self.asked:
            self._stop(self.asked - wanted)
        if wanted != self.asked:
            self._changes.append((float(tick), wanted - self.asked))
        self.asked = wanted

    def _stop(self, count: int) -> None:
        """Drain those that lose least, by the operator's own choice of victims."""
        now = [
            PodSample(
                pod.name, pod.ready, pod.draining, pod.running, 0, pod.threads, pod.threads_cap,
                0.0, 0.0, 0.0, None, None,
            )
            for pod in self.fleet.pods
        ]  # fmt: skip
        staying = as_observation(PoolSample(0.0, 0, 0, 0, 0.0, tuple(now))).staying
        chosen = set(victims(staying, count))
        for place, pod in enumerate(self.fleet.pods):
            if pod.name in chosen:
                self.fleet.drain(place)

    def tune_threads(self, now: float) -> None:
        """The thread law of each pod that takes work, bounded by its latency guard."""
        fleet, spec = self.fleet, self._setting.spec
        by_gpu = bounds_by_gpu(spec)
        serving = [
            (place, pod) for place, pod in enumerate(fleet.pods) if pod.ready and not pod.draining
        ]
        share = -(-fleet.queued // max(1, len(serving)))
        for place, pod in serving:
            pod.settle(now)
            guard = pod.guard
            if guard is not None:
                steps = pod.k - pod.k_seen
                if steps > 0 and pod.batch:
                    # The guard's own smoothing, for all steps of this second at once.
                    mean = 1.0 / steps
                    before = mean if guard.tpot_seconds is None else guard.tpot_seconds
                    guard.tpot_seconds = mean + (1 - SMOOTHING) ** steps * (before - mean)
                pod.k_seen = pod.k
                pod.threads_cap = guard.adjust(pod.running, fleet.knee, now)
            caps = (
                caps_by_shares(spec, pod.gpu_busy, pod.sm_activity, pod.threads) if by_gpu else ()
            )
            cap = min(pod.threads_cap, *caps) if caps else pod.threads_cap
            threads = self._thread_law.next(pod.threads, pod.running, share, cap)
            if threads != pod.threads:
                fleet.set_threads(place, threads, now)

    def outcome(self, end: float, name: str) -> Outcome:
        """The numbers of the run."""
        trace, slo, warm_up = self._trace, self._setting.spec.slo, self._setting.warm_up
        scored = trace.arrival >= warm_up
        first, done = np.array(self.fleet.first_token_at), np.array(self.fleet.done_at)
        with np.errstate(invalid="ignore"):
            wait = (first - trace.arrival)[scored]
            per_token = ((done - first) / np.maximum(trace.output - 1, 1))[scored]
        late = ~(wait <= slo.ttft_seconds)
        slow = ~(per_token <= slo.tpot_seconds)
        count = int(scored.sum())
        p50, p95, p99 = (
            (float(x) for x in np.quantile(wait, [0.5, 0.95, 0.99], method="higher"))
            if count
            else (float("nan"),) * 3
        )
        hours = sum(
            max(0.0, min(pod.gone_at, end) - max(pod.asked_at, warm_up))
            for pod in (*self._gone, *self.fleet.pods)
        )
        changes = tuple(change for change in self._changes if warm_up <= change[0] <= end)
        return Outcome(
            law=name,
            slo=float(1 - (late | slow).mean()) if count else float("nan"),
            pod_hours=hours / 3600,
            actions=len(changes),
            flaps=flaps(changes),
            ttft_p50=p50,
            ttft_p95=p95,
            ttft_p99=p99,
            tpot_missed=float(slow.mean()) if count else float("nan"),
            requests=count,
            unfinished=len(trace) - self.fleet.finished,
            last_done=float(np.max(done, where=np.isfinite(done), initial=0.0)),
            moments=tuple(self._moments),
            changes=changes,
            missed_at=trace.arrival[scored][late | slow],
        )


class _ThreadLaw:
    """``law.decide`` for threads, asked once for each case.

    At ticks of 1 s it has no memory (no window, the step limit's period is over and kappa has no
    sample), so the answer follows from four whole numbers and is remembered.
    """

    def __init__(self, policy: law.Policy) -> None:
        self._policy = policy
        self._known: dict[tuple[int, int, int, int], int] = {}

    def next(self, threads: int, active: int, queued: int, cap: int) -> int:
        """N of the next second."""
        # More than the cap can't ask for more than the cap.
        key = (threads, active, min(queued, cap), cap)
        known = self._known.get(key)
        if known is None:
            seen = law.Observed(
                current=threads, running=float(active), waiting=float(queued), cap=max(1, cap)
            )
            decision, _ = law.decide(self._policy, seen, law.Memory(), 0.0)
            known = self._known[key] = decision.desired
        return known


@lru_cache(maxsize=8)
def _thread_law(policy: law.Policy) -> _ThreadLaw:
    """One for all runs with the same policy: most of their cases are the same."""
    return _ThreadLaw(policy)


def flaps(changes: tuple[tuple[float, int], ...]) -> int:
    """Changes against the direction of the one before, within FLAP_SECONDS of it."""
    return sum(
        (before > 0) != (step > 0) and at - since <= FLAP_SECONDS
        for (since, before), (at, step) in pairwise(changes)
    )
