"""The fields of what is asked for; docs/api.md and docs/batches.md say what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict


class TaskFields(TypedDict, total=False):
    """Of POST /v1/tasks beside kind."""

    model: str
    input: Any
    arguments: Mapping[str, Any]
    weight: float
    deadline_seconds: float
    timeout_seconds: float
    idempotency_key: str
    labels: Mapping[str, str]
    depends_on: Sequence[str]
    need: int
    on_failure: Literal["fail", "continue"]


class BatchFields(TypedDict, total=False):
    """Of POST /v1/batches beside input_file_id and endpoint."""

    completion_window: str
    metadata: Mapping[str, str] | None
    output_expires_after: Mapping[str, Any] | None
