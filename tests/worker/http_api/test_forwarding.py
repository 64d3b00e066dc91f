"""Models of servers: what goes to them, what comes back, and what their clients are told."""

from __future__ import annotations

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from fakes.http_rig import serving_engines, wait_until
from fakes.vllm_stub import VllmStub, stub_serving
from llmtaskpool_worker.engines.protocol import ModelSpec
from llmtaskpool_worker.engines.upstream.address import address_of
from llmtaskpool_worker.engines.upstream.engine import UpstreamEngine

CHAT = "/v1/chat/completions"
STREAM = {"stream": True}
HI = [{"role": "user", "content": "hello"}]
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()


def engine_of(stub: VllmStub, name: str = "chat", **options) -> UpstreamEngine:
    task = options.pop("task", "generate")
    spec = ModelSpec(name, f"openai:{stub.url}", task, options)
    return UpstreamEngine(spec, address_of(spec.source), look_seconds=0.1)


@pytest.fixture(scope="module")
def stub():
    with stub_serving(VllmStub()) as serving:
        yield serving


@pytest.fixture(scope="module")
def rig(stub):
    with serving_engines(engine_of(stub), engine_of(stub, "vectors", task="embed")) as running:
        yield running


@pytest.fixture
def ai(rig):
    with openai.OpenAI(base_url=f"{rig.url}/v1", api_key="k", max_retries=0, timeout=20) as made:
        yield made


def test_a_whole_answer_is_put_together_of_a_stream(ai, stub):
    answer = ai.chat.completions.create(model="chat", messages=HI)
    assert answer.choices[0].message.content == "hello"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.model, answer.object) == ("chat", "chat.completion")
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 5,
        "completion_tokens": 5,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert stub.seen[-1]["stream"] is True
    assert stub.seen[-1]["model"] == "stub/letters"


def test_a_stream_is_the_server_s_under_the_pool_s_name(ai):
    stream = ai.chat.completions.create(
        model="chat", messages=HI, max_tokens=3, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hel"
    assert {c.model for c in chunks} == {"chat"}
    assert len({c.id for c in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 3
    assert all(c.usage is None for c in chunks[:-1])


def test_the_longest_answer_of_a_servers_model_is_asked_of_its_server(stub):
    with serving_engines(engine_of(stub, max_tokens=2)) as rig:
        body = {"model": "chat", "messages": HI}
        cut = rig.post(CHAT, body).json()["choices"][0]
        assert (cut["message"]["content"], cut["finish_reason"]) == ("he", "length")
        assert stub.seen[-1]["max_tokens"] == 2
        asked = rig.post(CHAT, body | {"max_completion_tokens": 1})
        assert asked.json()["choices"][0]["message"]["content"] == "h"
        refused = rig.post(CHAT, body | {"max_completion_tokens": 3})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "max_completion_tokens"
        assert "is 3, and chat answers with at most 2 tokens here" in refused.text
        task = {"kind": "chat", "model": "chat", "input": HI, "arguments": {"max_tokens": 3}}
        told = rig.post("/v1/tasks", task)
        assert (told.status_code, told.json()["error"]["param"]) == (400, "arguments.max_tokens")


def test_without_include_usage_no_chunk_has_any(ai):
    chunks = list(ai.chat.completions.create(model="chat", messages=HI, stream=True))
    assert all(c.choices and c.usage is None for c in chunks)


def test_tools_are_called_whole_and_in_pieces(ai):
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    asked = {"model": "chat", "messages": HI, "tools": tools, "tool_choice": "required"}
    choice = ai.chat.completions.create(**asked).choices[0]
    (call,) = choice.message.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "look", "hello")
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    pieces = ai.chat.completions.create(**asked, stream=True)
    calls = [c.choices[0].delta.tool_calls for c in pieces if c.choices]
    assert "".join(one[0].function.arguments for one in calls if one) == "hello"


def test_logprobs_are_gathered(ai):
    answer = ai.chat.completions.create(model="chat", messages=HI, logprobs=True, top_logprobs=1)
    content = answer.choices[0].logprobs.content
    assert [one.token for one in content] == list("hello")


def test_fields_that_only_the_server_knows_go_on_as_they_are(ai, stub):
    wanted = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
        "logit_bias": {"5": -100},
        "seed": 7,
        "temperature": 0.3,
        "user": "somebody",
        "metadata": {"a": "b"},
    }
    extra = {"guided_regex": "[a-z]+", "chat_template_kwargs": {"thinking": False}, "top_k": 5}
    picture = {"type": "image_url", "image_url": {"url": PNG}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "look"}, picture]}]
    ai.chat.completions.create(model="chat", messages=messages, extra_body=extra, **wanted)
    seen = stub.seen[-1]
    assert {name: seen[name] for name in wanted | extra} == wanted | extra
    assert seen["messages"] == messages


def test_the_pool_s_own_fields_stay_here(ai, stub):
    ours = {"weight": 3.0, "timeout_seconds": 60, "queue_timeout_seconds": 60, "priority": 2}
    ai.chat.completions.create(model="chat", messages=HI, extra_body=ours, service_tier="flex")
    assert not {*ours, "service_tier"} & set(stub.seen[-1])


def test_n_choices_are_n_requests_with_seeds_of_their_own(ai, stub):
    before = len(stub.seen)
    answer = ai.chat.completions.create(model="chat", messages=HI, n=3, seed=10)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert sorted(one["seed"] for one in stub.seen[before:]) == [10, 11, 12]
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == 15
    chunks = list(ai.chat.completions.create(model="chat", messages=HI, n=2, stream=True))
    texts = {0: "", 1: ""}
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "hello", 1: "hello"}


def test_completions_of_several_prompts(ai):
    answer = ai.completions.create(model="chat", prompt=["ab", "cd"], max_tokens=1, n=2)
    assert [choice.text for choice in answer.choices] == ["a", "a", "c", "c"]
    pieces = ai.completions.create(model="chat", prompt="ab", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "ab"
    ids = ai.completions.create(model="chat", prompt=[104, 105])
    assert ids.choices[0].text == "hi"


def test_embeddings_come_in_order_however_many(ai, stub):
    before = len(stub.seen)
    texts = ["a" * length for length in range(1, 71)]
    answer = ai.embeddings.create(model="vectors", input=texts, encoding_format="float")
    assert [one.embedding[0] for one in answer.data] == [float(len(text)) for text in texts]
    assert [one.index for one in answer.data] == list(range(70))
    assert answer.usage.prompt_tokens == sum(map(len, texts))
    # They are sent at once over three connections: which the server reads first is its own affair.
    assert sorted(len(one["input"]) for one in stub.seen[before:]) == [6, 32, 32]


@pytest.mark.parametrize(
    ("fields", "status", "code", "words"),
    [
        ({"max_tokens": 9999}, 400, "context_length_exceeded", "maximum context length is 4096"),
        ({"n": 17}, 400, "invalid_less_than_equal", "n is 17"),
        ({"messages": []}, 400, "invalid_too_short", "messages can't be used"),
        ({"stream_options": {}}, 400, "invalid_value", 'needs "stream": true'),
        ({"messages": "hi"}, 400, "invalid_list_type", "messages can't be used"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_told_by_status_in_openai_s_shape(
    rig, fields, status, code, words, stream
):
    body = {"model": "chat", "messages": HI} | fields
    if stream and "stream_options" not in fields:
        body["stream"] = True
    answer = rig.post("/v1/chat/completions", body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], words in error["message"]) == (code, True)
    assert set(error) == {"message", "type", "param", "code"}


def test_a_wrong_task_for_a_model_is_told(rig):
    answer = rig.post("/v1/chat/completions", {"model": "vectors", "messages": HI})
    assert answer.status_code == 400
    assert "makes embeddings" in answer.json()["error"]["message"]


def test_tasks_take_the_same_requests(rig):
    body = {"kind": "chat", "model": "chat", "input": HI, "arguments": {"top_k": 3}}
    made = rig.post("/v1/tasks", body).json()
    ended = rig.get(f"/v1/tasks/{made['id']}?wait=20").json()
    assert ended["state"] == "succeeded"
    assert ended["result"]["text"] == "hello"
    assert ended["result"]["choice"]["message"]["content"] == "hello"
    events = rig.get(f"/v1/tasks/{made['id']}/events").text
    assert "event: choice\n" in events
    body = {"kind": "embed", "model": "vectors", "input": "abc"}
    made = rig.post("/v1/tasks", body).json()
    ended = rig.get(f"/v1/tasks/{made['id']}?wait=20").json()
    assert ended["result"]["embedding"] == [3.0, 0.5, 1.0]
    refused = rig.post("/v1/tasks", body | {"arguments": {"stream": True}})
    assert refused.json()["error"]["param"] == "arguments.stream"


def test_the_same_request_under_one_key_is_one_task(rig, stub):
    body = {"kind": "chat", "model": "chat", "input": HI, "idempotency_key": "one"}
    first, second = rig.post("/v1/tasks", body).json(), rig.post("/v1/tasks", body).json()
    assert first["id"] == second["id"]
    other = body | {"input": [{"role": "user", "content": "else"}]}
    assert rig.post("/v1/tasks", other).status_code == 409


def test_the_models_are_listed_with_the_server_s_context(rig):
    listed = {one["id"]: one for one in rig.get("/v1/models").json()["data"]}
    assert listed["chat"]["max_model_len"] == 4096
    assert listed["vectors"]["task"] == "embed"


def test_a_client_that_leaves_takes_its_request_with_it():
    long = {"model": "chat", "messages": HI, "stream": True, "ignore_eos": True}
    with (
        stub_serving(VllmStub(step_seconds=0.03)) as stub,  # for minutes, were it not left
        serving_engines(engine_of(stub)) as rig,
    ):
        with rig.client() as client, client.stream("POST", CHAT, json=long) as answer:
            next(answer.iter_lines())
            wait_until(lambda: stub.in_flight == 1, "it runs")
        wait_until(lambda: stub.in_flight == 0, "the server has let go of the request")
        wait_until(lambda: rig.held() == 0, "its place is free")


def test_a_whole_answer_s_client_that_leaves_takes_its_request_with_it(rig, stub):
    long = {"model": "chat", "messages": HI, "ignore_eos": True}
    import httpx

    with rig.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=long, timeout=0.3)
    wait_until(lambda: stub.in_flight == 0, "the server has let go of the request")


def test_more_than_the_server_queues_waits_here_and_all_are_answered():
    with (
        stub_serving(VllmStub(seats=1, queued=1)) as stub,  # fewer than a fresh server gets
        serving_engines(engine_of(stub), threads=64) as rig,
    ):
        answers = []

        def ask() -> None:
            answers.append(rig.post("/v1/chat/completions", {"model": "chat", "messages": HI}))

        askers = [threading.Thread(target=ask) for _ in range(40)]
        for one in askers:
            one.start()
        for one in askers:
            one.join(60)
        assert [one.status_code for one in answers] == [200] * 40
        assert stub.turned_away > 0
        state = rig.call(rig.pool.state)
        assert state.lanes["compute"].threads_cap < 64, "the server's refusals lowered N"
        assert state.upstreams["chat"].turned_away_total == stub.turned_away


def test_an_urgent_request_takes_the_place_of_one_that_nobody_has_read():
    """A server keeps nothing of what is left, so it begins again; a stream that is read stays."""
    long = {"messages": HI, "model": "chat", "ignore_eos": True, "max_tokens": 400, "weight": 0.01}
    with (
        stub_serving(VllmStub(seats=2, step_seconds=0.01)) as stub,
        serving_engines(
            engine_of(stub, max_threads=2), preempt_wait_seconds=0.1, preempt_factor=2.0
        ) as rig,
        rig.client() as client,
        client.stream("POST", "/v1/chat/completions", json=long | {"stream": True}) as read,
    ):
        lines = read.iter_lines()
        next(lines)
        whole: list = []
        asker = threading.Thread(
            target=lambda: whole.append(rig.post("/v1/chat/completions", long))
        )
        asker.start()
        wait_until(lambda: stub.in_flight == 2, "both run")
        urgent = rig.post(
            "/v1/chat/completions",
            {"model": "chat", "messages": HI, "max_tokens": 2, "weight": 100.0},
        )
        assert urgent.status_code == 200
        assert not whole, "it did not wait for the end of the other"
        assert stub.aborted == 1
        asker.join(60)
        assert whole[0].json()["usage"]["completion_tokens"] == 400
        assert "[DONE]" in list(lines)[-2]


@pytest.mark.parametrize("bulk", [0.01, 1.0], ids=["of low weight", "ordinary"])
def test_an_urgent_request_goes_beside_streams_that_are_read(bulk):
    """Nobody makes way: of four places one is the urgent ones' as long as some come.

    Beside bulk that says that it is bulk it is theirs from the start.
    """
    long = {"messages": HI, "model": "chat", "ignore_eos": True, "max_tokens": 4000, "weight": bulk}
    with (
        stub_serving(VllmStub(seats=4, step_seconds=0.01)) as stub,
        serving_engines(engine_of(stub, max_threads=4), threads=16) as rig,
        ThreadPoolExecutor(8) as readers,
    ):
        begun: list[str] = []
        over = threading.Event()

        def follow(tokens: int) -> None:
            body = long | {"stream": True, "max_tokens": tokens}
            with rig.client() as client, client.stream("POST", CHAT, json=body) as answer:
                for line in answer.iter_lines():
                    begun.append(line)
                    if over.is_set():
                        return

        following = [readers.submit(follow, tokens) for tokens in (100, 4000, 4000, 4000, 4000)]
        at_first = 3 if bulk < 1.0 else 4
        wait_until(lambda: stub.in_flight == at_first, "all places are taken, and one waits")
        urgent = {"model": "chat", "messages": HI, "max_tokens": 2, "weight": 1000.0}
        assert rig.post(CHAT, urgent).status_code == 200, "when the short one has ended, at last"
        assert stub.in_flight == 3, "its place is not given to the one that waits"
        assert rig.call(rig.pool.state).upstreams["chat"].limit == 3
        for _ in range(5):
            assert rig.post(CHAT, urgent).status_code == 200
        assert stub.aborted == 0
        assert stub.peak == 4
        over.set()
        for one in following:
            one.result(60)


def test_a_server_s_gauges_are_shown_and_exported():
    with stub_serving(VllmStub(seats=1)) as stub, serving_engines(engine_of(stub)) as rig:
        stub.cache_usage = 0.25
        wait_until(lambda: "chat" in rig.call(rig.pool.state).upstreams, "its gauges are read")
        wait_until(
            lambda: rig.call(rig.pool.state).upstreams["chat"].cache_usage == 0.25, "and again"
        )
        long = {"model": "chat", "messages": HI, "ignore_eos": True, "max_tokens": 40}
        assert rig.post("/v1/chat/completions", long).status_code == 200
        assert rig.call(rig.pool.state).kv_cache_usage == 0.25, "its steps tell nothing of it"
        page = rig.get("/metrics").text
        assert 'llmtaskpool_upstream_cache_usage{model="chat"} 0.25' in page
        assert 'llmtaskpool_upstream_requests{model="chat",state="in_flight"} 0.0' in page


def test_a_full_cache_lowers_n():
    with (
        stub_serving(VllmStub(step_seconds=0.01)) as stub,
        serving_engines(engine_of(stub), threads=10) as rig,
        ThreadPoolExecutor(10) as askers,
    ):
        long = {"model": "chat", "messages": HI, "ignore_eos": True, "max_tokens": 4000}
        over = threading.Event()

        def follow() -> None:
            with rig.client() as client, client.stream("POST", CHAT, json=long | STREAM) as answer:
                for _ in answer.iter_lines():
                    if over.is_set():
                        return

        following = [askers.submit(follow) for _ in range(10)]
        wait_until(lambda: stub.in_flight == 10, "all are at the server")
        assert rig.call(rig.pool.state).lanes["compute"].threads_cap > 10
        stub.cache_usage = 0.95
        wait_until(
            lambda: rig.call(rig.pool.state).lanes["compute"].threads_cap == 8, "a fifth less"
        )
        stub.cache_usage = 0.1
        over.set()
        for one in following:
            one.result(60)


def test_a_key_is_sent_from_the_variable_that_the_model_names(monkeypatch):
    monkeypatch.setenv("STUB_KEY", "right")
    with (
        stub_serving(VllmStub(key="right")) as stub,
        serving_engines(engine_of(stub, api_key_env="STUB_KEY")) as rig,
    ):
        body = {"model": "chat", "messages": HI}
        assert rig.post("/v1/chat/completions", body).status_code == 200
        stub.key = "other"
        refused = rig.post("/v1/chat/completions", body)
        assert refused.status_code == 502
        assert refused.json()["error"]["code"] == "upstream_unauthorized"
        assert "right" not in json.dumps(refused.json())


def test_prompts_are_counted_by_the_tokenizer_that_the_model_names(tmp_path, stub):
    import tokenizers

    file = tmp_path / "tokenizer.json"
    words = tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(file))
    with serving_engines(engine_of(stub, tokenizer=str(file))) as rig:
        loads = []
        for text in ("a b " * 512, "a" * 2048):  # as many letters, and one word
            made_task = {"kind": "generate", "model": "chat", "input": text}
            made_task["arguments"] = {"max_tokens": 1}
            loads.append(rig.post("/v1/tasks", made_task).json()["load_seconds"])
        assert loads[0] > 2 * loads[1]
