"""The one-pass loop over a head, within what memory its engine may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from llmtaskpool_worker.engines.admission import held_now
from llmtaskpool_worker.engines.memory_plan import memory_budget, step_room
from llmtaskpool_worker.engines.one_pass.head import Head
from llmtaskpool_worker.engines.one_pass.loop import OnePassLoop
from llmtaskpool_worker.engines.resident import give_back, trim_heap


def planned(
    head: Head, device: torch.device, *, threads: int, options: Mapping[str, Any]
) -> OnePassLoop:
    """``head`` is loaded; ``options``: max_threads, memory_bytes, memory_share.

    Raises ModelRefused where nothing fits beside its weights.
    """
    trim_heap()
    held = held_now(device)
    held = replace(held, step=head.fit_into(step_room(options, held)))
    give_back()
    return OnePassLoop(
        head,
        threads=threads,
        max_threads=int(options.get("max_threads", 256)),
        memory_budget_bytes=memory_budget(options, held, 0),
    )
