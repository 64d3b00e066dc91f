"""What is kept out of an engine's process, and for which models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from llmtaskpool_worker.engines.spared_imports import FOR_GPUS, SPARED, spare


def spared(folder: Path, architecture: str, *imported: str, gpu: bool = True) -> set[str]:
    """The packages that this model's process takes for not installed."""
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    modules: dict[str, Any] = dict.fromkeys(imported, sys)
    spare(folder, modules, gpu=gpu)
    return {name for name, module in modules.items() if module is None}


@pytest.mark.parametrize(
    "architecture",
    ["LlamaForCausalLM", "BertForSequenceClassification", "WhisperForConditionalGeneration"],
)
def test_what_only_pictures_and_training_need_is_not_imported_for_text(
    architecture: str, tmp_path: Path
) -> None:
    assert spared(tmp_path, architecture, "torch") == set(SPARED)


@pytest.mark.parametrize(
    "architecture", ["MobileNetV2ForImageClassification", "YolosForObjectDetection"]
)
def test_a_model_that_reads_pictures_has_all_that_is_installed(
    architecture: str, tmp_path: Path
) -> None:
    assert spared(tmp_path, architecture, "torch") == set()


def test_what_is_imported_already_stays(tmp_path: Path) -> None:
    assert spared(tmp_path, "LlamaForCausalLM", "scipy") == set(SPARED) - {"scipy"}
    assert spared(tmp_path, "LlamaForCausalLM", "transformers") == set()


def test_a_compiler_for_gpus_stays_out_where_there_is_none(tmp_path: Path) -> None:
    assert spared(tmp_path, "LlamaForCausalLM", gpu=False) == {*SPARED, FOR_GPUS}
    assert FOR_GPUS not in spared(tmp_path, "LlamaForCausalLM", gpu=True)
