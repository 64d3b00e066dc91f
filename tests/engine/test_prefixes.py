"""Prompts that begin as others did: what is kept of those is not computed again."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from llmtaskpool_worker.engines.batching import Batching, Sequence
from llmtaskpool_worker.engines.generation import GenerationLoop, load_generation
from llmtaskpool_worker.engines.prefixes import MOST_KEPT, Drop, Keep, Load, Prefixes
from llmtaskpool_worker.engines.protocol import Admit, Cancel, Park, Resume, Step, Trim

from .test_generation import Outcome, reference, run
from .tiny_models import FAMILIES, VOCABULARY

SYSTEM = [2 + 7 * i % 290 for i in range(60)]


@pytest.fixture(scope="module")
def folder(tiny: Callable[[str], Path]) -> Path:
    return tiny("llama")


def loaded(folder: Path, **options: object) -> GenerationLoop:
    return load_generation(
        folder, dtype="float32", threads=4, options={"prefill_chunk": 16} | options
    )


def told(loop: GenerationLoop, requests: list[Admit]) -> tuple[Outcome, dict[int, int], int]:
    """What a loop said; how many tokens each reused; and how many of prompts were computed."""
    outcome, reused, computed = Outcome(), {}, 0
    for request in requests:
        outcome.take(loop.accept(request))
    while loop.busy():
        events = loop.step()
        outcome.take(events)
        for event in events:
            if isinstance(event, Step):
                reused |= dict(event.reused)
                computed += event.prefill_tokens
    return outcome, reused, computed


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_answers_to_prompts_that_begin_as_others_did_are_those_of_generate(
    family: str, tiny: Callable[[str], Path]
) -> None:
    loop = loaded(tiny(family))
    first = Admit(1, [*SYSTEM, 9, 8, 7], 12)
    run(loop, [first])
    turn = [*first.prompt, *reference(tiny(family), first)]
    later = [Admit(2, [*SYSTEM, 5], 12), Admit(3, [*turn, 11, 12], 12), Admit(4, SYSTEM[:40], 12)]
    outcome, reused, computed = told(loop, later)
    assert {r.id: outcome.tokens.get(r.id, []) for r in later} == {
        r.id: reference(tiny(family), r) for r in later
    }
    assert reused[2] == len(SYSTEM)
    assert reused[3] >= len(turn) - 1, "what was drawn is kept too, but for the last token"
    assert reused[4] == 39, "the last token is computed: what follows is drawn from it"
    assert computed == sum(len(r.prompt) for r in later) - sum(reused.values())


def test_what_a_cancelled_generation_had_computed_is_kept(folder: Path) -> None:
    loop = loaded(folder)
    run(
        loop,
        [Admit(1, SYSTEM, 100, ignore_eos=True)],
        {9: lambda loop: loop.accept(Cancel(1))},
    )
    again = Admit(2, [*SYSTEM, 3, 4], 10)
    outcome, reused, _ = told(loop, [again])
    assert reused == {2: len(SYSTEM)}
    assert outcome.tokens.get(2, []) == reference(folder, again)


def test_one_that_was_put_aside_goes_on_from_what_is_kept_and_is_told_as_reused_to_nobody(
    folder: Path,
) -> None:
    loop = loaded(folder)
    asked = Admit(1, SYSTEM, 30, ignore_eos=True, temperature=1.0, seed=5)
    alone = run(loaded(folder, prefix_cache=False), [asked])
    reused, computed, outcome = {}, 0, Outcome()
    loop.accept(asked)
    while loop.busy() or outcome.steps < 12:
        if outcome.steps == 9:
            loop.accept(Park(1))
        if outcome.steps == 11:
            loop.accept(Resume(1))
        events = loop.step()
        outcome.take(events)
        for event in events:
            if isinstance(event, Step):
                reused |= dict(event.reused)
                computed += event.prefill_tokens
    assert outcome.tokens == alone.tokens
    assert reused == {}
    assert computed == len(SYSTEM) + 1


def test_within_its_bytes_the_cache_serves_who_runs_before_who_has_ended(folder: Path) -> None:
    roomy = loaded(folder)
    run(roomy, [Admit(0, [5, 6], 1)])
    per_token = roomy.cache.bytes_per_token
    tight = loaded(folder, cache_bytes=2 * 128 * per_token)
    draw = random.Random(3)
    requests = [
        Admit(i, SYSTEM[: 20 * (i % 3)] + [draw.randrange(2, VOCABULARY) for _ in range(20)], 40)
        for i in range(12)
    ]
    outcome = Outcome()
    for request in requests:
        tight.accept(request)
    most = 0
    while tight.busy():
        outcome.take(tight.step())
        kept = sum(part.numel() * 4 for parts in tight.cache.kept.values() for part in parts)
        slots = tight.cache.slots * tight.cache.length * per_token
        most = max(most, kept + slots)
        assert set(tight.cache.kept) == set(tight.batching.prefixes._kept)
    assert most <= 2 * 128 * per_token
    assert {r.id: outcome.tokens.get(r.id, []) for r in requests} == {
        r.id: reference(folder, r) for r in requests
    }


def test_room_that_only_a_crowd_needed_is_used_for_what_is_kept(folder: Path) -> None:
    roomy = loaded(folder)
    run(roomy, [Admit(0, [5, 6], 1)])
    loop = loaded(folder, cache_bytes=4 * 128 * roomy.cache.bytes_per_token)
    run(loop, [Admit(i, [3 + i] * 20, 30, ignore_eos=True) for i in range(4)])
    for number in range(3):
        run(loop, [Admit(number, [*SYSTEM, number + 5], 4, ignore_eos=True)])
    _, reused, _ = told(loop, [Admit(9, [*SYSTEM, 77], 4)])
    assert reused == {9: len(SYSTEM)}


def test_a_generation_of_no_numbers_leaves_nothing_behind(folder: Path) -> None:
    loop = loaded(folder)
    table = loop.model.get_input_embeddings().weight.data  # type: ignore[operator]
    kept = table[7].clone()
    table[7] = float("nan")
    outcome = run(loop, [Admit(1, [*SYSTEM, 7], 5)])
    table[7] = kept
    assert outcome.failures[1].code == "not_finite"
    again = Admit(2, [*SYSTEM, 7, 8], 6)
    outcome, reused, _ = told(loop, [again])
    assert reused == {}
    assert outcome.tokens.get(2, []) == reference(folder, again)


def test_at_rest_most_of_what_is_kept_goes_back(folder: Path) -> None:
    roomy = loaded(folder)
    run(roomy, [Admit(0, [5, 6], 1)])
    budget = 16 * 128
    loop = loaded(folder, cache_bytes=budget * roomy.cache.bytes_per_token)
    run(loop, [Admit(i, [3 + i] * 90, 2, ignore_eos=True) for i in range(8)])
    before = loop.batching.prefixes.tokens
    loop.accept(Trim())
    assert loop.batching.prefixes.tokens <= budget / 8 < before
    _, reused, _ = told(loop, [Admit(9, [10] * 95, 1)])
    assert reused == {9: 90}, "the one that was used last stays"


def test_who_wants_no_prefix_cache_has_none(folder: Path) -> None:
    loop = loaded(folder, prefix_cache=False)
    run(loop, [Admit(1, SYSTEM, 3)])
    _, reused, computed = told(loop, [Admit(2, SYSTEM, 3)])
    assert (reused, computed) == ({}, len(SYSTEM))
    assert not loop.cache.kept


def tokens(*parts: tuple[int, int]) -> list[int]:
    return [token for token, count in parts for _ in range(count)]


def test_the_least_recently_used_goes_first_and_a_longer_one_covers_a_shorter() -> None:
    prefixes = Prefixes()
    assert prefixes.keep(0, tokens((1, 40)), 100) == [Keep(0, 1, 40)]
    assert prefixes.keep(1, tokens((2, 40)), 100) == [Keep(1, 2, 40)]
    assert prefixes.find(tokens((1, 30))) == Load(1, 0, 29)
    assert prefixes.keep(2, tokens((3, 50)), 100) == [Drop(2), Keep(2, 3, 50)]
    assert prefixes.keep(3, tokens((1, 45)), 100) == [Drop(1), Keep(3, 4, 45)]
    assert prefixes.keep(3, tokens((1, 20)), 100) == [], "it is the beginning of one that is there"
    assert prefixes.tokens == 95
    assert prefixes.find(tokens((9, 30))) is None
    assert prefixes.keep(0, tokens((9, 8)), 100) == [], "too short to be worth it"
    assert prefixes.keep(0, tokens((9, 101)), 100) == [], "no room for it whoever goes"
    assert prefixes.shrink(0, spare={4}) == [Drop(3)]


def test_however_short_they_are_only_so_many_are_kept() -> None:
    prefixes = Prefixes()
    for number in range(MOST_KEPT + 10):
        prefixes.keep(0, tokens((number, 16)), 1 << 30)
    assert prefixes.tokens == 16 * MOST_KEPT


def test_what_one_admitted_now_is_to_load_is_not_dropped_for_another() -> None:
    batching = Batching(
        threads=4, chunk=64, budget_tokens=4 * 128, granule=128, prefixes=Prefixes()
    )
    assert batching.prefixes is not None
    batching.prefixes.keep(0, tokens((1, 200)), 4 * 128)
    for number, prompt in enumerate([tokens((1, 100)), tokens((2, 100)), tokens((3, 100))]):
        batching.waiting.append(Sequence(Admit(number, prompt, 1), prompt))
    batch = batching.schedule()
    assert batch.loads == (Load(1, 0, 99),)
    assert batch.drops == ()
    assert len(batching.running) == 2, "the third needs the room of what the first loads"
    batch = batching.schedule()
    assert (len(batching.running), batch.drops) == (3, (Drop(1),))
