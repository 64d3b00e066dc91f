"""Pods that say odd things of themselves, or nothing: what is believed, what is told, what goes on.

Each pool has two idle pods and asks for one at least, so it falls to one pod as soon as it may;
one of the two answers oddly. The pool without oddity falls: that is what the others hold against.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fakes.mini_kubelet import RunningPod, next_address
from fakes.operator_process import OperatorProcess
from fakes.plain_http import NO_TLS
from fakes.preloaded import llmtaskpool

from .conftest import Broken, wait_for
from .pools import Pools, manifest, own_pools

GPU: dict[str, Any] = {"index": 0, "name": "g", "utilization": 0.2}


@dataclass(frozen=True, slots=True)
class Oddity:
    """``spoilt``: what one pod says in these places; ``told``: what the user reads of it."""

    spoilt: dict[str, Any]
    told: str
    every: bool = False
    """Both pods are odd."""
    metric: str = "OfferedWork"


ODDITIES = {
    "nan": Oddity({"work.arrived_seconds_total": math.nan}, "work.arrived_seconds_total"),
    "infinite": Oddity({"work.waiting_seconds": math.inf}, "work.waiting_seconds"),
    "negative": Oddity({"lanes.compute.active": -3}, "lanes.compute.active"),
    "text": Oddity({"lanes.compute.threads": "many"}, "lanes.compute.threads"),
    "fraction": Oddity({"lanes.compute.queued": 1.5}, "lanes.compute.queued"),
    "laneless": Oddity({"lanes": {}}, "lanes.compute"),
    "clockless": Oddity({"observed_at": None}, "observed_at"),
    "frozen": Oddity({"observed_at": 5.0}, "observed_at stands still"),
    "nogpu": Oddity({"gpus": []}, "gpus.utilization", metric="GPUUtilization"),
    "nangpu": Oddity(
        {"gpus": [GPU | {"utilization": math.nan}]}, "gpus.0.utilization", metric="GPUUtilization"
    ),
    "biggpu": Oddity(
        {"gpus": [GPU | {"utilization": 1.7}]}, "gpus.0.utilization", metric="GPUUtilization"
    ),
    "alltext": Oddity({"work.arrived_seconds_total": "x"}, "work.arrived_seconds_total", True),
    "allnogpu": Oddity({"gpus": []}, "gpus.utilization", True, "GPUUtilization"),
}


@pytest.fixture
def pools(broken: Broken) -> Iterator[Pools]:
    with own_pools(broken.cluster) as made:
        yield made


def auto(name: str, least: int, metric: str = "OfferedWork") -> dict[str, Any]:
    scaling = {
        "minReplicas": least,
        "maxReplicas": 4,
        "metric": metric,
        "drainSeconds": 5,
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
    }
    return manifest(name, scaling=scaling)


def pods_of(broken: Broken, pools: Pools, pool: str) -> list[RunningPod]:
    found = [p for p in broken.kubelet.pods.values() if p.namespace == pools.namespace]
    return sorted((p for p in found if p.name.startswith(f"{pool}-")), key=lambda p: p.name)


def spoil(pod: RunningPod, spoilt: dict[str, Any]) -> None:
    """Written beside and moved: the worker never reads half a file."""
    new = pod.folder / "odd.new"
    new.write_text(json.dumps(spoilt))
    new.replace(pod.folder / "odd.json")


def explained(broken: Broken, pools: Pools, pool: str) -> str:
    """What ``llmtaskpool explain`` prints, on one line."""
    environment = os.environ | {"KUBECONFIG": str(broken.cluster.kubeconfig), "COLUMNS": "2000"}
    run = llmtaskpool("explain", pool, "-n", pools.namespace, environment=environment)
    assert run.returncode == 0, run.stderr
    return " ".join(run.stdout.split())


@contextmanager
def load(*pods: RunningPod) -> Iterator[None]:
    """Twenty requests of a minute to each: more than the threads that a pod begins with."""

    def ask(address: str) -> None:
        with suppress(httpx.HTTPError, RuntimeError):  # the client is closed
            http.post(f"http://{address}:8000/v1/work", json={"seconds": 60})

    with httpx.Client(timeout=90, limits=httpx.Limits(max_connections=200), verify=NO_TLS) as http:
        for pod in pods:
            for _ in range(20):
                threading.Thread(target=ask, args=(pod.address,), daemon=True).start()
        yield


def threads(pod: RunningPod) -> int:
    return httpx.get(f"http://{pod.address}:8000/who", verify=NO_TLS).json()["threads"]


@pytest.mark.timeout(600)
def test_odd_samples_are_ignored_and_named_with_pod_and_field_and_their_pools_hold(
    broken: Broken, operator: OperatorProcess, pools: Pools, say: Callable[[str], None]
) -> None:
    metrics = {name: of.metric for name, of in ODDITIES.items()} | {"well": "OfferedWork"}
    for name, metric in metrics.items():
        pools.apply(auto(name, 2, metric))
    for name, metric in metrics.items():
        wait_for(f"pods of {name}", lambda name=name: len(pods_of(broken, pools, name)) == 2, 60)
        if metric == "GPUUtilization":
            for pod in pods_of(broken, pools, name):
                spoil(pod, {"gpus": [GPU]})
    for name in metrics:
        pools.wait_ready(2, name)
    odd: dict[str, list[RunningPod]] = {}
    for name, of in ODDITIES.items():
        odd[name] = pods_of(broken, pools, name)[: 2 if of.every else 1]
        for pod in odd[name]:
            spoil(pod, of.spoilt)
    began = time.monotonic()
    for name, of in ODDITIES.items():

        def named(name: str = name, told: str = of.told) -> bool:
            found = pools.condition("MetricsAvailable", name)
            return found.get("status") == "False" and all(
                pod.name in found["message"] and told in found["message"] for pod in odd[name]
            )

        wait_for(f"{name} is named: {pools.condition('MetricsAvailable', name)}", named, 60)
    say(f"{len(ODDITIES)} oddities named with pod and field {time.monotonic() - began:.1f} s after")
    calm = {name: threads(odd[name][0]) for name in ("nan", "frozen")}
    (healthy,) = pods_of(broken, pools, "text")[1:]
    was = threads(healthy)
    with load(odd["nan"][0], odd["frozen"][0], healthy):
        for name, metric in metrics.items():
            pools.apply(auto(name, 1, metric))
        began = time.monotonic()
        wait_for("the pool that is well falls", lambda: pools.asked_for("well") == 1, 30)
        say(f"the pool that is well fell {time.monotonic() - began:.1f} s after it might")
        wait_for("a pod that is well gets threads", lambda: threads(healthy) > was, 10)
        time.sleep(11)  # two more decisions
        held = {name: pools.asked_for(name) for name in ODDITIES}
        say(f"replicas of the pools with oddities (2 before): {held}")
        assert {name: n for name, n in held.items() if n < 2} == {}
        assert {name: held[name] for name in ("alltext", "allnogpu")} == dict.fromkeys(
            ("alltext", "allnogpu"), 2
        )
        now = {name: threads(odd[name][0]) for name in calm}
        say(f"threads of pods with oddities under load: {calm} -> {now}; well: {was} -> more")
        assert now == calm
    for name, of in ODDITIES.items():
        text = explained(broken, pools, name)
        assert of.told in text, text
        assert odd[name][0].name in text, text
    assert pools.condition("ScalingLimited", "alltext")["reason"] == "NoData"
    for name, metric in metrics.items():
        for pod in odd.get(name, ()):
            spoil(pod, {"gpus": [GPU]} if metric == "GPUUtilization" else {})
    began = time.monotonic()
    for name in ODDITIES:
        wait_for(
            f"{name} reports again",
            lambda name=name: pools.condition("MetricsAvailable", name).get("status") == "True",
            40,
        )
    wait_for("falls", lambda: pools.asked_for("negative") == 1, 60)
    say(f"believed again {time.monotonic() - began:.1f} s after the end")
    assert "the turn failed" not in operator.text()


@contextmanager
def blackhole() -> Iterator[str]:
    """An address whose control port takes connections' first packet and never answers."""
    address = next_address()
    with socket.socket() as server:
        server.bind((address, 8001))
        server.listen(0)
        fillers = []
        for _ in range(4):  # until the backlog is full; those to come are dropped by the kernel
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((address, 8001))
            fillers.append(filler)
        time.sleep(0.2)
        probe = socket.socket()
        probe.settimeout(0.5)
        with pytest.raises(TimeoutError):
            probe.connect((address, 8001))
        probe.close()
        try:
            yield address
        finally:
            for filler in fillers:
                filler.close()


def test_a_pod_behind_a_black_hole_is_named_and_delays_no_other_pool(
    broken: Broken, operator: OperatorProcess, pools: Pools, say: Callable[[str], None]
) -> None:
    for name in ("hole", "before", "after"):
        pools.apply(auto(name, 1))
    for name in ("hole", "before", "after"):
        pools.wait_ready(1, name)

    def grown(name: str) -> float:
        """Seconds from a burst to the decision about replicas."""
        with load(*pods_of(broken, pools, name)[:1]):
            began = time.monotonic()
            wait_for(f"{name} grows", lambda: pools.asked_for(name) > 1, 15)
            return time.monotonic() - began

    without = grown("before")
    (pod,) = pods_of(broken, pools, "hole")
    broken.kubelet.deaf.add(pod.name)
    with blackhole() as address:
        path = f"/api/v1/namespaces/{pools.namespace}/pods/{pod.name}/status"
        status = {"podIP": address, "podIPs": [{"ip": address}]}
        pools.send("PATCH", path, {"status": status}, "merge")

        def named() -> bool:
            found = pools.condition("MetricsAvailable", "hole")
            return found.get("status") == "False" and f"{pod.name} (no answer" in found["message"]

        began = time.monotonic()
        wait_for("the pod is named", named, 60)
        say(f"a pod behind a black hole is named after {time.monotonic() - began:.1f} s")
        with_hole = grown("after")
        assert pools.asked_for("hole") == 1
    say(f"burst to decision of another pool: {without:.1f} s without, {with_hole:.1f} s with it")
