"""A pool that may sleep: when it does, when it wakes, and who is in the path of requests."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.cluster_objects import gate_state, worker_state
from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.autoscaler.decide import PoolMemory, decide_pool
from llmtaskpool_operator.autoscaler.observation import (
    GateObservation,
    PodObservation,
    PoolObservation,
)
from llmtaskpool_operator.autoscaler.plan import Route, SetReplicas, TellGate, plan
from llmtaskpool_operator.autoscaler.status import status_of
from llmtaskpool_worker.contract import QueueState, WorkerState

NOW = {"scaleDown": {"stabilizationWindowSeconds": 0}}
WORKER = "10.0.0.1:8000"


def pool(**scaling: Any) -> LLMTaskPool:
    replicas = scaling.pop("replicas", None)
    fixed = {"compute": {"mode": "Fixed", "initial": 4}}
    spec: dict[str, Any] = {"scaling": {"minReplicas": 0, "behavior": NOW} | scaling}
    return LLMTaskPool.model_validate(
        {
            "apiVersion": "llmtaskpool.io/v1alpha1",
            "kind": "LLMTaskPool",
            "metadata": {"name": "p", "generation": 1},
            "spec": spec | {"threads": fixed, "replicas": replicas},
        }
    )


def worker(*, ready: bool = True, draining: bool = False, **state: Any) -> PodObservation:
    more = {"queue": state.pop("queue", None)}
    told = worker_state("w", **state).model_copy(update=more) if ready else None
    return PodObservation("w", ready=ready, draining=draining, state=told, address=WORKER)


def gate(
    *, routed: bool = True, ready: bool = True, age: float = 0.0, stands: bool = True, **state: Any
) -> GateObservation:
    pod = PodObservation("g", ready=ready, state=gate_state(**state), age_seconds=age)
    return GateObservation((pod,), routed=routed, stands=stands)


def queue(running: int, *, shared: bool = True, batches: int = 0) -> QueueState:
    return QueueState(
        durability="always",
        durable=True,
        shared=shared,
        observed_at=0.0,
        running=running,
        batches=batches,
    )


def turns(
    seen: PoolObservation, count: int = 9, of: LLMTaskPool | None = None
) -> tuple[list[Any], Any]:
    """The actions of the last of some turns, five seconds apart, that all see the same."""
    memory, of = PoolMemory(), of or pool()
    for number in range(count):
        decided, memory = decide_pool(of.spec, seen, memory, 1000.0 + 5 * number)
    return list(plan(of.spec, seen, decided)), decided


def replicas(actions: list[Any]) -> int | None:
    return next((one.replicas for one in actions if isinstance(one, SetReplicas)), None)


def route(actions: list[Any]) -> bool | None:
    return next((one.to_gate for one in actions if isinstance(one, Route)), None)


@pytest.mark.parametrize(
    ("held", "wakes"),
    [
        (gate(held=1), True),
        (gate(recent=1), True),  # it left before anybody looked
        (gate(queue=queue(running=1)), True),  # its worker is gone: its lease ends, it runs again
        (gate(queue=queue(running=0)), False),
        (gate(queue=queue(running=0, batches=1)), True),  # nobody feeds it: it has nothing in line
        (gate(age=60.0, queue=queue(running=0, batches=1)), False),
        (gate(), False),
        (gate(ready=False), False),
        (gate(age=60.0, held=1), False),  # that was then
    ],
)
def test_a_sleeping_pool_wakes_when_somebody_asks_and_not_before(
    held: GateObservation, wakes: bool
) -> None:
    actions, _ = turns(PoolObservation(0, gate=held))
    assert replicas(actions) == (1 if wakes else None)


def test_who_waits_at_the_gate_waits_for_the_next_turn_and_not_for_the_next_period() -> None:
    of, memory = pool().spec, PoolMemory()
    _, memory = decide_pool(of, PoolObservation(0, gate=gate()), memory, 1000.0)
    decided, _ = decide_pool(of, PoolObservation(0, gate=gate(held=3)), memory, 1001.0)
    assert decided.replicas is not None
    assert decided.replicas.desired == 1


@pytest.mark.parametrize("metric", ["OfferedWork", "ThreadUtilization", "GPUUtilization"])
def test_every_metric_wakes(metric: str) -> None:
    actions, _ = turns(PoolObservation(0, gate=gate(held=1)), of=pool(metric=metric))
    assert replicas(actions) == 1


@pytest.mark.parametrize(
    ("pod", "stands", "stays"),
    [
        (worker(), gate(), False),
        (worker(active=1), gate(), True),  # a long answer is under way, and nothing arrives
        (worker(queued=1), gate(), True),
        (worker(queue=queue(running=0, shared=False, batches=1)), gate(), True),
        (worker(), gate(queue=queue(running=0, batches=1)), True),
        (worker(queue=queue(running=0)), gate(queue=queue(running=0)), False),
        (worker(), gate(held=1), True),
        (worker(), gate(recent=1), True),
        (worker(), gate(age=60.0), True),  # nobody knows what it holds
        (worker(), gate(ready=False), True),  # nobody would take requests
        (worker(), gate(routed=False), True),  # nobody would send them there
    ],
)
def test_the_last_worker_goes_only_when_nothing_is_under_way_and_the_gate_is_in_its_place(
    pod: PodObservation, stands: GateObservation, stays: bool
) -> None:
    actions, _ = turns(PoolObservation(1, (pod,), gate=stands))
    assert replicas(actions) == (None if stays else 0)


def test_it_waits_for_its_window_before_it_sleeps() -> None:
    of = pool(behavior={"scaleDown": {"stabilizationWindowSeconds": 60}})
    seen = PoolObservation(1, (worker(),), gate=gate(routed=False))
    assert route(turns(seen, 9, of)[0]) is None
    assert route(turns(seen, 30, of)[0]) is True


@pytest.mark.parametrize(
    ("seen", "leads"),
    [
        (PoolObservation(0, gate=gate(routed=False)), True),
        (PoolObservation(1, (worker(ready=False),), gate=gate(routed=False)), True),
        (PoolObservation(1, (worker(draining=True),), gate=gate(routed=False)), True),
        (PoolObservation(1, (worker(active=1),), gate=gate()), False),
        (PoolObservation(1, (worker(),), gate=gate(routed=False)), True),  # about to sleep
        (PoolObservation(1, (worker(),), gate=gate(routed=False, ready=False)), None),
        (PoolObservation(1, (worker(active=1),), gate=gate(ready=False)), False),
        (PoolObservation(0, gate=gate(ready=False)), None),  # there is nobody
        (PoolObservation(1, (worker(active=1),), gate=gate(routed=False)), None),
        (PoolObservation(1, (worker(),), gate=gate(stands=False)), False),  # it may not sleep now
        (PoolObservation(1, (worker(ready=False),), gate=gate(stands=False)), None),
        (PoolObservation(1, (worker(),)), None),
    ],
)
def test_requests_go_to_a_worker_while_one_is_ready_and_else_to_the_gate(
    seen: PoolObservation, leads: bool | None
) -> None:
    of = pool() if seen.gate is None or seen.gate.stands else pool(minReplicas=1)
    assert route(turns(seen, of=of)[0]) is leads


def test_a_gate_is_told_the_ready_workers_whenever_it_knows_others() -> None:
    for pods, known, told in (
        ((worker(active=1),), (), (WORKER,)),
        ((worker(active=1),), (WORKER,), None),
        ((worker(ready=False),), (WORKER,), ()),
        ((worker(draining=True),), (WORKER,), ()),
    ):
        actions, _ = turns(PoolObservation(1, pods, gate=gate(workers=known)))
        found = [one.workers for one in actions if isinstance(one, TellGate)]
        assert found == ([] if told is None else [told])


def test_a_gate_that_ends_is_told_too_as_it_may_hold_requests() -> None:
    ending = PodObservation("old", ready=False, draining=True, state=gate_state(held=2))
    seen = PoolObservation(1, (worker(active=1),), gate=GateObservation((ending,)))
    actions, _ = turns(seen)
    assert [one.pod for one in actions if isinstance(one, TellGate)] == ["old"]


@pytest.mark.parametrize(
    ("scaling", "seen", "wanted"),
    [
        ({"mode": "External", "replicas": 0}, PoolObservation(1, (worker(),), gate=gate()), 0),
        (
            {"mode": "External", "replicas": 0},
            PoolObservation(1, (worker(),), gate=gate(routed=False)),
            None,
        ),
        ({"mode": "External", "replicas": 2}, PoolObservation(0, gate=gate()), 2),
        ({"paused": True}, PoolObservation(0, gate=gate(held=1)), None),
        ({"mode": "Advise"}, PoolObservation(0, gate=gate(held=1)), None),
    ],
)
def test_who_else_decides_has_the_gate_too_and_the_same_order(
    scaling: dict[str, Any], seen: PoolObservation, wanted: int | None
) -> None:
    assert replicas(turns(seen, of=pool(**scaling))[0]) == wanted


def test_external_sleep_leads_to_the_gate_first() -> None:
    seen = PoolObservation(1, (worker(),), gate=gate(routed=False))
    assert route(turns(seen, of=pool(mode="External", replicas=0))[0]) is True


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (PoolObservation(0, gate=gate()), ("True", "Asleep", "its gate wakes it")),
        (PoolObservation(0, gate=gate(held=2)), ("False", "Waking", "holds 2 requests")),
        (
            PoolObservation(1, (worker(ready=False),), gate=gate(held=2)),
            ("False", "Waking", "holds 2 requests"),
        ),
        (PoolObservation(1, (worker(active=1),), gate=gate()), ("True", "AllReady", "1 of 1")),
        (PoolObservation(0, gate=gate(ready=False)), ("False", "NotAllReady", "gate is not ready")),
    ],
)
def test_the_status_tells_whether_it_sleeps_or_wakes(
    seen: PoolObservation, told: tuple[str, str, str]
) -> None:
    actions, decided = turns(seen)
    made = status_of(pool(), seen, decided, actions, None, "2026-01-01T00:00:00Z")
    (ready,) = [one for one in made.conditions if one.type == "Ready"]
    assert (ready.status, ready.reason) == told[:2]
    assert told[2] in ready.message


def test_of_a_queue_that_pods_share_each_tells_all_of_it_and_it_counts_once() -> None:
    """Before: three pods with a backlog of 540 pod-seconds asked for 27 pods and not for 9."""

    def sharing(name: str) -> PodObservation:
        state: WorkerState = worker_state(name, active=4, queued=90, arrived=1.0)
        work = state.work.model_copy(update={"waiting_seconds": 540.0})
        state = state.model_copy(update={"queue": queue(running=12), "work": work})
        return PodObservation(name, ready=True, state=state, address=WORKER)

    of = pool(minReplicas=1, maxReplicas=100)
    seen = PoolObservation(3, tuple(map(sharing, "abc")))
    actions, decided = turns(seen, of=of)
    assert decided.replicas is not None
    assert decided.replicas.observed.waiting == 9.0
    made = status_of(of, seen, decided, actions, None, "2026-01-01T00:00:00Z")
    assert made.queued == 90
    (threads, *_) = [one.decision for one in decided.threads]
    assert threads.observed.waiting == 30.0
