"""What is gone for a while: the API server, etcd, the leader, a worker; and what goes on without.

Pods are stand-in workers. Every test prints how long recovery took; docs/operations.md states the
bounds.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import pytest
from fakes.mini_kubelet import said_ready
from fakes.operator_process import OperatorProcess
from fakes.plain_http import NO_TLS

from .conftest import CONVERGED_WITHIN, LEASE, Broken, wait_for
from .pools import Pools, fixed, own_pools


@pytest.fixture
def pools(broken: Broken) -> Iterator[Pools]:
    with own_pools(broken.cluster) as made:
        yield made


@contextlib.contextmanager
def requests_to(address: str) -> Iterator[Counter[str]]:
    """Five requests a second to a pod, until the end: how each of them ended."""
    ended: Counter[str] = Counter()
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=10, verify=NO_TLS) as http:
            while not over.wait(0.1):
                try:
                    answer = http.post(f"http://{address}:8000/v1/tasks", json={"seconds": 0.1})
                    ended[str(answer.status_code)] += 1
                except httpx.HTTPError as error:
                    ended[type(error).__name__] += 1

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield ended
    finally:
        over.set()
        thread.join(15)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("role", "seconds"), [("kube-apiserver", 120), ("etcd", 20)])
def test_a_control_plane_that_is_down_is_waited_for_and_workers_serve_on(
    broken: Broken,
    operator: OperatorProcess,
    pools: Pools,
    role: str,
    seconds: int,
    say: Callable[[str], None],
) -> None:
    pools.apply(fixed(1))
    pools.wait_ready(1)
    (address,) = broken.kubelet.ready_addresses(pools.namespace)
    lives: Counter[int] = Counter()
    with requests_to(address) as ended:
        broken.plane.kill(role)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            lives[operator.get("/livez").status_code] += 1
            time.sleep(1)
        ready = operator.get("/readyz")
        assert broken.kubelet.ready_addresses(pools.namespace) == [address]
        assert operator.process.poll() is None
        broken.plane.start(role)
        broken.plane.wait_ready()
        began = time.monotonic()
        wait_for("the server takes writes", lambda: _applied(pools, 2), 60)
        wait_for("two asked for", lambda: pools.asked_for() == 2, CONVERGED_WITHIN)
        acted = time.monotonic() - began
        wait_for("ready", lambda: operator.get("/readyz").status_code == 200, CONVERGED_WITHIN)
    say(
        f"{role} down for {seconds} s: acted {acted:.1f} s after it was back; "
        f"/livez {dict(lives)}; /readyz at the end {ready.status_code} {ready.text}; "
        f"requests to the pod {dict(ended)}"
    )
    assert set(lives) == {200}  # the kubelet has no reason to kill it
    assert set(ended) == {"200"}
    assert ended["200"] > 2 * seconds
    if seconds > 60:  # nothing that it knows is of now
        assert ready.status_code == 503
        assert "has not answered a list" in ready.json()["why"]
    # Kubernetes' own controllers come back with a backoff of theirs.
    pools.wait_ready(2, within=300)


def test_a_pod_that_was_taken_for_lost_is_ready_again(
    broken: Broken, operator: OperatorProcess, pools: Pools
) -> None:
    """Of a node that was silent, as after an outage, a controller says that no pod is ready."""
    pools.apply(fixed(1))
    pools.wait_ready(1)
    (pod,) = pools.pods()
    path = f"/api/v1/namespaces/{pools.namespace}/pods/{pod['metadata']['name']}/status"
    lost = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    told = pools.send("PATCH", path, lost, "merge")
    assert not said_ready(told)
    wait_for("the pod is ready", lambda: said_ready(pools.pods()[0]))
    pools.wait_ready(1)


def _applied(pools: Pools, replicas: int) -> bool:
    try:
        pools.apply(fixed(replicas))
    except (AssertionError, OSError):
        return False
    return True


def holder(broken: Broken) -> str:
    status, answer = broken.cluster.request("GET", LEASE)
    return json.loads(answer)["spec"].get("holderIdentity", "") if status == 200 else ""


def test_of_two_operators_one_acts_and_the_other_takes_over_when_it_is_killed_or_frozen(
    broken: Broken, operator: OperatorProcess, pools: Pools, say: Callable[[str], None]
) -> None:
    second = broken.operator("two")
    second.start()
    try:
        second.wait_ready(60)
        pools.apply(fixed(1))
        pools.wait_ready(1)
        assert holder(broken) == "one"
        assert {w.who for w in broken.proxy.of(pools.namespace)} == {"one"}

        operator.freeze()
        began = time.monotonic()
        wait_for("two leads", lambda: holder(broken) == "two", 30)
        say(f"leader frozen: the other leads after {time.monotonic() - began:.1f} s")
        pools.apply(fixed(2))
        pools.wait_ready(2)
        broken.proxy.writes.clear()
        operator.thaw()
        pools.apply(fixed(1))
        wait_for("one asked for", lambda: pools.asked_for() == 1, 30)
        assert {w.who for w in broken.proxy.of(pools.namespace)} == {"two"}

        second.kill()
        began = time.monotonic()
        wait_for("one leads", lambda: holder(broken) == "one", 30)
        say(f"leader killed: the other leads after {time.monotonic() - began:.1f} s")
        pools.apply(fixed(2))
        pools.wait_ready(2, within=CONVERGED_WITHIN)
    finally:
        second.kill()


def test_an_operator_that_is_told_to_end_gives_its_lease_up_at_once(
    broken: Broken, operator: OperatorProcess
) -> None:
    wait_for("one leads", lambda: holder(broken) == "one")
    assert operator.terminate() == 0
    assert holder(broken) == ""


def test_a_worker_that_hangs_is_named_and_other_pools_go_on(
    broken: Broken, operator: OperatorProcess, pools: Pools
) -> None:
    pools.apply(fixed(1))
    pools.wait_ready(1)
    (hung,) = [p for p in broken.kubelet.pods.values() if p.namespace == pools.namespace]
    broken.kubelet.deaf.add(hung.name)  # its readiness is not looked at: the node seems well
    hung.process.send_signal(19)
    try:
        pools.apply(fixed(1) | {"metadata": {"name": "other"}})
        pools.wait_ready(1, "other")

        def named() -> bool:
            found = pools.condition("MetricsAvailable")
            return found.get("status") == "False" and hung.name in found["message"]

        wait_for("the silent pod is named", named, 60)
        assert pools.asked_for() == 1
    finally:
        hung.process.send_signal(18)
