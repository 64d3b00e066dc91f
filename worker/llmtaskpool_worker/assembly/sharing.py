"""What each of several engines in one worker gets of its processors and its memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmtaskpool_worker.engines.processors import own_processors, part, processors
from llmtaskpool_worker.engines.protocol import ModelSpec


def shared_out(specs: Sequence[ModelSpec], cores: int, own: Sequence[int]) -> list[ModelSpec]:
    """The models with their parts among their options; what a model says itself stays.

    ``cores`` is how many threads may compute at once, ``own`` the processors that are this
    worker's alone. Servers of others compute elsewhere.
    """
    ours = [spec.name for spec in specs if not spec.forwards]
    return [
        spec if spec.forwards else _with_part(spec, ours.index(spec.name), len(ours), cores, own)
        for spec in specs
    ]


def _with_part(spec: ModelSpec, number: int, of: int, cores: int, own: Sequence[int]) -> ModelSpec:
    begin, end = part(cores, number, of)
    options: dict[str, Any] = {"most_threads": end - begin}
    if of > 1:
        options["memory_share"] = 1 / of
    if own and "torch_threads" not in spec.options:
        first, last = part(len(own), number, of)
        options["processors"] = list(own[first:last])
        options["most_threads"] = min(end - begin, last - first)
    return replace(spec, options=options | spec.options)


def cores() -> int:
    """How many threads may compute at once: what the environment says of OpenMP bounds it too."""
    told = os.environ.get("OMP_NUM_THREADS", "").strip()
    return min(processors(), max(1, int(told))) if told.isdecimal() else processors()


def on_this_machine(specs: Sequence[ModelSpec]) -> list[ModelSpec]:
    """The models with their parts of what this worker may use here."""
    return shared_out(specs, cores(), own_processors())
