"""``llmtaskpool wait``: until tasks have ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from llmtaskpool_operator.commands.task_output import (
    FAILED,
    TIMED_OUT,
    URL,
    Output,
    Url,
    asking,
    show,
)
from llmtaskpool_operator.workers.tasks import ENDED, Refused, Tasks, Unreachable

GRAPH = "graph-"
"""Begins the ids of graphs."""
LAST_SECONDS = 20.0
"""Silent streams give signs of life more often than this."""
AWAY = (429, 502, 503, 504)
AGAIN_SECONDS = 0.5
"""After this time somebody is asked again who was away."""


def wait(
    ids: Annotated[list[str], typer.Argument(help="Ids of tasks, and of graphs.")],
    timeout: Annotated[float, typer.Option(min=0, help="At most so many seconds.")] = 3600.0,
    url: Url = URL,
    output: Output = "text",
) -> None:
    """Wait until these tasks have ended, and all tasks of these graphs, with a bar for how many.

    Ends with 0 when all succeeded, 1 when one did not, 3 when one is unknown, 124 when it took
    too long. With --output json their results are printed.
    """
    with asking("wait", url, output) as tasks:
        raise typer.Exit(wait_for(tasks, ids, timeout, output))


def _look(tasks: Tasks, task_id: str, seconds: float, deadline: float) -> dict[str, Any]:
    """Look at a task; a pool that is away for a moment is waited for as long as the task is."""
    while True:
        try:
            return tasks.look(task_id, wait_seconds=seconds)
        except (Unreachable, Refused) as away:
            passes = not isinstance(away, Refused) or away.status in AWAY
            if not passes or deadline - time.monotonic() < AGAIN_SECONDS:
                raise
        time.sleep(AGAIN_SECONDS)


def _follow(
    tasks: Tasks, graph_id: str, deadline: float, shown: Callable[[dict[str, Any]], None]
) -> tuple[list[dict[str, Any]], bool]:
    """The tasks of a graph that have ended, in their order, and whether all of them have.

    A stream that breaks off is opened again: it begins with what has ended already.
    """
    found: dict[str, dict[str, Any]] = {}
    while True:
        silent = max(0.05, deadline - time.monotonic())
        try:
            for name, data in tasks.graph_events(graph_id, silent):
                if name == "task":
                    found[data["name"]] = data["task"] | {"name": data["name"]}
                elif name:
                    shown(data)
                if name == "end":
                    return [*found.values()], True
                left = deadline - time.monotonic()
                if left <= 0 or left < LAST_SECONDS < silent:
                    break  # signs of life must not hide that the time is over
        except (Unreachable, Refused) as away:
            passes = not isinstance(away, Refused) or away.status in AWAY
            if not passes or deadline - time.monotonic() < AGAIN_SECONDS:
                raise
            time.sleep(AGAIN_SECONDS)
        if time.monotonic() >= deadline:
            return [*found.values()], False


def _not_ended(tasks: Tasks, graph_id: str) -> list[dict[str, Any]]:
    """Those tasks of a graph that have not."""
    every = tasks.graph(graph_id)["tasks"].items()
    return [task | {"name": name} for name, task in every if task["state"] not in ENDED]


def wait_for(tasks: Tasks, ids: Sequence[str], timeout: float, output: str) -> int:
    """The exit code of having waited for these tasks, which are shown."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    deadline = time.monotonic() + timeout
    found: list[dict[str, Any]] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        ended = bar.add_task("tasks", total=len(ids))
        for task_id in ids:
            if task_id.startswith(GRAPH):
                graph = bar.add_task(task_id, total=None)

                def shown(told: dict[str, Any], graph: TaskID = graph) -> None:
                    bar.update(graph, total=told["total"], completed=told["ended"])

                tasks_of, over = _follow(tasks, task_id, deadline, shown)
                found += tasks_of if over else [*tasks_of, *_not_ended(tasks, task_id)]
                bar.advance(ended)
                continue
            task = _look(tasks, task_id, 0.0, deadline)
            while task["state"] not in ENDED and (left := deadline - time.monotonic()) > 0:
                task = _look(tasks, task_id, left, deadline)
            found.append(task)
            bar.advance(ended)
    show(found, output)
    states = {task["state"] for task in found}
    if not states <= ENDED:
        return TIMED_OUT
    return 0 if states <= {"succeeded"} else FAILED
