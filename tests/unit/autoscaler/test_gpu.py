"""GPUs as workers tell of them: in the status, as a problem, and as a bound of threads."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.cluster_objects import pool, worker_state
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.autoscaler.decide import PoolMemory, decide_pool
from llmtaskpool_operator.autoscaler.gpu import asks_for_gpu, gpu_status, idle_gpu
from llmtaskpool_operator.autoscaler.observation import PodObservation, PoolObservation
from llmtaskpool_operator.autoscaler.status import status_of
from llmtaskpool_worker.contract import GpuReading, LaneName

GB = 10**9
GPU = {"resources": {"limits": {"nvidia.com/gpu": 1}}}


def reading(
    busy: float | None = None, used: int | None = None, active: float | None = None
) -> GpuReading:
    total = None if used is None else 80 * GB
    return GpuReading(
        index=0, name="H100", utilization=busy, memory_used_bytes=used, memory_total_bytes=total,
        sm_activity=active,
    )  # fmt: skip


def pod(
    name: str,
    *gpus: GpuReading,
    ready: bool = True,
    devices: dict[str, str] | None = None,
    **lane: int,
) -> PodObservation:
    state = worker_state(name, **lane).model_copy(
        update={"gpus": gpus, "model_devices": devices or {}}
    )
    return PodObservation(name, ready, state=state)


def seen(*pods: PodObservation) -> PoolObservation:
    return PoolObservation(len(pods), pods)


def spec(**given: Any) -> LLMTaskPoolSpec:
    return LLMTaskPoolSpec.model_validate(given)


def test_the_status_has_the_mean_and_the_worst_pod() -> None:
    found = gpu_status(
        seen(pod("a", reading(0.2, 8 * GB)), pod("b", reading(0.6, 72 * GB)), pod("c")), None
    )
    assert found is not None
    assert (found.pods, found.busiest_pod) == (2, "b")
    assert (found.utilization, found.highest_utilization) == (0.4, 0.6)
    assert (found.memory, found.highest_memory) == (0.5, 0.9)


def test_of_several_gpus_a_pod_has_the_mean() -> None:
    found = gpu_status(seen(pod("a", reading(1.0, 80 * GB), reading(0.0, 0))), None)
    assert found is not None
    assert (found.utilization, found.memory) == (0.5, 0.5)


def test_what_nvml_does_not_tell_is_none_and_never_a_zero() -> None:
    found = gpu_status(seen(pod("a", reading(None, 8 * GB))), None)
    assert found is not None
    assert found.utilization is None
    assert found.memory == 0.1
    assert gpu_status(seen(pod("a")), None) is None


def test_small_moves_are_not_written() -> None:
    before = gpu_status(seen(pod("a", reading(0.50))), None)
    assert gpu_status(seen(pod("a", reading(0.54))), before) is before
    after = gpu_status(seen(pod("a", reading(0.56))), before)
    assert after is not None
    assert after.utilization == 0.56


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, False),
        ({"resources": {"limits": {"cpu": "1"}}}, False),
        ({"resources": {"limits": {"rdma/hca": 1}}}, False),
        ({"resources": {"limits": {"nvidia.com/gpu": 0}}}, False),
        (GPU, True),
        ({"resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}}, True),
        ({"resources": {"limits": {"amd.com/gpu": 1}}}, True),
        ({"resourceClaims": [{"name": "g", "resourceClaimName": "c"}]}, True),
    ],
)
def test_a_gpu_is_asked_for_by_a_device_or_by_a_claim(given: dict[str, Any], asked: bool) -> None:
    assert asks_for_gpu(spec(**given)) is asked


def test_a_model_on_the_cpu_beside_a_gpu_that_was_asked_for_is_told() -> None:
    on_cpu = pod("p-1", reading(0.0, 0), devices={"qwen": "cpu", "minilm": "cuda"})
    (problem,) = idle_gpu(spec(**GPU), [on_cpu])
    assert problem.reason == "GPUIdle"
    assert "p-1: qwen runs on the CPU" in problem.message
    assert "check that the image has CUDA" in problem.message
    assert not problem.stalled
    status = status_of(
        pool(**GPU), seen(on_cpu), decide_pool(spec(**GPU), seen(on_cpu), PoolMemory(), 0.0)[0],
        (), None, "2026-01-01T00:00:00Z",
    )  # fmt: skip
    told = next(c for c in status.conditions if c.type == "Degraded")
    assert (told.status, told.reason) == ("True", "GPUIdle")


@pytest.mark.parametrize(
    ("given", "devices", "ready"),
    [
        (GPU, {"qwen": "cuda"}, True),
        (GPU, {}, True),  # nothing is loaded yet, or a worker that is older than this
        (GPU, {"qwen": "cpu"}, False),
        ({}, {"qwen": "cpu"}, True),
    ],
)
def test_a_gpu_in_use_or_not_asked_for_is_no_problem(
    given: dict[str, Any], devices: dict[str, str], ready: bool
) -> None:
    assert idle_gpu(spec(**given), [pod("p", devices=devices, ready=ready)]) == []


BY_GPU = {"scaling": {"metric": "GPUUtilization", "targetUtilization": 0.8}}


def threads_after(
    seconds: int, given: dict[str, Any], busy_at: int | None, *, start: int = 4, offered: int = 400
) -> int:
    """Threads of a full pod after so many decisions.

    Its GPU is busy, and its multiprocessors are active, for threads / ``busy_at`` of the time;
    None: it tells nothing.
    """
    compute = {"min": 4, "max": 256, "initial": 4} | given.get("compute", {})
    wanted = spec(scaling=given.get("scaling", {}), threads={"compute": compute})
    memory, threads = PoolMemory(), start
    for second in range(seconds):
        share = None if busy_at is None else min(1.0, threads / busy_at)
        busy = () if share is None else (reading(share, active=share),)
        active = min(threads, offered)
        one = pod("p", *busy, active=active, queued=offered - active, threads=threads)
        assert one.state is not None
        lanes = {
            lane: state.model_copy(update={"threads_cap": 256})
            for lane, state in one.state.lanes.items()
        }
        state = one.state.model_copy(update={"lanes": lanes, "threads_generation": 1})
        decided, memory = decide_pool(
            wanted, seen(PodObservation("p", True, state=state)), memory, float(second)
        )
        (made,) = [d for d in decided.threads if d.lane is LaneName.COMPUTE]
        threads = made.decision.desired
    return threads


def test_threads_grow_by_the_equation_until_the_gpu_is_at_its_target() -> None:
    settled = threads_after(120, BY_GPU, busy_at=100)
    assert 76 <= settled <= 80, "N + alpha (U_target - U) comes to U = 0.8 at 80 threads"
    assert threads_after(121, BY_GPU, busy_at=100) == settled


def test_a_full_pod_whose_gpu_is_at_its_target_gets_no_more_threads() -> None:
    assert threads_after(60, BY_GPU, busy_at=8, start=16) == 16


def test_a_gpu_over_its_target_takes_no_threads_away_that_are_in_use() -> None:
    assert threads_after(60, BY_GPU, busy_at=4, start=64) == 64


def test_threads_that_are_not_needed_go_whatever_the_gpu_says() -> None:
    assert threads_after(600, BY_GPU, busy_at=4, start=64, offered=4) < 10


def test_beside_it_the_default_fills_the_pod_and_asks_no_gpu() -> None:
    """NVML's share is near 1 at any load: bound by it, batches would stay small for nothing."""
    assert threads_after(60, {}, busy_at=8) == 256
    assert threads_after(60, BY_GPU, busy_at=8) < 9


def test_a_pod_that_tells_no_gpu_is_bound_by_none() -> None:
    assert threads_after(60, BY_GPU, busy_at=None) == 256
    assert threads_after(60, BY_ACTIVITY, busy_at=None) == 256


BY_ACTIVITY = {"compute": {"smActivityTarget": 0.8}}


def test_sm_activity_bounds_threads_beside_offered_work_where_a_pool_says_at_how_much() -> None:
    assert 76 <= threads_after(120, BY_ACTIVITY, busy_at=100) <= 80
    assert threads_after(60, BY_ACTIVITY, busy_at=8, start=16) == 16
    assert threads_after(600, BY_ACTIVITY, busy_at=4, start=64, offered=4) < 10


def test_of_two_bounds_by_the_gpu_the_lower_holds() -> None:
    both = BY_GPU | {"compute": {"smActivityTarget": 0.5}}
    assert 46 <= threads_after(120, both, busy_at=100) <= 50


def test_the_status_has_the_sm_activity_of_the_pods_that_tell_it() -> None:
    pods = (pod("a", reading(1.0, active=0.2)), pod("b", reading(1.0, active=0.6)))
    found = gpu_status(seen(*pods, pod("c", reading(1.0))), None)
    assert found is not None
    assert (found.sm_activity, found.highest_sm_activity) == (0.4, 0.6)
    one = gpu_status(seen(pod("a", reading(1.0))), None)
    assert one is not None
    assert one.sm_activity is None
