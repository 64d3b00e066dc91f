"""What breaks between the operator and the API server, and how the pool gets over it.

A proxy sees every request of the operator. Pods are stand-in workers, which start at once. Every
test prints how long recovery took; docs/operations.md states the bounds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes.api_proxy import Write
from fakes.operator_process import OperatorProcess
from llmtaskpool_operator.cluster.watch_proof import LATE_SECONDS

from .conftest import CONVERGED_WITHIN, Broken, wait_for
from .pools import Pools, fixed, own_pools


@pytest.fixture
def pools(broken: Broken) -> Iterator[Pools]:
    with own_pools(broken.cluster) as made:
        yield made


def story(pools: Pools, within: float = 60.0) -> None:
    """Create, scale up, update, scale down."""
    pools.apply(fixed(1))
    pools.wait_ready(1, within=within)
    pools.apply(fixed(2))
    pools.wait_ready(2, within=within)
    pools.apply(fixed(2, queue={"limit": 9}))
    wait_for("rolled out", lambda: rolled_out(pools), within)
    pools.apply(fixed(1, queue={"limit": 9}))
    wait_for("one pod", lambda: len(pools.pods()) == 1, within)
    pools.wait_ready(1, within=within)


def rolled_out(pools: Pools) -> bool:
    body = pools.deployment()
    template = json.dumps(body["spec"]["template"])
    status = body.get("status", {})
    current = status.get("observedGeneration") == body["metadata"]["generation"]
    return (
        '"9"' in template
        and current
        and status.get("updatedReplicas") == 2
        and len(pools.pods()) == 2
    )


def children(pools: Pools) -> dict[str, list[str]]:
    """Names of all that the operator made, by kind."""
    ns = f"namespaces/{pools.namespace}"
    paths = {
        "Deployment": f"/apis/apps/v1/{ns}/deployments",
        "Service": f"/api/v1/{ns}/services",
        "ServiceAccount": f"/api/v1/{ns}/serviceaccounts",
        "Secret": f"/api/v1/{ns}/secrets",
        "PodDisruptionBudget": f"/apis/policy/v1/{ns}/poddisruptionbudgets",
        "NetworkPolicy": f"/apis/networking.k8s.io/v1/{ns}/networkpolicies",
    }
    return {
        kind: sorted(item["metadata"]["name"] for item in pools.get(path)["items"])
        for kind, path in paths.items()
    }


EVERY_CHILD = {
    "Deployment": ["p"],
    "Service": ["p"],
    "ServiceAccount": ["default", "p-worker"],
    "Secret": ["p-llmtaskpool-control"],
    "PodDisruptionBudget": ["p-worker"],
    "NetworkPolicy": ["p-worker"],
}
SPEC_CHANGES = 4
"""Generations of the Deployment in the story: made, scaled up, updated, scaled down."""


def test_the_story_without_faults_takes_one_write_for_each_step(
    broken: Broken, operator: OperatorProcess, pools: Pools, say: Callable[[str], None]
) -> None:
    story(pools)
    writes = broken.proxy.of(pools.namespace)
    say(f"writes of create, scale up, update, scale down: {len(writes)}")
    steps = [w for w in writes if w.path.endswith("/deployments/p")]
    assert len(steps) == SPEC_CHANGES
    assert pools.deployment()["metadata"]["generation"] == SPEC_CHANGES
    assert children(pools) == EVERY_CHILD


@contextlib.contextmanager
def kept_alive(operator: OperatorProcess) -> Iterator[None]:
    """Start the operator again whenever it is found dead, as a Deployment does."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if operator.process.poll() is not None:
                operator.start()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)


class KillOnce:
    """Kills the operator at each write that it was not killed at before."""

    def __init__(self, operator: OperatorProcess, namespace: str) -> None:
        self._operator = operator
        self._namespace = namespace
        self._known: set[str] = set()
        self.at: list[float] = []

    def __call__(self, write: Write) -> bool:
        if f"/{self._namespace}/" not in write.path:
            return False
        mark = hashlib.sha256(write.path.encode() + _timeless(write.body)).hexdigest()
        if mark in self._known:
            return False
        self._known.add(mark)
        self._operator.kill()
        self.at.append(time.monotonic())
        return True


def _timeless(body: bytes) -> bytes:
    """A status without what moves with time: else each attempt would be a write of its own."""
    value = json.loads(body)

    def strip(part: Any) -> Any:
        if isinstance(part, dict):
            timed = {"lastTransitionTime", "resourceVersion", "message"}
            timed |= {"threads", "lastDecisions", "queued", "utilization"}
            return {k: strip(v) for k, v in part.items() if k not in timed}
        return [strip(one) for one in part] if isinstance(part, list) else part

    return json.dumps(strip(value), sort_keys=True).encode()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_operator_killed_at_every_write_ends_where_one_without_faults_does(
    broken: Broken,
    operator: OperatorProcess,
    pools: Pools,
    when: str,
    say: Callable[[str], None],
) -> None:
    kill = KillOnce(operator, pools.namespace)
    setattr(broken.proxy, when, kill)
    with kept_alive(operator):
        story(pools, within=400)
        settled = time.monotonic()
    say(
        f"killed {when} each of {len(kill.at)} writes; "
        f"settled {settled - kill.at[-1]:.1f} s after the last"
    )
    assert len(kill.at) >= 10
    assert settled - kill.at[-1] < CONVERGED_WITHIN
    assert pools.deployment()["metadata"]["generation"] == SPEC_CHANGES
    assert children(pools) == EVERY_CHILD


@pytest.mark.timeout(600)
def test_answers_that_are_lost_after_the_commit_double_nothing(
    broken: Broken, operator: OperatorProcess, pools: Pools
) -> None:
    known: set[str] = set()

    def first_time(write: Write) -> bool:
        mark = hashlib.sha256(write.path.encode() + _timeless(write.body)).hexdigest()
        return mark not in known and not known.add(mark)

    broken.proxy.after = first_time
    story(pools, within=150.0)  # each write fails once, and the back-off goes up to 30 s
    assert pools.deployment()["metadata"]["generation"] == SPEC_CHANGES
    assert children(pools) == EVERY_CHILD


@pytest.mark.parametrize(
    ("code", "headers"),
    [(409, {}), (429, {"Retry-After": "1"}), (500, {}), (503, {}), (401, {}), (403, {})],
)
def test_a_server_that_refuses_every_write_for_a_while_is_asked_again(
    broken: Broken,
    operator: OperatorProcess,
    pools: Pools,
    code: int,
    headers: dict[str, str],
    say: Callable[[str], None],
) -> None:
    pools.apply(fixed(1))
    pools.wait_ready(1)
    refused: list[float] = []

    def fault(method: str, path: str) -> tuple[int, dict[str, str]] | None:
        if method in {"PATCH", "POST", "PUT"} and f"/{pools.namespace}/" in path:
            refused.append(time.monotonic())
            return code, headers
        return None

    broken.proxy.fault = fault
    pools.apply(fixed(2))
    wait_for("refusals", lambda: len(refused) > 2)
    assert pools.asked_for() == 1
    assert len(broken.kubelet.ready_addresses(pools.namespace)) == 1  # it serves on
    broken.proxy.fresh()
    began = time.monotonic()
    pools.wait_ready(2, within=CONVERGED_WITHIN)
    say(
        f"{code}: {len(refused)} refusals, recovered {time.monotonic() - began:.1f} s after the end"
    )
    assert operator.process.poll() is None


def test_frozen_watches_are_made_good_by_the_resync(
    broken: Broken, operator: OperatorProcess, pools: Pools, say: Callable[[str], None]
) -> None:
    pools.apply(fixed(1))
    pools.wait_ready(1)
    broken.proxy.freeze_watches.set()
    began = time.monotonic()
    pools.apply(fixed(2))
    wait_for("two asked for", lambda: pools.asked_for() == 2, CONVERGED_WITHIN)
    say(f"watches frozen: seen after {time.monotonic() - began:.1f} s (resync 3 s)")
    broken.proxy.freeze_watches.clear()
    pools.wait_ready(2)


def test_an_operator_whose_watches_are_frozen_is_not_ready_until_they_move_again(
    broken: Broken, operator: OperatorProcess, pools: Pools, say: Callable[[str], None]
) -> None:
    pools.apply(fixed(1))
    pools.wait_ready(1)
    time.sleep(LATE_SECONDS / 2)
    assert operator.get("/readyz").status_code == 200
    broken.proxy.freeze_watches.set()
    began = time.monotonic()
    pools.apply(fixed(2))

    def unready() -> dict[str, Any]:
        answer = operator.get("/readyz")
        return answer.json() if answer.status_code == 503 else {}

    why = wait_for("not ready", unready, LATE_SECONDS + 10)["why"]
    late = time.monotonic() - began
    assert "the watch of" in why
    assert operator.get("/livez").status_code == 200
    assert max(behind(operator)) > LATE_SECONDS
    pools.wait_ready(2)  # it works on, by lists
    broken.proxy.freeze_watches.clear()
    began = time.monotonic()
    wait_for("ready", lambda: operator.get("/readyz").status_code == 200, 10)
    say(f"/readyz 503 {late:.1f} s after a change; 200 {time.monotonic() - began:.1f} s after")
    wait_for("no watch is behind", lambda: max(behind(operator)) == 0, 30)


def behind(operator: OperatorProcess) -> list[float]:
    """Seconds by which the watches are behind, from the operator's metrics."""
    lines = operator.get("/metrics").text.splitlines()
    return [float(one.split()[-1]) for one in lines if "_watch_behind_seconds{" in one]


def test_watch_events_that_are_all_dropped_are_made_good_by_the_resync(
    broken: Broken, operator: OperatorProcess, pools: Pools
) -> None:
    broken.proxy.drop_event = lambda _path, event: event["type"] != "BOOKMARK"
    story(pools, within=90)
    assert pools.deployment()["metadata"]["generation"] == SPEC_CHANGES


def test_a_watch_that_is_told_410_lists_anew(
    broken: Broken, operator: OperatorProcess, pools: Pools
) -> None:
    pools.apply(fixed(1))
    pools.wait_ready(1)
    gone: set[str] = set()

    def expired_once(path: str, event: dict[str, Any]) -> dict[str, Any]:
        """What the server sends when etcd has compacted the history that a watch needs."""
        if path in gone:
            return event
        gone.add(path)
        return {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}

    broken.proxy.replace_event = expired_once
    pools.apply(fixed(2))
    pools.wait_ready(2, within=CONVERGED_WITHIN)
    assert gone
    assert operator.process.poll() is None
