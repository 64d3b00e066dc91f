"""The engine's answers, next to those of transformers' own generate."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llmtaskpool_worker.engines.generation import GenerationLoop, ModelRefused, load_generation
from llmtaskpool_worker.engines.protocol import (
    Admit,
    Cancel,
    FromEngine,
    Park,
    RequestFailed,
    Resume,
    SetThreads,
    Step,
    Trim,
)
from transformers import AutoConfig, AutoModelForCausalLM

from .tiny_models import FAMILIES, VOCABULARY, write_tokenizer

EOS = 1


class Outcome:
    """What a loop said of each request."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}
        self.failures: dict[int, RequestFailed] = {}
        self.logprobs: dict[int, list[tuple[float | None, list[tuple[int, float]]]]] = {}
        self.steps = 0

    def take(self, events: list[FromEngine]) -> None:
        for event in events:
            if isinstance(event, RequestFailed):
                self.failures[event.id] = event
            if isinstance(event, Step):
                self.steps += 1
                for token in event.tokens:
                    self.tokens.setdefault(token.id, []).append(token.token)
                    self.logprobs.setdefault(token.id, []).append((token.logprob, token.top))
                for end in event.finished:
                    self.reasons[end.id] = end.reason


def run(
    loop: GenerationLoop,
    requests: list[Admit],
    at_step: dict[int, Callable[[GenerationLoop], None]] | None = None,
) -> Outcome:
    outcome = Outcome()
    for request in requests:
        outcome.take(loop.accept(request))
    while loop.busy():
        outcome.take(loop.step())
        if at_step and (change := at_step.get(outcome.steps)):
            change(loop)
        assert outcome.steps < 2000
    return outcome


def reference(folder: Path, request: Admit) -> list[int]:
    """transformers' greedy continuation, without its end-of-sequence token."""
    model = _reference_model(folder)
    ids = torch.tensor([request.prompt])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.max_tokens,
            do_sample=False,
        )
    tokens: list[int] = out[0, len(request.prompt) :].tolist()
    eos = model.generation_config.eos_token_id
    return tokens[:-1] if tokens and tokens[-1] == eos else tokens


_loaded: dict[Path, torch.nn.Module] = {}


def _reference_model(folder: Path) -> torch.nn.Module:
    if folder not in _loaded:
        _loaded.clear()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        _loaded[folder] = model.eval()
    return _loaded[folder]


def mixed(vocabulary: int, *, count: int, longest: int, tokens: int, seed: int = 1) -> list[Admit]:
    draw = random.Random(seed)
    return [
        Admit(
            id=number,
            prompt=[draw.randrange(2, vocabulary) for _ in range(draw.randrange(1, longest))],
            max_tokens=draw.randrange(1, tokens),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_greedy_answers_equal_generate_while_n_changes_and_others_are_cancelled(
    family: str, tiny: Callable[[str], Path]
) -> None:
    folder = tiny(family)
    loop = load_generation(folder, dtype="float32", threads=3, options={"prefill_chunk": 16})
    requests = mixed(VOCABULARY, count=10, longest=60, tokens=24)
    cancelled = Admit(100, [5] * 30, 200, ignore_eos=True)
    changes: dict[int, Callable[[GenerationLoop], None]] = {
        4: lambda loop: loop.accept(SetThreads(6)),
        9: lambda loop: loop.accept(Cancel(100)),
        12: lambda loop: loop.accept(SetThreads(1)),
        20: lambda loop: loop.accept(SetThreads(8)),
    }
    outcome = run(loop, [cancelled, *requests], changes)
    expected = {request.id: reference(folder, request) for request in requests}
    got = {request.id: outcome.tokens.get(request.id, []) for request in requests}
    assert got == expected
    assert outcome.reasons[100] == "cancelled"


@pytest.mark.model
def test_greedy_answers_of_the_real_smollm2_equal_generate(smollm2: Path) -> None:
    loop = load_generation(smollm2, dtype="float32", threads=4)
    requests = mixed(49152, count=5, longest=150, tokens=24, seed=3)
    long = Admit(50, list(range(1000, 1300)), 100)
    outcome = run(loop, [*requests, long], {5: lambda loop: loop.accept(Cancel(50))})
    assert {r.id: outcome.tokens.get(r.id, []) for r in requests} == {
        r.id: reference(smollm2, r) for r in requests
    }


@pytest.fixture
def llama(tiny: Callable[[str], Path]) -> GenerationLoop:
    return load_generation(tiny("llama"), dtype="float32", threads=4, options={"prefill_chunk": 16})


def test_sequences_that_do_not_fit_into_the_cache_wait_and_end_the_same(
    tiny: Callable[[str], Path],
) -> None:
    folder = tiny("llama")
    roomy = load_generation(folder, dtype="float32", threads=6)
    tokens = 2 * 128  # two sequences of one granule each
    room = {"cache_bytes": tokens * _bytes_per_token(roomy)}
    tight = load_generation(folder, dtype="float32", threads=6, options=room)
    requests = [Admit(i, [3 + i] * 100, 60, ignore_eos=True) for i in range(4)]
    assert tight.ready().max_threads == 2
    assert run(tight, requests).tokens == run(roomy, requests).tokens


def _bytes_per_token(loop: GenerationLoop) -> int:
    run(loop, [Admit(0, [5, 6], 1)])
    return loop.cache.bytes_per_token


def test_n_is_never_exceeded_and_running_sequences_outlive_a_smaller_n(
    llama: GenerationLoop,
) -> None:
    for request in [Admit(i, [3 + i], 20, ignore_eos=True) for i in range(8)]:
        llama.accept(request)
    outcome = Outcome()
    outcome.take(llama.step())
    batches = []
    llama.accept(SetThreads(2))
    while llama.busy():
        events = llama.step()
        outcome.take(events)
        batches += [event.decode_batch for event in events if isinstance(event, Step)]
    assert max(batches) == 4
    assert batches[-2] <= 2
    assert [len(outcome.tokens[i]) for i in range(8)] == [20] * 8


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (Admit(1, [], 5), "empty_prompt"),
        (Admit(1, [5] * 256, 5), "context_length_exceeded"),
        (Admit(1, [5, VOCABULARY], 5), "token_out_of_range"),
        (Admit(1, [-1], 5), "token_out_of_range"),
        (Admit(1, [5], 0), "invalid_max_tokens"),
    ],
)
def test_an_impossible_request_fails_alone(
    llama: GenerationLoop, request_: Admit, code: str
) -> None:
    good = Admit(2, [7, 8, 9], 10, ignore_eos=True)
    alone = run(llama, [good]).tokens[2]
    outcome = run(llama, [good, request_])
    assert outcome.failures[1].code == code
    assert outcome.tokens[2] == alone


def test_an_answer_ends_at_the_context_length(llama: GenerationLoop) -> None:
    outcome = run(llama, [Admit(1, [5] * 250, 100, ignore_eos=True)])
    assert len(outcome.tokens[1]) == 6
    assert outcome.reasons[1] == "length"


def test_a_model_that_yields_no_numbers_fails_its_requests_and_goes_on(
    llama: GenerationLoop,
) -> None:
    table = llama.model.get_input_embeddings().weight.data  # type: ignore[operator]
    kept = table[7].clone()
    table[7] = float("nan")
    outcome = run(llama, [Admit(1, [5, 7], 5), Admit(2, [5, 6], 5, ignore_eos=True)])
    table[7] = kept
    assert outcome.failures[1].code == "not_finite"
    assert len(outcome.tokens[2]) == 5
    later = run(llama, [Admit(i, [5 + i], 5, ignore_eos=True) for i in range(4)])
    assert later.failures == {}, "nothing of it is left in the slot that the next one takes"


def test_the_same_seed_draws_the_same_tokens_whatever_else_runs(llama: GenerationLoop) -> None:
    def wanted(number: int, seed: int | None) -> Admit:
        return Admit(number, [9, 8, 7], 20, temperature=1.5, seed=seed, ignore_eos=True)

    alone = run(llama, [wanted(1, 42)]).tokens[1]
    crowd = run(llama, [wanted(2, 7), wanted(1, 42), Admit(3, [4] * 40, 30), wanted(4, None)])
    assert crowd.tokens[1] == alone
    assert crowd.tokens[2] != alone


def test_logprobs_are_those_of_the_model(
    llama: GenerationLoop, tiny: Callable[[str], Path]
) -> None:
    outcome = run(llama, [Admit(1, [9, 8, 7], 4, logprobs=3, ignore_eos=True)])
    with torch.inference_mode():
        ids = torch.tensor([[9, 8, 7, *outcome.tokens[1]]])
        logits = _reference_model(tiny("llama"))(ids).logits[0].float()
    expected = torch.log_softmax(logits, dim=-1)
    for place, (token, (logprob, top)) in enumerate(
        zip(outcome.tokens[1], outcome.logprobs[1], strict=True)
    ):
        assert logprob == pytest.approx(float(expected[2 + place, token]), abs=1e-3)
        assert [t for t, _ in top] == expected[2 + place].topk(3).indices.tolist()


def test_trim_gives_the_cache_back_and_running_answers_stay_the_same(
    llama: GenerationLoop,
) -> None:
    requests = [Admit(i, [3 + i] * 40, 30, ignore_eos=True) for i in range(4)]
    undisturbed = run(llama, requests).tokens
    llama.accept(Trim())
    assert llama.cache.slots * llama.cache.length == 0
    trimmed = run(llama, requests, {10: lambda loop: loop.accept(Trim())})
    assert trimmed.tokens == undisturbed


def test_a_model_with_another_kind_of_attention_is_refused_with_the_reason(
    tmp_path: Path,
) -> None:
    config = AutoConfig.for_model(
        "bloom", vocab_size=VOCABULARY, hidden_size=48, n_layer=2, n_head=6
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(ModelRefused, match="can't be served"):
        load_generation(tmp_path)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.8, "seed": 7, "top_p": 0.9, "top_k": 20, "logprobs": 3},
        {"presence_penalty": 1.5, "frequency_penalty": 1.0, "logprobs": 0},
        {"temperature": 1.2, "seed": 3, "frequency_penalty": 0.7, "min_p": 0.01},
    ],
    ids=["greedy", "seeded", "cut", "penalties", "seeded-penalties"],
)
@pytest.mark.parametrize("parked_at", [(1,), (9,), (5, 23)])
def test_what_was_put_aside_goes_on_token_for_token(
    llama: GenerationLoop, how: dict, parked_at: tuple[int, ...]
) -> None:
    wanted = Admit(1, [3, 5, 8] * 12, 40, ignore_eos=True, **how)
    crowd = [Admit(n, [9, n], 30, ignore_eos=True) for n in (2, 3)]
    alone = run(llama, [wanted])
    changes: dict[int, Callable[[GenerationLoop], None]] = {}
    for step in parked_at:
        changes[step] = lambda loop: loop.accept(Park(1))
        changes[step + 6] = lambda loop: loop.accept(Resume(1))
    told = run(llama, [wanted, *crowd], changes)
    assert told.tokens[1] == alone.tokens[1]
    assert told.reasons[1] == "length"
    for (one, top), (other, other_top) in zip(told.logprobs[1], alone.logprobs[1], strict=True):
        assert one == pytest.approx(other, abs=1e-4)
        assert [token for token, _ in top] == [token for token, _ in other_top]
    assert not llama.batching.parked


def test_a_parked_generation_can_be_cancelled_and_one_that_ended_is_not_parked(
    llama: GenerationLoop,
) -> None:
    parked, other = Admit(1, [3, 5], 20, ignore_eos=True), Admit(2, [4], 30, ignore_eos=True)
    outcome = run(
        llama,
        [parked, other],
        {
            3: lambda loop: loop.accept(Park(1)),
            5: lambda loop: loop.accept(Cancel(1)),
            7: lambda loop: loop.accept(Resume(1)),
            9: lambda loop: loop.accept(Park(99)),
        },
    )
    assert outcome.reasons == {1: "parked", 2: "length"}
    assert not llama.batching.parked
    assert not llama.sampler._generators
