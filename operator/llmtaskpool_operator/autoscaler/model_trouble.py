"""What workers say of their models, in their own sentences, as problems of the pool. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from llmtaskpool_worker.contract import Phase

from llmtaskpool_operator.autoscaler.observation import PodObservation, Problem

_FAILED = "load_failed"


def model_trouble(pods: Sequence[PodObservation]) -> list[Problem]:
    """One problem for each kind of trouble, told with the first pod that has it."""
    found: dict[str, list[str]] = {}
    for pod in pods:
        if pod.state is None:
            continue
        troubles = pod.state.model_problems
        for model, trouble in sorted(troubles.items()):
            found.setdefault(trouble.code, []).append(f"{pod.name}: {model}: {trouble.message}")
        if pod.state.phase is Phase.FAILED and not troubles:  # a worker that is older than these
            found.setdefault(_FAILED, []).append(f"models could not be loaded in {pod.name}")
    return [_problem(code, told) for code, told in found.items()]


def _problem(code: str, told: Sequence[str]) -> Problem:
    more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    text = told[0] + more
    match code:
        case "load_failed":
            return Problem("ModelsFailed", text, stalled=True)
        case "retrying":
            return Problem("ModelRetrying", f"{text}; it is tried again")
        case "restarting":
            return Problem("EngineRestarts", f"{text}; its engine starts again")
        case _:
            return Problem("EngineStands", text)
