"""Limits of one model of several in a worker: its places, its part of the line, its answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fakes.http_rig import Rig, serving_engines, wait_until
from fakes.letters_engine import LettersEngine

CHAT = "/v1/chat/completions"


def body(model: str = "small", text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]} | more


def task(model: str = "small", **more: Any) -> dict[str, Any]:
    return {"kind": "chat", "model": model, "input": body()["messages"]} | more


@pytest.fixture
def engines() -> tuple[LettersEngine, LettersEngine]:
    small, large = LettersEngine("small", slots=2), LettersEngine("large")
    small.spec = replace(small.spec, options={"max_waiting": 3, "max_tokens": 4, "max_threads": 2})
    return small, large


@pytest.fixture
def rig(engines: tuple[LettersEngine, LettersEngine]) -> Iterator[Rig]:
    with serving_engines(*engines, threads=6, threads_max=6, preempt_factor=0) as running:
        yield running


def test_a_model_takes_no_more_than_its_places_of_n_and_its_part_of_the_line(
    rig: Rig, engines: tuple[LettersEngine, LettersEngine]
) -> None:
    small, large = engines
    small.hangs = large.hangs = True
    for place in range(5):
        given = rig.post("/v1/tasks", task(idempotency_key=f"key-{place}"))
        assert given.status_code == 202, given.text
        places = min(2, place + 1)
        wait_until(lambda places=places: small.held == places, "it runs two at most")
    full = rig.post("/v1/tasks", task(idempotency_key="one more"))
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    assert full.json()["error"]["param"] == "model"
    assert "3 tasks wait already for the model small, which is the most" in full.text
    assert int(full.headers["retry-after"]) >= 1
    assert rig.post(CHAT, body(stream=True)).status_code == 429, "one that is waited for, too"
    known = rig.post("/v1/tasks", task(idempotency_key="key-4"))
    assert known.status_code in (200, 202), "what was taken is answered for"
    for _ in range(6):
        assert rig.post("/v1/tasks", task("large")).status_code == 202
    wait_until(lambda: large.held == 4, "what is left of N is the other model's")
    assert small.held == 2
    small.hangs = large.hangs = False
    wait_until(lambda: rig.held() == 0, "all have ended")
    assert rig.post(CHAT, body()).status_code == 200


def test_an_answer_is_as_long_as_its_model_may_make_it(rig: Rig) -> None:
    (cut,) = rig.post(CHAT, body(text="a long one")).json()["choices"]
    assert (cut["message"]["content"], cut["finish_reason"]) == ("u:a ", "length")
    assert rig.post(CHAT, body(max_tokens=4)).status_code == 200
    refused = rig.post(CHAT, body(max_completion_tokens=5))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_completion_tokens")
    assert "is 5, and small answers with at most 4 tokens here: send at most" in refused.text
    told = rig.post("/v1/completions", {"model": "small", "prompt": "abcdefgh"})
    assert told.json()["choices"][0]["text"] == "abcd"
    assert rig.post(CHAT, body("large", max_tokens=50)).status_code == 200
