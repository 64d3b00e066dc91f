"""How much of their prompts tasks of a class had not to compute."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llmtaskpool_worker.scheduling.reuse import MOST_REUSED, Reuse

KEEP, ENOUGH = 5, 3


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 1200)), max_size=40))
def test_the_share_is_that_of_the_last_tasks_and_of_no_others(
    tasks: list[tuple[int, int]],
) -> None:
    reuse = Reuse(KEEP, ENOUGH)
    for prompt, reused in tasks:
        reuse.observe("class", prompt, reused)
    last = [(prompt, min(prompt, reused)) for prompt, reused in tasks[-KEEP:]]
    expected = 0.0
    if len(tasks) >= ENOUGH:
        expected = sum(reused for _, reused in last) / sum(prompt for prompt, _ in last)
    assert reuse.share("class") == min(expected, MOST_REUSED)


def test_a_class_with_too_few_tasks_has_the_share_of_the_next_one() -> None:
    reuse = Reuse(KEEP, ENOUGH)
    reuse.observe("few", 100, 0)
    for _ in range(ENOUGH):
        reuse.observe("many", 100, 50)
    assert reuse.share("few", "many") == 0.5
    assert reuse.share("few", "unknown") == 0.0
