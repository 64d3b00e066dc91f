"""A random Llama of 1.1 billion parameters, for machines with a GPU and without a model hub.

    python benchmarks/random_llama.py FOLDER

Its tokenizer has a text for each id, so that every token reaches the client as one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from engine.tiny_models import write_tokenizer

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
    write_tokenizer(folder, VOCABULARY)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
