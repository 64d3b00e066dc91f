"""When a worker of this machine is well, silent or lost."""

from __future__ import annotations

from llmtaskpool_operator.local.health import Health, HealthLimits, Verdict

LIMITS = HealthLimits(silent_seconds=3.0, lost_seconds=12.0, lost_asks=3, stuck_seconds=60.0)


def test_a_worker_that_says_nothing_is_silent_and_then_lost():
    health = Health(LIMITS, 0.0)
    seen = [health.asked(now, alive=None, answers=0) for now in (2.0, 3.0, 11.9, 12.0)]
    assert seen == [Verdict.WELL, Verdict.SILENT, Verdict.SILENT, Verdict.LOST]


def test_an_answer_makes_it_well_and_its_silence_counts_anew():
    health = Health(LIMITS, 0.0)
    assert health.asked(5.0, alive=None, answers=0) is Verdict.SILENT
    assert health.asked(11.0, alive=True, answers=0) is Verdict.WELL
    assert health.asked(13.0, alive=None, answers=0) is Verdict.WELL
    assert health.asked(22.9, alive=None, answers=0) is Verdict.SILENT


def test_a_worker_that_answers_clients_is_not_silent():
    health = Health(LIMITS, 0.0)
    for now in range(1, 30):
        assert health.asked(float(now), alive=None, answers=now) is Verdict.WELL


def test_a_pause_of_who_asks_is_no_silence_of_the_worker():
    health = Health(LIMITS, 0.0)
    assert health.asked(3600.0, alive=None, answers=0) is Verdict.SILENT
    assert health.asked(3601.0, alive=None, answers=0) is Verdict.SILENT
    assert health.asked(3602.0, alive=True, answers=0) is Verdict.WELL


def test_a_worker_that_says_it_is_stuck_has_longer_to_mend_itself():
    health = Health(LIMITS, 0.0)
    assert health.asked(1.0, alive=False, answers=0) is Verdict.SILENT
    assert health.asked(59.0, alive=False, answers=5) is Verdict.SILENT
    assert health.asked(60.0, alive=False, answers=9) is Verdict.LOST
