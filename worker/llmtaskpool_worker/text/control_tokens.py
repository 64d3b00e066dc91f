"""Control tokens: what only a chat template may write, whatever a client's text looks like.

A tokenizer cuts its added tokens (``<|im_end|>``) out of any text it is given. So the control
tokens get names here that nobody can guess, in the tokenizer itself; where a template wrote one,
its name is put in before tokenizing, and where content wrote one it stays letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

_SHAPED = re.compile(r"<[|\uff5c].*[|\uff5c]>", re.DOTALL)
"""``<|user|>``: a control token, also where a tokenizer's file doesn't call it special."""

_PRIVATE = range(0x100000, 0x10FFFE)
"""Unicode's last plane for private use: letters that stand for control tokens in content."""

_TRIES = 64
_WINDOW = 65_536
"""Letters that are searched at one go: half a millisecond."""


def control_tokens(
    added: Iterable[Mapping[str, Any]], special: Iterable[str], written: str
) -> dict[str, bool]:
    """The control tokens among a tokenizer's added ones; true: a word of its own only.

    These are the special ones (by the tokenizer's file or by ``special``), those of the shape
    ``<|name|>``, and those that ``written``, the template's source and what it renders, has. Other
    added tokens (runs of blanks, ``<h1>``) are ordinary text for every model and stay as they are.
    """
    named = set(special)
    chosen = {}
    for token in added:
        content = str(token["content"])
        if not content.strip():
            continue
        control = token.get("special") or content in named or _SHAPED.fullmatch(content)
        if control or content in written:
            chosen[content] = bool(token.get("single_word"))
    return chosen


def renamed(tokenizer: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer.json in which these tokens have other names, and the same ids.

    Also in the vocabulary: a model must not build a control token of its letters, as one that
    looks whole words up (T5, ``ignore_merges``) does. ``tokenizer`` isn't changed.
    """
    model = dict(tokenizer["model"])
    vocab = model.get("vocab")
    if isinstance(vocab, Mapping):
        model["vocab"] = {names.get(token, token): place for token, place in vocab.items()}
    elif isinstance(vocab, Sequence):
        model["vocab"] = [[names.get(token, token), score] for token, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, names)]
    added = [
        {**token, "content": names.get(token["content"], token["content"])}
        for token in tokenizer.get("added_tokens") or ()
    ]
    return {**tokenizer, "model": model, "added_tokens": added}


def _makes(merge: str | Sequence[str], names: Mapping[str, str]) -> bool:
    """Whether a merge of BPE makes one of these tokens, or goes on from one."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left + right in names or left in names or right in names


class Finder:
    """Finds tokens in a text: the leftmost first, of those the longest, in linear time.

    It goes window by window, since a search keeps the interpreter, and so the event loop, waiting.
    """

    def __init__(self, tokens: Mapping[str, bool]) -> None:
        self._word_alone = {token for token, alone in tokens.items() if alone}
        self._longest = max(map(len, tokens), default=0)
        self._pattern = re.compile(_alternatives(sorted(tokens))) if tokens else None

    def replace(self, text: str, replacement: Callable[[str], str]) -> str:
        """``text`` with each token replaced."""
        parts = []
        kept = 0
        for start, token in self._found(text):
            parts += [text[kept:start], replacement(token)]
            kept = start + len(token)
        return "".join([*parts, text[kept:]]) if parts else text

    def found(self, text: str) -> set[str]:
        """The tokens that are in ``text``."""
        return {token for _, token in self._found(text)}

    def _found(self, text: str) -> Iterator[tuple[int, str]]:
        if self._pattern is None:
            return
        place = 0
        while place < len(text):
            edge = place + _WINDOW
            match = self._pattern.search(text, place, edge + self._longest)
            if match is None or match.start() >= edge:
                place = edge
                continue
            place = match.end()
            token = match.group()
            if token not in self._word_alone or not _inside_a_word(text, match):
                yield match.start(), token


def _inside_a_word(text: str, match: re.Match[str]) -> bool:
    before, after = match.start() - 1, match.end()
    neighbours = (text[before] if before >= 0 else "") + text[after : after + 1]
    return any(letter.isalnum() or letter == "_" for letter in neighbours)


def _alternatives(tokens: Sequence[str]) -> str:
    """A pattern of sorted tokens as the tree of their letters: no place is tried twice."""
    branches = []
    ends = False
    start = 0
    while start < len(tokens):
        if not tokens[start]:
            ends = True
            start += 1
            continue
        letter = tokens[start][0]
        stop = start
        while stop < len(tokens) and tokens[stop][:1] == letter:
            stop += 1
        rest = [token[1:] for token in tokens[start:stop]]
        branches.append(re.escape(letter) + _alternatives(rest))
        start = stop
    if not branches:
        return ""
    inner = "|".join(branches)
    if ends:
        return f"(?:{inner})?"
    return inner if len(branches) == 1 else f"(?:{inner})"


class StandIns:
    """Holds the control tokens of content as one letter each while a template works on it.

    One letter can't be cut in two, is no blank that a template trims, and has no upper case.
    ``texts`` are all that will be hidden: no letter is taken that is in one of them.
    """

    def __init__(self, texts: Sequence[str], random_below: Callable[[int], int]) -> None:
        self._texts = texts
        self._random_below = random_below
        self._letters: dict[str, str] = {}

    def hide(self, value: Any, finder: Finder) -> Any:
        """``value`` (text, list, object) with a letter for each token in its texts."""
        if isinstance(value, str):
            return finder.replace(value, self._letter)
        if isinstance(value, Mapping):
            return {
                finder.replace(str(key), self._letter): self.hide(one, finder)
                for key, one in value.items()
            }
        if isinstance(value, Sequence):
            return [self.hide(one, finder) for one in value]
        return value

    def show(self, text: str) -> str:
        """``text`` with the tokens that were hidden, as letters."""
        for token, letter in self._letters.items():
            text = text.replace(letter, token)
        return text

    def _letter(self, token: str) -> str:
        """The letter of a token. Raises ValueError when the texts use up those there are."""
        if token not in self._letters:
            for _ in range(_TRIES):
                letter = chr(_PRIVATE[self._random_below(len(_PRIVATE))])
                taken = self._letters.values()
                if letter not in taken and not any(letter in text for text in self._texts):
                    break
            else:
                raise ValueError("they hold too many letters of private use: leave those out")
            self._letters[token] = letter
        return self._letters[token]


def texts_of(value: Any) -> Iterator[str]:
    """All texts in a value of JSON, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield str(key)
            yield from texts_of(one)
    elif isinstance(value, Sequence):
        for one in value:
            yield from texts_of(one)
