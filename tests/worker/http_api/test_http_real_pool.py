"""The routes over the real task pool, with engines that a test can hold, hurry and kill."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from contextlib import closing

import psutil
import pytest
from fakes.http_rig import request_bytes, serving_engines, wait_until
from fakes.letters_engine import POISON, LettersEngine
from prometheus_client.parser import text_string_to_metric_families

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


@pytest.fixture
def engine():
    return LettersEngine("echo")


@pytest.fixture
def rig(engine):
    with serving_engines(engine, LettersEngine("vectors", task="embed")) as running:
        yield running


def test_chats_completions_and_embeddings_pass_through_the_pool(rig):
    chat = rig.post("/v1/chat/completions", CHAT).json()
    assert chat["choices"][0]["message"]["content"] == "u:hi\n"
    assert chat["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    streamed = rig.post("/v1/chat/completions", CHAT | {"stream": True}).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "u:hi\n"
    stopped = rig.post("/v1/completions", {"model": "echo", "prompt": "abcdef", "stop": "de"})
    assert stopped.json()["choices"][0]["text"] == "abc"
    vectors = rig.post("/v1/embeddings", {"model": "vectors", "input": ["a"] * 100})
    assert len(vectors.json()["data"]) == 100
    assert rig.held() == 0


def test_the_models_tell_what_their_engines_said(rig):
    listed = rig.get("/v1/models").json()["data"]
    assert [(m["id"], m["max_model_len"]) for m in listed] == [("echo", 256), ("vectors", 256)]


def test_histograms_and_tokens_are_on_the_metrics_page(rig):
    rig.post("/v1/chat/completions", CHAT)
    families = text_string_to_metric_families(rig.get("/metrics").text)
    page = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
    labels = (("kind", "chat"), ("lane", "compute"))
    assert page[("llmtaskpool_task_run_seconds_count", labels)] == 1
    assert page[("llmtaskpool_tokens_total", (("direction", "generated"),))] == 5
    assert page[("llmtaskpool_tasks_total", (("outcome", "succeeded"),))] == 1


def test_prompt_tokens_that_were_kept_from_others_are_told_in_usage_and_metrics(rig, engine):
    engine.keeps = 3
    details = {"prompt_tokens_details": {"cached_tokens": 3}}
    counts = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    assert rig.post("/v1/chat/completions", CHAT).json()["usage"] == counts | details
    asked = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    streamed = rig.post("/v1/chat/completions", asked).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert chunks[-1]["usage"] == counts | details
    stopped = {"model": "echo", "prompt": "abcdef", "stop": "b", "n": 2}
    usage = rig.post("/v1/completions", stopped).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}, "a prompt counts once"
    assert "llmtaskpool_prompt_tokens_reused_total 12.0" in rig.get("/metrics").text
    engine.keeps = 0
    assert rig.post("/v1/chat/completions", CHAT).json()["usage"] == counts


def test_a_prompt_that_crashes_the_engine_is_reported_and_the_worker_serves_on(rig, engine):
    deadly = {"model": "echo", "prompt": chr(POISON)}
    answer = rig.post("/v1/completions", deadly)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "crashed_engine_repeatedly"
    assert engine.deaths == 3
    assert rig.post("/v1/chat/completions", CHAT).status_code == 200


def test_a_task_that_waited_too_long_is_503_whole_and_streamed(rig, engine):
    engine.hangs = True
    rig.control("PUT", "/control/v1/threads", json={"generation": 1, "threads": {"compute": 1}})
    with closing(rig.connect()) as first:
        first.sendall(request_bytes("/v1/chat/completions", CHAT))
        wait_until(lambda: rig.held() == 1, "one runs")
        for stream in (False, True):
            asked = CHAT | {"queue_timeout_seconds": 0.1, "stream": stream}
            answer = rig.post("/v1/chat/completions", asked)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "queue_timeout"
    engine.hangs = False
    wait_until(lambda: rig.held() == 0, "the client that left gave its slot back")


def test_a_task_that_runs_too_long_is_504(rig, engine):
    engine.hangs = True
    answer = rig.post("/v1/chat/completions", CHAT | {"timeout_seconds": 0.1})
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"
    engine.hangs = False


def test_an_idempotency_key_with_another_body_is_409(rig):
    key = {"Idempotency-Key": "one"}
    task = {"kind": "generate", "model": "echo", "input": "a"}
    first = rig.post("/v1/tasks", task, headers=key)
    assert rig.post("/v1/tasks", task, headers=key).json()["id"] == first.json()["id"]
    other = rig.post("/v1/tasks", task | {"input": "b"}, headers=key)
    assert other.status_code == 409


def test_what_a_drain_cuts_short_gets_an_error_frame_and_its_connection_is_closed(rig, engine):
    with closing(rig.connect()) as made:
        long = CHAT | {"stream": True, "messages": [{"role": "user", "content": "x" * 200}]}
        made.sendall(request_bytes("/v1/chat/completions", long))
        received = made.recv(65536)
        engine.hangs = True
        rig.control("POST", "/control/v1/drain", json={"budget_seconds": 0})
        while b"draining" not in received and b"[DONE]" not in received:
            part = made.recv(65536)
            assert part, received
            received += part
    engine.hangs = False  # what it runs holds its place for as long as it runs
    wait_until(lambda: rig.held() == 0, "nothing is held")
    refused = rig.post("/v1/chat/completions", CHAT)
    assert refused.status_code == 503
    assert refused.headers["connection"] == "close"


ROUNDS, ROUND = 7, 500
"""Connections per way of leaving; there are three ways, so more than 10^4 in all."""


@pytest.mark.parametrize("leaving", ["in its request", "before its answer", "in a stream"])
def test_connecting_and_leaving_10_000_times_leaves_nothing_behind(leaving):
    streams = leaving == "in a stream"
    asked = {"model": "echo", "prompt": "x" * 200, "stream": streams, "max_tokens": 200}
    request = request_bytes("/v1/completions", asked)
    if leaving == "in its request":
        request = request[:-20]

    def cycle(rig) -> None:
        for _ in range(ROUND):
            made = socket.create_connection(("127.0.0.1", rig.port))
            made.sendall(request)
            if streams:
                assert made.recv(64)
            made.close()
        wait_until(lambda: rig.held() == 0, "all slots are free")

    with serving_engines(LettersEngine("echo")) as rig:
        rig.call(_keep_few_results, rig.pool)
        cycle(rig)
        process = psutil.Process()
        memory, files = process.memory_info().rss, process.num_fds()
        tasks = rig.call(lambda: len(asyncio.all_tasks()))
        objects = living()
        for _ in range(ROUNDS):
            cycle(rig)
        wait_until(lambda: process.num_fds() <= files, "all sockets are closed")
        wait_until(lambda: rig.call(lambda: len(asyncio.all_tasks())) <= tasks, "no task is left")
        wait_until(lambda: living() - objects < ROUNDS * ROUND / 4, "no object is left")
        assert process.memory_info().rss - memory < 24 * 2**20


def living() -> int:
    gc.collect()
    return len(gc.get_objects())


def _keep_few_results(pool) -> None:
    """Ended tasks are kept by design, up to a bound: here a small one, so that a leak shows."""
    from llmtaskpool_worker.brokers.keeping import Keeping
    from llmtaskpool_worker.scheduling.limits import ResultLimits

    broker = pool._ledger.broker
    broker._keeping = Keeping(ResultLimits(tasks=100), broker._dropped)
