"""asyncio with a clock that jumps: hours of waiting are over at once, and in the same order."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time goes on only when everybody waits, and then to the moment of the first timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        select = self._selector.select

        def jump(timeout: float | None) -> Any:
            ready = select(0)
            if not ready and timeout is None:
                raise AssertionError("everybody waits, and nobody will ever wake them")
            if not ready and timeout > 0:
                self.now += timeout
            return ready

        self._selector.select = jump

    def time(self) -> float:
        return self.now


def clock() -> float:
    """The running loop's time, as a clock for what is tested."""
    return asyncio.get_running_loop().time()


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """As asyncio.run, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
