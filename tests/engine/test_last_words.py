"""What an engine process says before it dies is told, and nothing of a prompt with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_worker.engines.last_words import KEPT_LINES, LastWords

TRACEBACK = b"""Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/torch/nn/modules/linear.py", line 125, in forward
    return F.linear(secret, self.weight, self.bias)
  File "/home/secret/notes.py", line 3, in secret
RuntimeError: my secret prompt is not a tensor
the second line of a secret
ValueError: secret
"""


def told(text: bytes) -> list[str]:
    words = LastWords()
    words.feed(text)
    return list(words.lines)


def test_a_traceback_shrinks_to_places_and_the_class_of_the_error() -> None:
    assert told(TRACEBACK) == ["at linear.py:125 in forward", "RuntimeError"]


@pytest.mark.parametrize(
    "line",
    [
        "ERROR llmtaskpool.engine a step failed: RuntimeError at sampling.py:20",
        "Fatal Python error: Segmentation fault",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "double free or corruption (!prev)",
        "malloc(): corrupted top size",
        "CUDA error: device-side assert triggered",
    ],
)
def test_our_own_lines_and_the_known_words_of_dying_pass(line: str) -> None:
    assert told(line.encode() + b"\n") == [line]


def test_where_a_signal_found_the_process_passes() -> None:
    said = (
        b"Fatal Python error: Segmentation fault\n\n"
        b"Current thread 0x00007f (most recent call first):\n"
        b'  File "/app/llmtaskpool_worker/engines/generation.py", line 164 in _logits\n'
    )
    assert told(said) == [
        "Fatal Python error: Segmentation fault",
        "at generation.py:164 in _logits",
    ]


def test_lines_are_told_whole_however_they_arrive_and_the_last_ones_are_kept() -> None:
    line = b"ERROR llmtaskpool.engine a step failed: number %d\n"
    words = LastWords()
    for byte in b"".join(line % number for number in range(40)):
        words.feed(bytes([byte]))
    assert len(words.lines) == KEPT_LINES
    assert words.lines[-1].endswith("number 39")


def test_a_line_without_an_end_takes_no_memory() -> None:
    words = LastWords()
    for _ in range(100):
        words.feed(b"x" * 65_536)
    assert len(words._rest) <= 4096


@given(st.lists(st.text("abc :\"/'\n.()", max_size=40), max_size=10), st.booleans())
def test_no_line_that_is_not_known_passes(lines: list[str], within_a_traceback: bool) -> None:
    head = b"Traceback (most recent call last):\n" if within_a_traceback else b""
    text = "".join(f"SECRET {line}\n" for line in lines)
    assert told(head + text.encode()) == []
