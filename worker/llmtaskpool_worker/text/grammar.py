"""What an answer may have to be, as a grammar for the engine: JSON of a schema, or a pattern.

A grammar is checked here, in the API process, so that a bad one is refused before it waits. Text
is JSON as json.dumps writes it: one blank after a comma and a colon, so that a model can't go on
with blanks for ever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher

_LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_OUTSIDE = re.compile(r"Resource ('[^']{1,200}') is not present in a registry")
WORDS_MAX = 300
"""Letters of what is said of a bad grammar."""


class BadGrammar(ValueError):
    """It can't be followed; the text says why in one line."""


def of_schema(schema: Mapping[str, Any]) -> str:
    """JSON that is valid by a schema (draft 2020-12 as far as llguidance has it)."""
    return LLMatcher.grammar_from_json_schema(dict(schema), overrides=_LAYOUT)


def of_pattern(pattern: str) -> str:
    """A text that a regular expression matches from end to end."""
    return LLMatcher.grammar_from_regex(pattern)


def of_choice(choices: Sequence[str]) -> str:
    """One of these texts."""
    return of_pattern("|".join(re.escape(choice) for choice in choices))


def check(grammar: str) -> None:
    """Raises BadGrammar. Takes about a millisecond, some tens for what is huge: use a thread."""
    said = LLMatcher.validate_grammar(grammar)
    if said and not said.startswith("WARNING"):
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        first = (errors or lines)[0].removeprefix("error: ")
        if outside := _OUTSIDE.match(first):
            first = f"a $ref leads out of the schema, to {outside[1]}: put that under $defs"
        raise BadGrammar(first[:WORDS_MAX])
