"""The pods of the simulator: what a request costs, what a queue and a drain do."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from math import inf

import numpy as np
import pytest
from fakes.traffic import levels, ours, setting, trace_of
from llmtaskpool_operator.simulation.clairvoyant import clairvoyant
from llmtaskpool_operator.simulation.comparison import LAWS, run
from llmtaskpool_operator.simulation.fleet import Fleet
from llmtaskpool_operator.simulation.laws import PoolSample
from llmtaskpool_operator.simulation.pod import Pod
from llmtaskpool_operator.simulation.report import as_json, table, terminal_plot
from llmtaskpool_operator.simulation.service import LLAMA2_70B, PodModel, of_profile
from llmtaskpool_operator.simulation.simulator import flaps, simulate
from llmtaskpool_operator.simulation.trace import Trace, of_rows
from llmtaskpool_worker.scheduling.priority import QueuePolicy
from llmtaskpool_worker.scheduling.profile import CalibrationProfile

PLAIN = PodModel(
    name="plain",
    step=(0.0, *(0.1 for _ in range(512))),
    prefill_points=((1.0, 0.01), (1000.0, 10.0)),
    kv_tokens=5000,
    start_up_seconds=60.0,
    chunk_tokens=100,
)
"""10 ms a prompt token, 0.1 s a decode step whatever the batch."""


def one_pod(
    trace: Trace, threads: int = 8, queue: QueuePolicy | None = None, model: PodModel = PLAIN
) -> Fleet:
    fleet = Fleet(model, trace, tpot_slo_seconds=1.0, queue=queue, ageing_seconds=2.0)
    fleet.add(Pod("a", 0.0, 0.0, threads))
    fleet.open(0, 0.0)
    fleet.advance(inf if len(trace) == 0 else 10_000.0)
    return fleet


def test_a_request_alone_takes_its_prefill_and_a_step_for_each_further_token() -> None:
    fleet = one_pod(of_rows([(2.0, 100, 11, 100)]))
    assert fleet.first_token_at == pytest.approx([2.0 + 1.0])
    assert fleet.done_at == pytest.approx([2.0 + 1.0 + 10 * 0.1])


def test_cached_prompt_tokens_cost_nothing() -> None:
    fleet = one_pod(of_rows([(0.0, 1000, 1, 100)]))
    assert fleet.done_at == pytest.approx([1.0])


def test_a_prefill_slows_those_that_decode_step_by_step() -> None:
    # The second prompt comes in the middle of a step and takes 2 chunks; each is a step in which
    # the first gets a token.
    fleet = one_pod(of_rows([(0.0, 100, 101, 100), (2.0, 200, 1, 200)]))
    assert fleet.first_token_at[1] == pytest.approx(2.0 + 2.0 + 2.5 * 0.1)
    assert fleet.done_at[0] == pytest.approx(1.0 + 100 * 0.1 + 2.0)


def test_prompts_that_fit_into_one_step_share_it() -> None:
    model = replace(PLAIN, step=(0.1, *PLAIN.step[1:]))
    together, alone = (
        one_pod(of_rows([(0.0, 12, 1, 12)] * many), model=model).first_token_at for many in (8, 1)
    )
    assert alone == pytest.approx([0.12 + 0.1])
    assert max(together) < 8 * 0.12 + 2 * 0.1


def test_a_place_that_becomes_free_is_filled_a_step_later() -> None:
    # The second takes the first's place; the third decodes all the time.
    trace = of_rows([(0.0, 100, 11, 100), (0.1, 100, 101, 100), (0.2, 100, 1, 100)])
    fleet = one_pod(trace, threads=2)
    assert fleet.first_token_at[2] == pytest.approx(fleet.done_at[0] + 0.1 + 0.1 + 1.0)


def test_threads_bound_how_many_run_and_the_others_wait_in_order() -> None:
    fleet = one_pod(of_rows([(0.0, 100, 11, 100)] * 3), threads=1)
    assert fleet.done_at == pytest.approx([2.0, 4.0, 6.0])


def test_kv_memory_bounds_how_many_run() -> None:
    # 3 x 2000 tokens don't fit into 5000, though there are threads for 8.
    fleet = one_pod(of_rows([(0.0, 1000, 1000, 1000)] * 3))
    _, second, third = fleet.first_token_at
    assert second < fleet.done_at[0] <= third


def test_a_request_larger_than_the_kv_memory_still_runs_alone() -> None:
    assert one_pod(of_rows([(0.0, 9000, 10, 1000)])).finished == 1


def test_newest_first_serves_the_latecomer_once_the_oldest_is_late() -> None:
    rows = [(0.0, 500, 1, 500), (0.1, 100, 1, 100), (4.0, 100, 1, 100)]
    in_order = one_pod(of_rows(rows), threads=1)
    newest = one_pod(of_rows(rows), threads=1, queue=QueuePolicy.NEWEST_FIRST)
    assert in_order.done_at[1] < in_order.done_at[2]
    assert newest.done_at[2] < newest.done_at[1]


def test_the_priority_queue_takes_the_short_prompt_first() -> None:
    rows = [(0.0, 100, 1, 100), (0.1, 900, 1, 900), (0.2, 10, 1, 10)]
    fleet = one_pod(of_rows(rows), threads=1, queue=QueuePolicy.PRIORITY)
    assert fleet.done_at[2] < fleet.done_at[1]


def test_a_drained_pod_finishes_what_it_has_and_takes_nothing_more() -> None:
    trace = of_rows([(0.0, 100, 101, 100), (3.0, 100, 1, 100)])
    fleet = Fleet(PLAIN, trace, tpot_slo_seconds=1.0, queue=None, ageing_seconds=inf)
    for place, name in enumerate("ab"):
        fleet.add(Pod(name, 0.0, 0.0, 8))
        fleet.open(place, 0.0)
    fleet.advance(1.0)
    busy = 0 if fleet.pods[0].running else 1
    fleet.drain(busy)
    fleet.advance(5.0)
    assert fleet.remove_gone(5.0) == []
    fleet.advance(20.0)
    assert fleet.done_at == pytest.approx([11.0, 4.0])
    assert [pod.name for pod in fleet.remove_gone(20.0)] == ["ab"[busy]]


def test_more_pods_never_lose_a_request() -> None:
    outcome = ours(levels((300, 6.0)), setting(initial=1, start_up=120))
    assert outcome.unfinished == 0
    assert outcome.requests == len(levels((300, 6.0)))


def test_the_same_run_gives_the_same_numbers() -> None:
    trace = levels((600, 3.0), (300, 6.0))
    first, second = (ours(trace, setting(initial=3)) for _ in range(2))
    assert as_json([first]) == as_json([second])
    assert first.changes == second.changes


def test_pods_are_paid_for_from_asking_to_going() -> None:
    class Fixed:
        name, period_seconds = "fixed", 5.0

        def decide(self, sample: PoolSample) -> int:
            return 3 if sample.now < 1800 else 1

    outcome = simulate(levels((3600, 0.5)), setting(initial=3), Fixed())
    assert outcome.pod_hours == pytest.approx(3 * 0.5 + 1 * 0.5, abs=0.02)


def test_a_lost_gpu_metric_is_none_to_laws_and_not_zero() -> None:
    seen: list[tuple[float, float | None]] = []

    class Watching:
        name, period_seconds = "watching", 5.0

        def decide(self, sample: PoolSample) -> int:
            seen.append((sample.now, sample.gpu_busy))
            return sample.replicas

    of = replace(setting(initial=1), gpu_lost=(60.0, 120.0))
    simulate(levels((240, 0.9)), of, Watching())
    lost = [at for at, busy in seen if busy is None]
    assert min(lost) == 65.0  # the sample of 60 s, 5 s late
    assert max(lost) == 120.0


def test_a_law_sees_no_scrape_before_the_lag_has_passed() -> None:
    seen: list[PoolSample] = []

    class Watching:
        name, period_seconds = "watching", 5.0

        def decide(self, sample: PoolSample) -> int:
            seen.append(sample)
            return sample.replicas

    simulate(levels((120, 0.5)), setting(initial=1, lag=30), Watching())
    assert seen[0].now == 35.0
    assert {sample.age_seconds for sample in seen} == {30.0}


def test_flaps_are_reversals_within_ten_minutes() -> None:
    assert flaps(((0.0, 1), (100.0, -1), (200.0, -2), (900.0, 1), (1000.0, -1))) == 2


def test_every_law_runs_and_the_json_has_the_promised_fields() -> None:
    trace = levels((400, 2.0))
    answer = as_json([run(name, trace, setting(initial=3)) for name in LAWS])
    json.dumps(answer, allow_nan=False)
    assert [law["law"] for law in answer["laws"]] == list(LAWS)
    for law in answer["laws"]:
        assert 0 <= law["slo"] <= 1
        assert law["pod_hours"] > 0
        assert law["flaps"] >= 0
        assert law["ttft_p95_s"] > 0


def test_foresight_is_cheaper_than_the_law_at_its_share_of_requests() -> None:
    trace = levels((600, 2.0), (900, 6.0), (600, 2.0))
    of = setting(initial=3)
    foresight, law = clairvoyant(trace, of, repairs=4, thinnings=4), ours(trace, of)
    assert foresight.slo >= 0.99
    assert foresight.pod_hours < law.pod_hours


def test_a_calibration_profile_becomes_the_pod() -> None:
    profile = CalibrationProfile(
        model="tiny", device="cpu", dtype="float32", threads=2,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        step_seconds={1: 0.02, 8: 0.09}, prefill_seconds={16: 0.03, 64: 0.09},
        start_up_seconds=7.0, kv_tokens=4096, prefill_chunk_tokens=128,
    )  # fmt: skip
    model = of_profile(profile)
    assert model.step[:2] == (0.02, 0.02)
    assert model.step[8] == pytest.approx(0.09)
    assert model.step[9] == pytest.approx(0.10)  # as between the two largest
    # A prompt's own step is charged as a step.
    assert model.prefill(np.array([16, 64, 128])) == pytest.approx([0.01, 0.07, 0.15])
    assert (model.start_up_seconds, model.kv_tokens, model.chunk_tokens) == (7.0, 4096, 128)


def test_the_work_of_the_studys_pod_is_the_studys() -> None:
    # Azure's chat: 1155 prompt and 211 output tokens cost about half a pod-second.
    per_token = LLAMA2_70B.seconds_per_token(0.2)
    work = float(LLAMA2_70B.prefill(np.array([1155]))[0]) + 211 * per_token
    assert 0.45 < work < 0.6


def test_people_get_a_table_and_a_plot_of_plain_text() -> None:
    outcome = ours(levels((200, 1.0), (200, 4.0)), setting(initial=1))
    assert table([outcome]).row_count == 1
    plot = terminal_plot(outcome, 80)
    assert "replicas that ours asked for" in plot
    assert "\x1b" not in plot


def test_a_trace_of_one_instant_is_scored() -> None:
    outcome = ours(trace_of([0.0, 0.0]), setting(initial=1))
    assert (outcome.requests, outcome.unfinished) == (2, 0)


def test_a_queue_that_was_emptied_leaves_no_work_below_zero() -> None:
    # Taken away in another order than they came: sums of unlike parts round differently.
    sizes = np.random.default_rng(1).integers(10, 400, 200)
    waiting = [(0.001 * i, int(p), 3, int(p)) for i, p in enumerate(sizes)]
    for count in range(2, 200):
        fleet = one_pod(of_rows(waiting[:count]), threads=1, queue=QueuePolicy.NEWEST_FIRST)
        assert fleet.queued == 0
        assert 0.0 <= fleet.queued_work < 1e-6


def test_a_prompt_that_waits_for_its_step_is_no_more_work_than_it_is() -> None:
    fleet = Fleet(
        PLAIN, of_rows([(0.0, 100, 101, 100), (2.0, 5, 1, 5)]),
        tpot_slo_seconds=1.0, queue=None, ageing_seconds=2.0,
    )  # fmt: skip
    pod = Pod("a", 0.0, 0.0, 8)
    fleet.add(pod)
    fleet.open(0, 0.0)
    fleet.advance(2.0 + 1e-9)
    assert fleet.unfinished_prefill(pod) == pytest.approx(0.05)


def test_a_pool_that_goes_by_its_gpus_is_simulated_so_and_pays_for_it() -> None:
    """NVML's number is near 1 whatever is done: pods are added until hardly any is busy."""
    trace = levels((900, 2.0), (600, 4.0), (900, 1.0))
    default = ours(trace, setting(targetUtilization=0.8))
    by_gpu = ours(trace, setting(targetUtilization=0.8, metric="GPUUtilization"))
    assert by_gpu.slo >= default.slo
    assert by_gpu.pod_hours > 4 * default.pod_hours


def test_a_target_for_sm_activity_bounds_the_simulated_threads() -> None:
    trace, free = levels((600, 1.5)), setting(low=2, high=2)
    compute = free.spec.threads.compute.model_copy(update={"sm_activity_target": 0.05})
    threads = free.spec.threads.model_copy(update={"compute": compute})
    bound = replace(free, spec=free.spec.model_copy(update={"threads": threads}))
    assert ours(trace, bound).ttft_p95 > 2 * ours(trace, free).ttft_p95
