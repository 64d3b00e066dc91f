"""Clients as people have them, through a pool in front of each server: openai, litellm, curl."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import openai
import pytest
from fakes.http_rig import serving_engines, wait_until
from fakes.upstreams import UPSTREAMS, upstream_serving
from llmtaskpool_worker.engines.protocol import ModelSpec
from llmtaskpool_worker.engines.upstream.address import address_of
from llmtaskpool_worker.engines.upstream.engine import UpstreamEngine

SAY = [{"role": "user", "content": "Say hello to the people of Paris."}]
FOUR = {"model": "chat", "messages": SAY, "max_tokens": 4}
FOR_EVER = {"model": "chat", "messages": SAY, "max_tokens": 3000}
RULES = {"ignore_eos": True}
"""What these servers know and the clients do not."""
SECONDS = 120


@pytest.fixture(scope="module", params=UPSTREAMS)
def rig(request):
    with upstream_serving(request.param, slots=2) as url:
        spec = ModelSpec("chat", f"openai:{url}")
        engine = UpstreamEngine(spec, address_of(spec.source), look_seconds=0.2)
        with serving_engines(engine, threads=16) as running:
            yield running


@pytest.fixture
def ai(rig):
    to = {"base_url": f"{rig.url}/v1", "api_key": "k", "max_retries": 0, "timeout": SECONDS}
    with openai.OpenAI(**to) as made:
        yield made


@pytest.fixture
def litellm(rig, monkeypatch):
    """The package, and where it shall go. Imported here, for that takes seconds."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    to = {"api_base": f"{rig.url}/v1", "api_key": "k", "timeout": SECONDS, "num_retries": 0}
    return litellm, {"model": "openai/chat", "messages": SAY} | to


def curl(rig, path: str, body: object, *options: str) -> list[str]:
    given = ["--silent", "--show-error", "--max-time", str(SECONDS), "--json", json.dumps(body)]
    return ["curl", *given, *options, f"{rig.url}{path}"]


def test_openai_gets_the_same_whole_and_in_pieces(ai):
    asked = FOUR | {"temperature": 0, "seed": 1, "extra_body": RULES}
    whole = ai.chat.completions.create(**asked)
    assert whole.usage.completion_tokens == 4
    assert whole.choices[0].finish_reason == "length"
    assert whole.model == "chat"
    pieces = list(
        ai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(one.choices[0].delta.content or "" for one in pieces if one.choices)
    assert text == whole.choices[0].message.content
    assert pieces[-1].usage.completion_tokens == 4
    assert {one.id for one in pieces} == {pieces[0].id}


def test_openai_gets_completions_of_several_prompts_and_choices(ai):
    asked = {"model": "chat", "prompt": ["One two", "Red blue"], "max_tokens": 2, "n": 2}
    answer = ai.completions.create(**asked, extra_body=RULES)
    assert [one.index for one in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.completion_tokens == 8


def test_openai_tells_a_refusal_of_the_server_by_its_class_and_code(ai):
    long = [{"role": "user", "content": "one two " * 6000}]
    with pytest.raises(openai.BadRequestError) as raised:
        ai.chat.completions.create(**FOUR | {"messages": long})
    assert raised.value.code == "context_length_exceeded"
    assert "upstream of model chat" in str(raised.value)
    with pytest.raises(openai.NotFoundError):
        ai.chat.completions.create(**FOUR | {"model": "nobody"})


def test_openai_that_stops_reading_takes_its_request_with_it(ai, rig):
    with ai.chat.completions.create(**FOR_EVER, stream=True, extra_body=RULES) as stream:
        next(iter(stream))
        wait_until(lambda: in_flight(rig) == 1, "it runs")
    wait_until(lambda: in_flight(rig) == 0, "the server has nothing of it")
    wait_until(lambda: rig.held() == 0, "its place is free")


@pytest.mark.filterwarnings("ignore")  # litellm's own, about its own code
def test_litellm_gets_an_answer_a_stream_and_an_error_of_its_own(litellm):
    package, asked = litellm
    answer = package.completion(**asked, max_tokens=4, extra_body=RULES)
    assert answer.usage.completion_tokens == 4
    stream = package.completion(**asked, max_tokens=4, stream=True, extra_body=RULES)
    assert "".join(one.choices[0].delta.content or "" for one in stream if one.choices)
    with pytest.raises(package.NotFoundError):
        package.completion(**asked | {"model": "openai/nobody"})


def test_curl_gets_an_answer_a_stream_and_an_error(rig):
    def told(body: object, *options: str) -> str:
        command = curl(rig, "/v1/chat/completions", body, *options)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert json.loads(told(FOUR | RULES))["usage"]["completion_tokens"] == 4
    assert told(FOUR | {"stream": True}, "-N").endswith("data: [DONE]\n\n")
    wrong = json.loads(told(FOUR | {"n": 99}))
    assert wrong["error"]["param"] == "n"


def test_curl_that_is_interrupted_takes_its_request_with_it(rig):
    body = FOR_EVER | RULES | {"stream": True}
    running = subprocess.Popen(
        curl(rig, "/v1/chat/completions", body, "-N"), stdout=subprocess.PIPE
    )
    try:
        assert running.stdout is not None
        running.stdout.readline()
        wait_until(lambda: in_flight(rig) == 1, "it runs")
        os.kill(running.pid, signal.SIGTERM)
        wait_until(lambda: in_flight(rig) == 0, "the server has nothing of it")
    finally:
        running.kill()
        running.wait()


def in_flight(rig) -> int:
    return rig.call(rig.pool.state).upstreams["chat"].in_flight
