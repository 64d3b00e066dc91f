"""The openai package, unmodified, against the data port."""

from __future__ import annotations

import openai
import pytest
from fakes.fake_pool import FakePool, Running, wait_for_ever
from fakes.http_rig import KEY, models, serving, wait_until
from llmtaskpool_worker.contract import Phase

HI = [{"role": "user", "content": "hi"}]


def client(rig, **options) -> openai.OpenAI:
    chosen = {"base_url": f"{rig.url}/v1", "api_key": KEY, "max_retries": 0, "timeout": 20}
    return openai.OpenAI(**chosen | options)


@pytest.fixture(scope="module")
def rig():
    with serving(api_keys=(KEY,)) as running:
        yield running


@pytest.fixture(scope="module")
def ai(rig):
    with client(rig) as made:
        yield made


def test_chat(ai):
    answer = ai.chat.completions.create(
        model="echo", messages=HI, max_completion_tokens=2, logprobs=True, top_logprobs=1
    )
    assert answer.choices[0].message.content == "117 58 "
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 7
    assert answer._request_id.startswith("req_")


def test_a_chat_stream_with_usage(ai):
    stream = ai.chat.completions.create(
        model="echo",
        messages=HI,
        max_tokens=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "117 58 104 "
    assert chunks[-1].usage.completion_tokens == 3


def test_the_stream_helper_gathers_the_final_completion(ai):
    with ai.chat.completions.stream(model="echo", messages=HI, max_tokens=9) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "117 58 104 105 10 "


def test_completions(ai):
    answer = ai.completions.create(model="echo", prompt=["a", "b"], n=2, max_tokens=1)
    assert [choice.text for choice in answer.choices] == ["97 ", "97 ", "98 ", "98 "]
    pieces = ai.completions.create(model="echo", prompt="ab", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "97 98 "


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}])
def test_embeddings_in_the_package_s_own_base64_and_as_floats(ai, form):
    answer = ai.embeddings.create(model="vectors", input=["a", "b"], **form)
    assert [one.embedding for one in answer.data] == [[1.0, 2.0, 3.0]] * 2
    assert answer.usage.prompt_tokens == 2


def test_models(ai):
    assert [model.id for model in ai.models.list()] == [model.name for model in models()]
    assert ai.models.retrieve("echo").owned_by == "llmtaskpool"


def test_a_bad_request_names_its_field(ai):
    with pytest.raises(openai.BadRequestError) as raised:
        ai.chat.completions.create(model="echo", messages=HI, max_tokens=0)
    assert raised.value.param == "max_tokens"
    assert raised.value.type == "invalid_request_error"
    tools = [{"type": "function", "function": {"name": "f g", "parameters": {}}}]
    with pytest.raises(openai.BadRequestError) as raised:
        ai.chat.completions.create(model="echo", messages=HI, tools=tools)
    assert raised.value.param == "tools[0].function.name"


@pytest.mark.parametrize(
    ("fields", "words", "param"),
    [
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "your messages resulted in", None),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "at least 313 tokens", None),
        ({"messages": [{"role": "user", "content": "x" * 253}]}, "requested 257 tokens", None),
        ({"max_tokens": 300}, "you requested 305 tokens (5 in the messages, 300 in", "max_tokens"),
    ],
)
def test_a_full_context_is_told_in_openai_s_words(ai, fields, words, param):
    with pytest.raises(openai.BadRequestError) as raised:
        ai.chat.completions.create(**{"model": "echo", "messages": HI} | fields)
    assert raised.value.code == "context_length_exceeded"
    assert raised.value.param == (param or "messages")
    assert "This model's maximum context length is 256 tokens. However, " in str(raised.value)
    assert words in str(raised.value)


def test_a_wrong_key_is_an_authentication_error(rig):
    with client(rig, api_key="wrong") as ai, pytest.raises(openai.AuthenticationError):
        ai.models.list()


def test_an_unknown_model_is_a_not_found_error(ai):
    with pytest.raises(openai.NotFoundError) as raised:
        ai.chat.completions.create(model="none", messages=HI)
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("none")


def test_a_full_queue_is_a_rate_limit_error_that_says_when_to_come_back():
    with (
        serving(lambda clock: FakePool(clock, queue_limit=0)) as rig,
        client(rig) as ai,
        pytest.raises(openai.RateLimitError) as raised,
    ):
        ai.chat.completions.create(model="echo", messages=HI)
    assert int(raised.value.response.headers["retry-after"]) >= 1


def test_the_package_s_own_retries_pass_a_queue_that_was_full():
    with serving(lambda clock: FakePool(clock, queue_limit=0)) as rig:
        refuse = rig.pool.submit

        async def submit_later(request):
            try:
                return await refuse(request)
            finally:
                rig.pool.queue_limit = 10

        rig.pool.submit = submit_later
        with client(rig, max_retries=2) as ai:
            assert ai.embeddings.create(model="vectors", input="a").data


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING])
def test_a_worker_that_starts_or_drains_is_a_status_error_503(phase):
    with serving() as rig, client(rig) as ai:
        rig.pool.phase = phase
        with pytest.raises(openai.APIStatusError) as raised:
            ai.chat.completions.create(model="echo", messages=HI)
        assert raised.value.status_code == 503
        assert isinstance(raised.value, openai.InternalServerError)


async def breaks_off(run: Running) -> None:
    run.start()
    run.say("one ", 1)
    run.fail("engine_crashed", "The engine crashed.")


def test_a_failure_in_a_stream_is_an_api_error():
    with serving(lambda clock: FakePool(clock, script=breaks_off)) as rig, client(rig) as ai:
        stream = ai.chat.completions.create(model="echo", messages=HI, stream=True)
        with pytest.raises(openai.APIError, match="crashed"):
            list(stream)


def test_a_stream_that_is_closed_and_a_call_that_times_out_free_their_slots():
    with serving(lambda clock: FakePool(clock, script=wait_for_ever)) as rig:
        with client(rig) as ai:
            stream = ai.chat.completions.create(model="echo", messages=HI, stream=True)
            next(iter(stream))
            assert rig.held() == 1
            stream.close()
            wait_until(lambda: rig.held() == 0, "the stream's slot is free")
        with client(rig, timeout=0.3) as ai, pytest.raises(openai.APITimeoutError):
            ai.chat.completions.create(model="echo", messages=HI)
        wait_until(lambda: rig.held() == 0, "the call's slot is free")


def test_our_own_fields_pass_as_extra_body(rig, ai):
    ai.chat.completions.create(
        model="echo", messages=HI, max_tokens=1, extra_body={"weight": 9, "top_k": 3}
    )
    assert rig.pool.requests[-1].weight == 9
    assert rig.pool.requests[-1].payload.sampling.top_k == 3
