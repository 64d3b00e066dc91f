"""The cap on threads that keeps answers from becoming too slow."""

from __future__ import annotations

from llmtaskpool_worker.scheduling.latency_guard import LatencyGuard


def settled(step_seconds: float, *, cap: int | None = None) -> LatencyGuard:
    guard = LatencyGuard(slo_seconds=0.1, cap=cap)
    guard.observe(step_seconds)
    return guard


def test_until_something_was_measured_the_knee_is_the_cap() -> None:
    assert LatencyGuard(0.1).adjust(active=32, knee=24, now=0.0) == 24


def test_slow_answers_cut_the_cap_below_what_ran_and_only_once_per_cooldown() -> None:
    guard = settled(0.2)
    caps = [guard.adjust(active=20, knee=24, now=second) for second in range(7)]
    assert caps == [17, 17, 17, 17, 17, 14, 14]


def test_slow_steps_of_a_nearly_idle_engine_cut_nothing() -> None:
    assert settled(0.2).adjust(active=3, knee=24, now=0.0) == 24


def test_a_full_engine_with_room_gets_one_thread_a_second_up_to_the_knee() -> None:
    guard = settled(0.05, cap=10)
    assert [guard.adjust(active=11, knee=12, now=t) for t in (0.0, 0.5, 1.0, 2.0, 3.0)] == [
        11,
        11,
        12,
        12,
        12,
    ]


def test_the_cap_never_falls_below_its_floor() -> None:
    guard = settled(9.0)
    for second in range(200):
        cap = guard.adjust(active=24, knee=24, now=float(second))
    assert cap == 4


def test_a_knee_below_the_floor_holds() -> None:
    assert settled(9.0).adjust(active=2, knee=2, now=0.0) == 2


def test_a_knee_that_fell_for_a_while_leaves_no_cut_behind() -> None:
    guard = settled(0.05)
    assert [guard.adjust(active=1, knee=knee, now=t) for t, knee in enumerate((24, 1, 1, 24))] == [
        24,
        1,
        1,
        24,
    ]


def test_a_cut_is_not_forgotten_while_the_knee_is_lower_still() -> None:
    guard = settled(0.08, cap=10)
    assert [guard.adjust(active=1, knee=knee, now=t) for t, knee in enumerate((24, 5, 24))] == [
        10,
        5,
        10,
    ]
