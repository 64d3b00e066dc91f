"""What a server's /metrics page says of its queue, under the names of vLLM, SGLang, llama.cpp.

Shown and exported, and news of a preemption or a full cache lowers N. Nothing waits for them: they
are seconds old (vllm#49538), and N is our own count.
"""

from __future__ import annotations

import re

from llmtaskpool_worker.engines.protocol import Gauges

PAGE_BYTES = 8 * 1024 * 1024
_NAMES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "cache_usage",
    "vllm:num_preemptions_total": "preemptions",
    "sglang:num_running_reqs": "running",
    "sglang:num_queue_reqs": "waiting",
    "sglang:token_usage": "cache_usage",
    "sglang:num_retracted_reqs": "preemptions",
    "llamacpp:requests_processing": "running",
    "llamacpp:requests_deferred": "waiting",
}
_LINE = re.compile(
    r"^(" + "|".join(map(re.escape, _NAMES)) + r")(?:\{[^\n]*\})? +([0-9.eE+-]+)", re.MULTILINE
)


def gauges_in(page: str) -> Gauges | None:
    """What the page says; None when it has none of the names.

    Several engines of one server are summed, but for the cache: the fullest counts.
    """
    found: dict[str, float] = {}
    for name, text in _LINE.findall(page):
        try:
            value = float(text)
        except ValueError:
            continue
        field = _NAMES[name]
        if not 0 <= value < 1e15:
            continue
        before = found.get(field, 0.0)
        found[field] = max(before, value) if field == "cache_usage" else before + value
    return Gauges(**found) if found else None
