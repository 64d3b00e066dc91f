"""A real server behind a model: llama.cpp's, with SmolLM2."""

from __future__ import annotations

import json
import threading

import httpx
import openai
import pytest
from fakes.http_rig import serving_engines, wait_until
from fakes.llama_server import llama_serving
from fakes.plain_http import NO_TLS
from llmtaskpool_worker.engines.protocol import ModelSpec
from llmtaskpool_worker.engines.upstream.address import address_of
from llmtaskpool_worker.engines.upstream.engine import UpstreamEngine

pytestmark = pytest.mark.model
SAY = [{"role": "user", "content": "Say hello to the people of Paris."}]
SLOTS = 2


def engine_at(url: str) -> UpstreamEngine:
    spec = ModelSpec("smollm2", f"openai:{url}")
    return UpstreamEngine(spec, address_of(spec.source), look_seconds=0.2)


@pytest.fixture(scope="module")
def server():
    with llama_serving(slots=SLOTS, context=2048) as serving:
        yield serving


@pytest.fixture(scope="module")
def rig(server):
    with serving_engines(engine_at(server.url), threads=16) as running:
        yield running


@pytest.fixture
def ai(rig):
    with openai.OpenAI(base_url=f"{rig.url}/v1", api_key="k", max_retries=0, timeout=120) as made:
        yield made


def test_a_whole_answer_is_what_the_server_gives_itself(ai, server):
    asked = {"messages": SAY, "max_tokens": 12, "temperature": 0, "seed": 1}
    answer = ai.chat.completions.create(model="smollm2", **asked)
    direct = httpx.post(
        f"{server.url}/chat/completions", json=asked, timeout=120, verify=NO_TLS
    ).json()
    assert answer.choices[0].message.content == direct["choices"][0]["message"]["content"]
    assert answer.choices[0].finish_reason == direct["choices"][0]["finish_reason"]
    assert answer.usage.prompt_tokens == direct["usage"]["prompt_tokens"]
    assert answer.usage.completion_tokens == 12
    assert answer.model == "smollm2"


def test_an_answer_keeps_to_a_json_schema(ai):
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "large": {"type": "boolean"}},
        "required": ["city", "large"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    answer = ai.chat.completions.create(
        model="smollm2", messages=SAY, max_tokens=60, temperature=0, response_format=wanted
    )
    found = json.loads(answer.choices[0].message.content)
    assert set(found) == {"city", "large"}
    assert found["city"] in ("Paris", "Rome")


def test_completions_and_logprobs(ai):
    answer = ai.completions.create(model="smollm2", prompt="One two three", max_tokens=3, n=2)
    assert len(answer.choices) == 2
    chat = ai.chat.completions.create(
        model="smollm2", messages=SAY, max_tokens=3, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    assert len(content) == 3
    assert all(len(one.top_logprobs) == 2 for one in content)


def test_what_the_server_refuses_is_told_as_it_says_it(ai):
    with pytest.raises(openai.BadRequestError) as raised:
        ai.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "a " * 3000}]
        )
    assert raised.value.code == "context_length_exceeded"
    assert "upstream of model smollm2" in str(raised.value)


def test_no_more_are_in_flight_than_the_server_has_slots(rig, server):
    state = rig.call(rig.pool.state)
    assert state.upstreams["smollm2"].limit == SLOTS
    assert state.lanes["compute"].threads_cap == SLOTS
    deferred: list[float] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            page = httpx.get(
                f"{server.url.removesuffix('/v1')}/metrics", timeout=60, verify=NO_TLS
            ).text
            lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[:1] not in "#")
            deferred.append(float(lines["llamacpp:requests_deferred"]))

    body = {"model": "smollm2", "messages": SAY, "max_tokens": 8}
    askers = [
        threading.Thread(target=rig.post, args=("/v1/chat/completions", body)) for _ in range(10)
    ]
    looker = threading.Thread(target=look)
    looker.start()
    for one in askers:
        one.start()
    for one in askers:
        one.join(120)
    done.set()
    looker.join(60)
    assert deferred
    assert max(deferred) == 0.0, "nothing waits inside the server: the order is the pool's"


def test_a_client_that_leaves_frees_the_server(rig, server):
    body = {"model": "smollm2", "messages": SAY, "stream": True, "ignore_eos": True}
    with rig.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as got:
        next(got.iter_lines())
    wait_until(lambda: rig.held() == 0, "the pool's place is free")

    def slots() -> list[bool]:
        page = httpx.get(
            f"{server.url.removesuffix('/v1')}/slots", timeout=60, verify=NO_TLS
        ).json()
        return [slot["is_processing"] for slot in page]

    wait_until(lambda: not any(slots()), "its slot too")


def test_a_killed_server_loses_nothing_and_is_used_again(rig, server):
    """Last, for it leaves the others a fresh server."""
    answers: list[httpx.Response] = []
    body = {"model": "smollm2", "messages": SAY, "max_tokens": 24, "ignore_eos": True}

    def ask() -> None:
        answers.append(rig.post("/v1/chat/completions", body))

    askers = [threading.Thread(target=ask) for _ in range(5)]
    for one in askers:
        one.start()
    wait_until(lambda: rig.call(rig.pool.state).upstreams["smollm2"].in_flight == SLOTS, "two run")
    server.kill()
    wait_until(lambda: rig.get("/readyz").status_code == 503, "it is noticed")
    server.start(server.port)
    for one in askers:
        one.join(200)
    assert [one.status_code for one in answers] == [200] * 5
    assert {one.json()["usage"]["completion_tokens"] for one in answers} == {24}
    assert rig.get("/readyz").status_code == 200
