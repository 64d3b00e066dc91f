"""Steps are run as nice as the engine was told."""

from __future__ import annotations

import os
import threading

import pytest
from llmtaskpool_worker.engines.nice_steps import NiceSteps


def _now() -> tuple[int, int]:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), threading.get_native_id()


def test_a_step_is_as_nice_as_was_told_and_the_next_as_was_told_since() -> None:
    steps = NiceSteps()
    plain, here = steps.run(_now)
    assert here == threading.get_native_id()
    steps.level = 5
    nicer, there = steps.run(_now)
    assert (nicer, there == here) == (plain + 5, False)
    assert steps.run(_now) == (nicer, there), "a level has one thread"
    steps.level = 0
    assert steps.run(_now) == (plain, here), "and who called is as it was"


def test_what_a_nice_step_raises_is_raised() -> None:
    steps = NiceSteps()
    steps.level = 10
    with pytest.raises(ZeroDivisionError):
        steps.run(lambda: 1 / 0)
    assert steps.run(lambda: "on it goes") == "on it goes"
