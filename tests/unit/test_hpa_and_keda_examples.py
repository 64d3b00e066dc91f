"""The examples for HPA and KEDA: their query on real metrics pages, and what HPA makes of it.

To be true they must name metrics that workers export, steer the pool they come with, and ask for
the replicas that the product's own law asks for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import yaml
from llmtaskpool_operator.api.manifest_file import pool_from_file
from llmtaskpool_operator.api.names import API_VERSION, KIND
from llmtaskpool_operator.api.scaling import ScalingMode
from llmtaskpool_operator.autoscaler import law
from llmtaskpool_operator.simulation.hpa import hpa_from_total
from llmtaskpool_worker.contract import GateState, LaneName, LaneState, Phase, Work, WorkerState
from llmtaskpool_worker.http_api.metrics import Metrics
from prometheus_client.parser import text_string_to_metric_families

EXAMPLES = Path(__file__).parents[2] / "examples"
QUERY = re.compile(
    r"sum\(rate\((?P<counter>\w+)\{(?P<labels>.+?)\}\[(?P<window>\d+)s\]\)\) "
    r"\+ sum\((?P<gauge>\w+)\{(?P=labels)\}\) / (?P<drain>\d+)"
)


@dataclass(frozen=True)
class Example:
    """One example, reduced to what decides about replicas."""

    path: Path
    scaler: dict[str, Any]
    query: str
    labels: str
    target: float

    def total(self, before: list[str], after: list[str], seconds: float) -> float:
        """The query's value over the pages of all pods, scraped ``seconds`` apart."""
        parts = QUERY.fullmatch(self.query)
        assert parts, self.query
        arrived = sum(_value(page, parts["counter"]) for page in after)
        arrived -= sum(_value(page, parts["counter"]) for page in before)
        waiting = sum(_value(page, parts["gauge"]) for page in after)
        return arrived / seconds + waiting / float(parts["drain"])


def _value(page: str, name: str) -> float:
    (found,) = [
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    ]
    return found


def _documents(path: Path) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(path.read_text())}


def _hpa() -> Example:
    path = EXAMPLES / "hpa.yaml"
    found = _documents(path)
    spec = found["HorizontalPodAutoscaler"]["spec"]
    (metric,) = spec["metrics"]
    assert metric["type"] == "External"
    assert metric["external"]["target"]["type"] == "AverageValue"
    assert metric["external"]["metric"]["selector"]["matchLabels"] == {"pool": "chat"}
    (rule,) = yaml.safe_load(found["ConfigMap"]["data"]["config.yaml"])["externalRules"]
    assert rule["name"]["as"] == metric["external"]["metric"]["name"]
    milli = metric["external"]["target"]["averageValue"]
    assert milli.endswith("m")
    query = rule["metricsQuery"]
    return Example(path, spec, query, "<<.LabelMatchers>>", int(milli[:-1]) / 1000)


def _keda() -> Example:
    path = EXAMPLES / "keda.yaml"
    spec = _documents(path)["ScaledObject"]["spec"]
    (trigger,) = spec["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    metadata = trigger["metadata"]
    # KEDA's schema takes nothing but text here, and its default for a lost metric is 0.
    assert all(isinstance(value, str) for value in metadata.values())
    assert metadata["ignoreNullValues"] == "false"
    return Example(path, spec, metadata["query"], 'pool="chat"', float(metadata["threshold"]))


BOTH = pytest.mark.parametrize("example", [_hpa(), _keda()], ids=["hpa", "keda"])


def page(arrived: float, waiting: float) -> str:
    """A worker's metrics page with this much work, in pod-seconds."""
    work = Work(arrived_seconds_total=arrived, waiting_seconds=waiting)
    return Metrics(lambda: _state().model_copy(update={"work": work})).text().decode()


def _state() -> WorkerState:
    return WorkerState(
        worker_id="w",
        started_at=0,
        observed_at=0,
        phase=Phase.READY,
        lanes={
            LaneName.COMPUTE: LaneState(
                threads=4, threads_cap=4, active=0, queued=0, queue_limit=9, oldest_wait_seconds=0
            )
        },
    )


def test_the_example_of_queue_depth_asks_for_what_workers_and_gates_export_and_reaches_zero() -> (
    None
):
    path = EXAMPLES / "keda-queue.yaml"
    pool, spec = pool_from_file(path), _documents(path)["ScaledObject"]["spec"]
    assert spec["scaleTargetRef"]["name"] == pool.metadata.name
    scaling = pool.spec.scaling
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, scaling.max_replicas)
    assert scaling.may_sleep, "it has a gate"
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    asked = set(re.findall(r'(\w+)\{pool="chat"\}', trigger["metadata"]["query"]))
    pages = [_state().model_copy(update={"gate": gate}) for gate in (None, GateState(held=3))]
    exported = {
        sample.name
        for state in pages
        for family in text_string_to_metric_families(Metrics(lambda s=state: s).text().decode())
        for sample in family.samples
    }
    assert len(asked) == 4
    assert "llmtaskpool_batches_open" in asked, "a batch that nobody feeds has nothing in line"
    assert asked <= exported


@BOTH
def test_an_example_steers_the_scale_of_the_pool_it_comes_with(example: Example) -> None:
    pool = pool_from_file(example.path)
    assert example.scaler["scaleTargetRef"] == {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": pool.metadata.name,
    }
    assert pool.spec.scaling.mode is ScalingMode.EXTERNAL
    bounds = (pool.spec.scaling.min_replicas, pool.spec.scaling.max_replicas)
    names = ("minReplicas", "maxReplicas")
    if "triggers" in example.scaler:
        names = ("minReplicaCount", "maxReplicaCount")
    assert tuple(example.scaler[name] for name in names) == bounds


@BOTH
def test_an_example_uses_the_product_s_target_window_and_drain_time(example: Example) -> None:
    scaling = pool_from_file(example.path).spec
    parts = QUERY.fullmatch(example.query)
    assert parts
    assert parts["labels"] == example.labels
    assert example.target == scaling.scaling.target_utilization
    assert float(parts["window"]) == scaling.scaling.averaging_seconds
    assert float(parts["drain"]) == law.backlog_drain_seconds(scaling.slo.ttft_seconds)


@BOTH
@pytest.mark.parametrize(
    ("current", "arrived", "waiting", "wanted"),
    [
        (3, 81.0, 0.0, 3),  # 2.7 pod-seconds per second: 0.9 for each of 3 pods
        (3, 162.0, 0.0, 6),  # twice that
        (3, 81.0, 162.0, 6),  # the same, as a backlog of 162 pod-seconds over 60 s
        (6, 27.0, 0.0, 1),  # 0.9 in all
        (3, 87.0, 0.0, 3),  # 7 % over: HPA's tolerance
        (3, 95.0, 0.0, 4),  # 17 % over
        (4, 0.0, 0.0, 0),  # no work: the minimum, which HPA applies after this
    ],
)
def test_stock_hpa_arithmetic_on_the_exported_metric_gives_the_expected_replicas(
    example: Example, current: int, arrived: float, waiting: float, wanted: int
) -> None:
    before = [page(1000.0, 5.0) for _ in range(current)]
    after = [page(1000.0 + arrived / current, waiting / current) for _ in range(current)]
    total = example.total(before, after, 30.0)
    assert total == pytest.approx(arrived / 30 + waiting / 60)
    assert hpa_from_total(current, total, example.target) == wanted


@BOTH
@pytest.mark.parametrize("demand", [0.5, 2.0, 3.7, 5.3, 8.4])
def test_hpa_on_the_metric_agrees_with_our_own_law_where_its_tolerance_lets_it(
    example: Example, demand: float
) -> None:
    """Within a pod: ours rounds up at a tenth of a pod, HPA at any part of one."""
    policy = law.Policy(minimum=1, maximum=20, target=example.target, down=law.Direction(0.0))
    ours, _ = law.decide(policy, law.Observed(12, demand), law.Memory(), 0.0)
    hpa = hpa_from_total(12, demand, example.target)
    assert hpa == ceil(demand / example.target)
    assert ours.desired in (hpa, hpa - 1)
