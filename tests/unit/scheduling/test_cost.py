from __future__ import annotations

import pytest
from llmtaskpool_worker.scheduling.cost import ENOUGH, CostModel
from llmtaskpool_worker.scheduling.task import Call, Generate, TaskRequest


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


def slow_steps(cost: CostModel) -> CostModel:
    cost.model("m").resize(32)
    cost.model("m").step.load({1: 0.10, 4: 0.11, 8: 0.13, 16: 0.16, 32: 0.2})
    return cost


def test_work_is_priced_at_a_batch_that_the_most_threads_let_happen() -> None:
    few, many = slow_steps(CostModel(threads_max=4)), slow_steps(CostModel(threads_max=256))
    task = chat(max_tokens=100, fixed=True)
    few_work, many_work = (cost.work(task, cost.classify(task), 4) for cost in (few, many))
    assert few.model("m").efficient_batch() == 4
    assert few_work > 3 * many_work


def test_work_is_priced_within_the_knee_of_the_time_per_token() -> None:
    cost = slow_steps(CostModel(tpot_slo_seconds=0.33))
    model = cost.model("m")
    assert model.efficient_batch() <= model.knee(0.33) == 8
    tight = slow_steps(CostModel(tpot_slo_seconds=0.01)).model("m")
    assert tight.efficient_batch() == tight.knee(0.01) == 1


def test_a_prompt_alone_in_its_step_costs_what_it_adds_to_one() -> None:
    alone, beside = CostModel(), CostModel()
    for cost, batch in ((alone, 0), (beside, 1)):
        for _ in range(8):
            cost.observe_step("m", 1, 0, 0.05)
            cost.observe_step("m", batch, 64, 0.13)
        assert cost.measured("m")[1] == pytest.approx({64: 0.08})


def test_an_engine_whose_steps_never_decode_pays_for_them_whole() -> None:
    cost = CostModel()
    cost.observe_step("m", 0, 64, 0.13)
    assert cost.measured("m")[1] == pytest.approx({64: 0.13})


def test_prompts_that_begin_as_others_did_cost_what_is_left_of_them() -> None:
    cost = CostModel()
    of = cost.classify(chat(1024, max_tokens=16))
    before = cost.load(of), cost.work(chat(1024, max_tokens=16), of, 8)
    for _ in range(ENOUGH - 1):
        cost.observe_generated(of, 16, prompt_tokens=1000, reused=900)
    assert cost.load(of) == before[0], "too few to say anything"
    cost.observe_generated(of, 16, prompt_tokens=1000, reused=900)
    computed = cost.classify(chat(102, max_tokens=16))
    assert cost.load(of) == pytest.approx(before[0] * 0.2, rel=0.5)
    assert cost.work(chat(1024, max_tokens=16), of, 8) < before[1] / 2
    strange = cost.classify(chat(1024, max_tokens=4096))
    assert cost.load(strange) < CostModel().load(strange), "its kind and model speak for it"
    for _ in range(64):
        cost.observe_generated(of, 16, prompt_tokens=1000, reused=0)
    assert cost.load(of) == pytest.approx(before[0]), "what is reused no more is paid for again"
    assert cost.load(computed) > 0


def test_a_prompt_that_was_kept_whole_still_costs_something() -> None:
    cost = CostModel()
    of = cost.classify(chat(1024, max_tokens=1, fixed=True))
    for _ in range(ENOUGH):
        cost.observe_generated(of, 1, prompt_tokens=1000, reused=5000)
    assert cost.load(of) > 0
