"""``llmtaskpool wait``: until tasks have ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer
from llmtaskpool import Client, Task, WaitTimeout

from llmtaskpool_operator.commands.task_output import (
    FAILED,
    TIMED_OUT,
    URL,
    Output,
    Url,
    asking,
    show,
)


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
    with asking("wait", url, output) as client:
        raise typer.Exit(wait_for(client, ids, timeout, output))


def wait_for(client: Client, ids: Sequence[str], timeout: float, output: str) -> int:
    """The exit code of having waited for these tasks, which are shown."""
    from rich.console import Console
    from rich.progress import Progress

    deadline = time.monotonic() + timeout
    found: list[Task] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        ended = bar.add_task("tasks", total=len(ids))
        for task_id in ids:
            try:
                found.append(client.wait(task_id, max(0.0, deadline - time.monotonic())))
            except WaitTimeout as late:
                found.append(late.last)
            bar.advance(ended)
    show(found, output)
    if not all(task.ended for task in found):
        return TIMED_OUT
    return 0 if all(task.state == "succeeded" for task in found) else FAILED
