"""Answers cut anywhere: whole letters only, for tokenizers of bytes and of pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.chat_models import chat_models
from llmtaskpool_worker.text.detokenizer import unfinished
from llmtaskpool_worker.text.tokens import Tokenizer

MODELS = chat_models()
WORDS = "aé\N{SNOWMAN}ß\N{SKULL}\N{EXTRATERRESTRIAL ALIEN} b"


@pytest.mark.parametrize("name", ["chatml", "gemma", "mistral"])
def test_wherever_it_is_cut_an_answer_is_the_whole_letters_before(tmp_path: Path, name: str):
    tokenizer = Tokenizer(MODELS[name].save(tmp_path))
    ids = tokenizer.encode_document(WORDS)
    assert len(ids) > len(WORDS)  # some letters are several tokens
    for cut in range(len(ids) + 1):
        stream = tokenizer.detokenizer()
        text = "".join(map(stream.push, ids[:cut])) + stream.finish()
        spelled = b"".join(map(tokenizer.token_bytes, ids[:cut]))
        assert text == spelled.decode("utf-8", "ignore")
    assert text == WORDS


@pytest.mark.parametrize(
    ("text", "missing"),
    [(b"", 0), (b"a", 0), (b"a\xf0\x9f", 2), ("\N{SKULL}".encode(), 0), (b"\x9f", 0), (b"\xff", 0)],
)
def test_only_a_letter_that_could_still_become_one_is_unfinished(text: bytes, missing: int):
    assert unfinished(text) == missing
