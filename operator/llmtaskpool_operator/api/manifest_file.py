"""From a pool file, or any object, to a valid pool: one line for each fault.

Each line names the field, its value and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.api.pool import LLMTaskPool, LLMTaskPoolSpec

FILE_BYTES_MAX = 1024 * 1024


class BadPool(Exception):
    """The pool can't be made; ``faults`` has one line for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


def pool_from_file(path: Path) -> LLMTaskPool:
    """The LLMTaskPool in a YAML or JSON file. Raises BadPool."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise BadPool([f"--pool {path}: more than {FILE_BYTES_MAX} bytes: is it a pool file?"])
        documents = [d for d in yaml.safe_load_all(path.read_text("utf-8")) if d is not None]
    except OSError as error:
        raise BadPool([f"--pool {path}: {error.strerror}: name a file that exists"]) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark is not None else ""
        raise BadPool([f"--pool {path}: no YAML{place}: mend it there"]) from None
    pools = [d for d in documents if isinstance(d, dict) and d.get("kind") == KIND]
    if len(pools) != 1:
        raise BadPool(
            [f"--pool {path}: {len(pools)} objects of kind {KIND} in it: it must hold one"]
        )
    return parse_pool(pools[0])


def parse_pool(raw: dict[str, Any]) -> LLMTaskPool:
    """A validated pool. Raises BadPool with one line for each fault."""
    try:
        return LLMTaskPool.model_validate(raw)
    except ValidationError as error:
        raise BadPool([_fault(dict(one)) for one in error.errors(include_url=False)]) from None


def parse_spec(raw: dict[str, Any]) -> LLMTaskPoolSpec:
    """A validated spec, whose faults begin with ``spec``. Raises BadPool."""
    try:
        return LLMTaskPoolSpec.model_validate(raw)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise BadPool([_fault({**one, "loc": ("spec", *one["loc"])}) for one in found]) from None


def _fault(error: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "pool"
    message = str(error["msg"]).removeprefix("Value error, ")
    remedies = {
        "missing": "add it",
        "extra_forbidden": "there is no such field: remove it or correct its name",
    }
    if error["type"] in remedies:
        return f"{place}: {message}: {remedies[error['type']]}"
    if isinstance(error["input"], dict | list):
        return f"{place}: {message}"
    shown = repr(error["input"])
    return f"{place}: {shown if len(shown) <= 80 else shown[:77] + '...'}: {message}"
