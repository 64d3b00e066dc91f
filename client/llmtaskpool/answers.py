"""Reading answers: what a pool said, or the error that it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

from llmtaskpool.errors import Refused, Unreachable
from llmtaskpool.operations import Call

SECONDS = 30.0
"""For an answer that is not waited for on purpose."""
UPLOAD_SECONDS = 300.0
URL_VARIABLE, KEY_VARIABLE = "LLMTASKPOOL_URL", "LLMTASKPOOL_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8080"


def options_of(call: Call) -> dict[str, Any]:
    """What httpx is given for a call."""
    options: dict[str, Any] = {"timeout": SECONDS + call.wait_seconds}
    if call.upload is not None:
        filename, content = call.upload
        fields = dict(call.params)
        return options | {
            "files": {"file": (filename, content)},
            "data": fields,
            "timeout": httpx.Timeout(SECONDS, read=UPLOAD_SECONDS),
        }
    if call.params:
        options["params"] = list(call.params)
    if call.json is not None:
        options["json"] = call.json
    return options


def unreachable(url: str, error: Exception) -> Unreachable:
    """Nobody answered."""
    sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.InvalidURL)
    return Unreachable(
        f"{url} does not answer ({type(error).__name__}): is a pool there? Name it with url, "
        f"--url or {URL_VARIABLE}",
        sent=sent,
    )


def told_of(url: str, answer: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer. Raises Refused."""
    try:
        told = answer.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        told = None
    if isinstance(told, dict) and not answer.is_error:
        return told
    raise refused(url, answer.status_code, answer.headers, told)


def refused(url: str, status: int, headers: Mapping[str, str], told: object) -> Refused:
    """An answer that is an error, or none of a pool."""
    error = told.get("error") if isinstance(told, dict) else None
    if not isinstance(error, dict):
        if isinstance(told, dict):
            return Refused(status, "it refuses, and does not say why")
        return Refused(status, f"{url} is no pool: it answers no JSON object")
    message, code, param = (error.get(name) for name in ("message", "code", "param"))
    wait = headers.get("retry-after", "")
    return Refused(
        status,
        message if isinstance(message, str) else "it refuses, and does not say why",
        code=code if isinstance(code, str) else None,
        param=param if isinstance(param, str) else None,
        retry_after_seconds=float(wait) if wait.isdecimal() else None,
    )
