from __future__ import annotations

import pytest
from llmtaskpool_worker.cost import ENOUGH, CostModel
from llmtaskpool_worker.task import Call, Generate, TaskRequest


def chat(prompt: int = 64, max_tokens: int = 256, *, fixed: bool = False) -> TaskRequest:
    payload = Generate((1,) * prompt, max_tokens, ignore_eos=fixed)
    return TaskRequest(kind="chat", payload=payload, model="m")


def test_a_longer_task_costs_more() -> None:
    cost = CostModel()
    short, long = (cost.classify(chat(n)) for n in (64, 1024))
    assert cost.load(short) < cost.load(long)
    few, many = (cost.classify(chat(max_tokens=n, fixed=True)) for n in (16, 512))
    assert cost.load(few) < cost.load(many)


def test_finished_tasks_teach_the_output_length() -> None:
    cost = CostModel()
    of = cost.classify(chat())
    before = cost.load(of), cost.work(chat(), of, 8)
    for _ in range(ENOUGH):
        cost.observe_generated(of, 5)
    assert cost.load(of) < before[0]
    assert cost.work(chat(), of, 8) < before[1]


def test_a_length_that_is_fixed_is_not_learned() -> None:
    cost = CostModel()
    of = cost.classify(chat(fixed=True))
    before = cost.load(of)
    for _ in range(ENOUGH):
        cost.observe_generated(of, 1)
    assert cost.load(of) == before


def test_a_slower_engine_makes_its_tasks_cost_more_and_no_others() -> None:
    cost = CostModel()
    of = cost.classify(chat())
    other = of._replace(model="other")
    before, others = cost.load(of), cost.load(other)
    for _ in range(50):
        for batch in (1, 2, 4, 8, 16, 32):
            cost.observe_step("m", batch, 0, 1.0)
    assert cost.load(of) > before
    assert cost.load(other) == others


def test_a_call_costs_what_its_kind_took() -> None:
    cost = CostModel()
    call = TaskRequest(kind="k", payload=Call({"x": 1}))
    of = cost.classify(call)
    for _ in range(40):
        cost.observe_seconds(of, 3.0)
    assert cost.load(of) == pytest.approx(3.0, rel=0.1)
    assert cost.work(call, of, 4) == pytest.approx(cost.load(of) / 4)
