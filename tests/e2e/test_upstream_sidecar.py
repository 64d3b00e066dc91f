"""A server beside each worker, on a node: it serves, scales, drains and goes.

The server is the one that plays vLLM (tests/fakes/vllm_stub.py), run by the worker's image: what is
shown here is the pod, and not its model.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import openai
import pytest

from .conftest import (
    READY_SECONDS,
    ROOT,
    SYSTEM,
    TEAM,
    Node,
    apply,
    client,
    ours,
    ready,
    say,
    status,
    wait_for,
)

IMAGE = "localhost/llmtaskpool-worker:dev"
RUN = "import os; exec(compile(os.environ['STUB'], 'stub', 'exec'), {'__name__': '__main__'})"
SCRIPT = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "stub", "namespace": TEAM},
    "data": {"stub.py": (ROOT / "tests" / "fakes" / "vllm_stub.py").read_text()},
}
SEATS = 4


def stub_beside(*options: str) -> dict[str, Any]:
    """A pool's ``upstream``: the stub of SCRIPT beside each worker, at 127.0.0.1:8002."""
    return {
        "image": IMAGE,
        "command": ["python3", "-c", RUN],
        # 0.0.0.0: for the kubelet's probes
        "args": ["--host", "0.0.0.0", "--port", "8002", *options],  # noqa: S104
        "env": [
            {
                "name": "STUB",
                "valueFrom": {"configMapKeyRef": {"name": "stub", "key": "stub.py"}},
            }
        ],
        "startupSeconds": 120,
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "securityContext": {"readOnlyRootFilesystem": True},
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
                "options": {"max_threads": str(SEATS)},
            }
        ],
        "upstream": stub_beside("--seats", str(SEATS), "--step-seconds", "0.05"),
        "scaling": {
            "minReplicas": 1,
            "maxReplicas": 2,
            "averagingSeconds": 5,
            "backlogDrainSeconds": 5,
            "drainSeconds": 120,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 20}},
        },
        "threads": {"compute": {"initial": 2, "min": 2, "max": SEATS}},
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
    },
}
TOKENS = 40
ASKED = {
    "model": "letters",
    "messages": [{"role": "user", "content": "abcdefgh"}],
    "max_tokens": TOKENS,
    "stream": True,
    "stream_options": {"include_usage": True},
    "extra_body": {"ignore_eos": True},
}


class Clients:
    """Each asks for one stream after the other; a stream that is short, or breaks, is lost."""

    def __init__(self, node: Node, count: int) -> None:
        self.done, self.lost = 0, []
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(node,), daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, node: Node) -> None:
        chat = client(node)
        while not self._stopping.is_set():
            try:
                chunks = list(chat.chat.completions.create(**ASKED))
            except openai.OpenAIError as error:
                self.lost.append(f"{type(error).__name__}: {error}")
                time.sleep(1)
                continue
            if chunks[-1].usage.completion_tokens == TOKENS:
                self.done += 1
            else:
                self.lost.append(f"{chunks[-1]}")

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(300)


def pods(node: Node) -> list[dict]:
    return node.get("pods", "-n", TEAM).get("items", [])


@pytest.mark.timeout(900)
def test_a_pool_with_a_server_in_its_pods_serves_scales_up_and_down_and_goes(
    node: Node, team: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install = str(ROOT / "deploy" / "install.yaml")
    node.kubectl("apply", "--server-side", "-f", install)
    node.kubectl("-n", SYSTEM, "rollout", "status", "deployment/llmtaskpool-operator")
    apply(node, SCRIPT)
    began = time.monotonic()
    apply(node, POOL)
    wait_for("the pool is Ready", lambda: ready(node), READY_SECONDS)
    say(capsys, f"applied to Ready: {time.monotonic() - began:.0f} s")
    (pod,) = pods(node)
    (sidecar,) = [
        one for one in pod["spec"]["initContainers"] if one.get("restartPolicy") == "Always"
    ]
    assert sidecar["image"] == IMAGE
    assert client(node).chat.completions.create(**ASKED | {"stream": False, "stream_options": None})

    began, few = time.monotonic(), Clients(node, 2)
    many = Clients(node, 20)
    try:
        wait_for("two replicas", lambda: ready(node, 2), READY_SECONDS)
        risen = time.monotonic() - began
        many.stop()
        wait_for("one replica again", lambda: ready(node, 1), READY_SECONDS)
        wait_for("one pod", lambda: len(pods(node)) == 1, READY_SECONDS)
    finally:
        many.stop()
        few.stop()
    fallen = time.monotonic() - began
    say(
        capsys,
        f"two replicas after {risen:.0f} s, one again after {fallen:.0f} s; "
        f"{few.done + many.done} streams, {len(few.lost + many.lost)} lost",
    )
    assert few.lost + many.lost == []
    assert few.done > 0
    assert status(node)["readyReplicas"] == 1

    node.kubectl("delete", "llmtaskpool", "chat", "-n", TEAM, "--wait=true")
    wait_for("no pods", lambda: not pods(node), 120)
    node.kubectl("delete", "configmap", "stub", "-n", TEAM)
    node.kubectl("delete", "-f", install, "--wait=true")
    wait_for("nothing of ours", lambda: not ours(node), 120)
