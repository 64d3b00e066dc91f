"""Decoders whose weights are held in 8 bits: what that changes, and what it must not change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llmtaskpool_worker.engines import decoder, int8
from llmtaskpool_worker.engines.decoder import load_decoder
from llmtaskpool_worker.engines.generation import load_generation
from llmtaskpool_worker.engines.int8 import Int8Linear, UseFbgemm, hadamard
from llmtaskpool_worker.engines.one_pass.load import load_one_pass
from llmtaskpool_worker.engines.protocol import Admit
from llmtaskpool_worker.engines.weight_files import numbers_in
from llmtaskpool_worker.engines.weights import ModelRefused
from torch import nn

from .test_decoder import PAGE, count, perplexity
from .test_generation import run
from .tiny_models import write_headed, write_model


def layer(inputs: int, outputs: int, *, bias: bool = False) -> tuple[nn.Linear, Int8Linear]:
    torch.manual_seed(inputs)
    plain = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(plain.weight)
    with UseFbgemm():
        return plain, Int8Linear(plain)


@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(64, 48, True), (576, 100, False)])
@torch.inference_mode()
def test_a_layer_gives_the_plain_ones_numbers_but_for_rounding(
    inputs: int, outputs: int, bias: bool
) -> None:
    plain, made = layer(inputs, outputs, bias=bias)
    rows = torch.randn(2, 5, inputs)
    rows[0, 0, 7] = 40.0  # one that is many times as large as the others, as decoders have them
    expected, found = plain(rows), made(rows)
    assert found.shape == expected.shape
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert float(error.max()) < 0.02
    assert torch.equal(made(torch.zeros(1, inputs)), plain(torch.zeros(1, inputs)))
    assert made(torch.empty(0, inputs)).shape == (0, outputs)


@torch.inference_mode()
def test_a_row_comes_to_the_same_bits_whoever_is_beside_it() -> None:
    _, made = layer(192, 80)
    rows = torch.randn(40, 192) * torch.logspace(-3, 3, 40)[:, None]
    alone = torch.cat([made(row[None]) for row in rows])
    assert torch.equal(made(rows), alone)


@torch.inference_mode()
def test_what_is_no_number_stays_none_and_spoils_no_other_row() -> None:
    _, made = layer(64, 32)
    rows = torch.randn(3, 64)
    clean = made(rows)
    rows[1, 3] = torch.nan
    found = made(rows)
    assert bool(found[1].isnan().all())
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_rotation_is_undone_by_itself(size: int) -> None:
    assert torch.allclose(hadamard(size) @ hadamard(size), torch.eye(size), atol=1e-6)


def test_a_model_in_8_bits_says_so_and_draws_the_same_with_others_beside(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "INT8_DIVERGENCE", 10.0)  # a random model is no real one
    loop = load_generation(tiny("llama"), dtype="int8", threads=4)
    assert loop.ready().dtype == "int8"
    assert count(loop.model, Int8Linear) > 0
    assert count(loop.model, nn.Linear) == 0
    asked = Admit(1, [5, 6, 7, 8, 9], 12, ignore_eos=True)
    alone = run(loop, [asked]).tokens[1]
    others = [Admit(n, [3 * n, 40, n], 12, ignore_eos=True) for n in (2, 3, 4)]
    assert len(alone) == 12
    assert run(loop, [asked, *others]).tokens[1] == alone


@pytest.mark.model
def test_the_real_smollm2_in_8_bits_keeps_its_perplexity_within_a_percent(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(smollm2)(PAGE.read_text()[:3000])["input_ids"][:512]
    short, whole = load_decoder(smollm2, "cpu", "int8"), load_decoder(smollm2, "cpu", "float32")
    assert (short.weights, short.dtype) == ("int8", torch.float32)
    assert perplexity(short.model, ids) <= 1.01 * perplexity(whole.model, ids)


def test_a_model_that_would_say_something_else_is_refused_by_how_much(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "INT8_DIVERGENCE", 0.0)
    with pytest.raises(ModelRefused, match=r"divergence 0\.\d+ nats, bound 0\.0\); use bfloat16"):
        load_decoder(tiny("llama"), "cpu", "int8")


def test_where_it_can_not_be_had_the_remedy_is_named(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelRefused, match="int8 is for CPUs, and device is cuda: leave dtype out"):
        load_decoder(tiny("llama"), "cuda", "int8")
    with pytest.raises(ModelRefused, match="int8 is for models that generate, on a CPU: use auto"):
        load_one_pass(write_headed(tmp_path, "classify", "bert"), "classify", dtype="int8")
    with pytest.raises(
        ModelRefused, match="INT8 is none: use auto, float32, bfloat16, float16 or in"
    ):
        load_decoder(tiny("llama"), "cpu", "INT8")
    with pytest.raises(ModelRefused, match=r"read to be held in int8, .*raise memory_bytes where"):
        load_decoder(tiny("llama"), "cpu", "int8", 1000)
    monkeypatch.setattr(int8, "usable", lambda: False)
    with pytest.raises(ModelRefused, match="asks for a processor with AVX2: use float32"):
        load_decoder(tiny("llama"), "cpu", "int8")


@pytest.mark.parametrize(
    ("native", "memory", "read"), [(False, 1e12, 32), (False, 3e5, 16), (True, 1e12, 16)]
)
def test_it_is_read_in_short_numbers_where_those_are_fast_or_all_that_fits(
    native: bool, memory: float, read: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    monkeypatch.setattr(decoder, "native_bfloat16", lambda: native)
    monkeypatch.setattr(decoder, "INT8_DIVERGENCE", 10.0)
    numbers = numbers_in(folder)
    assert numbers * 2 < 3e5 < numbers * 8
    made = load_decoder(folder, "cpu", "int8", int(memory))
    assert made.weights == "int8"
    table = made.model.get_input_embeddings().weight
    assert table.dtype == (torch.float32 if read == 32 else torch.bfloat16)


def test_a_model_with_little_in_linear_layers_is_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ModelRefused, match=r"linear layers in 8 bits, and they have \d+% of this"):
        load_decoder(tiny("gpt2"), "cpu", "int8")
