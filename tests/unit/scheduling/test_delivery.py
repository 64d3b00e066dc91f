"""What a server delivers is measured over stretches with one number of requests in flight."""

from __future__ import annotations

import pytest
from llmtaskpool_worker.scheduling.delivery import (
    AWAY_SECONDS,
    PROMPT_SHARE,
    STRETCH_TOKENS,
    Delivery,
    Stretch,
)

STEP = 0.1


def play(delivery: Delivery, in_flight: int, seconds: float, now: float) -> list[Stretch]:
    """Each request draws a token each STEP."""
    delivery.count(in_flight, now)
    found = []
    for step in range(1, round(seconds / STEP) + 1):
        at = now + step * STEP
        found += [s for _ in range(in_flight) if (s := delivery.drew(1, at)) is not None]
    return found


def test_a_stretch_tells_tokens_a_second_and_the_requests_that_they_were_for():
    found = play(Delivery(), 4, 20.0, 100.0)
    assert len(found) >= 3
    for one in found:
        assert one.in_flight == pytest.approx(4)
        assert one.rate == pytest.approx(4 / STEP, rel=0.05)


def test_the_first_tokens_after_a_change_are_passed_over():
    delivery = Delivery()
    play(delivery, 4, 10.0, 0.0)
    delivery.count(8, 10.0)  # their prompts are read, and nobody draws for 5 s
    found = play(delivery, 8, 20.0, 15.0)
    assert found
    assert all(one.rate == pytest.approx(8 / STEP, rel=0.05) for one in found)


def test_one_who_ends_and_one_who_follows_are_no_change():
    delivery, now, found = Delivery(), 0.0, []
    for _ in range(100):
        delivery.count(16, now)
        found += [delivery.drew(1, now + STEP) for _ in range(16)]
        delivery.count(8, now + STEP)  # half of them ended in one step
        now += STEP + 0.01
    whole = [one for one in found if one is not None]
    assert len(whole) >= 2
    assert all(15 < one.in_flight <= 16 for one in whole)


def test_what_changes_all_the_time_tells_nothing():
    delivery, now = Delivery(), 0.0
    for turn in range(60):
        number = 4 if turn % 2 else 16
        assert play(delivery, number, 2 * AWAY_SECONDS, now) == []
        now += 2 * AWAY_SECONDS


def test_a_server_that_had_nothing_to_do_was_not_slow():
    delivery = Delivery()
    play(delivery, 4, 5.0, 0.0)
    delivery.count(0, 5.0)
    found = play(delivery, 4, 10.0, 500.0)
    assert all(one.rate == pytest.approx(4 / STEP, rel=0.05) for one in found)
    assert found


def test_prompts_count_by_a_share_of_their_tokens_and_known_ones_do_not():
    def rate(cached: int) -> float:
        delivery, found = Delivery(), []
        delivery.count(1, 0.0)
        for request in range(100):
            at = 10.0 * STEP * request
            delivery.was_known(cached, 800)
            found.append(delivery.read(800, at))
            found += [delivery.drew(1, at + STEP * token) for token in range(1, 11)]
        return [one.rate for one in found if one is not None][-1]

    assert rate(0) == pytest.approx((10 + 800 * PROMPT_SHARE) / (10 * STEP), rel=0.5)
    assert rate(800) == pytest.approx(1 / STEP, rel=0.2)


def test_requests_that_are_answered_at_once_tell_by_their_prompts():
    delivery = Delivery()
    delivery.count(4, 0.0)
    found = [delivery.answered_at_once(80, 0.05 * number) for number in range(400)]
    whole = [one for one in found if one is not None]
    assert whole
    assert all(one.rate == pytest.approx(80 * PROMPT_SHARE / 0.05, rel=0.1) for one in whole)


def test_slow_streams_are_waited_for_only_so_long():
    delivery = Delivery()
    delivery.count(8, 0.0)
    found = [delivery.drew(1, number * 0.25) for number in range(8 * STRETCH_TOKENS)]
    at = [place * 0.25 for place, one in enumerate(found) if one is not None]
    assert at
    assert at[0] <= 25.0


def test_answers_of_one_token_tell_of_a_server_after_a_few_of_them():
    delivery, found, now = Delivery(), [], 0.0
    delivery.count(4, now)
    for _ in range(10):
        now += 0.5
        for _ in range(4):
            found += [delivery.read(400, now), delivery.drew(1, now), delivery.ended(1, now)]
    whole = [one for one in found if one is not None]
    assert len(whole) >= 2
    for one in whole:
        assert one.rate == pytest.approx(4 * (1 + 400 * PROMPT_SHARE) / 0.5, rel=0.3)
