"""Every sampling field over all that the HTTP API takes, alone and together."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llmtaskpool_worker.engines import sampling
from llmtaskpool_worker.engines.batching import Sequence
from llmtaskpool_worker.engines.generation import GenerationLoop, load_generation
from llmtaskpool_worker.engines.protocol import Admit, RequestFailed, Step
from llmtaskpool_worker.engines.sampling import Drawn, Sampler
from llmtaskpool_worker.http_api.openai_schema import ChatRequest

CPU = torch.device("cpu")
WORDS = 24
DRAWS, PARTS = 100_000, 4
FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "repetition_penalty",
    "min_tokens",
)
_LOGITS = st.one_of(
    st.floats(-50, 50, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.just(-math.inf),
)


@cache
def bounds(field: str) -> tuple[Any, Any, bool]:
    """The least and the greatest value that the schema takes, and whether it is a whole number."""
    least = greatest = None
    info = ChatRequest.model_fields[field]
    for bound in info.metadata:
        at_least = getattr(bound, "ge", getattr(bound, "gt", None))
        at_most = getattr(bound, "le", getattr(bound, "lt", None))
        least = at_least if at_least is not None else least
        greatest = at_most if at_most is not None else greatest
    assert least is not None, field
    assert greatest is not None, field
    return least, greatest, "int" in str(info.annotation)


def body(values: dict[str, Any]) -> dict[str, Any]:
    """A chat's body; top_logprobs wants logprobs."""
    message = {"role": "user", "content": "a"}
    return {"model": "m", "messages": [message], "logprobs": "top_logprobs" in values} | values


def sequence(number: int, values: dict[str, Any], counts: dict[int, int] | None = None) -> Sequence:
    """A running request as the HTTP API makes it of these fields."""
    wanted = ChatRequest.model_validate(body(values)).sampling(0)
    request = Admit(
        number,
        [0],
        1,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        top_k=wanted.top_k,
        min_p=wanted.min_p,
        seed=wanted.seed,
        presence_penalty=wanted.presence_penalty,
        frequency_penalty=wanted.frequency_penalty,
        logprobs=wanted.logprobs,
        repetition_penalty=wanted.repetition_penalty,
        min_tokens=wanted.min_tokens,
    )
    made = Sequence(request, [0])
    made.counts = counts or {}
    return made


def check(drawn: Drawn, logits: torch.Tensor) -> None:
    """A token that the model thinks possible, with log-probabilities that are numbers."""
    assert drawn.fault is None
    assert drawn.token is not None
    assert logits[drawn.token] > -math.inf
    told = [pair[1] for pair in drawn.top] + ([] if drawn.logprob is None else [drawn.logprob])
    assert all(-9999.0 <= logprob <= 0.0 for logprob in told)


def hostile(draw: random.Random, field: str) -> Any:
    """A value of the field: an end, one near an end, or any pattern of bits that lies between."""
    least, greatest, whole = bounds(field)
    if whole:
        return draw.choice([least, greatest, draw.randint(least, greatest), draw.randint(0, 20)])
    close = draw.choice([0.0, 1.0, least, greatest])
    for _ in range(draw.randrange(3)):
        close = math.nextafter(close, draw.choice([-math.inf, math.inf]))
    tiny = 10.0 ** draw.uniform(-320, 0)
    while True:
        (bits,) = struct.unpack("<d", draw.getrandbits(64).to_bytes(8, "little"))
        value = draw.choice([close, tiny, -tiny, bits, draw.uniform(least, greatest)])
        legal = least <= value <= greatest and not (field == "top_p" and value <= 0)
        if legal and math.isfinite(value):
            return value


def rows_of(draw: random.Random) -> Iterator[dict[str, Any]]:
    """Each field alone, then any of them together, for ever."""
    while True:
        for field in FIELDS:
            yield {"temperature": 1.0, field: hostile(draw, field)}
        for _ in range(4 * len(FIELDS)):
            chosen = draw.sample(FIELDS, draw.randint(2, len(FIELDS)))
            yield {field: hostile(draw, field) for field in chosen}


@pytest.mark.parametrize("part", range(PARTS))
@torch.inference_mode()
def test_a_hundred_thousand_legal_settings_all_draw_a_token(part: int) -> None:
    draw, torch_draw = random.Random(part), torch.Generator().manual_seed(part)
    rows = rows_of(draw)
    at_once = 500
    for number in range(DRAWS // PARTS // at_once):
        scale = (0.01, 1.0, 30.0, 1e4, 3e37)[number % 5]
        logits = torch.randn(at_once, WORDS, generator=torch_draw) * scale
        logits[torch.rand(logits.shape, generator=torch_draw) < 0.1] = -math.inf
        logits[:, number % WORDS] = scale
        sequences = [
            sequence(row, next(rows), {draw.randrange(WORDS): draw.randrange(1, 1 << 20)})
            for row in range(at_once)
        ]
        sampler = Sampler(CPU)
        for row, drawn in enumerate(sampler.draw(logits, sequences)):
            check(drawn, logits[row])


def _numbers(field: str) -> st.SearchStrategy[Any]:
    least, greatest, whole = bounds(field)
    if whole:
        return st.integers(least, greatest)
    numbers = st.floats(least, greatest)
    return numbers.filter(lambda value: value > 0) if field == "top_p" else numbers


@settings(max_examples=500, deadline=None)
@given(
    st.fixed_dictionaries({}, optional={field: _numbers(field) for field in FIELDS}),
    st.lists(_LOGITS, min_size=1, max_size=WORDS).filter(lambda row: max(row) > -math.inf),
    st.dictionaries(st.integers(0, WORDS - 1), st.integers(1, 2**20)),
)
def test_whatever_the_fields_and_the_logits_a_token_is_drawn(
    values: dict[str, Any], row: list[float], counts: dict[int, int]
) -> None:
    counts = {token: count for token, count in counts.items() if token < len(row)}
    logits = torch.tensor([row], dtype=torch.float32)
    check(Sampler(CPU).draw(logits, [sequence(1, values, counts)])[0], logits[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1e-38, 1e-46, 5e-324])
def test_the_coldest_temperatures_draw_the_best_token(
    temperature: float, dtype: torch.dtype
) -> None:
    logits = torch.tensor([[1.0, 1.5, -3.0, 1.25]], dtype=dtype)
    for _ in range(20):
        drawn = Sampler(CPU).draw(logits, [sequence(1, {"temperature": temperature})])
        assert drawn[0].token == 1


@pytest.mark.parametrize("fields", [{"top_p": 1e-46}, {"top_p": 5e-324}, {"min_p": 1.0}])
def test_the_narrowest_cuts_leave_the_likeliest_token(fields: dict[str, float]) -> None:
    logits = torch.tensor([[1.0, 1.5, -3.0, 1.25]])
    for _ in range(20):
        drawn = Sampler(CPU).draw(logits, [sequence(1, {"temperature": 2.0} | fields)])
        assert drawn[0].token == 1


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_row_that_is_no_number_fails_alone_under_any_settings(odd: float) -> None:
    draw = random.Random(7)
    rows = rows_of(draw)
    logits = torch.randn(400, WORDS, generator=torch.Generator().manual_seed(1))
    logits[::2, 5] = odd
    logits[1, :] = -math.inf
    sequences = [sequence(row, next(rows)) for row in range(len(logits))]
    drawn = Sampler(CPU).draw(logits, sequences)
    for row, one in enumerate(drawn):
        if row % 2 and row != 1:
            check(one, logits[row])
        else:
            assert (one.token, one.fault) == (None, sampling.NOT_FINITE)


def test_a_row_whose_sampling_fails_ends_its_request_and_no_other(
    tiny: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop: GenerationLoop = load_generation(tiny("llama"), dtype="float32", threads=4)
    penalized = sampling._penalized

    def fails(logits: torch.Tensor, one: Sequence) -> torch.Tensor:
        if one.request.id == 2 and one.drawn == 3:
            raise RuntimeError("with the words of a prompt")
        return penalized(logits, one)

    monkeypatch.setattr(sampling, "_penalized", fails)
    for number in range(4):
        loop.accept(Admit(number, [5, 6, 7], 8, temperature=0.5, seed=number, ignore_eos=True))
    tokens: dict[int, int] = {}
    ends: dict[int, str] = {}
    failed: list[RequestFailed] = []
    while loop.busy():
        for event in loop.step():
            if isinstance(event, RequestFailed):
                failed.append(event)
            elif isinstance(event, Step):
                for token in event.tokens:
                    tokens[token.id] = tokens.get(token.id, 0) + 1
                ends |= {end.id: end.reason for end in event.finished}
    assert tokens == {0: 8, 1: 8, 2: 3, 3: 8}
    assert ends == dict.fromkeys((0, 1, 3), "length")
    assert [(one.id, one.code) for one in failed] == [(2, "sampling_failed")]
    assert "prompt" not in failed[0].message
