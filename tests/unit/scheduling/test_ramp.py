"""A fresh server's places double as it tells of them."""

from __future__ import annotations

from llmtaskpool_worker.scheduling.ramp import ENOUGH, PATIENCE_SECONDS, START, Ramp


def test_places_double_once_a_batch_as_large_was_measured_often_enough():
    ramp = Ramp()
    for _ in range(ENOUGH - 1):
        ramp.measured(START)
    assert ramp.places == START
    ramp.measured(START - 1)
    assert ramp.places == 2 * START
    for _ in range(50):
        ramp.measured(START)  # that tells nothing of twice as many
    assert ramp.places == 2 * START


def test_short_answers_tell_by_their_ends_while_all_places_are_taken():
    ramp = Ramp()
    for _ in range(100):
        ramp.ended(START - 1)
    assert ramp.places == START
    for _ in range(START):
        ramp.ended(START)
    assert ramp.places == 2 * START


def test_a_server_that_tells_nothing_is_waited_for_only_so_long():
    ramp, now = Ramp(), 100.0
    ramp.look(START, now)
    ramp.look(START, now + PATIENCE_SECONDS - 0.1)
    assert ramp.places == START
    ramp.look(START - 1, now + PATIENCE_SECONDS)  # not all are taken: it begins again
    ramp.look(START, now + PATIENCE_SECONDS + 1)
    ramp.look(START, now + 2 * PATIENCE_SECONDS)
    assert ramp.places == START
    ramp.look(START, now + 2 * PATIENCE_SECONDS + 1)
    assert ramp.places == 2 * START


def test_at_rest_it_stays_where_it_is():
    ramp = Ramp()
    for second in range(1000):
        ramp.look(0, float(second))
    assert ramp.places == START
