"""Small random decoders of several families, written to disk the way real ones come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 300
_COMMON = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    # Wide enough that the best logit stands well apart from the second.
    "initializer_range": 0.4,
}
_GROUPED = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 16},
    "mistral": _GROUPED | {"sliding_window": 16},
    "phi3": _GROUPED,
    "gemma2": _GROUPED | {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
    "gpt_neox": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "rotary_pct": 0.5,
    },
    "gpt2": {"n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 256},
}


def write_model(folder: Path, family: str, *, seed: int = 0) -> Path:
    """A random model of ``family`` with safetensors, config and a byte-level tokenizer."""
    config = AutoConfig.for_model(family, **_COMMON, **FAMILIES[family])
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path, size: int = 0) -> None:
    """One token per byte, after <s> and </s>; then others, ``size`` in all, each with a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: 2 + i for i, letter in enumerate(letters)}
    vocabulary |= {f"t{number}": number for number in range(len(vocabulary), size)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
