"""Steps are run as nice as the engine was told."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from llmtaskpool_worker.engines.nice_steps import NiceSteps, own_niceness
from llmtaskpool_worker.engines.one_pass.cores import Cores


def _now() -> tuple[int, int]:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), threading.get_native_id()


def test_a_step_is_as_nice_as_was_told_and_the_next_as_was_told_since() -> None:
    steps = NiceSteps(1)
    plain, here = steps.run(_now)
    assert here == threading.get_native_id()
    steps.level = 5
    nicer, there = steps.run(_now)
    assert (nicer, there == here) == (plain + 5, False)
    assert steps.run(_now) == (nicer, there), "a level has one thread"
    steps.level = 0
    assert steps.run(_now) == (plain, here), "and who called is as it was"


def test_what_a_nice_step_raises_is_raised() -> None:
    steps = NiceSteps(1)
    steps.level = 10
    with pytest.raises(ZeroDivisionError):
        steps.run(lambda: 1 / 0)
    assert steps.run(lambda: "on it goes") == "on it goes"


def test_the_threads_among_which_a_step_is_divided_are_as_nice_as_the_step() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cores, steps = Cores(torch.device("cpu")), NiceSteps(2)

        def divided() -> list[int]:
            return cores.run([1, 2], [1, 1], lambda _: [own_niceness()])

        plain = own_niceness()
        assert steps.run(divided) == [plain] * 2
        steps.level = 5
        assert steps.run(divided) == [plain + 5] * 2, "also when others were made before"
        steps.level = 0
        assert steps.run(divided) == [plain] * 2
    finally:
        torch.set_num_threads(before)


def test_a_nice_step_that_is_not_divided_has_all_cores() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        steps, others = NiceSteps(2), Cores(torch.device("cpu"))
        others.run([1, 2], [1, 1], lambda rows: rows)  # their threads have one each
        steps.level = 5
        assert steps.run(torch.get_num_threads) == 2
    finally:
        torch.set_num_threads(before)
