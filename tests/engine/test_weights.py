"""Weights that are not the model's are refused, with what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llmtaskpool_worker.engines.generation import GenerationLoop, load_generation
from llmtaskpool_worker.engines.one_pass.load import load_one_pass
from llmtaskpool_worker.engines.resolve import resolve
from llmtaskpool_worker.engines.sources import SourceRefused
from llmtaskpool_worker.engines.weights import ModelRefused
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from .tiny_models import FAMILIES, VOCABULARY, write_tokenizer

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def copy(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A tiny model whose tensors are changed."""

    def copied(change: Callable[[Tensors], object], family: str = "llama") -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny(family), folder)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
        return folder

    return copied


def change_config(folder: Path, **values: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


def bert(folder: Path, auto: type = AutoModel) -> Path:
    config = AutoConfig.for_model(
        "bert",
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def test_a_file_that_lacks_two_thirds_of_its_tensors_is_refused(
    copy: Callable[..., Path],
) -> None:
    def lose(tensors: Tensors) -> None:
        for name in sorted(tensors)[::3] + sorted(tensors)[1::3]:
            del tensors[name]

    with pytest.raises(ModelRefused) as refused:
        load_generation(copy(lose), dtype="float32")
    assert "20 of 30 tensors are missing in its files (lm_head.weight, " in str(refused.value)
    assert "and 17 more" in str(refused.value)
    assert "download the model again" in str(refused.value)


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"]
)
def test_one_tensor_that_is_missing_is_named(copy: Callable[..., Path], name: str) -> None:
    folder = copy(lambda tensors: tensors.pop(name))
    with pytest.raises(ModelRefused, match=f"1 of .* missing in its files \\({name}\\)"):
        load_generation(folder, dtype="float32")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(copy: Callable[..., Path]) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    folder = copy(lambda tensors: tensors.update({name: torch.zeros(12, 48)}))
    with pytest.raises(ModelRefused) as refused:
        load_generation(folder, dtype="float32")
    assert f"{name} is [12, 48], not [48, 48]" in str(refused.value)


@pytest.mark.parametrize(
    "name",
    ["model.layers.3.mlp.up_proj.weight", "model.layers.0.self_attn.q_norm.weight"],
)
def test_tensors_that_the_model_has_no_place_for_are_named(
    copy: Callable[..., Path], name: str
) -> None:
    folder = copy(lambda tensors: tensors.update({name: torch.ones(8)}))
    with pytest.raises(ModelRefused) as refused:
        load_generation(folder, dtype="float32")
    assert f"no place in the model ({name})" in str(refused.value)


def test_a_config_with_fewer_layers_than_the_file_is_refused(copy: Callable[..., Path]) -> None:
    folder = change_config(copy(lambda tensors: None), num_hidden_layers=2)
    with pytest.raises(ModelRefused, match=r"config\.json belongs to another model"):
        load_generation(folder, dtype="float32")


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "score.weight"],
)
def test_constants_and_heads_of_other_tasks_may_be_in_the_file(
    copy: Callable[..., Path], name: str
) -> None:
    folder = copy(lambda tensors: tensors.update({name: torch.ones(4)}))
    assert isinstance(load_generation(folder, dtype="float32"), GenerationLoop)


@pytest.mark.parametrize("also_in_the_file", [False, True])
def test_an_output_layer_that_is_tied_needs_no_tensor_of_its_own(
    tmp_path: Path, also_in_the_file: bool
) -> None:
    common = {"vocab_size": VOCABULARY, "tie_word_embeddings": True, "initializer_range": 0.4}
    config = AutoConfig.for_model("llama", **common, **FAMILIES["llama"])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    if also_in_the_file:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, file, metadata={"format": "pt"})
    write_tokenizer(tmp_path)
    assert isinstance(load_generation(tmp_path, dtype="float32"), GenerationLoop)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(copy: Callable[..., Path], odd: float) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def spoil(tensors: Tensors) -> None:
        tensors[name][3, 4] = odd

    with pytest.raises(ModelRefused, match=f"{name} holds values that are no numbers"):
        load_generation(copy(spoil), dtype="float32")


def test_the_zeros_of_a_file_that_was_not_written_to_its_end_are_refused(
    copy: Callable[..., Path],
) -> None:
    name = "model.layers.2.self_attn.v_proj.weight"
    folder = copy(lambda tensors: tensors[name].zero_())
    with pytest.raises(ModelRefused, match=f"{name} is 0 throughout"):
        load_generation(folder, dtype="float32")


def cut(file: Path) -> str:
    file.write_bytes(file.read_bytes()[: -file.stat().st_size // 3])
    return "model.safetensors is cut off or spoilt"


def empty(file: Path) -> str:
    file.write_bytes(b"")
    return "model.safetensors is cut off or spoilt"


def longer(file: Path) -> str:
    file.write_bytes(file.read_bytes() + b"more")
    return "model.safetensors is cut off or spoilt"


def scrambled(file: Path) -> str:
    content = bytearray(file.read_bytes())
    content[8:40] = bytes(32)
    file.write_bytes(content)
    return "model.safetensors is cut off or spoilt"


def pointer(file: Path) -> str:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return "run git lfs pull"


@pytest.mark.parametrize("spoil", [cut, empty, longer, scrambled, pointer])
def test_a_weight_file_that_is_not_whole_is_refused_before_anything_is_loaded(
    copy: Callable[..., Path], spoil: Callable[[Path], str]
) -> None:
    folder = copy(lambda tensors: None)
    said = spoil(folder / "model.safetensors")
    with pytest.raises(SourceRefused, match=said):
        resolve(str(folder), lambda stage, fraction: None)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM])
def test_an_embedding_model_is_refused_as_one_that_generates(tmp_path: Path, auto: type) -> None:
    with pytest.raises(ModelRefused, match="does not generate: add task=embed"):
        load_generation(bert(tmp_path, auto), dtype="float32")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_chat_model_is_refused_as_one_that_embeds(
    tiny: Callable[[str], Path], family: str
) -> None:
    with pytest.raises(ModelRefused, match=r"which generates.*leave out task=embed"):
        load_one_pass(tiny(family), "embed")


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM])
def test_an_encoder_embeds_with_or_without_what_other_tasks_need(
    tmp_path: Path, auto: type
) -> None:
    assert load_one_pass(bert(tmp_path, auto), "embed").ready().embedding_dimensions == 32


def test_an_encoder_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    file = bert(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    lost = [name for name in tensors if name.startswith("encoder.layer.1.")]
    save_file({n: t for n, t in tensors.items() if n not in lost}, file, metadata={"format": "pt"})
    with pytest.raises(ModelRefused, match=f"{len(lost)} of .* are missing"):
        load_one_pass(tmp_path, "embed")


def test_a_decoder_that_says_how_it_pools_embeds_and_does_not_generate(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny("llama"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert load_one_pass(tmp_path, "embed").ready().embedding_dimensions == 48
    with pytest.raises(ModelRefused, match="add task=embed"):
        load_generation(tmp_path, dtype="float32")
