"""Schemas of the JSON Schema Test Suite: what is followed is answered validly, all else is a 400.

The model is a random walk: each step draws from random numbers what the grammar leaves, by the
engine's own draw, over a tokenizer of single bytes. Nothing but the grammar makes it JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import torch
from llmtaskpool_worker.engines.batching import Sequence
from llmtaskpool_worker.engines.grammars import Grammars
from llmtaskpool_worker.engines.protocol import Admit
from llmtaskpool_worker.engines.sampling import Sampler
from llmtaskpool_worker.http_api.errors import ApiError
from llmtaskpool_worker.http_api.structured import NamedSchema, ResponseFormat, checked, wish_of
from llmtaskpool_worker.text.tokens import Tokenizer

from .tiny_models import write_tokenizer

SUITE = Path(__file__).parents[1] / "data/json_schema_suite/draft2020-12.json"
FIELD = "response_format.json_schema.schema"
WALKS = 3
LONGEST = 600
END, VOCABULARY = 1, 258
LEAST_FOLLOWED = 160
"""Of the suite's 383 schemas; a release of llguidance that follows fewer is worth a look."""


OF_THE_METASCHEMA = {"$dynamicAnchor"}
"""Keywords of what a schema may refer to."""


def say(*lines: str) -> None:
    """Counts, for who runs it with -s."""
    sys.stdout.write("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Case:
    name: str
    schema: dict[str, Any]


def cases() -> list[Case]:
    given = json.loads(SUITE.read_text())
    del given["source"]
    return [
        Case(f"{part}: {description}", schema)
        for part, listed in given.items()
        for description, schema in listed
        if isinstance(schema, dict)  # true and false are no objects: no field takes them
    ]


def grammar_of(case: Case) -> str | ApiError:
    """The grammar of a request with this schema, or its 400."""
    wanted = ResponseFormat(type="json_schema", json_schema=NamedSchema(schema=case.schema))
    wish = wish_of(wanted, None, {})
    assert wish is not None
    try:
        return asyncio.run(checked(wish))
    except ApiError as error:
        return error


@pytest.fixture(scope="module")
def read() -> tuple[list[tuple[Case, str]], list[tuple[Case, ApiError]]]:
    followed, refused = [], []
    for case in cases():
        found = grammar_of(case)
        if isinstance(found, ApiError):
            refused.append((case, found))
        else:
            followed.append((case, found))
    return followed, refused


def words(schema: Any) -> set[str]:
    """Names of all keywords in a schema, and the texts that are their values."""
    if isinstance(schema, dict):
        return set(schema).union(*map(words, schema.values()))
    if isinstance(schema, list):
        return set().union(*map(words, schema))
    return {schema} if isinstance(schema, str) else {str(schema).lower()}


def number(text: str) -> Decimal:
    """Exactly: 5.4388 is a multiple of 0.0001, and 1E400 a number."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("1E+9999")


def test_what_is_not_followed_is_a_400_that_names_the_field_and_the_keyword(read) -> None:
    followed, refused = read
    said = (error.message.partition(": ")[2].partition(". Send")[0] for _, error in refused)
    kinds = Counter(said).most_common()
    count = len(followed)
    say(f"of {count + len(refused)} schemas {count} are followed, and the others refused:")
    say(*(f"{count:4d} {kind[:90]}" for kind, count in kinds))
    for case, error in refused:
        assert (error.status, error.param) == (400, FIELD), case.name
        known = words(case.schema) | OF_THE_METASCHEMA
        told = error.message.replace(FIELD, "", 1)
        named = [word for word in known if word and word in told]
        outside = "a $ref leads out of the schema, to 'http://localhost:1234/" in told
        impossible = "Unsatisfiable schema" in told  # nothing is valid by it
        assert named or outside or impossible, f"{case.name}: {error.message} names nothing of it"


def test_every_answer_to_what_is_followed_is_valid_by_its_schema(read, tmp_path: Path) -> None:
    followed, _ = read
    assert len(followed) >= LEAST_FOLLOWED
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    sampler = Sampler(torch.device("cpu"), frozenset({END}), Grammars(tmp_path, VOCABULARY, [END]))
    closing = [END, *(tokenizer.encode_document(letter)[0] for letter in '"}]')]
    asked = [one for one in followed for _ in range(WALKS)]
    running = {
        place: Sequence(Admit(place, [5], LONGEST, grammar=grammar), [5])
        for place, (_, grammar) in enumerate(asked)
    }
    draw = torch.Generator().manual_seed(0)
    ended: dict[int, str] = {}
    for step in range(LONGEST):
        if not running:
            break
        logits = 2 * torch.randn(len(running), VOCABULARY, generator=draw)
        logits[:, closing] += step / 25  # so that strings and lists come to an end
        for (place, one), drawn in zip(
            list(running.items()), sampler.draw(logits, list(running.values())), strict=True
        ):
            assert drawn.token is not None, (asked[place][0].name, drawn.fault)
            if drawn.token != END:
                one.tokens.append(drawn.token)
                one.drawn += 1
            if drawn.token == END or drawn.ends:
                del running[place]
                sampler.forget(place)
                told = b"".join(map(tokenizer.token_bytes, one.tokens[1:]))
                ended[place] = told.decode()
    say(f"{len(ended)} answers of {len(asked)} ended")
    assert len(ended) >= 0.98 * len(asked), [asked[place][0].name for place in running]
    for place, text in ended.items():
        case = asked[place][0]
        schema = json.loads(json.dumps(case.schema), parse_float=number)
        validator = jsonschema_rs.Draft202012Validator(schema)
        answer = json.loads(text, parse_float=number)
        assert validator.is_valid(answer), f"{case.name}: {text} is not valid by {case.schema}"
