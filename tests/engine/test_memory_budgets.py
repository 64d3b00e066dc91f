"""Memory of every engine: what never fits is refused, steps keep within what was measured."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes.pictures import picture
from fakes.sounds import sound
from llmtaskpool_worker.contract import Phase
from llmtaskpool_worker.engines import admission, memory_plan
from llmtaskpool_worker.engines.child import load_loop
from llmtaskpool_worker.engines.memory_plan import Held, row_bytes, step_room
from llmtaskpool_worker.engines.process import EngineProcess
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitInputs,
    AdmitSound,
    ModelSpec,
    Park,
    RequestFailed,
    Resume,
    SetThreads,
    Step,
    Tensor,
    TextRow,
    Values,
)
from llmtaskpool_worker.engines.seq2seq.unpacking import Unpacking
from llmtaskpool_worker.engines.weights import ModelRefused
from llmtaskpool_worker.execution import engine_memory
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.scheduling import task
from safetensors.torch import save_file

from .onnx_models import classifier_of_pictures, reader, scorer
from .test_images import write_classifier, write_detector
from .test_onnx import write as write_onnx
from .tiny_models import write_headed, write_model
from .tiny_writers import write_hearer, write_writer

GIB, MIB = 1 << 30, 1 << 20


def write_table(folder: Path) -> Path:
    sizes = [3, 4, 1]
    (folder / "model.json").write_text(json.dumps({"module": "mlp", "sizes": sizes}))
    tensors = {}
    for place, (before, after) in enumerate(itertools.pairwise(sizes)):
        tensors[f"tower.layers.{place}.weight"] = torch.randn(after, before)
        tensors[f"tower.layers.{place}.bias"] = torch.randn(after)
    save_file(tensors, folder / "model.safetensors")
    return folder


ENGINES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "generate": ("generate", lambda folder: write_model(folder, "llama")),
    "embed": ("embed", lambda folder: write_headed(folder, "embed")),
    "embed, padded": ("embed", lambda folder: write_headed(folder, "embed", "mpnet")),
    "rerank": ("rerank", lambda folder: write_headed(folder, "rerank")),
    "classify": ("classify", lambda folder: write_headed(folder, "classify")),
    "tag": ("tag", lambda folder: write_headed(folder, "tag")),
    "answer": ("answer", lambda folder: write_headed(folder, "answer")),
    "classify pictures": ("classify", lambda folder: write_classifier(folder, "vit")),
    "detect": ("detect", write_detector),
    "tensor": ("tensor", write_table),
    "embed, ONNX": ("embed", lambda folder: write_onnx(folder, reader("embed"), "embed")),
    "classify pictures, ONNX": (
        "classify",
        lambda folder: write_onnx(folder, classifier_of_pictures(3), "pictures"),
    ),
    "tensor, ONNX": ("tensor", lambda folder: write_onnx(folder, scorer())),
    "translate": ("translate", lambda folder: write_writer(folder, "marian")),
    "summarize": ("summarize", lambda folder: write_writer(folder, "bart")),
    "transcribe": ("transcribe", lambda folder: write_hearer(folder)),
}

Load = Callable[..., Any]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The loop of an engine with options, as its process loads it."""
    written: dict[str, Path] = {}

    def loaded(name: str, threads: int = 4, **options: Any) -> Any:
        task, write = ENGINES[name]
        if name not in written:
            written[name] = write(tmp_path_factory.mktemp("model"))
        return load_loop(task, written[name], threads, options)

    return loaded


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_says_what_it_should_hold_at_most(load: Load, name: str) -> None:
    own = admission.own_bytes()
    assert own is not None
    told = load(name).ready().memory_budget_bytes
    assert told is not None
    assert told > own // 2, "more than what it holds already"
    assert load(name, memory_bytes=64 * GIB).ready().memory_budget_bytes == 64 * GIB


@pytest.mark.parametrize("name", ENGINES)
def test_weights_that_never_fit_are_refused_with_the_numbers(
    load: Load, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "limit_bytes", lambda: 40)
    said = r"its weights take .* in (float32|model\.onnx), and its engine may have .*: give the con"
    with pytest.raises(ModelRefused, match=said):
        load(name)


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "generate"])
def test_a_model_without_room_for_a_single_step_is_refused_with_the_numbers(
    load: Load, name: str
) -> None:
    own = admission.own_bytes()
    assert own is not None
    with pytest.raises(ModelRefused, match=r"there is no room for .* MB are left beside"):
        load(name, memory_bytes=own // 2)


@pytest.mark.parametrize("name", ENGINES)
def test_numbers_of_no_kind_are_refused_and_auto_is_the_usual_ones(load: Load, name: str) -> None:
    if name == "tensor" or name.endswith("ONNX"):
        return  # its numbers are those of its files
    with pytest.raises(ModelRefused, match="dtype=int3 is none: use auto, float32"):
        load(name, dtype="int3")
    assert load(name, dtype="auto").ready().dtype in ("float32", "bfloat16")


def row(size: int) -> TextRow:
    return TextRow(np.full(size, 5, dtype="<u4").tobytes())


def ran(loop: Any) -> tuple[list[Step], dict[int, Any]]:
    steps, told = [], {}
    while loop.busy():
        for event in loop.step():
            if isinstance(event, Step):
                steps.append(event)
            elif hasattr(event, "id"):
                told[event.id] = event
    return steps, told


@pytest.mark.parametrize("name", ["embed", "embed, padded", "classify"])
def test_texts_share_a_step_only_as_far_as_its_memory_goes(load: Load, name: str) -> None:
    texts = [row(size) for size in (40, 3, 40, 17, 40, 9, 40, 40)]
    free = load(name)
    assert free.accept(AdmitInputs(1, texts)) == []
    _, unbound = ran(free)
    loop = load(name)
    encoder = loop.head.encoder
    room = loop.head.needs([free.head.rows(AdmitInputs(1, [row(40)]))[0]] * 2)
    most = encoder.fit_into(room, lambda row: encoder.row_bytes.of(len(row.tokens)))
    assert most <= room
    loop.head.encoder.bounds = free.head.encoder.bounds
    assert loop.accept(AdmitInputs(1, texts)) == []
    steps, told = ran(loop)
    assert max(step.prefill_tokens for step in steps) <= 80
    assert len(steps) > 2
    for found, expected in zip(told[1].values, unbound[1].values, strict=True):
        close = np.frombuffer(found, "<f4") if isinstance(found, bytes) else found
        wanted = np.frombuffer(expected, "<f4") if isinstance(expected, bytes) else expected
        np.testing.assert_allclose(close, wanted, atol=1e-5)


def test_a_text_that_memory_never_holds_is_refused_and_the_context_says_so(load: Load) -> None:
    loop = load("classify")
    encoder = loop.head.encoder
    encoder.fit_into(32_000, lambda row: 1000 * len(row.tokens))
    assert loop.ready().context_length == 32, "of 256"
    (failed,) = loop.accept(AdmitInputs(1, [row(33)]))
    assert isinstance(failed, RequestFailed)
    assert failed.code == "context_length_exceeded"
    assert "33 tokens and the model takes 32; split" in failed.message
    assert loop.accept(AdmitInputs(2, [row(32)] * 3)) == []
    steps, told = ran(loop)
    assert isinstance(told[2], Values)
    assert [step.ran for step in steps] == [[2]] * 3, "one of them fills a step's memory"


def test_pictures_share_a_step_only_as_far_as_its_memory_goes(load: Load) -> None:
    loop = load("classify pictures")
    head = loop.head
    small, large = picture(64, 64), picture(640, 480)
    head.room = head.needs([head.rows(AdmitInputs(1, images=[small]))[0]] * 2)
    head.most_pixels = 64 * 64
    assert loop.ready().about["most_pixels"] == 64 * 64
    (failed,) = loop.accept(AdmitInputs(1, images=[small, large]))
    assert (failed.code, failed.id) == ("too_large", 1)
    assert "307200 pixels, and memory holds 4096 here: send it smaller" in failed.message
    assert loop.accept(AdmitInputs(2, images=[small] * 5)) == []
    steps, told = ran(loop)
    assert [step.ran for step in steps] == [[2, 2], [2, 2], [2]]
    assert isinstance(told[2], Values)


def test_a_table_of_any_length_is_run_in_parts_and_one_without_an_end_is_refused(
    load: Load,
) -> None:
    loop = load("tensor")
    numbers = np.random.default_rng(0).random((10_000, 3)).astype("<f4")
    tensor = Tensor("x", "FP32", [10_000, 3], numbers.tobytes())
    passes: list[int] = []
    loop.head.table.register_forward_pre_hook(lambda _, given: passes.append(len(given[0]["x"])))
    loop.head.budget = 600
    assert loop.accept(AdmitInputs(1, tensors=[tensor])) == []
    _, told = ran(loop)
    assert max(passes) == 600
    found = np.frombuffer(told[1].values[0]["data"], "<f4")
    expected = loop.head.table({"x": torch.from_numpy(numbers)}).flatten()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    rows = 9 * MIB
    endless = Tensor("x", "FP32", [rows, 3], bytes(rows * 3 * 4))
    (failed,) = loop.accept(AdmitInputs(2, tensors=[endless]))
    assert failed.code == "too_large"
    assert f"{rows} rows, and {8 * MIB} are answered at once: send them in" in failed.message


def test_a_text_whose_caches_never_fit_is_refused_at_once(load: Load) -> None:
    loop = load("translate")
    a_granule = 64 * (loop.decoder.own.bytes_per_token + loop.decoder.cross.bytes_per_token)
    loop = load("translate", cache_bytes=a_granule)
    assert loop.ready().max_threads == 1
    assert loop.accept(Admit(1, [5] * 20, 9)) == []
    loop.writers.room.budget = a_granule - 1
    (failed,) = loop.accept(Admit(2, [5] * 20, 9))
    assert failed.code == "context_length_exceeded"
    assert "in parts, or ask for fewer tokens; or raise cache_bytes" in failed.message
    with pytest.raises(ModelRefused, match=r"no room for its cache: the shortest takes .* MB"):
        load("translate", cache_bytes=a_granule - 1)


def test_files_of_sound_are_unpacked_only_as_far_as_memory_goes(load: Load) -> None:
    loop = load("transcribe", threads=8)
    files = [sound(seconds, seed=n) for n, seconds in enumerate((1.9, 1.5, 1.8, 5.3))]
    asked = [AdmitSound(n, file, "en") for n, file in enumerate(files[:3])]
    for one in asked:
        assert loop.accept(one) == []
    _, unbound = ran(loop)
    reader = loop.reader
    reader._unpacking = Unpacking(4_000, 1_000)  # 4 s of sound
    (failed,) = loop.accept(AdmitSound(9, files[3], "en"))
    assert failed.code == "too_large"
    assert "file is 5 s long, and memory holds 4 s here: send it in several" in failed.message
    for one in asked:
        assert loop.accept(one) == []
    assert sorted(reader._unpacking._held) == [0, 1]
    _, told = ran(loop)
    assert {n: told[n].values for n in range(3)} == {n: unbound[n].values for n in range(3)}
    assert not reader._unpacking._held
    assert not reader._sounds


def test_a_file_that_is_put_aside_gives_its_memory_back_and_goes_on_where_it_was(
    load: Load,
) -> None:
    loop = load("transcribe", threads=1)
    file = AdmitSound(1, sound(5.3, seed=3), "en", timestamps=True)
    loop.accept(file)
    _, expected = ran(loop)
    loop.accept(file)
    for _ in range(9):
        loop.step()
    loop.accept(Park(1))
    assert not loop.reader._sounds, "nothing of it stays unpacked"
    loop.step()
    loop.accept(SetThreads(2))
    loop.accept(AdmitSound(2, sound(1.5, seed=4), "en"))
    loop.accept(Resume(1))
    _, told = ran(loop)
    assert told[1].values == expected[1].values
    assert isinstance(told[2], Values)


def test_what_a_row_takes_is_found_out_from_two_of_them() -> None:
    each, pairs = 3_000.0, 20.0
    made = row_bytes({n: int(each * n + pairs * n * n) for n in (256, 64)})
    assert made.of(100) == pytest.approx(each * 100 + pairs * 100**2, rel=1e-6)
    for room in (10_000, 5_000_000, GIB):
        longest = made.longest(room, 1 << 20)
        assert made.of(longest) <= room < made.of(longest + 1)
    assert made.longest(GIB, 512) == 512
    assert made.longest(0, 512) == 0
    assert row_bytes({64: 0}).of(64) == 64, "a kernel that tells nothing"
    assert row_bytes({256: 256 * 7, 64: 64 * 9}).pairs == 0, "what came once is no square"


@pytest.mark.parametrize(
    ("options", "room"),
    [
        ({}, 4 * GIB),
        ({"memory_share": 0.25}, GIB),
        ({"memory_bytes": 3 * GIB}, GIB),
        ({"memory_bytes": GIB}, -GIB),
    ],
)
def test_a_step_has_its_part_of_what_is_left(options: dict[str, Any], room: int) -> None:
    assert step_room(options, Held(own=2 * GIB, free=8 * GIB, step=0)) == room


def test_on_a_gpu_what_the_process_holds_is_no_matter_of_steps() -> None:
    held = Held(own=2 * GIB, free=8 * GIB, step=0, on_gpu=True)
    assert memory_plan.step_room({"memory_bytes": GIB}, held) == 4 * GIB


LEAKY = """
import os, sys
from llmtaskpool_worker.engines import child, memory_plan
from llmtaskpool_worker.engines.one_pass.loop import OnePassLoop
memory_plan.SPARE_BYTES, memory_plan.SPARE_SHARE = 32 << 20, 0.0
child.MEMORY_SECONDS = 0.0
plain, kept = OnePassLoop.step, []
leaks = not os.path.exists({mark!r})
open({mark!r}, "w").close()
def step(self):
    if leaks:
        kept.append(bytearray(b"x" * (16 << 20)))
    return plain(self)
OnePassLoop.step = step
sys.exit(child.main())
"""
"""An engine that keeps 16 MiB of each step in its first life, and has 32 to spare."""


def recycled(pool: Dispatcher) -> int:
    return sum(one.recycled_total for one in pool.state().model_memory.values())


def test_an_engine_that_leaks_begins_anew_and_every_request_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_memory, "SETTLE_SECONDS", 0.1)
    write_table(tmp_path)
    program = (sys.executable, "-c", LEAKY.format(mark=str(tmp_path / "lived")))
    spec = ModelSpec("risk", str(tmp_path), "tensor", {"torch_threads": 1})
    engine = EngineProcess(spec, program=program, jitter=lambda: 0.0)
    tensor = task.Tensor("x", "FP32", (1, 3), np.ones(3, "<f4").tobytes())
    wanted = task.TaskRequest("infer", task.Evaluate((), tensors=(tensor,)), model="risk")

    async def story() -> None:
        pool = Dispatcher(engines=[engine])
        await pool.start()
        try:
            answers: list[task.TaskView] = []

            async def goes_on_until(true: Callable[[], bool]) -> None:
                for _ in range(4000):
                    if true():
                        return
                    if pool.state().phase is Phase.READY:
                        answers.append(await pool.submit(wanted))
                    await asyncio.sleep(0.05)

            await goes_on_until(lambda: recycled(pool) > 0)
            answers += [await pool.submit(wanted) for _ in range(9)]
            ended = [await pool.wait(one.id) for one in answers]
            assert {one.state for one in ended} == {task.TaskState.SUCCEEDED}
            assert {one.attempts for one in ended} == {1}, "nothing ran in what was ended"
            assert recycled(pool) == 1
        finally:
            await pool.stop(0.0)

    asyncio.run(asyncio.wait_for(story(), 240))
