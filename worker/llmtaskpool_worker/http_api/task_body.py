"""The body of a task: its fields, and what else must hold of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.execution.references import RESULT, referred
from llmtaskpool_worker.http_api.counting import count_keys
from llmtaskpool_worker.http_api.errors import from_validation, invalid
from llmtaskpool_worker.scheduling.task import Dependencies

PARENTS_MAX = 100

_Seconds = Annotated[float, Field(strict=True, gt=0, le=86_400, allow_inf_nan=False)]
_Key = Annotated[str, Field(strict=True, min_length=1, max_length=256)]
_Label = Annotated[str, Field(strict=True, max_length=256)]


class TaskBody(BaseModel):
    """The body of POST /v1/tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Annotated[str, Field(strict=True, min_length=1, max_length=128)] = Field(
        description="the kind of task: chat, generate, embed, or a kind that is registered here"
    )
    model: Annotated[str, Field(strict=True, min_length=1, max_length=256)] | None = Field(
        None, description="the name of a model that /v1/models lists"
    )
    input: Any = Field(
        None, description="for chat its messages, for generate and embed a text or token ids"
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="an object: sampling fields for chat and generate, else what the kind reads",
    )
    weight: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = Field(
        None, gt=0, le=1e6, description="a number above 0, 1 is ordinary, more goes earlier"
    )
    deadline_seconds: _Seconds | None = Field(
        None, description="the most seconds it may wait to be started, above 0, at most 86400"
    )
    timeout_seconds: _Seconds | None = Field(
        None, description="the most seconds it may run, above 0, at most 86400"
    )
    idempotency_key: _Key | None = Field(None, description="a text of 1 to 256 letters")
    labels: Annotated[dict[_Key, _Label], Field(max_length=32)] = Field(
        default_factory=dict, description="an object of at most 32 short texts by name"
    )
    depends_on: Annotated[list[_Key], Field(max_length=PARENTS_MAX)] = Field(
        default_factory=list, description="a list of at most 100 ids of tasks that must end first"
    )
    need: Annotated[int, Field(strict=True, ge=1, le=PARENTS_MAX)] | None = Field(
        None, description="how many of them must succeed; all when left out"
    )
    on_failure: Literal["fail", "continue"] = Field(
        "fail", description="fail, or continue: it runs when all have ended, however"
    )


def task_of(body: Mapping[str, Any]) -> TaskBody:
    """A body with its fields checked. Raises ApiError."""
    count_keys(body, "body")
    count_keys(body.get("labels"), "labels")
    try:
        return TaskBody.model_validate({k: v for k, v in body.items() if v is not None})
    except ValidationError as error:
        raise from_validation(error, TaskBody) from None


def dependencies_of(task: TaskBody) -> Dependencies | None:
    """What a task waits for. Raises ApiError."""
    parents = tuple(task.depends_on)
    for name in sorted(referred(task.arguments)):
        if name not in parents:
            raise invalid(
                "depends_on",
                f"arguments asks for the result of {shown(name)} by {RESULT}: name it in "
                "depends_on.",
            )
    if not parents:
        if task.need is not None:
            raise invalid("need", "need can't be used without depends_on: name the tasks there.")
        return None
    twice = next((name for name in parents if parents.count(name) > 1), None)
    if twice is not None:
        raise invalid("depends_on", f"depends_on names {shown(twice)} twice: name it once.")
    if task.need is not None and task.need > len(parents):
        raise invalid("need", f"need is {task.need}, and depends_on names {len(parents)}.")
    return Dependencies(parents, task.need, task.on_failure)
