"""The operator at scale: 1,000 pools, 5,000 pods, on a real API server with kwok's nodes.

    sudo .venv/bin/python benchmarks/operator_scale.py [--pools 1000] [--output json]

Needs root: a stub answers for all pods, on the addresses that kwok gives them, through a local
route that is removed afterwards. Everything runs on this machine, the API server too, so the
operator's share of the cores is measured by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web
from kubernetes.aio.client import ApiClient, CustomObjectsApi

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / place) for place in ("tests", "hack/cluster", "operator", "benchmarks")]

from fakes.operator_process import OperatorProcess  # noqa: E402  found through the line above
from llmtaskpool_operator.api.manifest_file import parse_pool  # noqa: E402
from llmtaskpool_operator.api.names import API_VERSION, KIND  # noqa: E402
from llmtaskpool_operator.cluster import manifests  # noqa: E402
from llmtaskpool_operator.cluster.api_client import ApiFailure, KubernetesApi  # noqa: E402
from llmtaskpool_operator.cluster.manifests import Manifest, Surroundings  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402
from scale_world import (  # noqa: E402
    SYSTEM,
    Stub,
    Told,
    account_kubeconfig,
    control_plane,
    count_writes,
    cpu_by_program,
    namespace_of,
    pods_answer_here,
    reached,
    tell_cpu,
)

LIMITS = {
    "pools Ready, p99 s": 60.0,
    "idle: operator cores": 0.2,
    "idle: operator MiB": 200.0,
    "idle: writes per pool and 10 min": 1.0,
    "spec change to first write, p99 s": 2.0,
    "full read cycle, s": 15.0,
}
AT_ONCE = 32
CHANGE_SECONDS = 2.0
"""A change replaces 25 pods, which takes the API server, its controllers and kwok about 2 s of the
processor; sooner changes measure how two full cores are shared, and are told apart."""


def pool(name: str, replicas: int, limit: int = 256) -> dict[str, Any]:
    """A pool of so many replicas."""
    scaling = {"mode": "Fixed", "maxReplicas": max(replicas, 1)}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace_of(name)},
        "spec": {
            "replicas": replicas,
            "scaling": scaling,
            "queue": {"limit": limit},
            "threads": {"compute": {"initial": 1}, "io": {"initial": 1}},
        },
    }


async def all_of(jobs: list[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Do the jobs, a few at a time; a server that is busy is asked again."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(job: Callable[[], Awaitable[Any]]) -> Any:
        async with gate:
            for _ in range(20):
                try:
                    return await job()
                except ApiFailure as failure:
                    if failure.code not in (0, 409, 429, 500, 503):
                        raise
                    await asyncio.sleep(failure.retry_after or 0.5)
            return None

    return list(await asyncio.gather(*(one(job) for job in jobs)))


def ready(body: dict[str, Any]) -> bool:
    """Whether the pool says that it is Ready."""
    conditions = (body.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


async def first_seen(
    client: ApiClient,
    path: str,
    good: Callable[[Manifest], bool],
    count: int,
    progress: Progress,
    text: str,
) -> list[float]:
    """Seconds from now until each object below ``path`` was first seen to be good.

    Watched and not listed: to list thousands every second was a tenth of the server's time.
    """
    began, seen = time.monotonic(), {}
    job = progress.add_task(text, total=count)
    url = f"{client.configuration.host}{path}?watch=1"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(600):
            while len(seen) < count:  # a server that is busy ends watches
                answer = await client.call_api("GET", url, {"Accept": "application/json"})
                while len(seen) < count and (line := await answer.response.content.readline()):
                    event = json.loads(line)
                    if good(event["object"]):
                        uid = event["object"]["metadata"]["uid"]
                        seen.setdefault(uid, time.monotonic() - began)
                        progress.update(job, completed=len(seen))
                answer.response.close()
    return list(seen.values())


async def measure(plane: Any, folder: Path, args: argparse.Namespace, found: Told) -> None:
    """What is measured with the operator goes into ``found``."""
    stub = Stub({})
    app = web.Application()
    app.router.add_get("/control/v1/state", stub.state)
    app.router.add_put("/control/v1/threads", stub.threads)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", 8001, backlog=4096).start()  # noqa: S104  all pods
    async with reached(plane) as client:
        kubeconfig = account_kubeconfig(plane, folder / "operator.kubeconfig")
        operator = OperatorProcess(
            kubeconfig, folder / "operator.log", forked=False, identity="bench"
        )
        operator.start()
        try:
            await asyncio.to_thread(operator.wait_ready, 60)
            with Progress(console=found.console) as progress:
                await scenarios(client, operator, stub, plane, args, found, progress)
        finally:
            operator.kill()
            await runner.cleanup()


def plain_objects(name: str) -> list[Manifest]:
    """What the operator makes for a pool, owned by nobody."""
    body = pool(name, 1)
    body["metadata"] |= {"namespace": namespace_of(name, "plain"), "uid": name, "generation": 1}
    around = Surroundings("llmtaskpool-worker:latest", "token", SYSTEM)
    parsed = parse_pool(body)
    made = [*manifests.children(parsed, around), manifests.deployment(parsed, around, 1)]
    for one in made:
        del one["metadata"]["ownerReferences"]
    return made


async def without_operator(plane: Any, count: int, found: Told) -> None:
    """The floor: the same children applied by hand, until every Deployment is available."""

    async def make(api: KubernetesApi, name: str) -> None:
        for one in plain_objects(name):
            await api.apply(one)

    def available(body: Manifest) -> bool:
        return bool((body.get("status") or {}).get("availableReplicas"))

    names, spent = [f"pool-{number}" for number in range(count)], cpu_by_program()
    async with reached(plane) as client:
        api = KubernetesApi(client)
        job = asyncio.create_task(all_of([lambda name=name: make(api, name) for name in names]))
        with Progress(console=found.console) as progress:
            path = "/apis/apps/v1/deployments"
            times = await first_seen(client, path, available, count, progress, "by hand")
        await job
    tell_cpu(found, "by hand", spent)
    found["by hand, p99 s"] = p99(times)


async def scenarios(
    client: ApiClient,
    operator: OperatorProcess,
    stub: Stub,
    plane: Any,
    args: argparse.Namespace,
    found: dict[str, float],
    progress: Progress,
) -> None:
    """Create, rest, grow, change; what is measured goes into ``found``."""
    objects, api = CustomObjectsApi(client), KubernetesApi(client)
    names = [f"pool-{number}" for number in range(args.pools)]
    spent = cpu_by_program()
    creating = asyncio.create_task(
        all_of([lambda name=name: api.create(pool(name, 1)) for name in names])
    )
    path = f"/apis/{API_VERSION}/llmtaskpools"
    times = await first_seen(client, path, ready, len(names), progress, "pools")
    await creating
    tell_cpu(found, "pools", spent)
    found["pools: operator's writes per pool"] = count_writes(plane.audit_log) / len(names)
    found["pools Ready"] = float(len(times))
    found["pools Ready, p99 s"] = p99(times)
    found["pools Ready / by hand, p99"] = p99(times) / found["by hand, p99 s"]

    process = psutil.Process(operator.process.pid)
    await asyncio.sleep(args.settle)
    lines = count_writes(plane.audit_log)
    cpu, began = sum(process.cpu_times()[:2]), time.monotonic()
    job = progress.add_task("idle", total=args.idle)
    while (passed := time.monotonic() - began) < args.idle:
        progress.update(job, completed=passed)
        await asyncio.sleep(1)
    passed = time.monotonic() - began
    found["idle: operator cores"] = (sum(process.cpu_times()[:2]) - cpu) / passed
    found["idle: operator MiB"] = process.memory_info().rss / 2**20
    writes = count_writes(plane.audit_log) - lines
    found["idle: writes per pool and 10 min"] = writes / len(names) * 600 / passed

    many = names[: args.many]
    rest = names[args.many :]
    await all_of(
        [
            lambda name=name: objects.delete_namespaced_custom_object(
                "llmtaskpool.io", "v1alpha1", namespace_of(name), "llmtaskpools", name
            )
            for name in rest
        ]
    )
    await all_of([lambda name=name: api.apply(pool(name, args.replicas)) for name in many])
    wanted = len(many) * args.replicas
    job = progress.add_task("growing to many pods", total=wanted)
    began = time.monotonic()
    total = 0
    while total < wanted and time.monotonic() - began < 900:
        bodies = (await api.list(KIND)).items
        total = sum((b.get("status") or {}).get("readyReplicas", 0) for b in bodies)
        progress.update(job, completed=total)
        await asyncio.sleep(2)
    found["pods ready"] = float(total)
    await asyncio.sleep(args.settle)

    since = time.monotonic()
    while sum(at >= since for at in stub.asked.values()) < total:
        await asyncio.sleep(0.05)
        if time.monotonic() - since > 120:
            break
    found["full read cycle, s"] = time.monotonic() - since

    half = len(many) // 2
    for changed, every, how in ((many[:half], CHANGE_SECONDS, ""), (many[half:], 0.0, "at once, ")):
        waits = await spec_changes(api, changed, every, args, progress)
        found[f"spec change to first write, {how}p50 s"] = sorted(waits)[len(waits) // 2]
        found[f"spec change to first write, {how}p99 s"] = p99(waits)
        await asyncio.sleep(args.settle)
    found["operator MiB with many pods"] = process.memory_info().rss / 2**20


async def spec_changes(
    api: KubernetesApi,
    names: list[str],
    every: float,
    args: argparse.Namespace,
    progress: Progress,
) -> list[float]:
    """Seconds from each change of a pool, one after the other, to the operator's write.

    Each makes Kubernetes replace the pool's pods, which goes on meanwhile.
    """
    waits = []
    for name in progress.track(names, description="spec changes"):
        place = namespace_of(name)
        before = (await api.get("Deployment", place, name))["metadata"]["generation"]
        await api.apply(pool(name, args.replicas, limit=99))
        began = time.monotonic()
        while (await api.get("Deployment", place, name))["metadata"]["generation"] == before:
            await asyncio.sleep(0.02)
            if time.monotonic() - began > 30:
                break
        waits.append(time.monotonic() - began)
        await asyncio.sleep(max(0.0, every - waits[-1]))
    return waits


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=1000)
    parser.add_argument("--many", type=int, default=200, help="pools that get many pods")
    parser.add_argument("--replicas", type=int, default=25, help="pods of each of those")
    parser.add_argument("--idle", type=float, default=120.0, help="seconds of idleness measured")
    parser.add_argument("--settle", type=float, default=30.0)
    parser.add_argument("--output", choices=["text", "json"], default="text")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmtaskpool-bench-") as name:
        folder = Path(name)
        found = Told(Console(stderr=True))
        # Each with a server of its own: kwok halts for 20 s after a thousand deletions.
        with control_plane(folder / "by-hand") as plane:
            asyncio.run(without_operator(plane, args.pools, found))
        with control_plane(folder / "state") as plane, pods_answer_here():
            asyncio.run(measure(plane, folder, args, found))
    if args.output == "json":
        print(json.dumps(found))
        return
    table = Table(title=f"{args.pools} pools, then {args.many} pools of {args.replicas} pods")
    for title in ("what", "measured", "limit"):
        table.add_column(title, justify="left" if title == "what" else "right")
    for what, value in found.items():
        limit = LIMITS.get(what)
        table.add_row(what, f"{value:.2f}", "" if limit is None else f"{limit:g}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
