"""An engine's steps, run as nice as it was told.

A thread may become nicer and not less so again (setpriority(2), without CAP_SYS_NICE). So each
level has a thread of its own, made when it is first asked for. It is torch's own business that its
threads are the caller's: those of a team that a nice thread starts are as nice.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class NiceSteps:
    """Runs one step after the other; the caller waits for each."""

    def __init__(self, cores: int) -> None:
        """``cores``: threads of torch that each step may use."""
        self._cores = cores
        self.level = 0
        """The next step is so much nicer than this process."""
        self._threads: dict[int, ThreadPoolExecutor] = {}

    def run(self, step: Callable[[], T]) -> T:
        """What ``step`` returns or raises."""
        if not self.level:
            return step()
        thread = self._threads.get(self.level)
        if thread is None:
            thread = self._threads[self.level] = ThreadPoolExecutor(
                1, f"nice-{self.level}", initializer=_be_nice, initargs=(self.level, self._cores)
            )
        return thread.submit(step).result()


def own_niceness() -> int:
    """Of this thread; 0 where there is no such thing."""
    try:
        return os.getpriority(os.PRIO_PROCESS, 0)  # on Linux 0 is the thread that asks
    except (OSError, AttributeError):
        return 0


def _be_nice(level: int, cores: int) -> None:
    """Of this thread alone, as Linux has it; elsewhere nobody is nicer."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(cores)  # a new thread has what was set last, by whichever thread
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), own_niceness() + level)
