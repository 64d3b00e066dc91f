"""What an engine's loop answers, gathered."""

from __future__ import annotations

from typing import Any

from llmtaskpool_worker.engines.one_pass.loop import OnePassLoop
from llmtaskpool_worker.engines.protocol import Step


def told(loop: OnePassLoop) -> dict[int, Any]:
    """The last event of each request by its id, once the loop has nothing more to do."""
    found = {}
    while loop.busy():
        for event in loop.step():
            if not isinstance(event, Step):
                found[event.id] = event
    return found
