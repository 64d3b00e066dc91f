"""Models that read once and then write: token for token as transformers' own generate."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitEmbedding,
    Cancel,
    FromEngine,
    Park,
    RequestFailed,
    Resume,
    SetThreads,
    Step,
    Trim,
)
from llmtaskpool_worker.engines.seq2seq.load import load_sequences
from llmtaskpool_worker.engines.seq2seq.loop import SequenceLoop
from llmtaskpool_worker.engines.weights import ModelRefused
from transformers import AutoModelForSeq2SeqLM

from .tiny_models import write_headed, write_model
from .tiny_writers import WRITERS, write_writer

LENGTHS = (3, 20, 41, 12)
MORE = 16

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Write:
    made: dict[str, Path] = {}

    def folder(family: str, **options: Any) -> Path:
        name = f"{family}-{options}"
        if name not in made:
            made[name] = write_writer(tmp_path_factory.mktemp("writer"), family, **options)
        return made[name]

    return folder


@pytest.fixture(scope="module")
def marian(written: Write) -> SequenceLoop:
    return load_sequences(written("marian"), "translate", threads=4)


def texts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(3, 290, (size,), generator=draw).tolist() for size in LENGTHS]


@cache
def plain(folder: Path) -> Any:
    return AutoModelForSeq2SeqLM.from_pretrained(folder)


def generated(folder: Path, prompt: list[int], more: int = MORE, **options: Any) -> list[int]:
    """What transformers makes of it, without the first token and the end."""
    model = plain(folder)
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=more, num_beams=1, do_sample=False, **options
        )[0].tolist()
    return [token for token in out[1:] if token != 1]


def run(loop: SequenceLoop, *messages: Any, each: Callable[[], None] = lambda: None) -> Told:
    told = Told()
    for message in messages:
        told.take_in(loop.accept(message))
    while loop.busy():
        told.take_in(loop.step())
        each()
    return told


class Told:
    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}
        self.failed: dict[int, str] = {}
        self.batches: list[int] = []

    def take_in(self, events: list[FromEngine]) -> None:
        for event in events:
            if isinstance(event, Step):
                self.batches.append(event.decode_batch)
                for token in event.tokens:
                    self.tokens.setdefault(token.id, []).append(token.token)
                self.reasons |= {end.id: end.reason for end in event.finished}
            elif isinstance(event, RequestFailed):
                self.failed[event.id] = event.code


@pytest.mark.parametrize("family", WRITERS)
def test_each_family_writes_what_transformers_does_with_all_texts_at_once(
    written: Write, family: str
) -> None:
    folder = written(family)
    task = "translate" if family == "marian" else "summarize"
    loop = load_sequences(folder, task, threads=3)
    prompts = texts()
    told = run(loop, *(Admit(n, prompt, MORE) for n, prompt in enumerate(prompts)))
    assert told.failed == {}
    for place, prompt in enumerate(prompts):
        assert told.tokens.get(place, []) == generated(folder, prompt)
    assert max(told.batches) == 3, "as many at once as there are threads, and no more"


def test_what_its_generation_config_asks_for_is_kept(written: Write) -> None:
    asked = {
        "no_repeat_ngram_size": 2,
        "min_length": 9,
        "bad_words_ids": [[17], [40, 41]],
        "repetition_penalty": 1.3,
        "forced_bos_token_id": 0,
        "suppress_tokens": [50, 51],
        "begin_suppress_tokens": [60],
    }
    folder = written("bart", seed=5, asked=tuple(asked.items()))
    loop = load_sequences(folder, "summarize", threads=5)
    prompts = texts()
    told = run(loop, *(Admit(n, prompt, MORE) for n, prompt in enumerate(prompts)))
    for place, prompt in enumerate(prompts):
        whole = [0, *told.tokens[place]]  # the forced first token is the prefix's
        assert whole == generated(folder, prompt, MORE + 1)


def test_a_prefix_of_ones_own_is_what_the_answer_goes_on_from(written: Write) -> None:
    folder = written("m2m_100")
    loop = load_sequences(folder, "translate", threads=2)
    prompt = texts()[1]
    told = run(loop, Admit(1, prompt, MORE, prefix=[1, 77]), Admit(2, prompt, MORE, prefix=[1, 9]))
    for request, first in ((1, 77), (2, 9)):
        expected = generated(folder, prompt, MORE + 1, forced_bos_token_id=first)
        assert [first, *told.tokens[request]] == expected


def test_sampling_with_a_seed_is_the_same_alone_and_among_others(marian: SequenceLoop) -> None:
    prompts = texts()

    def drawn(others: int) -> list[int]:
        wanted = Admit(9, prompts[0], MORE, temperature=1.0, top_p=0.9, seed=7)
        rest = [Admit(n, prompts[1 + n], MORE) for n in range(others)]
        return run(marian, *rest, wanted).tokens[9]

    assert drawn(0) == drawn(3)


def test_who_is_cancelled_leaves_its_slot_and_the_others_go_on(
    marian: SequenceLoop, written: Write
) -> None:
    prompts = texts()
    marian.accept(SetThreads(2))
    messages = [Admit(n, prompts[n], MORE) for n in range(4)]
    told = Told()
    for message in messages:
        told.take_in(marian.accept(message))
    for _ in range(3):
        told.take_in(marian.step())
    told.take_in(marian.accept(Cancel(0)))
    told.take_in(marian.accept(Cancel(3)))
    while marian.busy():
        told.take_in(marian.step())
    marian.accept(SetThreads(4))
    assert told.reasons[0] == told.reasons[3] == "cancelled"
    assert len(told.tokens[0]) <= 3
    assert 3 not in told.tokens
    for place in (1, 2):
        assert told.tokens[place] == generated(written("marian"), prompts[place])


def test_who_is_put_aside_goes_on_as_if_it_had_not_been(
    marian: SequenceLoop, written: Write
) -> None:
    prompts = texts()
    told = Told()
    for place in (0, 1):
        told.take_in(marian.accept(Admit(place, prompts[place], MORE)))
    for _ in range(4):
        told.take_in(marian.step())
    told.take_in(marian.accept(Park(0)))
    told.take_in(marian.step())
    assert told.reasons.pop(0) == "parked"
    marian.accept(Resume(0))
    while marian.busy():
        told.take_in(marian.step())
    for place in (0, 1):
        assert told.tokens[place] == generated(written("marian"), prompts[place])


def test_memory_is_given_back_when_nobody_needs_it(marian: SequenceLoop) -> None:
    run(marian, Admit(1, texts()[3], 4))
    assert marian.decoder.own.slots
    marian.accept(Trim())
    assert (marian.decoder.own.slots, marian.decoder.cross.slots) == (0, 0)
    assert run(marian, Admit(1, texts()[3], 4)).reasons[1] in ("stop", "length")


def test_as_many_run_at_once_as_the_caches_may_hold(written: Write) -> None:
    loop = load_sequences(written("marian"), "translate", threads=5, options={"cache_bytes": 70000})
    told = run(loop, *(Admit(n, prompt, MORE) for n, prompt in enumerate(texts())))
    assert max(told.batches) == 1
    assert set(told.reasons) == set(range(4)), "the others had their turn"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (Admit(1, [], 4), "empty_prompt"),
        (Admit(1, [5] * 65, 4), "context_length_exceeded"),
        (Admit(1, [5, 300], 4), "token_out_of_range"),
        (Admit(1, [5], 0), "invalid_max_tokens"),
        (AdmitEmbedding(1, [5]), "wrong_model"),
    ],
)
def test_what_can_t_be_run_is_refused_at_once(
    marian: SequenceLoop, message: Any, code: str
) -> None:
    (refused,) = marian.accept(message)
    assert isinstance(refused, RequestFailed)
    assert refused.code == code
    assert not marian.busy()


def test_a_source_that_makes_no_numbers_fails_alone(written: Write, tmp_path: Path) -> None:
    loop = load_sequences(written("marian", seed=8), "translate", threads=2)
    with torch.no_grad():
        loop.decoder.encoder.embed_tokens.weight[99] = float("nan")
    prompts = texts()
    told = run(loop, Admit(1, [99, 5], MORE), Admit(2, prompts[1], MORE))
    assert told.failed == {1: "not_finite"}
    assert told.tokens[2] == generated(written("marian", seed=8), prompts[1])
    again = run(loop, Admit(3, prompts[2], MORE), Admit(4, prompts[0], MORE))
    assert again.tokens[3] == generated(written("marian", seed=8), prompts[2])


def test_a_model_without_an_encoder_names_what_to_do(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "llama")
    with pytest.raises(ModelRefused, match="task=translate needs one that was trained for it"):
        load_sequences(folder, "translate")


def test_a_classifier_is_none_that_summarizes(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="BertForSequenceClassification"):
        load_sequences(write_headed(tmp_path, "classify"), "summarize")
