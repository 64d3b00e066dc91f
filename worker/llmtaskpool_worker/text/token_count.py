"""How many tokens a text has, by a tokenizer.json: for the cost of prompts that a server reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers


class TokenCounter:
    """Counts; safe to use from several threads. Raises OSError, ValueError for a bad file."""

    def __init__(self, path: Path) -> None:
        file = path / "tokenizer.json" if path.is_dir() else path
        self._tokenizer = tokenizers.Tokenizer.from_str(file.read_text("utf-8"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count(self, texts: Sequence[str]) -> int:
        """Tokens of all texts, without special ones."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return sum(len(one) for one in encoded)
