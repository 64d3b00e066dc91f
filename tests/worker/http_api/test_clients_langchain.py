"""langchain-openai, unmodified, against the data port."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import openai
import pytest
from fakes.http_rig import KEY, serving

pytestmark = pytest.mark.filterwarnings("ignore")  # langchain's own, about its own code


@pytest.fixture(scope="module", autouse=True)
def client():
    """Imported by the process that runs these tests, not by each that collects them: 3 seconds."""
    global ContextOverflowError, AIMessage, HumanMessage, SystemMessage, ToolMessage
    global ChatOpenAI, OpenAI, OpenAIEmbeddings
    os.environ["LANGSMITH_TRACING"] = "false"  # or the import would go to the net
    from langchain_core.exceptions import ContextOverflowError
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
    from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings


@pytest.fixture(scope="module")
def rig():
    with serving(api_keys=(KEY,)) as running:
        yield running


@pytest.fixture(scope="module")
def to(rig):
    """Where langchain shall go."""
    return {"base_url": f"{rig.url}/v1", "api_key": KEY, "timeout": 20, "max_retries": 0}


def test_a_chat_whole_and_streamed(to):
    chat = ChatOpenAI(model="echo", max_tokens=2, stream_usage=True, **to)
    answer = chat.invoke([SystemMessage("be brief"), HumanMessage("hi")])
    assert answer.text == "115 58 "
    assert answer.usage_metadata["total_tokens"] == answer.usage_metadata["input_tokens"] + 2
    pieces = list(chat.stream("hi"))
    assert "".join(piece.text for piece in pieces) == "117 58 "
    assert sum(p.usage_metadata["output_tokens"] for p in pieces if p.usage_metadata) == 2


def test_a_history_with_tool_calls(rig, to):
    history = [
        HumanMessage("weather in Bonn?"),
        AIMessage("", tool_calls=[{"name": "weather", "args": {"city": "Bonn"}, "id": "c1"}]),
        ToolMessage("22 degrees", tool_call_id="c1"),
    ]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    chat = ChatOpenAI(model="echo", max_tokens=2, **to).bind(tools=[tool], tool_choice="none")
    assert chat.invoke(history).text == "117 58 "
    assert rig.pool.requests[-1].kind == "chat"


def test_a_full_context_is_its_context_overflow_error(to):
    with pytest.raises(ContextOverflowError):
        ChatOpenAI(model="echo", **to).invoke("x" * 300)
    longer = ChatOpenAI(model="echo", max_tokens=1, **to).with_fallbacks(
        [ChatOpenAI(model="echo", max_tokens=2, **to)],
        exceptions_to_handle=(ContextOverflowError,),
    )
    assert longer.invoke("hi").text == "117 "


def test_completions(to):
    assert OpenAI(model="echo", max_tokens=2, **to).invoke("ab") == "97 98 "


def test_embeddings_as_it_makes_them_by_default_are_refused_with_what_to_do(to, monkeypatch):
    # litellm's package has OpenAI's encoding, which tiktoken would else fetch from the net.
    origin = importlib.util.find_spec("litellm").origin
    folder = Path(origin).parent / "litellm_core_utils" / "tokenizers"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as raised:
        OpenAIEmbeddings(model="vectors", **to).embed_documents(["a", "b"])
    assert raised.value.param == "input[0]"


def test_embeddings_of_texts(to):
    texts = OpenAIEmbeddings(model="vectors", check_embedding_ctx_length=False, **to)
    assert texts.embed_documents(["a", "b"]) == [[1.0, 2.0, 3.0]] * 2
    assert texts.embed_query("a") == [1.0, 2.0, 3.0]
