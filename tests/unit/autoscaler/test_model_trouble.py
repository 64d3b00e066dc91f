"""What a worker says of its models reaches the pool's status in its own words."""

from __future__ import annotations

import pytest
from fakes.cluster_objects import worker_state
from llmtaskpool_operator.autoscaler.model_trouble import model_trouble
from llmtaskpool_operator.autoscaler.observation import PodObservation, Problem
from llmtaskpool_worker.contract import ModelProblem, Phase

WORDS = "401 of the hub: the model is gated: give a token"


def pod(name: str, code: str | None = None, phase: Phase = Phase.STARTING) -> PodObservation:
    state = worker_state(name).model_copy(update={"phase": phase})
    if code is not None:
        problem = ModelProblem(code=code, message=WORDS)
        state = state.model_copy(update={"model_problems": {"llama": problem}})
    return PodObservation(name, ready=False, state=state)


@pytest.mark.parametrize(
    ("code", "reason", "stalled"),
    [
        ("load_failed", "ModelsFailed", True),
        ("retrying", "ModelRetrying", False),
        ("restarting", "EngineRestarts", False),
        ("stalled", "EngineStands", False),
    ],
)
def test_a_models_trouble_is_told_in_the_workers_words(
    code: str, reason: str, stalled: bool
) -> None:
    (problem,) = model_trouble([pod("chat-1", code), pod("chat-2", code), pod("chat-3")])
    assert (problem.reason, problem.stalled) == (reason, stalled)
    assert problem.message.startswith(f"chat-1: llama: {WORDS}")
    assert "(and 1 more)" in problem.message


def test_each_kind_of_trouble_is_told_once() -> None:
    found = model_trouble([pod("a", "retrying"), pod("b", "load_failed"), pod("c", "retrying")])
    assert [problem.reason for problem in found] == ["ModelRetrying", "ModelsFailed"]


def test_a_worker_that_failed_without_words_is_named() -> None:
    assert model_trouble([pod("a", phase=Phase.FAILED)]) == [
        Problem("ModelsFailed", "models could not be loaded in a", stalled=True)
    ]


def test_who_loads_for_the_first_time_and_who_is_silent_are_no_trouble() -> None:
    assert model_trouble([pod("a"), PodObservation("b", ready=False)]) == []
