"""How much of its GPUs a worker uses, from 0 to 1; None where NVML tells none. Pure."""

from __future__ import annotations

from llmtaskpool_worker.contract import WorkerReport


def gpu_share(state: WorkerReport) -> float | None:
    """The mean utilization of its GPUs."""
    shares = [gpu.utilization for gpu in state.gpus if gpu.utilization is not None]
    return sum(shares) / len(shares) if shares else None


def sm_activity(state: WorkerReport) -> float | None:
    """The mean activity of its GPUs' multiprocessors, on chips that count it."""
    shares = [gpu.sm_activity for gpu in state.gpus if gpu.sm_activity is not None]
    return sum(shares) / len(shares) if shares else None


def memory_share(state: WorkerReport) -> float | None:
    """The memory in use of all its GPUs together."""
    known = [
        (gpu.memory_used_bytes, gpu.memory_total_bytes)
        for gpu in state.gpus
        if gpu.memory_used_bytes is not None and gpu.memory_total_bytes
    ]
    return sum(used for used, _ in known) / sum(total for _, total in known) if known else None
