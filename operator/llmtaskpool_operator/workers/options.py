"""What a pool's spec says to its workers, wherever they run: options and environment. Pure."""

from __future__ import annotations

from llmtaskpool_operator.api.model_limits import options_of as options_of_limits
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.api.tenants import TenantLimits, Tenants


def options_of(spec: LLMTaskPoolSpec) -> list[str]:
    """Options of ``llmtaskpool-worker serve``."""
    models: list[str] = []
    for model in spec.models:
        options = model.options | options_of_limits(model.limits)
        extra = "".join(f",{key}={value}" for key, value in sorted(options.items()))
        task = "" if model.task == "generate" else f",task={model.task}"
        aliases = "".join(f",alias={alias}" for alias in model.aliases)
        models += ["--model", f"{model.name}={model.source}{task}{aliases}{extra}"]
    return [
        *("--threads", str(spec.threads.compute.initial)),
        *("--io-threads", str(spec.threads.io.initial)),
        *("--queue-limit", str(spec.queue.limit)),
        *models,
    ]


def environment_of(spec: LLMTaskPoolSpec) -> dict[str, str]:
    """Settings of the worker that are no options of its command line."""
    values = {
        "LLMTASKPOOL_THREADS_MAX": str(spec.threads.compute.max),
        "LLMTASKPOOL_IO_THREADS_MAX": str(spec.threads.io.max),
        "LLMTASKPOOL_QUEUE_POLICY": spec.queue.policy,
        "LLMTASKPOOL_AGEING_SECONDS": f"{max(spec.queue.ageing_seconds, 1e-3):g}",
        "LLMTASKPOOL_AGED_SHARE": f"{spec.queue.aged_share:g}",
        "LLMTASKPOOL_TPOT_SLO_SECONDS": f"{spec.slo.tpot_seconds:g}",
    }
    if tenants := _tenants(spec.tenants):
        values["LLMTASKPOOL_TENANTS"] = tenants
    if spec.auth.cors_origins:
        values["LLMTASKPOOL_CORS_ORIGINS"] = ",".join(spec.auth.cors_origins)
    if spec.queue.timeout_seconds is not None:
        values["LLMTASKPOOL_QUEUE_TIMEOUT_SECONDS"] = f"{spec.queue.timeout_seconds:g}"
    if spec.queue.task_timeout_seconds is not None:
        values["LLMTASKPOOL_TASK_QUEUE_TIMEOUT_SECONDS"] = f"{spec.queue.task_timeout_seconds:g}"
    return values


def _tenants(tenants: Tenants) -> str:
    entries = [_entry(one.name, one) for one in tenants.named]
    # Who writes it down wants them told apart, also where it says nothing else.
    if "each" in tenants.model_fields_set:
        entries.append(_entry("*", tenants.each))
    return ";".join(entries)


def _entry(name: str, limits: TenantLimits) -> str:
    given = {
        "share": None if limits.share == 1 else f"{limits.share:g}",
        "waiting": limits.waiting,
        "running": limits.running,
        "weight": None if limits.weight is None else f"{limits.weight:g}",
    }
    parts = [f",{key}={value}" for key, value in given.items() if value is not None]
    return "".join([name, *parts, ",sees=all" if limits.sees_all else ""])
