"""Traffic through a pool while it grows, shrinks and is rolled out: nothing is lost.

Clients see endpoints a second late, as behind a Service. Pods are real worker processes; tasks
wait for a slow server, so that two cores are enough for many of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes.service import Clients, LaggingService

from .conftest import Operated, wait_for
from .pools import Pools, manifest

SOON = {
    "averagingSeconds": 5,
    "backlogDrainSeconds": 1,
    "maxReplicas": 2,
    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}},
}
NARROW = {"io": {"initial": 2, "min": 2, "max": 4}}


@pytest.fixture
def pools(operated: Operated, namespace: str) -> Iterator[Pools]:
    made = Pools(operated.cluster, namespace)
    yield made
    for item in made.get(made.path).get("items", ()):
        made.delete(item["metadata"]["name"])


def fetching(slow: str, seconds: float) -> Any:
    """Sends one io task to a worker and waits for its result, from the worker that took it."""
    url = f"http://{slow}/?seconds={seconds:g}"

    def send(http: httpx.Client, worker: str) -> None:
        made = http.post(f"{worker}/v1/tasks", json={"kind": "io.fetch", "arguments": {"url": url}})
        assert made.status_code == 202, made.text
        found = http.get(f"{worker}/v1/tasks/{made.json()['id']}", params={"wait": "60"})
        assert found.status_code == 200, found.text
        assert found.json()["state"] == "succeeded", found.text

    return send


def service(operated: Operated, pools: Pools) -> LaggingService:
    return LaggingService(lambda: operated.kubelet.ready_addresses(pools.namespace))


def test_a_burst_raises_threads_and_replicas_and_they_come_back_down_with_nothing_lost(
    operated: Operated, pools: Pools
) -> None:
    pools.apply(manifest(scaling=SOON, threads=NARROW))
    pools.wait_ready(1)
    most_threads = 0

    def risen() -> bool:
        nonlocal most_threads
        lanes = {lane["lane"]: lane for lane in pools.status().get("threads", ())}
        most_threads = max(most_threads, lanes.get("io", {}).get("observed", 0))
        return pools.status().get("readyReplicas") == 2

    with Clients(service(operated, pools), fetching(operated.slow, 0.3), 24) as clients:
        wait_for("a second replica", risen, 90)
        both = {pod["metadata"]["name"] for pod in pools.pods()}
        time.sleep(3)
    wait_for("one replica again", lambda: len(pools.pods()) == 1, 90)
    assert clients.failures == []
    assert clients.done > 24
    assert most_threads >= 4
    (gone,) = both - {pod["metadata"]["name"] for pod in pools.pods()}
    assert operated.kubelet.ended[gone] == 0
    assert gone not in operated.kubelet.killed
    steps = [d for d in pools.status()["lastDecisions"] if d["what"] == "replicas"]
    assert [(s["before"], s["after"]) for s in reversed(steps)][-2:] == [(1, 2), (2, 1)]


def test_a_change_of_the_spec_rolls_out_under_traffic_with_nothing_lost(
    operated: Operated, pools: Pools
) -> None:
    fixed = {"mode": "Fixed", "drainSeconds": 30}
    pools.apply(manifest(scaling=fixed, replicas=1))
    pools.wait_ready(1)
    (before,) = pools.pods()
    with Clients(service(operated, pools), fetching(operated.slow, 0.5), 6) as clients:
        wait_for("traffic", lambda: clients.done > 6, 30)
        pools.apply(manifest(scaling=fixed, replicas=1, queue={"limit": 99}))

        def rolled() -> bool:
            names = [pod["metadata"]["name"] for pod in pools.pods()]
            return len(names) == 1 and names != [before["metadata"]["name"]]

        wait_for("the new pod alone", rolled, 120)
    assert clients.failures == []
    assert operated.kubelet.ended[before["metadata"]["name"]] == 0
