from __future__ import annotations

from llmtaskpool_worker.scheduling.scheduler import Expire, Start, schedule
from llmtaskpool_worker.scheduling.task_queue import TaskQueue, Waiting


def queue_of(*items: Waiting) -> TaskQueue:
    queue = TaskQueue(load=lambda _: 1.0, max_tasks=99, max_bytes=99, ageing_seconds=99.0)
    for item in items:
        queue.push(item)
    return queue


def waiting(name: str, group: str, weight: float = 1.0, expires_at: float = 99.0) -> Waiting:
    return Waiting(name, group, 0, weight, 0.0, expires_at)


def test_no_more_start_than_there_are_threads_and_the_most_urgent_do() -> None:
    queue = queue_of(waiting("a", "m"), waiting("b", "m", 3.0), waiting("c", "m", 2.0))
    started = schedule(queue, 2, lambda _: 9, 1.0)
    assert [(type(d), d.task.id) for d in started] == [(Start, "b"), (Start, "c")]
    assert [item.id for item in queue] == ["a"]
    assert schedule(queue, 0, lambda _: 9, 1.0) == []


def test_a_model_without_slots_holds_up_no_other() -> None:
    queue = queue_of(waiting("a", "full", 9.0), waiting("b", "one"), waiting("c", "one"))
    started = schedule(queue, 3, {"full": 0, "one": 1}.__getitem__, 1.0)  # type: ignore[arg-type]  # no None here
    assert [d.task.id for d in started] == ["b"]


def test_what_waited_too_long_expires_and_takes_no_thread() -> None:
    queue = queue_of(waiting("late", "m", 9.0, expires_at=1.0), waiting("b", "m"))
    decided = schedule(queue, 1, lambda _: 9, 1.0)
    assert [(type(d), d.task.id) for d in decided] == [(Expire, "late"), (Start, "b")]
