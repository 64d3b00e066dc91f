"""litellm, unmodified, against the data port."""

from __future__ import annotations

import os

import pytest
from fakes.fake_pool import FakePool
from fakes.http_rig import KEY, serving

HI = [{"role": "user", "content": "hi"}]
pytestmark = pytest.mark.filterwarnings("ignore")  # litellm's own, about its own code


@pytest.fixture(scope="module", autouse=True)
def client():
    """Imported by the process that runs these tests, not by each that collects them: 5 seconds."""
    global litellm
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or the import would go to the net
    import litellm


@pytest.fixture(scope="module")
def rig():
    with serving(api_keys=(KEY,)) as running:
        yield running


@pytest.fixture(scope="module")
def to(rig):
    """Where litellm shall go."""
    return {"api_base": f"{rig.url}/v1", "api_key": KEY, "timeout": 20, "num_retries": 0}


def test_completion(to):
    answer = litellm.completion(model="openai/echo", messages=HI, max_tokens=2, **to)
    assert answer.choices[0].message.content == "117 58 "
    assert answer.usage.total_tokens == 7


def test_streaming(to):
    stream = litellm.completion(
        model="openai/echo",
        messages=HI,
        max_tokens=3,
        stream=True,
        stream_options={"include_usage": True},
        **to,
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "117 58 104 "


def test_embedding(to):
    answer = litellm.embedding(model="openai/vectors", input=["a", "b"], **to)
    assert [one["embedding"] for one in answer.data] == [[1.0, 2.0, 3.0]] * 2


def test_errors_are_litellm_s_own_classes(to):
    with pytest.raises(litellm.BadRequestError, match="max_tokens"):
        litellm.completion(model="openai/echo", messages=HI, max_tokens=0, **to)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/none", messages=HI, **to)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(model="openai/echo", messages=HI, **to | {"api_key": "wrong"})


def test_a_full_context_is_the_error_that_starts_its_context_window_fallbacks(to):
    long = [{"role": "user", "content": "x" * 300}]
    for messages, tokens in ((long, 5), (HI, 300)):
        with pytest.raises(litellm.ContextWindowExceededError):
            litellm.completion(model="openai/echo", messages=messages, max_tokens=tokens, **to)
    longer = {"model": "openai/longer", "mock_response": "from the longer one"}
    router = litellm.Router(
        [
            {"model_name": "short", "litellm_params": {"model": "openai/echo", **to}},
            {"model_name": "longer", "litellm_params": longer},
        ],
        context_window_fallbacks=[{"short": ["longer"]}],
        num_retries=0,
    )
    answer = router.completion(model="short", messages=long)
    assert answer.choices[0].message.content == "from the longer one"


def test_a_full_queue_is_a_rate_limit_error():
    with serving(lambda clock: FakePool(clock, queue_limit=0)) as rig:
        to = {"api_base": f"{rig.url}/v1", "api_key": "any", "num_retries": 0, "max_retries": 0}
        with pytest.raises(litellm.RateLimitError):
            litellm.completion(model="openai/echo", messages=HI, **to)
