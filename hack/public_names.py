"""Prints as JSON the names that people outside rely on: `python hack/public_names.py`.

Commands with their options, the fields of the CRD, conditions, routes, fields of bodies, error
codes, events on standard output, metrics with their labels, environment variables, entry points,
what packages with kinds import, names of objects on a cluster.
`tests/packaging/public_names.json` is what it printed before; a name that goes missing there breaks
somebody's scripts, so `tests/packaging/test_public_names.py` compares the two.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import llmtaskpool
import typer
import yaml
from llmtaskpool_operator.__main__ import app as operator_commands
from llmtaskpool_operator.api.crdgen import as_yaml
from llmtaskpool_operator.api.status import ConditionType
from llmtaskpool_operator.cluster import manifests
from llmtaskpool_operator.cluster.api_client import MANAGER
from llmtaskpool_operator.cluster.metrics import OperatorMetrics
from llmtaskpool_operator.cluster.operator import KEY_SECRET
from llmtaskpool_operator.cluster.settings import LEASE, OperatorSettings
from llmtaskpool_worker import contract, kinds
from llmtaskpool_worker.__main__ import app as worker_commands
from llmtaskpool_worker.assembly.settings import PREFIX, Settings
from llmtaskpool_worker.calibration.command import calibrate_command
from llmtaskpool_worker.contract import LaneName, LaneState, Phase, Totals, Work, WorkerState
from llmtaskpool_worker.http_api.access import REQUEST_ID
from llmtaskpool_worker.http_api.batches_api import BatchBody, Batches, BatchRoutes
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.control import ControlRoutes
from llmtaskpool_worker.http_api.files_api import FileRoutes
from llmtaskpool_worker.http_api.graphs_api import GraphBody
from llmtaskpool_worker.http_api.inference import LENGTH_HEADER
from llmtaskpool_worker.http_api.limits import HttpLimits
from llmtaskpool_worker.http_api.metrics import Metrics
from llmtaskpool_worker.http_api.one_pass_schema import SCHEMAS
from llmtaskpool_worker.http_api.openai_api import OpenAIRoutes
from llmtaskpool_worker.http_api.openai_schema import (
    WEIGHT_HEADER,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
)
from llmtaskpool_worker.http_api.openapi import description_route
from llmtaskpool_worker.http_api.server import Health
from llmtaskpool_worker.http_api.task_body import TaskBody
from llmtaskpool_worker.http_api.tasks_api import IDEMPOTENCY_HEADER, TaskRoutes
from llmtaskpool_worker.http_api.tensors import InferRequest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
_CODE = re.compile(
    r"(?:code=|Rejected\(|TaskError\(|HandlerError\(|(?:_refuse|refusal)\(\s*\d+,)"
    r'\s*"([a-z_]+)"'
)
_EVENT = re.compile(r'"event": "([a-z_]+)"')
_PAGE = re.compile(r'router\.add_get\("([^"]+)"')
_VARIABLE = re.compile(r"LLMTASKPOOL_[A-Z][A-Z0-9_]*[A-Z0-9]")


def public_names() -> dict[str, list[str]]:
    """Each kind of name with its names, sorted."""
    found = {
        "commands": commands(),
        "crd": crd_fields(),
        "routes": routes(),
        "metrics": metrics(),
        "messages": messages(),
        "words": words(),
        "objects": objects(),
        "kinds": list(kinds.__all__),
        "client": client(),
        "environment": environment(),
        "entry points": entry_points(),
    }
    return {kind: sorted(set(names)) for kind, names in found.items()}


def commands() -> list[str]:
    """``llmtaskpool decide --alpha``: each program's commands with each of their options."""
    calibrate = typer.Typer(add_completion=False)
    calibrate.command()(calibrate_command)
    handed_on: Any = typer.main.get_command(calibrate)
    programs = {"llmtaskpool": operator_commands, "llmtaskpool-worker": worker_commands}
    found = [name for words, app in programs.items() for name in _options(words, app)]
    # Both programs hand these on to one function.
    return found + [f"calibrate {option}" for one in handed_on.params for option in one.opts]


def _options(words: str, app: typer.Typer) -> Iterator[str]:
    yield from _options_of(words, typer.main.get_command(app))


def _options_of(words: str, group: Any) -> Iterator[str]:
    context = typer.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield f"{words} {name}"
        if hasattr(command, "commands"):
            yield from _options_of(f"{words} {name}", command)
        for one in command.params:
            for option in (*one.opts, *one.secondary_opts):
                yield f"{words} {name} {option}"


def crd_fields() -> list[str]:
    """``v1alpha1 spec.scaling.mode string``, the printed columns, and the object's own names."""
    crd = yaml.safe_load(as_yaml())
    names = crd["spec"]["names"]
    found = [f"{crd['spec']['group']} {crd['spec']['scope']} {json.dumps(names, sort_keys=True)}"]
    for version in crd["spec"]["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        found += [f"{version['name']} {line}" for line in _fields(schema, "")]
        found += [
            f"{version['name']} column {one['name']} {one['jsonPath']}"
            for one in version["additionalPrinterColumns"]
        ]
        found.append(f"{version['name']} subresources {json.dumps(version['subresources'])}")
    return found


def _fields(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name, below in schema.get("properties", {}).items():
        kind = below.get("type", "any")
        yield f"{path}{name} {kind}"
        yield from _fields(below, f"{path}{name}.")
        yield from _fields(below.get("items", {}), f"{path}{name}[].")


def routes() -> list[str]:
    """``POST /v1/tasks data``: method, path and port."""
    pool, catalog, nothing, bodies = (cast("Any", None),) * 3 + (Bodies(HttpLimits()),)
    nothing_yet = cast("Any", SimpleNamespace(files=None))
    data = [
        *Health(pool, nothing).routes(),
        *OpenAIRoutes(pool, catalog, bodies, heartbeat_seconds=1, wall_clock=float).routes(),
        *TaskRoutes(
            pool, catalog, bodies, heartbeat_seconds=1, clock=float, wall_clock=float
        ).routes(),
        *FileRoutes(nothing_yet, piece_seconds=1).routes(),
        *BatchRoutes(Batches(nothing_yet, nothing_yet), pool, bodies).routes(),
    ]
    data.append(description_route(data))
    ports = {"data": data, "control": ControlRoutes(pool, bodies).routes()}
    return [
        f"{method} {route.path} {port}"
        for port, found in ports.items()
        for route in found
        for method in sorted(route.methods or ())
    ]


def metrics() -> list[str]:
    """``llmtaskpool_tasks counter [outcome] worker``: name, type, labels and page."""
    lane = LaneState(threads=1, threads_cap=1, active=0, queued=0, queue_limit=1)
    state = WorkerState(
        worker_id="w",
        started_at=0,
        observed_at=0,
        phase=Phase.READY,
        threads_generation=0,
        lanes=dict.fromkeys(LaneName, lane),
        work=Work(),
        totals=Totals(),
    )
    worker = Metrics(lambda: state)
    found = []
    for family in text_string_to_metric_families(worker.text().decode()):
        labels = sorted({label for sample in family.samples for label in sample.labels})
        found.append(f"{family.name} {family.type} {labels} worker")
    for page, metrics in {"worker": worker, "operator": OperatorMetrics()}.items():
        for metric in vars(metrics).values():
            if isinstance(metric, MetricWrapperBase):
                (family,) = metric.describe()
                found.append(f"{family.name} {family.type} {list(metric._labelnames)} {page}")
    return found + [
        f"{value} contract" for name, value in vars(contract).items() if "METRIC_" in name
    ]


def messages() -> list[str]:
    """``WorkerState.lanes``: the fields of what is sent and answered."""
    bodies = [
        ChatRequest,
        CompletionRequest,
        EmbeddingRequest,
        *SCHEMAS.values(),
        InferRequest,
        TaskBody,
        GraphBody,
        BatchBody,
    ]
    for one in vars(contract).values():
        if isinstance(one, type) and issubclass(one, BaseModel) and one is not BaseModel:
            bodies.append(one)  # noqa: PERF401  as a list mypy loses what it is
    return [f"{model.__name__}.{field}" for model in bodies for field in model.model_fields]


_HEADERS = (WEIGHT_HEADER, REQUEST_ID, IDEMPOTENCY_HEADER, LENGTH_HEADER)


def words() -> list[str]:
    """Error codes, events on standard output, paths of the operator's pages, and headers."""
    found = [f"header {name}" for name in _HEADERS]
    for source in (*ROOT.glob("operator/**/*.py"), *ROOT.glob("worker/**/*.py")):
        text = source.read_text()
        found += [f"code {code}" for code in _CODE.findall(text)]
        found += [f"event {event}" for event in _EVENT.findall(text)]
        found += [f"operator page {path}" for path in _PAGE.findall(text)]
    return found


def objects() -> list[str]:
    """Names on a cluster: conditions, labels, the field manager, the Lease, the operator's key."""
    return [
        *(f"condition {one.value}" for one in ConditionType),
        *(f"phase {one.value}" for one in Phase),
        *(f"label {name}" for name in (manifests.POOL_LABEL, manifests.DELETION_COST)),
        f"annotation {manifests.APPLIED}",
        f"container {manifests.CONTAINER}",
        f"field manager {MANAGER}",
        f"lease {LEASE}",
        f"secret {KEY_SECRET}",
    ]


def client() -> list[str]:
    """What programs import of the Python client, and its calls with their arguments."""
    calls = [
        f"Client.{name}({', '.join(inspect.signature(call).parameters)})"
        for name, call in vars(llmtaskpool.Client).items()
        if not name.startswith("_")
    ]
    fields = [
        f"{one.__name__}.{field}"
        for one in (llmtaskpool.TaskFields, llmtaskpool.BatchFields)
        for field in one.__annotations__
    ]
    return [*llmtaskpool.__all__, *calls, *fields]


def environment() -> list[str]:
    """Every variable that settings read, and every other of ours that is named in the code."""
    found = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    prefix = str(OperatorSettings.model_config["env_prefix"])
    found += [f"{prefix}{name.upper()}" for name in OperatorSettings.model_fields]
    for source in (p for f in ("client", "operator", "worker") for p in ROOT.glob(f"{f}/**/*.py")):
        found += _VARIABLE.findall(source.read_text())
    return found


def entry_points() -> list[str]:
    """The scripts of the wheel, its extras, and the groups that other packages may join."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    scripts = [f"script {name} = {target}" for name, target in project["scripts"].items()]
    extras = [f"extra {name}" for name in project["optional-dependencies"]]
    return [*scripts, *extras, f"group {kinds.ENTRY_POINT_GROUP}"]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(public_names(), indent=1) + "\n")
