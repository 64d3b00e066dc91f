"""A pool at rest is looked at and not decided again, and nothing is noticed later for that.

Each row is run twice, side by side: once as it is, and once with a controller that decides all
anew at every turn. What happens to a pool that rests must have the same effect at the same moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from fakes.cluster_objects import NAME, NAMESPACE, pod_body, worker_state
from fakes.controller_rig import THREADS, Rig
from fakes.memory_cluster import KEY
from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.cluster import controller as controller_module
from llmtaskpool_operator.cluster.controller import Controller
from llmtaskpool_worker.contract import (
    GpuReading,
    LaneName,
    ModelProblem,
    Phase,
    QueueState,
    TenantState,
    WorkerState,
)

FIRST_TURNS = 14
"""A window of averages, and some turns of rest."""
AUTO: dict[str, Any] = {"scaling": {"minReplicas": 1, "maxReplicas": 8}, "threads": THREADS}
FIXED: dict[str, Any] = {"replicas": 1, "scaling": {"mode": "Fixed"}, "threads": THREADS}
EXTERNAL: dict[str, Any] = {"replicas": 1, "scaling": {"mode": "External"}, "threads": THREADS}
ADVISE: dict[str, Any] = {
    "scaling": {"mode": "Advise", "minReplicas": 1, "maxReplicas": 8},
    "threads": THREADS,
}
SCHEDULED: dict[str, Any] = {
    "scaling": {
        "minReplicas": 1,
        "maxReplicas": 8,
        "schedules": [
            {"start": "2 8 * * *", "end": "4 8 * * *", "timeZone": "Etc/UTC", "minReplicas": 3}
        ],
    },
    "threads": THREADS,
}
SLOW_RISE: dict[str, Any] = {
    "scaling": {
        "minReplicas": 1,
        "maxReplicas": 8,
        "behavior": {"scaleUp": {"stabilizationWindowSeconds": 60}},
    },
    "threads": THREADS,
}


class Decides(Controller):
    """A controller that has no rest."""

    async def _rests_on(self, _key: Any) -> bool:
        return False


class Pool:
    """A pool with its one pod, and what was written, set and asked for at each turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, rests: bool, **spec: Any) -> None:
        with monkeypatch.context() as patch:
            if not rests:
                patch.setattr("fakes.controller_rig.Controller", Decides)
            self.rig = Rig(**spec)
        self.trace: list[Any] = []
        self.decided = 0
        self.turn()
        self.rig.cluster.pods("a", state=worker_state("a"))

    def turn(self) -> None:
        """One turn, after which Kubernetes has looked; then the time that it asked for passes."""
        rig, known = self.rig, len(self.rig.cluster.threads)
        again = rig.turn()
        rig.cluster.look_at_deployment()
        conditions = sorted(
            (one["type"], one["status"], one["reason"], one["message"])
            for one in rig.status.get("conditions", ())
        )
        writes = [(call, body) for call, body in zip(rig.api.calls, rig.api.bodies, strict=True)]
        self.trace.append((rig.now, again, writes, rig.cluster.threads[known:], conditions))
        rig.now += again or 1.0

    def says(self, **more: Any) -> None:
        """The pod says something else from now on."""
        states = self.rig.cluster.states
        states["a"] = states["a"].model_copy(update=more)

    def lane(self, **more: Any) -> None:
        lane = self.rig.cluster.states["a"].lanes[LaneName.COMPUTE]
        self.says(lanes={LaneName.COMPUTE: lane.model_copy(update=more)})


@dataclass(frozen=True)
class Row:
    """``happens`` to a pool at rest; ``turns`` are followed after it."""

    happens: Callable[[Pool], object]
    spec: dict[str, Any] = field(default_factory=lambda: AUTO)
    turns: int = 8
    quiet: int = FIRST_TURNS


def work(pool: Pool, arrived: float = 100.0) -> None:
    pool.rig.cluster.states["a"] = worker_state("a", active=4, queued=9, arrived=arrived)


def a_burst(pool: Pool) -> None:
    """Work that is over after three turns."""
    work(pool)
    for _ in range(3):
        pool.turn()
    pool.rig.cluster.states["a"] = worker_state("a", arrived=100.0)


def scaled_by_hand(pool: Pool) -> None:
    live = pool.rig.cluster.deployment
    meta = live["metadata"]
    entry = {
        "manager": "kubectl",
        "operation": "Update",
        "time": "2027-01-15T08:01:00Z",
        "fieldsV1": {"f:spec": {"f:replicas": {}}},
    }
    changed = live["spec"] | {"replicas": 3}
    pool.rig.cluster.put(live | {"spec": changed, "metadata": meta | {"managedFields": [entry]}})


def child_deleted(pool: Pool) -> None:
    del pool.rig.api.objects["Service", NAMESPACE, NAME]
    pool.rig.controller.child_lost(KEY)


def child_deleted_unheard(pool: Pool) -> None:
    del pool.rig.api.objects["Service", NAMESPACE, NAME]


def relabelled(pool: Pool) -> None:
    body = pool.rig.api.find(KIND, NAMESPACE, NAME)
    meta = body["metadata"] | {"labels": {"team": "blue"}}
    pool.rig.cluster.put(body | {"metadata": meta})


def deployment_gone(pool: Pool) -> None:
    gone = pool.rig.api.objects.pop(("Deployment", NAMESPACE, NAME))
    pool.rig.cluster.store.gone("Deployment", gone)


def pod_put(pool: Pool, **about: Any) -> None:
    pool.rig.cluster.put(pod_body("a", version=9_000, **about))


def pod_gone(pool: Pool) -> None:
    gone = pool.rig.api.objects.pop(("Pod", NAMESPACE, "a"))
    pool.rig.cluster.store.gone("Pod", gone)


def frozen(pool: Pool) -> None:
    pool.rig.cluster.frozen = True


QUEUE = QueueState(durability="memory", durable=False, observed_at=1.0)
GPU = GpuReading(index=0, name="H200", utilization=0.9, memory_used_bytes=9, memory_total_bytes=10)
TROUBLE = ModelProblem(code="load_failed", message="no such file")
CRASHED = [
    {
        "name": "worker",
        "ready": False,
        "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    }
]
ROWS = {
    "work arrives": Row(work),
    "work arrives at a pool of a fixed size": Row(work, FIXED),
    "work arrives where the law only advises": Row(work, ADVISE),
    "work arrives at a pool that somebody else scales": Row(work, EXTERNAL),
    "a burst, after which replicas fall as late as ever": Row(a_burst, turns=150),
    "a window holds a rise back for a minute": Row(work, SLOW_RISE, turns=80),
    "a task waits in line": Row(lambda pool: pool.lane(queued=1)),
    "a task runs": Row(lambda pool: pool.lane(active=1)),
    "its threads are not what was asked for": Row(lambda pool: pool.lane(threads=2)),
    "it has lost its threads, as after a restart": Row(
        lambda pool: pool.says(threads_generation=0)
    ),
    "a schedule begins, and it ends": Row(lambda _pool: None, SCHEDULED, turns=70),
    "the spec changes": Row(lambda pool: pool.rig.respec(**FIXED | {"replicas": 3})),
    "the spec can't be read any more": Row(
        lambda pool: pool.rig.respec(scaling={"minReplicas": 9, "maxReplicas": 2})
    ),
    "somebody else writes the Deployment": Row(scaled_by_hand, turns=20),
    "the pool gets labels": Row(relabelled),
    "the Deployment is deleted": Row(deployment_gone),
    "a child is deleted": Row(child_deleted),
    "a child is deleted, and nobody hears of it": Row(child_deleted_unheard, turns=125),
    "the pod is not ready": Row(lambda pool: pod_put(pool, ready=False)),
    "the pod crashes": Row(lambda pool: pod_put(pool, ready=False, containerStatuses=CRASHED)),
    "the pod is told to end": Row(lambda pool: pod_put(pool, going=True)),
    "the pod is gone": Row(pod_gone),
    "the pod is another, with another address": Row(lambda pool: pod_put(pool, podIP="ip-of-b")),
    "the pod does not answer": Row(lambda pool: pool.rig.cluster.states.clear(), turns=12),
    "the pod's clock stands still": Row(frozen, turns=12),
    "the pod drains": Row(lambda pool: pool.says(phase=Phase.DRAINING)),
    "a model fails": Row(lambda pool: pool.says(model_problems={"m": TROUBLE})),
    "a GPU is busy": Row(lambda pool: pool.says(gpus=(GPU,))),
    "a batch is to be fed": Row(
        lambda pool: pool.says(queue=QUEUE.model_copy(update={"batches": 1}))
    ),
    "a tenant has work": Row(lambda pool: pool.says(tenants={"blue": TenantState(waiting=1)})),
    "it runs in another process": Row(lambda pool: pool.says(started_at=5.0)),
    "nothing happens": Row(lambda _pool: None, turns=20),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_happens_to_a_pool_at_rest_is_noticed_as_if_it_had_been_decided_anew(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, traces = ROWS[name], []
    for rests in (True, False):
        pool = Pool(monkeypatch, rests=rests, **row.spec)
        for _ in range(row.quiet):
            pool.turn()
        row.happens(pool)
        for _ in range(row.turns):
            pool.turn()
        traces.append(pool.trace)
    resting, deciding = traces
    assert resting == deciding


def test_a_pool_at_rest_is_asked_at_every_turn_and_nothing_is_decided_or_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = 0

    async def counted(*arguments: Any) -> Any:
        nonlocal whole
        whole += 1
        return await reconcile(*arguments)

    reconcile = controller_module.reconcile
    monkeypatch.setattr(controller_module, "reconcile", counted)
    for spec in (AUTO, FIXED, ADVISE, EXTERNAL, SCHEDULED):
        pool = Pool(monkeypatch, rests=True, **spec)
        for _ in range(FIRST_TURNS):
            pool.turn()
        before, asked = whole, pool.rig.cluster.answers
        for _ in range(5):
            pool.turn()
            assert pool.rig.api.calls == []
        assert whole == before, spec
        assert pool.rig.cluster.answers == asked + 5


@pytest.mark.parametrize("seed", range(3))
def test_under_loads_that_come_and_go_a_pool_is_the_size_that_deciding_anew_gives_it(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    for rests in (True, False):
        chance = random.Random(seed)
        pool, arrived = Pool(monkeypatch, rests=rests, **SLOW_RISE), 0.0
        for _ in range(5):
            for _ in range(chance.randrange(4, 20)):
                pool.turn()
            for _ in range(chance.randrange(1, 5)):
                arrived += chance.random() * 40
                work(pool, arrived)
                pool.turn()
            state: WorkerState = worker_state("a", arrived=arrived)
            pool.rig.cluster.states["a"] = state
        for _ in range(20):
            pool.turn()
        sizes.append(pool.trace)
    assert sizes[0] == sizes[1]
