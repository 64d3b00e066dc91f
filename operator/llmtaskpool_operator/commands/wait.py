"""``llmtaskpool wait``: until tasks have ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
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

AWAY = (429, 502, 503, 504)
AGAIN_SECONDS = 0.5
"""After this time somebody is asked again who was away."""


def wait(
    ids: Annotated[list[str], typer.Argument(help="Ids of tasks.")],
    timeout: Annotated[float, typer.Option(min=0, help="At most so many seconds.")] = 3600.0,
    url: Url = URL,
    output: Output = "text",
) -> None:
    """Wait until these tasks have ended, with a bar for how many have.

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


def wait_for(tasks: Tasks, ids: Sequence[str], timeout: float, output: str) -> int:
    """The exit code of having waited for these tasks, which are shown."""
    from rich.console import Console
    from rich.progress import Progress

    deadline = time.monotonic() + timeout
    found = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        ended = bar.add_task("tasks", total=len(ids))
        for task_id in ids:
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
