"""Calibration: what is measured of an engine, and what its command says and writes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from fakes.letters_engine import LettersEngine
from llmtaskpool_worker.calibration.measure import CalibrationFailed, Plan, calibrate, together
from llmtaskpool_worker.engines.batching import Batching, Sequence
from llmtaskpool_worker.engines.protocol import Admit, LoadFailed
from llmtaskpool_worker.scheduling import profile
from llmtaskpool_worker.scheduling.cost import CostModel

NOW = datetime(2026, 11, 25, tzinfo=UTC)


def measured(engine, plan) -> profile.CalibrationProfile:
    async def run():
        try:
            return await calibrate(engine, plan, clock=lambda: 1.0, now=NOW, threads=2)
        finally:
            await engine.stop(1.0)

    return asyncio.run(run())


def test_batches_beyond_the_engines_memory_and_prompts_beyond_its_context_are_left_out():
    found = measured(LettersEngine(slots=4), Plan(batches=(1, 2, 4, 8), prompts=(4, 10**6)))
    assert sorted(found.step_seconds) == [1, 2, 4]
    assert sorted(found.prefill_seconds) == [4]
    assert found.model == "letters"


def test_the_profile_is_read_back_and_priced_by_the_cost_model(tmp_path):
    found = measured(LettersEngine(slots=4), Plan(batches=(1, 4), prompts=(4,)))
    profile.write(found, tmp_path / "profile.json")
    cost = CostModel()
    cost.load_profile(profile.read(tmp_path / "profile.json"))
    steps, prefill = cost.measured("letters")
    assert steps == pytest.approx(found.step_seconds)
    assert prefill == pytest.approx(found.prefill_added_seconds())


@pytest.mark.parametrize(("batch", "context"), [(1, 256), (16, 256), (64, 256), (8, 32)])
def test_sequences_are_as_long_as_asked_when_the_last_begins_to_decode(batch, context):
    batching = Batching(threads=batch, chunk=128, budget_tokens=1 << 30, granule=128)
    wanted = together(batch, context, 12, chunk=128)
    for number, (prompt, output) in enumerate(wanted):
        admit = Admit(number, [1] * prompt, output)
        batching.waiting.append(Sequence(admit, list(admit.prompt)))
    while batching.decoding < batch:
        step = batching.schedule()
        for sequence in batching.running[: step.decode]:
            sequence.tokens.append(1)
            sequence.filled += 1
            sequence.drawn += 1
        for chunk in step.chunks:
            batching.prefilled(chunk)
    lengths = [len(sequence.tokens) for sequence in batching.running]
    assert min(lengths) >= context - 1
    assert max(lengths) <= context + 1
    assert all(s.request.max_tokens - s.drawn >= 12 for s in batching.running)


def test_a_model_of_a_short_context_is_measured_at_half_of_it():
    found = measured(LettersEngine(slots=4), Plan(batches=(1,), prompts=(4,)))
    assert found.context_tokens == 128


def test_a_model_that_cannot_be_loaded_is_told():
    class Broken(LettersEngine):
        async def start(self):
            self._events.put_nowait(LoadFailed("there is no such file: name one"))

    with pytest.raises(CalibrationFailed, match="no such file"):
        measured(Broken(), Plan())


def command(*arguments: str) -> subprocess.CompletedProcess:
    program = [sys.executable, "-m", "llmtaskpool_operator", "calibrate", *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=290, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batches", "0,2"], "--batches '0,2'"),
        (["--context", "0"], "--context 0"),
        (["--output", "xml"], "--output 'xml'"),
        (["nonsense"], "'nonsense'"),
        (["a=pypi:b,task=embed"], "embedding"),
        (["--out", "/nowhere/profile.json"], "/nowhere"),
    ],
)
def test_bad_input_ends_with_2_and_one_line_that_names_it(arguments, said):
    done = command(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.model
def test_a_real_model_is_measured_and_bigger_batches_do_more_a_second(tmp_path):
    out = tmp_path / "profile.json"
    done = command("--batches", "1,8", "--out", str(out), "--output", "json")
    assert done.returncode == 0, done.stderr
    found = profile.read(out)
    assert json.loads(done.stdout)["step_seconds"] == {
        str(batch): seconds for batch, seconds in found.step_seconds.items()
    }
    assert 8 / found.step_seconds[8] > 1 / found.step_seconds[1]
    assert found.prefill_seconds[16] < found.prefill_seconds[1024]
    assert found.prefill_chunk_tokens == 128  # the engine's, and not the longest prompt
