"""What ``/metrics`` shows to Prometheus."""

from __future__ import annotations

from fakes.fake_pool import FakePool, wait_for_ever
from fakes.http_rig import serving
from llmtaskpool_worker import contract
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.http_api.metrics import KINDS_MAX, Metrics
from llmtaskpool_worker.scheduling.task import Generated, TaskState, TaskView
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families


def samples(text: str) -> dict[tuple[str, frozenset], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_gauges_say_what_is_so_at_the_moment_of_the_scrape():
    with serving(lambda clock: FakePool(clock, script=wait_for_ever)) as rig:
        lane = frozenset({("lane", "compute")})
        assert samples(rig.get("/metrics").text)[(contract.METRIC_TASKS_ACTIVE, lane)] == 0
        task = rig.post("/v1/tasks", {"kind": "sum"}).json()
        assert samples(rig.get("/metrics").text)[(contract.METRIC_TASKS_ACTIVE, lane)] == 1
        rig.call(rig.pool.cancel, task["id"])
        assert samples(rig.get("/metrics").text)[(contract.METRIC_TASKS_ACTIVE, lane)] == 0


def test_every_name_of_the_contract_is_on_the_page():
    with serving() as rig:
        names = {name for name, _ in samples(rig.get("/metrics").text)}
    promised = {v for k, v in vars(contract).items() if k.startswith("METRIC_")}
    assert promised <= names


def test_the_three_vllm_gauges_have_vllm_s_names_and_labels():
    with serving(lambda clock: FakePool(clock, script=wait_for_ever)) as rig:
        rig.post("/v1/tasks", {"kind": "sum"})
        page = samples(rig.get("/metrics").text)
    labels = frozenset({("model_name", "echo,vectors"), ("engine", "0")})
    assert page[("vllm:num_requests_running", labels)] == 1
    assert page[("vllm:num_requests_waiting", labels)] == 0
    assert page[("vllm:kv_cache_usage_perc", labels)] == 0


def ended(kind: str) -> TaskView:
    return TaskView(
        id="t",
        kind=kind,
        lane=LaneName.COMPUTE,
        model="m",
        state=TaskState.SUCCEEDED,
        weight=1,
        load_seconds=1,
        priority=1,
        submitted_at=10.0,
        started_at=10.2,
        ended_at=13.0,
        result=Generated("x", (1, 2, 3), 5, "stop"),
    )


def test_waits_runs_and_tokens_are_counted_per_kind_and_lane():
    metrics = Metrics(FakePool(lambda: 0.0).state)
    metrics.task_ended(ended("chat"))
    metrics.task_ended(
        replace(ended("chat"), started_at=None, state=TaskState.EXPIRED, result=None)
    )
    page = samples(metrics.text().decode())
    labels = {("kind", "chat"), ("lane", "compute")}
    wait = "llmtaskpool_task_wait_seconds"
    assert page[(f"{wait}_count", frozenset(labels))] == 2
    assert page[(f"{wait}_bucket", frozenset(labels | {("le", "0.25")}))] == 1
    assert page[("llmtaskpool_task_run_seconds_count", frozenset(labels))] == 1
    assert page[("llmtaskpool_task_run_seconds_bucket", frozenset(labels | {("le", "5.0")}))] == 1
    assert page[("llmtaskpool_tokens_total", frozenset({("direction", "prompt")}))] == 5
    assert page[("llmtaskpool_tokens_total", frozenset({("direction", "generated")}))] == 3


def test_the_page_stays_small_however_many_kinds_there_are():
    metrics = Metrics(FakePool(lambda: 0.0).state)
    for number in range(10_000):
        metrics.task_ended(ended(f"kind-{number}"))
    page = samples(metrics.text().decode())
    kinds = {dict(labels).get("kind") for _, labels in page} - {None}
    assert len(kinds) == KINDS_MAX + 1
    other = frozenset({("kind", "other"), ("lane", "compute")})
    assert page[("llmtaskpool_task_run_seconds_count", other)] == 10_000 - KINDS_MAX
