"""The model of one pod: what a step costs, what a prompt costs, what fits. Pure.

An engine with continuous batching and chunked prefill (Agrawal et al., "Taming
throughput-latency tradeoff in LLM inference with Sarathi-Serve", OSDI 2024): each step gives
every decoding sequence one token, and the prompt at the head of the line up to ``chunk_tokens``
of its prefill. A step with b decoding sequences and c prompt tokens takes
``step(b) + prefill(P) x c / P``, where prefill is what a prompt adds to steps that are made
anyway: the worker's cost model divides a step so too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from llmtaskpool_worker.scheduling.cost import ModelCost
from llmtaskpool_worker.scheduling.profile import CalibrationProfile
from numpy.typing import NDArray

LARGEST_BATCH = 512
DEFAULT_KV_TOKENS = 400_000
DEFAULT_START_UP_SECONDS = 60.0
DEFAULT_CHUNK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class PodModel:
    """One pod. Times in seconds.

    ``step`` is the decode step by batch size, up to LARGEST_BATCH; index 0 is a step in which
    nothing decodes, without its prefill. ``prefill_points`` are (prompt tokens, seconds that they
    add to steps), rising; between and beyond them the cost is linear. ``kv_tokens`` bounds prompt +
    output tokens of all that run.
    """

    name: str
    step: tuple[float, ...]
    prefill_points: tuple[tuple[float, float], ...]
    kv_tokens: int = DEFAULT_KV_TOKENS
    start_up_seconds: float = DEFAULT_START_UP_SECONDS
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS

    def prefill(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seconds of prefill, by uncached prompt tokens; 0 tokens still cost the least."""
        sizes, seconds = np.array(self.prefill_points).T
        inside: NDArray[np.float64] = np.interp(tokens, sizes, seconds)
        if len(sizes) == 1:
            return np.where(tokens > sizes[-1], seconds[-1] * tokens / sizes[-1], inside)
        slope = max(0.0, (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]))
        beyond = np.maximum(0.0, tokens - sizes[-1])
        return np.asarray(inside + slope * beyond, dtype=np.float64)

    def knee(self, tpot_slo_seconds: float) -> int:
        """The most threads that are useful, by the worker's own rule."""
        return self._cost().knee(tpot_slo_seconds)

    def seconds_per_token(self, tpot_slo_seconds: float) -> float:
        """The unit of offered work for an output token: its share of an efficient step.

        The batch is the efficient one among those that the objective lets happen.
        """
        return self._within(tpot_slo_seconds).seconds_per_token()

    def efficient_batch(self, tpot_slo_seconds: float) -> int:
        """The smallest batch with most of the throughput that the objective lets happen."""
        return self._within(tpot_slo_seconds).efficient_batch()

    def with_start_up(self, seconds: float) -> PodModel:
        """The same pod, ready ``seconds`` after it was asked for."""
        return replace(self, start_up_seconds=seconds)

    def _within(self, tpot_slo_seconds: float) -> ModelCost:
        cost = self._cost()
        cost.resize(cost.knee(tpot_slo_seconds))
        return cost

    def _cost(self) -> ModelCost:
        cost = ModelCost(max_batch=len(self.step) - 1)
        cost.step.load({size: self.step[size] for size in _SIZES})
        return cost


_SIZES = (*range(1, 9), *(2**k for k in range(4, 10)), *(3 * 2**k for k in range(2, 8)))


def of_profile(profile: CalibrationProfile) -> PodModel:
    """A pod that costs what ``llmtaskpool calibrate`` measured.

    Beyond the largest measured batch a step grows as between the two largest.
    """
    steps = sorted(profile.step_seconds.items())
    batches = np.arange(LARGEST_BATCH + 1)
    sizes = np.array([float(size) for size, _ in steps])
    seconds = np.maximum.accumulate(np.array([value for _, value in steps]))
    slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]) if len(steps) > 1 else 0.0
    beyond = np.maximum(0.0, batches - sizes[-1]) * slope
    curve = np.interp(batches, sizes, seconds) + beyond
    start_up, added = profile.start_up_seconds, profile.prefill_added_seconds()
    return PodModel(
        name=f"{profile.model} on {profile.device}",
        step=(profile.step_alone_seconds(), *map(float, curve[1:])),
        prefill_points=tuple((float(s), v) for s, v in sorted(added.items())),
        kv_tokens=profile.kv_tokens or DEFAULT_KV_TOKENS,
        start_up_seconds=DEFAULT_START_UP_SECONDS if start_up is None else start_up,
        chunk_tokens=profile.prefill_chunk_tokens or DEFAULT_CHUNK_TOKENS,
    )


def _llama2_70b() -> PodModel:
    sizes = [1.0, *(float(2**k) for k in range(5, 18))]
    return PodModel(
        name="llama2-70b on 4 x A100",
        step=(0.0, *(0.030 + 0.0005 * b for b in range(1, LARGEST_BATCH + 1))),
        prefill_points=tuple((p, 0.037 + 2.5e-4 * p + 2e-9 * p * p) for p in sizes),
    )


LLAMA2_70B = _llama2_70b()
"""A pod like the one of the study (llama2-70b on 4 x A100, tensor parallel).

The constants are fitted so that the mean work per request of the study's traces comes out
(docs/simulate.md has the fit): prefill 37 ms + 0.25 ms a token + 2 ns a token squared
(attention), a step 30 ms + 0.5 ms a sequence. KV: 320 GB less the weights, 0.33 MB a token.
"""
