"""What to start and what to give up on, now: the whole of the scheduling, on one screen.

Pure: the queue orders (task_queue.py), this file counts slots, the dispatcher applies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmtaskpool_worker.scheduling.task_queue import TaskQueue, Terms, Waiting


@dataclass(frozen=True, slots=True)
class Start:
    """Decision: the task leaves the queue and takes one thread of the lane, one of its group."""

    task: Waiting


@dataclass(frozen=True, slots=True)
class Expire:
    """Decision: the task waited as long as it may and is never started."""

    task: Waiting


Decision = Start | Expire


def schedule(
    queue: TaskQueue,
    free_threads: int,
    free_of_group: Callable[[str | None], int],
    now: float,
    terms: Terms | None = None,
) -> list[Decision]:
    """Decide for one lane.

    ``free_threads`` is N less what runs; ``free_of_group(name)`` the slots a model or kind has
    left (0 while its engine is not ready). A group without slots never holds up the others.
    Decided tasks have left the queue.
    """
    decisions: list[Decision] = [Expire(task) for task in queue.expired(now)]
    taken: dict[str | None, int] = {}
    for _ in range(min(free_threads, len(queue))):
        task = queue.take(now, lambda name: free_of_group(name) > taken.get(name, 0), terms)
        if task is None:
            break
        taken[task.group] = taken.get(task.group, 0) + 1
        decisions.append(Start(task))
    return decisions
