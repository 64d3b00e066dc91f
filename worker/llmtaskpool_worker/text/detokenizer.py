"""Tokens back to text, one by one as an engine draws them."""

from __future__ import annotations

import codecs
from collections.abc import Callable

import tokenizers
from tokenizers.decoders import DecodeStream

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4
"""Bytes of UTF-8."""


class Detokenizer:
    """Text of tokens as they come; halves of a letter wait for the rest of it.

    ``token_bytes`` gives the bytes of a token, ``spelled`` the text with tokens' own names, where
    ``mark`` is in it; ``byte_level`` tells byte-level BPE from others, whose half letters are
    tokens of one byte.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        token_bytes: Callable[[int], bytes],
        spelled: Callable[[str], str],
        mark: str,
        *,
        byte_level: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._token_bytes = token_bytes
        self._spelled, self._mark = spelled, mark
        self._byte_level = byte_level
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._length = 0

    def push(self, token: int) -> str:
        """Text that became certain with this token; often all of it, sometimes none."""
        self._tokens.append(token)
        text: str = self._stream.step(self._tokenizer, token) or ""
        self._length += len(text)
        return self._spelled(text) if self._mark in text else text

    def finish(self) -> str:
        """What is left, without a last letter whose bytes aren't all there.

        Bytes that are no letter, whatever might have followed, are U+FFFD.
        """
        text = self._decoded(self._tokens)
        if text.endswith(REPLACEMENT):  # else the last letter is whole
            last = self._tokens[-_LONGEST_CHARACTER:]
            missing = unfinished(b"".join(map(self._token_bytes, last)))
            if missing and self._byte_level:
                text = text.removesuffix(REPLACEMENT)
            elif missing:
                text = self._decoded(self._tokens[:-missing])
        return self._spelled(text)

    def _decoded(self, tokens: list[int]) -> str:
        """The text of these that ``push`` hasn't given."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text[self._length :]


def unfinished(text: bytes) -> int:
    """How many bytes at the end are the beginning of a letter of UTF-8 that isn't whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(text)
    return len(decoder.getstate()[0])
