"""Tenants by their API keys, as their clients and the metrics see them."""

from __future__ import annotations

import json
import threading

import pytest
from fakes.http_rig import serving_engines, wait_until
from fakes.letters_engine import LettersEngine
from prometheus_client.parser import text_string_to_metric_families

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
TASK = {"kind": "chat", "model": "echo", "input": CHAT["messages"]}


@pytest.fixture
def engine():
    return LettersEngine("echo")


@pytest.fixture
def rig(engine, tmp_path):
    (tmp_path / "team").write_text("# its old key, and its new one\nteam-old\nteam-new\n")
    with serving_engines(
        engine,
        threads=1,
        threads_max=1,
        queue_limit=6,
        preempt_factor=0,
        api_keys="one-key,another-key",
        tenants="team,waiting=2,weight=5",
        tenant_keys_dir=tmp_path,
    ) as running:
        yield running


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


def tenants_on_the_page(rig) -> dict[tuple[str, str], float]:
    page = rig.get("/metrics").text
    for secret in ("team-old", "team-new", "one-key", "another-key"):
        assert secret not in page
    return {
        (sample.labels["tenant"], sample.labels.get("state", sample.name)): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if "tenant" in sample.labels
    }


def test_limits_of_a_key_bind_its_owner_alone_and_are_told(rig, engine):
    engine.hangs = True
    assert rig.post("/v1/tasks", TASK).status_code == 401
    for name in ("team-old", "team-new", "team-old"):
        answer = rig.post("/v1/tasks", TASK, headers=key(name))
        assert answer.status_code == 202, answer.text
    full = rig.post("/v1/tasks", TASK, headers=key("team-new"))
    assert (full.status_code, full.json()["error"]["code"]) == (429, "tenant_full")
    assert "2 tasks of your key wait already" in full.json()["error"]["message"]
    assert int(full.headers["retry-after"]) >= 1
    heavy = rig.post("/v1/chat/completions", CHAT | {"weight": 9}, headers=key("team-new"))
    assert (heavy.status_code, heavy.json()["error"]["param"]) == (400, "weight")
    for _ in range(3):
        assert rig.post("/v1/tasks", TASK, headers=key("one-key")).status_code == 202
    seen = tenants_on_the_page(rig)
    assert (seen[("team", "waiting")], seen[("team", "running")]) == (2, 1)
    assert seen[("team", "llmtaskpool_tenant_refused_total")] == 2
    [other] = {tenant for tenant, _ in seen if tenant != "team"}
    assert other.startswith("key-")
    assert len(other) == 12
    assert seen[(other, "waiting")] == 3
    engine.hangs = False


def test_the_least_urgent_request_leaves_a_full_line_for_a_more_urgent_one(rig, engine):
    engine.hangs = True
    answers = []

    def ask():
        body = CHAT | {"weight": 0.5}
        answers.append(rig.post("/v1/chat/completions", body, headers=key("another-key")))

    assert rig.post("/v1/tasks", TASK, headers=key("one-key")).status_code == 202
    waiting = threading.Thread(target=ask)
    waiting.start()
    wait_until(lambda: rig.held() == 2, "it waits")
    for _ in range(5):
        assert rig.post("/v1/tasks", TASK, headers=key("one-key")).status_code == 202
    low = rig.post("/v1/chat/completions", CHAT | {"weight": 0.1}, headers=key("another-key"))
    assert (low.status_code, low.json()["error"]["code"]) == (429, "queue_full")
    urgent = rig.post("/v1/tasks", TASK | {"weight": 9}, headers=key("one-key"))
    assert urgent.status_code == 202
    waiting.join(60)
    assert answers[0].status_code == 429
    assert answers[0].json()["error"]["code"] == "shed"
    assert int(answers[0].headers["retry-after"]) >= 1
    kept = rig.post("/v1/tasks", TASK | {"weight": 99}, headers=key("one-key"))
    assert kept.status_code == 429, "what was accepted to be fetched later is never shed"
    engine.hangs = False


def test_the_lines_of_a_batch_are_of_the_key_that_made_it_and_wait_for_its_limit(rig):
    body = {"model": "echo", "prompt": "abc"}
    line = {"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": body}
    text = "\n".join(json.dumps(line | {"custom_id": f"r{n}"}) for n in range(5))
    with rig.client(headers=key("team-new")) as http:
        file = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("f", text)}).json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/completions"}
        batch = http.post("/v1/batches", json=asked).json()

        def over() -> bool:
            nonlocal batch
            batch = http.get(f"/v1/batches/{batch['id']}").json()
            return batch["status"] == "completed"

        wait_until(over, "more lines than its key may have waiting are answered")
    assert batch["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert tenants_on_the_page(rig)["team", "llmtaskpool_tenant_started_seconds_total"] > 0
