"""The scenarios of the control study, from the public traces in benchmarks/traces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.simulation.service import LLAMA2_70B
from llmtaskpool_operator.simulation.simulator import Setting
from llmtaskpool_operator.simulation.trace import Trace, read

TRACES = Path(__file__).parent / "traces"
SEED = 20261125
JITTER_SECONDS = 10.0
MOST_REPLICAS = 64
WARM_UP_SECONDS = 600.0
TPOT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Scenario:
    """One trace with its objective; ``why`` says what it is a test of."""

    name: str
    why: str
    trace: Trace
    setting: Setting


def scenarios() -> list[Scenario]:
    """The six short ones and msmall, the same on every call."""
    rng = np.random.default_rng(SEED)
    conv = read(TRACES / "azure_conv_2023.csv.gz")
    chat = cloned(conv, 4, rng)
    code = cloned(read(TRACES / "azure_code_2023.csv.gz"), 4, rng)
    small = cloned(faster(read(TRACES / "servegen_msmall_day1.csv.gz"), 4.0), 2, rng)
    return [
        Scenario("conv", "chat, an hour, four copies", chat, _setting(5)),
        Scenario("code", "long prompts in bursts, four copies", code, _setting(30)),
        Scenario(
            "mooncake", "very long prompts, limited by KV memory",
            read(TRACES / "mooncake_conv_2024.csv.gz"), _setting(60),
        ),
        Scenario("step5", "2 pods of load, 10 for 30 min, 2 again", step(conv, rng), _setting(5)),
        Scenario(
            "fault", "conv, start-up 120 s, GPU metrics lost for 10 min", chat,
            _setting(5, start_up=120.0, gpu_lost=(1500.0, 2100.0)),
        ),
        Scenario("idle", "a nearly idle pool: every 20th of conv", conv.chosen(slice(0, None, 20)),
                 _setting(5)),
        Scenario("msmall", "a day in six hours, two copies", small, _setting(5)),
    ]  # fmt: skip


def cloned(trace: Trace, copies: int, rng: np.random.Generator) -> Trace:
    """``copies`` of every request, all but the first up to JITTER_SECONDS earlier or later.

    Bursts longer than that stay; shorter ones are smoothed.
    """
    shifts = rng.uniform(-JITTER_SECONDS, JITTER_SECONDS, (copies, len(trace)))
    shifts[0] = 0.0
    arrival = np.clip((trace.arrival + shifts).ravel(), 0.0, trace.seconds)
    tiled = trace.chosen(np.tile(np.arange(len(trace)), copies))
    order = np.argsort(arrival, kind="stable")
    return Trace(arrival[order], *(x[order] for x in (tiled.prompt, tiled.output, tiled.uncached)))


def faster(trace: Trace, factor: float) -> Trace:
    """The same requests in a ``factor``-th of the time."""
    return Trace(trace.arrival / factor, trace.prompt, trace.output, trace.uncached)


def step(of: Trace, rng: np.random.Generator) -> Trace:
    """Poisson arrivals with the sizes of another trace: 1x, 5x from 2400 to 4200 s, 1x; 5400 s."""
    base = 3.9
    parts = [(0.0, 2400.0, base), (2400.0, 4200.0, 5 * base), (4200.0, 5400.0, base)]
    arrival = np.concatenate(
        [np.sort(rng.uniform(a, b, rng.poisson((b - a) * rate))) for a, b, rate in parts]
    )
    sizes = of.chosen(rng.integers(0, len(of), len(arrival)))
    return Trace(arrival, sizes.prompt, sizes.output, sizes.uncached)


def _setting(
    ttft_seconds: float, *, start_up: float = 60.0, gpu_lost: tuple[float, float] | None = None
) -> Setting:
    spec = LLMTaskPoolSpec.model_validate(
        {
            "scaling": {"minReplicas": 1, "maxReplicas": MOST_REPLICAS},
            "threads": {"compute": {"initial": 48, "min": 4}},
            "slo": {"ttftSeconds": ttft_seconds, "tpotSeconds": TPOT_SECONDS},
        }
    )
    return Setting(
        spec, LLAMA2_70B.with_start_up(start_up), warm_up=WARM_UP_SECONDS, gpu_lost=gpu_lost
    )
