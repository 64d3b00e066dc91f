"""In which numbers and in which form a decoder computes, and what it costs in what it says."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llmtaskpool_worker.engines import decoder, linear
from llmtaskpool_worker.engines.decoder import divergence, load_decoder
from llmtaskpool_worker.engines.fused import Joined, Norm, Part, fuse
from llmtaskpool_worker.engines.generation import load_generation
from llmtaskpool_worker.engines.linear import PackedLinear
from llmtaskpool_worker.engines.protocol import Admit
from llmtaskpool_worker.engines.weights import ModelRefused
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from .test_generation import reference, run
from .tiny_models import FAMILIES

JOINS = {"llama", "qwen2", "qwen3", "mistral", "gemma2"}
"""Families that call what is joined here by these names."""
PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def count(model: nn.Module, sort: type[nn.Module]) -> int:
    return sum(isinstance(module, sort) for module in model.modules())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_fused_modules_give_the_plain_models_logits(
    family: str, tiny: Callable[[str], Path]
) -> None:
    made = load_decoder(tiny(family), "cpu", "float32")
    plain = AutoModelForCausalLM.from_pretrained(tiny(family), dtype=torch.float32).eval()
    found, expected = decoder.logits(made.model), decoder.logits(plain)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert count(made.model, Joined) == (6 if family in JOINS else 0)
    assert count(made.model, nn.Linear) == 0, "all that is left is packed"


def test_biases_are_joined_also_where_only_some_layers_have_one() -> None:
    torch.manual_seed(0)
    block = nn.Module()
    block.q_proj, block.k_proj = nn.Linear(8, 6), nn.Linear(8, 4, bias=False)
    block.v_proj = nn.Linear(8, 4)
    rows, others = torch.randn(1, 3, 8), torch.randn(1, 2, 8)
    layers = [block.q_proj, block.k_proj, block.v_proj]
    expected = [layer(rows) for layer in layers], [layer(others) for layer in layers]
    assert fuse(block) == 3
    parts = [block.q_proj, block.k_proj, block.v_proj]
    for given, wanted in zip((rows, others, rows), (*expected, expected[0]), strict=True):
        for part, one in zip(parts, wanted, strict=True):
            assert torch.allclose(part(given), one, atol=1e-6)
    assert torch.allclose(parts[2](others), expected[1][2], atol=1e-6), "in any order"
    assert torch.allclose(parts[0](rows), expected[0][0], atol=1e-6)
    assert torch.allclose(parts[1](others), expected[1][1], atol=1e-6), "of any input"


class OddRMSNorm(nn.Module):
    """As Gemma's: the weight is what is added to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.randn(8) / 10), 1e-6

    def forward(self, rows: Tensor) -> Tensor:
        scale = torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + self.eps)
        return rows * scale * (1 + self.weight)


def test_a_norm_of_another_kind_stays_as_it_is() -> None:
    block = nn.Module()
    block.norm = OddRMSNorm()
    assert fuse(block) == 0
    assert type(block.norm) is OddRMSNorm


def test_a_family_whose_fused_modules_differ_keeps_its_own_with_one_line_in_the_log(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    part = Part.forward
    monkeypatch.setattr(Part, "forward", lambda self, rows: part(self, rows) * 1.01)
    folder = tiny("llama")
    with caplog.at_level(logging.WARNING, "llmtaskpool.engine"):
        made = load_decoder(folder, "cpu", "float32")
    assert [r.message for r in caplog.records if "modules stay as they are" in r.message]
    assert count(made.model, Joined) == count(made.model, Norm) == 0
    loop = load_generation(folder, dtype="float32", threads=2)
    asked = Admit(1, [5, 6, 7], 10)
    assert run(loop, [asked]).tokens.get(1, []) == reference(folder, asked)


@pytest.fixture
def packs_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN packs bfloat16 on processors with AVX-512 alone; elsewhere torch's product does."""
    if linear._usable(torch.bfloat16):
        return

    def product(rows: Tensor, packed: Tensor, bias: Tensor | None, *_: object) -> Tensor:
        return functional.linear(rows, packed, bias)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, _: weight)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", product)


@pytest.mark.usefixtures("packs_bfloat16")
def test_where_the_processor_can_and_the_model_stays_the_same_auto_is_bfloat16(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "native_bfloat16", lambda: True)
    monkeypatch.setattr(decoder, "SMALL_NUMBERS", 0)
    monkeypatch.setattr(decoder, "MOST_DIVERGENCE", 10.0)  # a random model is no real one
    loop = load_generation(tiny("llama"), threads=2)
    assert loop.ready().dtype == "bfloat16"
    outcome = run(loop, [Admit(1, [5] * 20, 8, ignore_eos=True), Admit(2, [9, 8], 8, logprobs=1)])
    assert len(outcome.tokens[1]) == 8
    packed = [m.packed for m in loop.model.modules() if isinstance(m, PackedLinear)]
    assert {one.dtype for one in packed} == {torch.bfloat16}
    held = load_generation(tiny("llama"), dtype="float32", threads=2)
    run(held, [Admit(1, [5] * 20, 2)])
    assert loop.cache.bytes_per_token * 2 == held.cache.bytes_per_token


@pytest.mark.usefixtures("packs_bfloat16")
def test_a_model_that_would_say_something_else_in_bfloat16_stays_in_float32(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decoder, "native_bfloat16", lambda: True)
    monkeypatch.setattr(decoder, "SMALL_NUMBERS", 0)
    monkeypatch.setattr(decoder, "MOST_DIVERGENCE", 1e-9)
    folder = tiny("llama")
    with caplog.at_level(logging.WARNING, "llmtaskpool.engine"):
        loop = load_generation(folder, threads=2)
    assert loop.ready().dtype == "float32"
    assert [r.message for r in caplog.records if "weights stay in float32" in r.message]
    asked = Admit(1, [5, 6, 7], 10)
    assert run(loop, [asked]).tokens.get(1, []) == reference(folder, asked)


@pytest.mark.usefixtures("packs_bfloat16")
def test_where_the_processor_can_not_auto_is_float32_and_what_is_asked_for_is_done(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "native_bfloat16", lambda: False)
    assert load_generation(tiny("llama"), threads=2).ready().dtype == "float32"
    asked = load_generation(tiny("llama"), dtype="bfloat16", threads=2)
    assert asked.ready().dtype == "bfloat16"
    assert count(asked.model, PackedLinear) > 0
    assert len(run(asked, [Admit(1, [5] * 20, 8, ignore_eos=True)]).tokens[1]) == 8
    with pytest.raises(ModelRefused, match="use auto, float32, bfloat16, float16 or int8"):
        load_generation(tiny("llama"), dtype="int4")


@pytest.mark.model
def test_a_small_model_stays_in_float32_and_knows_the_capital_of_france(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setattr(decoder, "native_bfloat16", lambda: True)
    loop = load_generation(smollm2, threads=2)
    assert loop.ready().dtype == "float32"
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
    answer = run(loop, [Admit(1, prompt["input_ids"], 7)]).tokens[1]
    assert "Paris" in tokenizer.decode(answer)


def test_divergence_is_what_perplexity_grows_by() -> None:
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    q = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert divergence(p, q + 3) == pytest.approx(first / 2)
    assert divergence(p, p) == pytest.approx(0, abs=1e-7)
    assert math.isnan(divergence(p, q * math.nan))


@pytest.mark.model
@pytest.mark.usefixtures("packs_bfloat16")
def test_packed_bfloat16_of_the_real_smollm2_costs_less_than_half_a_percent_of_perplexity(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "native_bfloat16", lambda: True)
    monkeypatch.setattr(decoder, "SMALL_NUMBERS", 0)
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(smollm2)(PAGE.read_text()[:3000])["input_ids"][:512]
    short, whole = load_decoder(smollm2, "cpu", "auto"), load_decoder(smollm2, "cpu", "float32")
    assert (short.dtype, whole.dtype) == (torch.bfloat16, torch.float32)
    assert perplexity(short.model, ids) <= 1.005 * perplexity(whole.model, ids)


@pytest.mark.model
def test_in_bfloat16_a_real_models_modules_are_fused_though_single_logits_round_otherwise(
    smollm2: Path,
) -> None:
    assert count(load_decoder(smollm2, "cpu", "bfloat16").model, Joined) == 60


@torch.inference_mode()
def perplexity(model: nn.Module, ids: list[int]) -> float:
    """exp of the mean loss over windows of 256 tokens."""
    losses = []
    for start in range(0, len(ids), 256):
        window = torch.tensor([ids[start : start + 256]])
        logits = model(input_ids=window, use_cache=False).logits[0, :-1].float()
        losses.append(nn.functional.cross_entropy(logits, window[0, 1:], reduction="none"))
    return math.exp(float(torch.cat(losses).mean()))
