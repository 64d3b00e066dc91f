"""Small random decoders of several families, written to disk the way real ones come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

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


ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"type_vocab_size": 2, "hidden_size": 48, "intermediate_size": 96},
    "roberta": {"type_vocab_size": 1, "hidden_size": 48, "intermediate_size": 96},
    "distilbert": {"dim": 48, "hidden_dim": 96, "n_layers": 2, "n_heads": 4},
    "electra": {"hidden_size": 48, "embedding_size": 48, "intermediate_size": 96},
    "mpnet": {"hidden_size": 48, "intermediate_size": 96},
    "modernbert": {"hidden_size": 48, "intermediate_size": 96, "local_attention": 16},
}
HEADS: dict[str, Any] = {
    "embed": AutoModel,
    "rerank": AutoModelForSequenceClassification,
    "classify": AutoModelForSequenceClassification,
    "tag": AutoModelForTokenClassification,
    "answer": AutoModelForQuestionAnswering,
}
LABELS: dict[str, list[str]] = {
    "rerank": ["relevance"],
    "classify": ["calm", "angry", "sad"],
    "tag": ["O", "B-PER", "I-PER", "B-LOC"],
}


def write_headed(
    folder: Path, task: str, family: str = "bert", *, seed: int = 0, **options: Any
) -> Path:
    """A random encoder of ``family`` with the head of a task, as a fine-tuned one comes."""
    common = {"num_hidden_layers": 2, "num_attention_heads": 4} | _COMMON
    labels = dict(enumerate(LABELS.get(task, ["0", "1"])))
    config = AutoConfig.for_model(
        family, **(common | {"id2label": labels} | ENCODERS[family] | options)
    )
    torch.manual_seed(seed)
    HEADS[task].from_config(config, dtype=torch.float32).save_pretrained(folder)
    write_pair_tokenizer(folder, token_types=family == "bert")
    return folder


def write_pair_tokenizer(folder: Path, *, token_types: bool) -> None:
    """As write_tokenizer's, with <s> and </s> around a text and between two."""
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    two = "1" if token_types else "0"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0 </s>:0",
        pair=f"<s>:0 $A:0 </s>:0 $B:{two} </s>:{two}",
        special_tokens=[("<s>", 0), ("</s>", 1)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))


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
