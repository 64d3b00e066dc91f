"""``llmtaskpool wait``: until tasks have ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated

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
from llmtaskpool_operator.workers.tasks import ENDED, Tasks


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
            task = tasks.look(task_id)
            while task["state"] not in ENDED and (left := deadline - time.monotonic()) > 0:
                task = tasks.look(task_id, wait_seconds=left)
            found.append(task)
            bar.advance(ended)
    show(found, output)
    states = {task["state"] for task in found}
    if not states <= ENDED:
        return TIMED_OUT
    return 0 if states <= {"succeeded"} else FAILED
