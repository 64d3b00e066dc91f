"""``llmtaskpool wait``: until tasks have ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from llmtaskpool import Client, PoolError, Refused, Task, WaitTimeout

from llmtaskpool_operator.commands.task_output import (
    FAILED,
    TIMED_OUT,
    URL,
    Output,
    Url,
    asking,
    show,
)

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
    with asking("wait", url, output) as client:
        raise typer.Exit(wait_for(client, ids, timeout, output))


def _graph(
    client: Client, graph_id: str, deadline: float, shown: Callable[[Mapping[str, Any]], None]
) -> list[Task]:
    """The tasks of a graph in the order of their ends, and those that have none in time.

    A stream that breaks off is opened again: it begins with what has ended already.
    """
    found: dict[str, Task] = {}
    while True:
        silent = max(0.05, deadline - time.monotonic())
        try:
            for event in client.graph_events(graph_id, silent):
                if event.task is not None:
                    found[event.name] = event.task
                elif event.progress is not None:
                    shown(event.progress)
                if event.over:
                    return [*found.values()]
                left = deadline - time.monotonic()
                if left <= 0 or left < LAST_SECONDS < silent:
                    break  # signs of life must not hide that the time is over
        except PoolError as away:
            passes = not isinstance(away, Refused) or away.status in AWAY
            if not passes or deadline - time.monotonic() < AGAIN_SECONDS:
                raise
            time.sleep(AGAIN_SECONDS)
        if time.monotonic() >= deadline:
            rest = client.get_graph(graph_id).tasks.values()
            return [*found.values(), *(task for task in rest if not task.ended)]


def wait_for(client: Client, ids: Sequence[str], timeout: float, output: str) -> int:
    """The exit code of having waited for these tasks, which are shown."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    deadline = time.monotonic() + timeout
    found: list[Task] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        ended = bar.add_task("tasks", total=len(ids))
        for task_id in ids:
            if task_id.startswith(GRAPH):
                graph = bar.add_task(task_id, total=None)

                def shown(told: Mapping[str, Any], graph: TaskID = graph) -> None:
                    bar.update(graph, total=told["total"], completed=told["ended"])

                found += _graph(client, task_id, deadline, shown)
                bar.advance(ended)
                continue
            try:
                found.append(client.wait(task_id, max(0.0, deadline - time.monotonic())))
            except WaitTimeout as late:
                found.append(late.last)
            bar.advance(ended)
    show(found, output)
    if not all(task.ended for task in found):
        return TIMED_OUT
    return 0 if all(task.state == "succeeded" for task in found) else FAILED
