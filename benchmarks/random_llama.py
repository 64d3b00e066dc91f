"""A random Llama of 1.1 billion parameters, for machines with a GPU and without a model hub.

    python benchmarks/random_llama.py FOLDER

Its tokenizer has a text for each id, so that every token reaches the client as one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 32_000


def main(folder: Path) -> None:
    """Write config, safetensors and tokenizer into ``folder``."""
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, hidden_size=2048, intermediate_size=8192,
        num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        max_position_embeddings=8192, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {"<s>": 0, "</s>": 1} | {letter: 2 + at for at, letter in enumerate(letters)}
    ids |= {f"t{number}": number for number in range(len(ids), VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
