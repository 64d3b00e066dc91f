"""What the engine process drives: one model's loop, on one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitEmbedding,
    AdmitInputs,
    AdmitSound,
    Cancel,
    FromEngine,
    Park,
    Ready,
    Resume,
    SetThreads,
    Trim,
)

LoopMessage = (
    Admit | AdmitSound | AdmitEmbedding | AdmitInputs | Cancel | Park | Resume | SetThreads | Trim
)


class EngineLoop(Protocol):
    """One loaded model. One call at a time; none of them blocks but ``step``.

    All are from one thread but ``step``, which is run by another when it is to be nice.
    """

    def ready(self) -> Ready:
        """What was loaded."""

    def accept(self, message: LoopMessage) -> list[FromEngine]:
        """Take a message in; a request that can't be run is answered at once."""

    def busy(self) -> bool:
        """Whether ``step`` has something to do."""

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each layer of each step from now on: a long step is no hung one."""

    def step(self) -> list[FromEngine]:
        """One step for all running requests. An exception here means: trust nothing any more."""
