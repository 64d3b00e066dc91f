"""Fields of OpenAI's and others' APIs that are no fields here: which of them may pass, and how."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.http_api.errors import ApiError, invalid

log = logging.getLogger("llmtaskpool.http")

_WITHOUT_EFFECT = frozenset(
    {
        # OpenAI's: for its own records, caches, abuse checks and prices.
        "metadata",
        "store",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "moderation",
        # vLLM's, llama.cpp's and routers': how to serve it, not what to answer.
        "request_id",
        "cache_salt",
        "cache_prompt",
        "keep_alive",
        "id_slot",
        "provider",
        "route",
        "session_id",
        "trace",
        "usage",
        "extra_headers",
    }
)
"""Fields that can't change what is generated here: named in the log once and passed over."""

_NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), "send it to /v1/chat/completions"),
    "tool_choice": (("none", "auto"), "leave it out"),
    "functions": (
        ([],),
        'functions are OpenAI\'s older form: send tools, or "function_call": "none"',
    ),
    "function_call": (("none", "auto"), "leave it out"),
    "modalities": ((["text"],), 'send ["text"] or leave it out'),
    "audio": ((), "leave it out"),
    "prediction": ((), "leave it out"),
    "web_search_options": ((), "leave it out"),
    "reasoning_effort": (("none",), 'send "none" or leave it out'),
    "reasoning": (({}, {"effort": "none"}, {"enabled": False}), "leave it out"),
    "include_reasoning": ((True, False), "leave it out"),
    "verbosity": (("medium",), 'send "medium" or leave it out'),
    "suffix": (("",), "leave it out"),
    "best_of": ((1,), "use n"),
    "length_penalty": ((1, 1.0), "leave it out"),
    "typical_p": ((1, 1.0), "use top_p"),
    "use_beam_search": ((False,), "leave it out"),
    "bad_words": (([],), "leave it out"),
    "include_stop_str_in_output": ((False,), "leave it out"),
    "skip_special_tokens": ((True,), "leave it out"),
    "spaces_between_special_tokens": ((True, False), "leave it out"),
    "add_generation_prompt": ((True,), "leave it out"),
    "continue_final_message": ((False,), "leave it out"),
    "truncate_prompt_tokens": ((), "shorten the prompt before sending it"),
    "chat_template": ((), "leave it out: the model's own template is used"),
    "chat_template_kwargs": (({},), "leave it out"),
    "input_type": ((), "put what the model wants before a text into the text itself"),
}
"""Fields known elsewhere that aren't done here: the values that ask for nothing, and the remedy."""

_CALLABLE = {"functions": "function_call"}
"""What could be called, and the field that says whether it is."""

_told: set[str] = set()
"""Fields that the log has named; at most those of _WITHOUT_EFFECT and _CALLABLE."""


def pass_over(name: str, body: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """A field of ``body`` that is none of ``known``: passed over, or refused with the remedy.

    Raises ApiError 400 naming it, when it would change the answer or nobody knows it.
    """
    if name in _CALLABLE and body.get(_CALLABLE[name]) == "none":
        _only_objects(name, body[name])
        _tell_once(name)
    elif name in _WITHOUT_EFFECT:
        _tell_once(name)
    elif name in _NEUTRAL:
        _only_neutral(name, body[name])
    else:
        raise _unknown(name, known)


def _tell_once(name: str) -> None:
    if name not in _told:
        _told.add(name)
        log.warning("a field without effect here was sent", extra={"field": name})


def _only_objects(name: str, value: object) -> None:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise invalid(name, f"{name} is {shown(value)}: send a list of objects or leave it out.")


def _only_neutral(name: str, value: object) -> None:
    neutral, remedy = _NEUTRAL[name]
    if not any(type(value) is type(other) and value == other for other in neutral):
        raise invalid(name, f"{name} is not supported: {remedy}.", code="unsupported_parameter")


def _unknown(name: str, known: Mapping[str, Any]) -> ApiError:
    label = name if len(name) <= 64 else name[:61] + "..."
    near = get_close_matches(name[:64], known, n=1)
    remedy = f"Did you mean {near[0]}?" if near else "Leave it out."
    return invalid(label, f"{label} is not a field of this request. {remedy}", code="unknown_field")
