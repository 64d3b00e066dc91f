"""Alerts, dashboard and monitors: about metrics that exist, in queries that parse."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart.charts import ALL_MONITORING, CHART, ROOT, Helm, named
from fakes.read_yaml import document
from llmtaskpool_operator.cluster import manifests
from llmtaskpool_operator.cluster.identity import gate_labels
from llmtaskpool_operator.cluster.metrics import OperatorMetrics
from llmtaskpool_worker.contract import (
    GateState,
    GpuReading,
    KindState,
    LaneName,
    LaneState,
    Phase,
    WorkerState,
)
from llmtaskpool_worker.http_api.metrics import Metrics

ALERTS = CHART / "files" / "alerts.yaml"
DASHBOARD = CHART / "files" / "dashboard.json"
_NAME = re.compile(r"\b(?:llmtaskpool_[a-z_]+|vllm:[a-z_]+|process_[a-z_]+)\b")


def alerts() -> list[dict[str, Any]]:
    return [rule for group in document(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [one for one in json.loads(DASHBOARD.read_text())["panels"] if one["type"] != "row"]


def expressions() -> list[str]:
    return [rule["expr"] for rule in alerts()] + [
        target["expr"] for panel in panels() for target in panel["targets"]
    ]


PAGE = ROOT / "docs" / "metrics.md"


def listed(text: str) -> set[str]:
    """The names in the first column of the page's tables."""
    return set(re.findall(r"^\| `([A-Za-z_:]+)`", text, re.MULTILINE))


def of_the_operator() -> set[str]:
    families = OperatorMetrics().registry.collect()
    return {f"{one.name}_total" if one.type == "counter" else one.name for one in families}


def of_the_worker() -> set[str]:
    """The names of a worker that has a GPU and a kind of its own, and of a gate: of all."""
    lane = LaneState(threads=1, threads_cap=1, active=0, queued=0, queue_limit=1)
    state = WorkerState(
        worker_id="w",
        started_at=0,
        observed_at=0,
        phase=Phase.READY,
        lanes={LaneName.COMPUTE: lane},
        gate=GateState(held=0),
        gpus=(GpuReading(index=0, name="g", utilization=0.5, memory_used_bytes=1),),
        kinds={
            "k": KindState(
                lane=LaneName.IO,
                declared=False,
                compute_seconds=1,
                waiting_seconds=1,
                runs=1,
                reason="r",
            )
        },
    )
    families = Metrics(lambda: state).registry.collect()
    return {f"{one.name}_total" if one.type == "counter" else one.name for one in families}


def test_the_metrics_page_lists_what_there_is_no_more_and_no_less() -> None:
    page = PAGE.read_text()
    worker, rest = page.split("## The operator")
    operator, rest = rest.split("## Alerts and dashboard")
    assert listed(operator) == of_the_operator()
    plain = {name for name in of_the_worker() if not name.startswith("process_")}
    assert listed(worker) == plain
    assert listed(rest) == {rule["alert"] for rule in alerts()}


def test_every_query_is_about_metrics_that_there_are() -> None:
    asked = {name for text in expressions() for name in _NAME.findall(text)}
    assert len(asked) > 20
    known = of_the_operator() | of_the_worker()
    for name in asked:
        assert name.removesuffix("_bucket") in known, name


def test_every_alert_says_what_is_wrong_how_bad_it_is_and_what_to_do() -> None:
    for rule in alerts():
        assert rule["alert"].startswith("LLMTaskPool")
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert {"summary", "description", "runbook"} <= set(rule["annotations"])


def test_alerts_and_panels_parse(promtool: Path, tmp_path: Path) -> None:
    variables = {"$__rate_interval": "1m", "$namespace": "x", "$pool": "x"}
    rules = []
    for number, text in enumerate(expressions()):
        for name, value in variables.items():
            text = text.replace(name, value)
        rules.append({"record": f"q:{number}", "expr": text})
    asked = tmp_path / "asked.yaml"
    asked.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    for path in (asked, ALERTS):
        done = subprocess.run(
            [str(promtool), "check", "rules", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return {"series": f"{name}{{{inside}}}", "values": values}


POOL = {"namespace": "a", "pool": "p"}
POD = {**POOL, "pod": "w"}
FLAT = "x40"
CASES: dict[str, tuple[list[dict[str, str]], list[dict[str, str]]]] = {
    # alert: (series under which it fires, series under which it doesn't)
    "LLMTaskPoolNoLeader": (
        [series("llmtaskpool_operator_leader", f"0+0{FLAT}", pod="o")],
        [series("llmtaskpool_operator_leader", f"1+0{FLAT}", pod="o")],
    ),
    "LLMTaskPoolTurnsFail": (
        [
            series("llmtaskpool_operator_turns_total", f"0+30{FLAT}", result="failed"),
            series("llmtaskpool_operator_turns_total", f"0+60{FLAT}", result="ok"),
        ],
        [
            series("llmtaskpool_operator_turns_total", f"0+1{FLAT}", result="failed"),
            series("llmtaskpool_operator_turns_total", f"0+60{FLAT}", result="ok"),
        ],
    ),
    "LLMTaskPoolOperatorBehind": (
        [series("llmtaskpool_operator_queue_oldest_seconds", f"40+0{FLAT}")],
        [series("llmtaskpool_operator_queue_oldest_seconds", f"2+0{FLAT}")],
    ),
    "LLMTaskPoolNotReady": (
        [
            series("llmtaskpool_operator_ready_replicas", f"1+0{FLAT}", **POOL),
            series("llmtaskpool_operator_desired_replicas", f"2+0{FLAT}", **POOL),
        ],
        [
            series("llmtaskpool_operator_ready_replicas", f"2+0{FLAT}", **POOL),
            series("llmtaskpool_operator_desired_replicas", f"2+0{FLAT}", **POOL),
        ],
    ),
    "LLMTaskPoolModelFailed": (
        [series("llmtaskpool_phase", f"1+0{FLAT}", phase="failed", pod="w", **POOL)],
        [series("llmtaskpool_phase", f"0+0{FLAT}", phase="failed", pod="w", **POOL)],
    ),
    "LLMTaskPoolEngineStands": (
        [
            series("llmtaskpool_tasks_active", f"3+0{FLAT}", lane="compute", pod="w", **POOL),
            series("llmtaskpool_steps_total", f"90+0{FLAT}", pod="w", **POOL),
        ],
        [
            series("llmtaskpool_tasks_active", f"3+0{FLAT}", lane="compute", pod="w", **POOL),
            series("llmtaskpool_steps_total", f"90+500{FLAT}", pod="w", **POOL),
        ],
    ),
    "LLMTaskPoolQueueAway": (
        [series("llmtaskpool_queue_error", f"1+0{FLAT}", queue="everysec", pod="w", **POOL)],
        [series("llmtaskpool_queue_error", f"0+0{FLAT}", queue="everysec", pod="w", **POOL)],
    ),
    "LLMTaskPoolDeadLetters": (
        [series("llmtaskpool_queue_tasks", f"2+0{FLAT}", state="dead", pod="w", **POOL)],
        [series("llmtaskpool_queue_tasks", f"9+0{FLAT}", state="blocked", pod="w", **POOL)],
    ),
    "LLMTaskPoolQueueFull": (
        [
            series("llmtaskpool_tasks_queued", f"250+0{FLAT}", lane="compute", pod="w", **POOL),
            series("llmtaskpool_queue_limit", f"256+0{FLAT}", lane="compute", pod="w", **POOL),
        ],
        [
            series("llmtaskpool_tasks_queued", f"200+0{FLAT}", lane="compute", pod="w", **POOL),
            series("llmtaskpool_queue_limit", f"256+0{FLAT}", lane="compute", pod="w", **POOL),
        ],
    ),
    "LLMTaskPoolRejects": (
        [series("llmtaskpool_tasks_total", f"0+60{FLAT}", outcome="rejected", pod="w", **POOL)],
        [series("llmtaskpool_tasks_total", f"5+0{FLAT}", outcome="rejected", pod="w", **POOL)],
    ),
    "LLMTaskPoolTasksFail": (
        [
            series("llmtaskpool_tasks_total", f"0+10{FLAT}", outcome="failed", pod="w", **POOL),
            series("llmtaskpool_tasks_total", f"0+60{FLAT}", outcome="succeeded", pod="w", **POOL),
        ],
        [
            series("llmtaskpool_tasks_total", f"0+1{FLAT}", outcome="failed", pod="w", **POOL),
            series("llmtaskpool_tasks_total", f"0+60{FLAT}", outcome="succeeded", pod="w", **POOL),
        ],
    ),
    "LLMTaskPoolWaitsLong": (
        [series("llmtaskpool_oldest_wait_seconds", f"700+0{FLAT}", lane="io", pod="w", **POOL)],
        [series("llmtaskpool_oldest_wait_seconds", f"300+0{FLAT}", lane="io", pod="w", **POOL)],
    ),
    "LLMTaskPoolLoopStalls": (
        [
            series("llmtaskpool_loop_lag_seconds_bucket", f"0+5900{FLAT}", le="0.05", **POD),
            series("llmtaskpool_loop_lag_seconds_bucket", f"0+5920{FLAT}", le="+Inf", **POD),
        ],
        [
            series("llmtaskpool_loop_lag_seconds_bucket", f"0+5999{FLAT}", le="0.05", **POD),
            series("llmtaskpool_loop_lag_seconds_bucket", f"0+6000{FLAT}", le="+Inf", **POD),
        ],
    ),
}


def test_every_alert_has_a_case() -> None:
    assert set(CASES) == {rule["alert"] for rule in alerts()}


@pytest.mark.parametrize("alert", CASES)
def test_each_alert_fires_when_it_should_and_not_otherwise(
    promtool: Path, tmp_path: Path, alert: str
) -> None:
    # promtool compares annotations word by word: here the words don't matter, the firing does.
    rule = next(rule for rule in alerts() if rule["alert"] == alert)
    alone = {"groups": [{"name": "one", "rules": [{**rule, "annotations": {}}]}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(alone))
    firing, silent = CASES[alert]
    kept = {key: value for s in firing for key, value in re.findall(r'(\w+)="(\w+)"', s["series"])}
    grouped = re.search(r"by \(([^)]*)\)", rule["expr"])
    names = grouped[1].replace(" ", "").split(",") if grouped else []
    if alert == "LLMTaskPoolNotReady":  # compares two gauges label by label
        names = list(POOL)
    labels = {name: kept[name] for name in names} | {"severity": rule["labels"]["severity"]}
    tests = [
        {
            "interval": "1m",
            "input_series": given,
            "alert_rule_test": [
                {
                    "eval_time": "35m",
                    "alertname": alert,
                    "exp_alerts": [{"exp_labels": labels}] if fires else [],
                }
            ],
        }
        for given, fires in ((firing, True), (silent, False))
    ]
    asked = tmp_path / "test.yaml"
    asked.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    done = subprocess.run(
        [str(promtool), "test", "rules", str(asked)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_has_no_overlapping_panels_and_uses_its_variables() -> None:
    board = json.loads(DASHBOARD.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert {one["name"] for one in board["templating"]["list"]} == {
        "datasource",
        "namespace",
        "pool",
    }
    assert all(panel["description"] for panel in panels())


def test_monitors_point_at_ports_and_labels_that_are_there(helm: Helm) -> None:
    objects = helm.render({"monitoring": ALL_MONITORING})
    service = named(objects, "Service")
    monitor = named(objects, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    workers = named(objects, "PodMonitor")["spec"]
    assert workers["namespaceSelector"] == {"any": True}
    (chosen,) = workers["selector"]["matchExpressions"]
    both = (manifests.selector_labels("p"), gate_labels("p"))
    assert chosen["operator"] == "In"
    assert chosen["values"] == [labels[chosen["key"]] for labels in both]
    assert workers["podMetricsEndpoints"][0]["port"] == manifests.DATA
    meta = re.sub(r"[^a-zA-Z0-9]", "_", manifests.POOL_LABEL)
    source = workers["podMetricsEndpoints"][0]["relabelings"][0]["sourceLabels"]
    assert source == [f"__meta_kubernetes_pod_label_{meta}"]
    assert named(objects, "PrometheusRule")["spec"] == document(ALERTS.read_text())
    dashboard = named(objects, "ConfigMap")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["llmtaskpool.json"]) == json.loads(DASHBOARD.read_text())


def test_monitors_of_a_namespaced_install_stay_in_its_namespaces(helm: Helm) -> None:
    objects = helm.render({"monitoring": ALL_MONITORING, "namespaces": ["team-a"]})
    assert named(objects, "PodMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["team-a"]}
