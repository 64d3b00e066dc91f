"""What a server said when it did not answer, as clients of the pool are told it. Pure.

Its own words are passed on where they speak of the request, shortened, and never with what looks
like its insides (files, tracebacks) or like the request itself.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from llmtaskpool_worker.engines.protocol import RequestFailed, TurnedAway

REJECTED, UNAUTHORIZED, FAILED = "upstream_rejected", "upstream_unauthorized", "upstream_failed"
TOO_LONG = "context_length_exceeded"
WORDS = 300
_INSIDES = re.compile(
    r"Traceback|File \"|site-packages|\.py\b|\.cpp\b|/(?:usr|home|opt|root|tmp|var|app|models?)/"
    r"|0x[0-9a-f]{6,}|'input':|\"input\":",
    re.IGNORECASE,
)
_CONTEXT = re.compile(
    r"maximum context length|context size|exceed_context_size|context_length_exceeded"
    r"|longer than the model's context|max_model_len",
    re.IGNORECASE,
)


def refusal(
    request_id: int, model: str, status: int, body: bytes, retry_after: str | None
) -> RequestFailed | TurnedAway:
    """What an answer with this status means for the request."""
    if status in (429, 503):
        return TurnedAway(request_id, _seconds(retry_after))
    if status in (401, 403):
        return RequestFailed(
            request_id,
            UNAUTHORIZED,
            f"the upstream of model {model} does not take this pool's key (status {status}): its "
            "owner has to set the option api_key_env of the model",
        )
    said = words_of(body)
    tail = f": {said}" if said else ""
    told = f"the upstream of model {model} answered with status {status}{tail}"
    if 400 <= status < 500 and status != 404:
        return RequestFailed(request_id, TOO_LONG if _CONTEXT.search(said) else REJECTED, told)
    if status == 404:
        told += ". It may not have this model or this route any more"
    return RequestFailed(request_id, FAILED, told)


def told_in_stream(request_id: int, model: str, error: Any) -> RequestFailed:
    """An error that a server sent in place of a chunk."""
    said = _said(error)
    code = TOO_LONG if _CONTEXT.search(said) else FAILED
    tail = f": {said}" if said else ""
    return RequestFailed(request_id, code, f"the upstream of model {model} gave up{tail}")


def garbled(request_id: int, model: str, what: str) -> RequestFailed:
    """An answer that is none."""
    return RequestFailed(request_id, FAILED, f"the upstream of model {model} {what}")


def words_of(body: bytes) -> str:
    """What an error body says; empty when it is none, or speaks of the server's insides."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError):
        return ""
    if not isinstance(value, dict):
        return ""
    return _said(value.get("error", value))


def _said(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or ""
    if not isinstance(error, str):
        return ""
    text = " ".join(error.split())
    if not text or _INSIDES.search(text):
        return ""
    return text if len(text) <= WORDS else text[: WORDS - 3] + "..."


def _seconds(retry_after: str | None) -> float | None:
    """Of a Retry-After header; a date is passed over, since clocks differ."""
    if retry_after is None:
        return None
    try:
        return min(max(float(retry_after), 0.0), 3600.0)
    except ValueError:
        return None


__all__ = ["garbled", "refusal", "told_in_stream", "words_of"]
